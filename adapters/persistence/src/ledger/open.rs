//! Looks at what is open in a partition.

use application::ports::{Due, Past};
use domain::{GatewayName, Message, PhoneNumber};
use sea_orm::FromQueryResult;

use crate::database::{Database, DatabaseError, Parameters, Sql, parsed, readable};

/// Returns the phones with open entries, and how many each has.
pub(super) async fn phones(
    database: &Database,
    parameters: Parameters,
) -> Result<Vec<(PhoneNumber, usize)>, DatabaseError> {
    static OPEN: Sql = Sql::new(
        "
SELECT phone, count(*) AS entries
FROM delivery
WHERE group_id = :group AND topic = :topic AND partition = :partition
  AND state IN ('pending', 'calling')
GROUP BY phone",
    );

    #[derive(FromQueryResult)]
    struct Row {
        phone: String,
        entries: i64,
    }

    let read = |row: Row| -> Result<_, DatabaseError> {
        let entries = usize::try_from(row.entries).map_err(|_| DatabaseError::not("a number"))?;
        Ok((parsed(&row.phone, "a phone")?, entries))
    };
    database.readable_rows(&OPEN, parameters, read).await
}

#[derive(FromQueryResult)]
struct Row {
    #[sea_orm(nested)]
    due: Option<DueRow>,
}

#[derive(FromQueryResult)]
struct DueRow {
    id: String,
    phone: String,
    code: String,
    trace: Option<String>,
    attempt: i32,
    interrupted: bool,
    expired: bool,
    /// The gateway of the call in progress.
    gateway: Option<String>,
    maybe_taken: Option<String>,
    /// The gateways of recorded calls, separated by spaces.
    tried: Option<String>,
    /// The gateways that do not deliver to the number, separated by spaces.
    unroutable: Option<String>,
    /// Whether an ambiguous call of an earlier version, which recorded no gateway, is among them.
    has_unnamed: Option<bool>,
}

/// Returns the oldest entries of phones whose oldest is due; nothing if the lease is lost.
pub(super) async fn due(
    database: &Database,
    parameters: Parameters,
) -> Result<Option<Vec<Due>>, DatabaseError> {
    let rows = database.raw_rows(&DUE, parameters).await?;
    if rows.is_empty() {
        return Ok(None);
    }
    let due = readable(&rows, |row: Row| row.due.map(DueRow::due).transpose());
    Ok(Some(due.into_iter().flatten().collect()))
}

impl DueRow {
    fn due(self) -> Result<Due, DatabaseError> {
        let past = self.past()?;
        Ok(Due {
            message: Message {
                id: parsed(&self.id, "an id")?,
                phone: parsed(&self.phone, "a phone")?,
                code: parsed(&self.code, "a code")?,
            },
            trace: self.trace.and_then(|trace| trace.parse().ok()),
            interrupted: self.interrupted,
            expired: self.expired,
            past,
        })
    }

    fn past(&self) -> Result<Past, DatabaseError> {
        let attempts = self.attempt.cast_unsigned();
        let mut past = Past {
            attempts,
            tried: names(self.tried.as_deref())?,
            unroutable: names(self.unroutable.as_deref())?,
            ..Past::default()
        };
        for gateway in names(self.maybe_taken.as_deref())? {
            past.may_have(gateway);
        }
        if self.has_unnamed == Some(true) {
            past.may_have(GatewayName::default());
        }
        if self.interrupted {
            let gateway = self.gateway.as_deref().unwrap_or(GatewayName::DEFAULT);
            let gateway: GatewayName = parsed(gateway, "a gateway")?;
            past.tried.push(gateway.clone());
            past.may_have(gateway);
        }
        Ok(past)
    }
}

fn names(text: Option<&str>) -> Result<Vec<GatewayName>, DatabaseError> {
    let names = text.unwrap_or_default().split_whitespace();
    names.map(|name| parsed(name, "a gateway")).collect()
}

// The earlier calls are read only for the entries that are returned, and only if there were calls.
static DUE: Sql = Sql::pair(
    "
WITH lease AS (
    SELECT 1
    FROM partition_lease
    WHERE group_id = :group AND topic = :topic AND partition = :partition AND owner = :owner
      AND epoch = :epoch
), oldest AS (
    SELECT DISTINCT ON (phone COLLATE \"C\")
        message_id, phone, code, trace, attempt, place,
        due_at <= now() OR (state = 'calling' AND epoch = :epoch) AS due,
        state = 'calling' AND epoch IS DISTINCT FROM :epoch AS interrupted,
        expires_at <= now() AS expired
    FROM delivery
    WHERE group_id = :group AND topic = :topic AND partition = :partition
      AND state IN ('pending', 'calling')
    ORDER BY phone COLLATE \"C\", place
), due AS (
    SELECT *, attempt > 0 AND NOT expired AS again
    FROM oldest
    WHERE due
    ORDER BY again, place
    LIMIT :limit
)
SELECT due.message_id::text AS id, phone, code, trace, attempt, interrupted, expired, past.*
FROM lease
    LEFT JOIN due ON true
    LEFT JOIN LATERAL (
        SELECT gateway, maybe_taken, tried, unroutable, has_unnamed
        FROM delivery CROSS JOIN LATERAL (
            SELECT string_agg(coalesce(made ->> 'gateway', 'default'), ' ' ORDER BY number) AS tried,
                string_agg(coalesce(made ->> 'gateway', 'default'), ' ')
                    FILTER (WHERE made ->> 'outcome' = 'unroutable') AS unroutable,
                bool_or(made ->> 'outcome' = 'ambiguous' AND NOT made ? 'gateway') AS has_unnamed
            FROM jsonb_array_elements(attempts) WITH ORDINALITY AS calls (made, number)
        ) AS calls
        WHERE due.attempt > 0 AND group_id = :group AND message_id = due.message_id
    ) AS past ON true
ORDER BY again, place",
    "
WITH lease AS (
    SELECT 1
    FROM partition_lease
    WHERE group_id = :group AND topic = :topic AND partition = :partition AND owner = :owner
      AND epoch = :epoch
), clock AS (
    SELECT {now} AS now
), oldest AS (
    SELECT message_id AS id, phone, code, trace, attempt, expires_at, min(place) AS place, gateway,
        maybe_taken, attempts, due_at <= now OR (state = 'calling' AND epoch = :epoch) AS due,
        state = 'calling' AND epoch IS NOT :epoch AS interrupted
    FROM clock CROSS JOIN delivery
    WHERE group_id = :group AND topic = :topic AND partition = :partition
      AND state IN ('pending', 'calling')
    GROUP BY phone
), due AS (
    SELECT *, expires_at <= now AS expired, attempt > 0 AND expires_at > now AS again
    FROM clock, oldest
    WHERE due
    ORDER BY again, place
    LIMIT :limit
)
SELECT id, phone, code, trace, attempt, interrupted, expired, gateway, maybe_taken,
    (SELECT group_concat(coalesce(value ->> 'gateway', 'default'), ' ') FROM json_each(attempts))
        AS tried,
    (
        SELECT group_concat(coalesce(value ->> 'gateway', 'default'), ' ')
        FROM json_each(attempts)
        WHERE value ->> 'outcome' = 'unroutable'
    ) AS unroutable,
    (
        SELECT max(value ->> 'outcome' = 'ambiguous' AND value ->> 'gateway' IS NULL)
        FROM json_each(attempts)
    ) AS has_unnamed
FROM lease LEFT JOIN due ON true
ORDER BY again, place",
);
