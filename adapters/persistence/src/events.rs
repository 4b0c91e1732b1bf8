use std::time::Duration;

use application::ports::{DueEvent, EventClaim, EventKind, EventOutbox, StoreError};
use autometrics::autometrics;
use domain::{Metadata, Origin, PhoneNumber, VerificationId};
use sea_orm::{DbErr, QueryResult};

use crate::database::{Database, Sql, Told, millis, parsed, time};

/// Events that others are still to be told of.
#[derive(Debug, Clone)]
pub struct SqlEventOutbox {
    database: Database,
}

impl SqlEventOutbox {
    pub fn new(database: Database) -> Self {
        Self { database }
    }
}

impl EventOutbox for SqlEventOutbox {
    #[autometrics(struct_name = "SqlEventOutbox")]
    async fn claim(&self, limit: usize, lease: Duration) -> Result<Vec<DueEvent>, StoreError> {
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let values = vec![limit.into(), millis(lease).into()];
        let claimed = self.database.rows(CLAIM, values).await.map_err(Told)?;
        // A row that makes no sense was written by somebody else; it must not hold up the others.
        let readable = |row: &QueryResult| {
            read(row).inspect_err(|error| tracing::error!(%error, "unreadable event")).ok()
        };
        let mut events: Vec<DueEvent> = claimed.iter().filter_map(readable).collect();
        // `RETURNING` promises no order.
        events.sort_unstable_by_key(|event| event.claim.sequence);
        Ok(events)
    }

    #[autometrics(struct_name = "SqlEventOutbox")]
    async fn settle(&self, event: &EventClaim) -> Result<(), StoreError> {
        let values = vec![event.sequence.into(), event.attempt.cast_signed().into()];
        self.database.execute(SETTLE, values).await.map_err(Told)?;
        Ok(())
    }

    #[autometrics(struct_name = "SqlEventOutbox")]
    async fn retry(&self, event: &EventClaim, after: Duration) -> Result<(), StoreError> {
        let values =
            vec![event.sequence.into(), event.attempt.cast_signed().into(), millis(after).into()];
        self.database.execute(RETRY, values).await.map_err(Told)?;
        Ok(())
    }
}

/// Tells how messages ended, in the statement of PostgreSQL that ends them: `ended` has their `id`
/// and `state`.
///
/// An id without its last byte is that of the verification; messages that are none of ours have
/// none. A message fails once: with the entry of the first group that ends so, and not where it has
/// been sent by another or a receipt came before. Two that end in the same moment do not see each
/// other; so the event has the id of its message, by which whoever hears it twice knows it again.
pub(crate) const TELL_POSTGRES: &str = ", told AS (
    INSERT INTO event (id, kind, verification, delivery)
    SELECT CASE ended.state WHEN 'sent' THEN gen_random_uuid() ELSE ended.id END,
        CASE ended.state WHEN 'sent' THEN 'sent' ELSE 'failed' END, verification.id, ended.state
    FROM ended CROSS JOIN LATERAL (
        SELECT id FROM verification WHERE id = (left(ended.id::text, 34) || '00')::uuid OFFSET 0
    ) AS verification
    -- counted, as PostgreSQL 18 would read all there are to know which exist
    WHERE ended.state = 'sent' OR (
        SELECT count(*)
        FROM delivery AS known
        WHERE known.message_id = ended.id
          AND coalesce(known.ended_at, known.delivered_at, known.undelivered_at) IS NOT NULL
    ) = 0
)
";

/// The same in SQLite, after a statement that has ended `$1`, a list of ids and states, in the
/// ledger of group `$2`.
pub(crate) const TELL_SQLITE: &str = "
INSERT INTO event (id, kind, verification, delivery, at, due_at)
SELECT
    CASE ended.state WHEN 'sent' THEN lower(hex(randomblob(16))) ELSE replace(ended.id, '-', '') END,
    CASE ended.state WHEN 'sent' THEN 'sent' ELSE 'failed' END, verification.id, ended.state,
    now, now
FROM (SELECT value ->> 0 AS id, value ->> 1 AS state FROM json_each($1)) AS ended
    CROSS JOIN (SELECT CAST(round(unixepoch('subsec') * 1000) AS INTEGER) AS now)
    CROSS JOIN verification
WHERE verification.id = substr(ended.id, 1, 34) || '00'
  AND (ended.state = 'sent' OR NOT EXISTS (
      SELECT 1
      FROM delivery AS known
      WHERE known.message_id = ended.id
        AND (known.group_id <> $2 AND known.ended_at IS NOT NULL
             OR coalesce(known.delivered_at, known.undelivered_at) IS NOT NULL)
  ))";

// By when they are due, so that those that wait for another try are not read each time.
const CLAIM: Sql = Sql {
    postgres: "
WITH due AS (
    SELECT sequence
    FROM event
    WHERE due_at <= now()
    ORDER BY due_at, sequence
    LIMIT $1
    FOR UPDATE SKIP LOCKED
), claimed AS (
    UPDATE event
    SET attempt = attempt + 1, due_at = now() + $2 * interval '1 millisecond'
    WHERE sequence = ANY (ARRAY(SELECT sequence FROM due))
    RETURNING *
)
SELECT claimed.sequence, attempt, replace(claimed.id::text, '-', '') AS id, kind,
    (extract(epoch FROM at) * 1000)::bigint AS at,
    (extract(epoch FROM now()) * 1000)::bigint AS claimed_at,
    claimed.verification::text AS verification, claimed.phone AS masked, delivery,
    verification.phone, verification.metadata, verification.origin
FROM claimed LEFT JOIN verification ON verification.id = claimed.verification",
    sqlite: "
UPDATE event
SET attempt = attempt + 1, due_at = clock.now + $2
FROM (SELECT CAST(round(unixepoch('subsec') * 1000) AS INTEGER) AS now) AS clock
WHERE sequence IN (
    SELECT sequence
    FROM event
    WHERE due_at <= CAST(round(unixepoch('subsec') * 1000) AS INTEGER)
    ORDER BY due_at, sequence
    LIMIT $1
)
RETURNING sequence, attempt, id, kind, at,
    CAST(round(unixepoch('subsec') * 1000) AS INTEGER) AS claimed_at,
    verification, phone AS masked, delivery,
    (SELECT verification.phone FROM verification WHERE verification.id = event.verification)
        AS phone,
    (SELECT metadata FROM verification WHERE verification.id = event.verification) AS metadata,
    (SELECT origin FROM verification WHERE verification.id = event.verification) AS origin",
};

const SETTLE_SQL: &str = "DELETE FROM event WHERE sequence = $1 AND attempt = $2";
const SETTLE: Sql = Sql { postgres: SETTLE_SQL, sqlite: SETTLE_SQL };

const RETRY: Sql = Sql {
    postgres: "
UPDATE event
SET due_at = now() + $3 * interval '1 millisecond'
WHERE sequence = $1 AND attempt = $2",
    sqlite: "
UPDATE event
SET due_at = CAST(round(unixepoch('subsec') * 1000) AS INTEGER) + $3
WHERE sequence = $1 AND attempt = $2",
};

fn read(row: &QueryResult) -> Result<DueEvent, DbErr> {
    let texts = |column| row.try_get::<Option<String>>("", column);
    let attempt: i32 = row.try_get("", "attempt")?;
    let kind: String = row.try_get("", "kind")?;
    let kind = EventKind::ALL.into_iter().find(|known| known.as_str() == kind);
    let phone =
        texts("phone")?.map(|phone| parsed::<PhoneNumber>(&phone, "a phone")).transpose()?;
    let verification = texts("verification")?.map(|id| parsed(&id, "an id")).transpose()?;
    Ok(DueEvent {
        claim: EventClaim {
            sequence: row.try_get("", "sequence")?,
            attempt: attempt.cast_unsigned(),
        },
        id: row.try_get("", "id")?,
        kind: kind.ok_or_else(|| DbErr::Type("not a kind of event".to_owned()))?,
        at: time(row.try_get("", "at")?),
        claimed_at: time(row.try_get("", "claimed_at")?),
        verification: verification.map(VerificationId::from_uuid),
        phone: phone.map(|phone| phone.masked()).or(texts("masked")?),
        metadata: texts("metadata")?.map(Metadata::new),
        test: texts("origin")?.as_deref() == Some(Origin::Test.as_str()),
        delivery: texts("delivery")?,
    })
}
