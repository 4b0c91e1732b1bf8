use std::{
    num::NonZeroU32,
    ops::Range,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use application::{
    BoxError, Chain,
    ports::{Backlog, BacklogSize, Claim, Claimed, StoreError, Swept},
};
use autometrics::autometrics;
use domain::{Message, Validity};
use sea_orm::{ConnectionTrait, DbErr, QueryResult, Value};

use crate::{
    database::{Database, Sql, Told, begin, millis, time},
    events::TELL_SQLITE,
    refusal::{code, first_taken, in_parts},
};

/// The outbox as a relay reads it.
#[derive(Debug, Clone)]
pub struct SqlBacklog {
    database: Database,
    topic: String,
    events: bool,
    oldest: Arc<Mutex<Option<Oldest>>>,
    insert_limit: Duration,
}

/// The low watermark of the outbox: where looks at it begin. What was relayed stays in the index
/// until PostgreSQL vacuums, and each look would pass through all of it.
#[derive(Debug, Clone, Copy)]
struct Oldest {
    sequence: i64,
    /// Then it is looked up anew: a message may have come back to the outbox below it.
    until: Instant,
    /// The latest sequence that had been drawn, and when. What was drawn before it is committed, or
    /// never will be, once an insert's time is up.
    drawn: (Instant, i64),
    settled: i64,
}

/// How long a low watermark holds: some times as long as it took to find, and no longer than a
/// message that came back below it may wait.
const HOLDS: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(10)];
const HOLDS_TIMES: u32 = 20;

/// More than a statement that stores messages may take (`statement_timeout`).
const INSERT_LIMIT: Duration = Duration::from_secs(15);

impl SqlBacklog {
    /// `topic` is where the messages are published to.
    pub fn new(database: Database, topic: String) -> Self {
        Self { database, topic, events: false, oldest: Arc::default(), insert_limit: INSERT_LIMIT }
    }

    /// Whether others are told of what expires.
    #[must_use]
    pub fn with_events(self, events: bool) -> Self {
        Self { events, ..self }
    }

    pub(crate) async fn oldest(&self) -> Result<i64, DbErr> {
        // SQLite deletes what is deleted.
        if !self.database.is_postgres() {
            return Ok(0);
        }
        let begun = Instant::now();
        let known = *self.known();
        if let Some(Oldest { sequence, .. }) = known.filter(|known| begun < known.until) {
            return Ok(sequence);
        }
        let statement = self.database.as_written(OLDEST_POSTGRES, vec![]);
        let rows = self.database.step(async |it| it.query_all_raw(statement).await).await?;
        let number = |column| {
            let found = rows.first().map_or(Ok(None), |row| row.try_get("", column));
            found.map(Option::<i64>::unwrap_or_default)
        };
        let (oldest, drawn) = (number("oldest")?, number("drawn")?);
        let now = Instant::now();
        let (drawn, settled) = match known {
            Some(known) if begun - known.drawn.0 < self.insert_limit => {
                (known.drawn, known.settled)
            }
            Some(known) => ((now, drawn), known.drawn.1),
            None => ((now, drawn), 0),
        };
        let sequence = oldest.min(settled);
        let [least, most] = HOLDS;
        let until = begun + ((now - begun) * HOLDS_TIMES).clamp(least, most);
        *self.known() = Some(Oldest { sequence, until, drawn, settled });
        Ok(sequence)
    }

    fn known(&self) -> MutexGuard<'_, Option<Oldest>> {
        self.oldest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets the next look find what may have come back below the watermark.
    pub(crate) fn look_again(&self) {
        if let Some(oldest) = &mut *self.known() {
            oldest.until = Instant::now();
        }
    }

    /// For tests, which have no time for inserts that take long.
    #[cfg(test)]
    pub(crate) fn with_insert_limit(self, insert_limit: Duration) -> Self {
        Self { insert_limit, ..self }
    }

    async fn run(&self, sql: &str, values: Vec<Value>) -> Result<u64, DbErr> {
        let statement = self.database.as_written(sql, values);
        let result = self.database.step(async |it| it.execute_raw(statement).await).await;
        Ok(result?.rows_affected())
    }

    /// Both statements of SQLite or none; says how many rows the first one wrote.
    async fn run_both(&self, [first, second]: [(&str, Vec<Value>); 2]) -> Result<u64, DbErr> {
        let transaction = begin(&self.database.connection()).await?;
        let execute = async |(sql, values)| {
            let result = transaction.execute_raw(self.database.as_written(sql, values)).await;
            result.map(|result| result.rows_affected())
        };
        let written = execute(first).await?;
        execute(second).await?;
        transaction.commit().await?;
        Ok(written)
    }

    /// The sequences that `sql` selects, [`SWEPT`] at most.
    async fn sequences(&self, sql: Sql, values: Vec<Value>) -> Result<Vec<i64>, DbErr> {
        let rows = self.database.rows(sql, values).await?;
        rows.iter().map(|row| row.try_get("", "sequence")).collect()
    }

    /// Sequences as a parameter.
    fn list(&self, sequences: &[i64]) -> Value {
        if self.database.is_postgres() {
            sequences.to_vec().into()
        } else {
            serde_json::json!(sequences).to_string().into()
        }
    }

    /// Ends what has expired before a consumer took it over; says how many that were.
    pub(crate) async fn end_expired(&self) -> Result<u64, DbErr> {
        let oldest = self.oldest().await?.into();
        let in_outbox = self.expire(&IN_OUTBOX, vec![oldest]).await?;
        Ok(in_outbox + self.expire(&IN_TRANSIT, vec![]).await?)
    }

    /// Ends what has expired in one of the two tables; says how many that were.
    async fn expire(&self, late: &Expiry, values: Vec<Value>) -> Result<u64, DbErr> {
        let mut expired = 0;
        loop {
            let found = self.sequences(late.find, values.clone()).await?;
            if found.is_empty() {
                return Ok(expired);
            }
            let found = &found;
            let end = |places: Range<usize>| self.end(late, &found[places], self.events);
            let end_alone = |place: usize, error: DbErr| async move {
                let sequence = found[place];
                tracing::error!(
                    sequence,
                    sqlstate = code(&error),
                    "the database refuses the end of an expired message"
                );
                // It must not stay: its code would. Where it cannot be noted it only leaves.
                let ways = [Some(false), None];
                let step = |events: Option<bool>| async move {
                    let Some(events) = events else {
                        let list = vec![self.list(&[sequence])];
                        return self.database.execute(late.forget, list).await;
                    };
                    self.end(late, &[sequence], events).await
                };
                Ok(first_taken(ways, step).await?.unwrap_or(0))
            };
            let ended: u64 = in_parts(found.len(), end, end_alone).await?.iter().sum();
            expired += ended;
            // Where others have locked the rest, they end it.
            if ended < SWEPT {
                return Ok(expired);
            }
        }
    }

    /// Notes these as expired, and deletes them, in one commit.
    async fn end(&self, late: &Expiry, sequences: &[i64], events: bool) -> Result<u64, DbErr> {
        let list = self.list(sequences);
        if self.database.is_postgres() {
            return self.run(late.end_postgres, vec![events.into(), list]).await;
        }
        let transaction = begin(&self.database.connection()).await?;
        let run = async |sql, values| {
            let statement = self.database.as_written(sql, values);
            transaction.query_all_raw(statement).await
        };
        let noted = run(late.note_sqlite, vec![list.clone()]).await?;
        if events && !noted.is_empty() {
            let ended = noted.iter().map(|row| Ok([row.try_get("", "id")?, "expired".to_owned()]));
            let ended = ended.collect::<Result<Vec<_>, DbErr>>()?;
            let no_group = "";
            let values = vec![serde_json::json!(ended).to_string().into(), no_group.into()];
            run(TELL_SQLITE, values).await?;
        }
        run(late.leave_sqlite, vec![list]).await?;
        transaction.commit().await?;
        Ok(u64::try_from(noted.len()).unwrap_or(u64::MAX))
    }

    /// Lets those wait again that were in transit for too long; says how many that were.
    ///
    /// Once, not until it is done: what comes back must not swamp what is new.
    async fn return_late(&self) -> Result<u64, DbErr> {
        let late = self.sequences(LATE_IN_TRANSIT, vec![self.topic.clone().into()]).await?;
        if late.is_empty() {
            return Ok(0);
        }
        let late = &late;
        let back = |places: Range<usize>| async move {
            let list = self.list(&late[places]);
            if self.database.is_postgres() {
                return self.run(RETURN_POSTGRES, vec![list]).await;
            }
            self.run_both([(COPY_TO_OUTBOX, vec![list.clone()]), (LEAVE_TRANSIT, vec![list])]).await
        };
        let stays = |place: usize, error: DbErr| async move {
            tracing::error!(
                sequence = late[place],
                sqlstate = code(&error),
                "the database refuses to let a message wait again; it stays in transit"
            );
            Ok(0)
        };
        Ok(in_parts(late.len(), back, stays).await?.iter().sum())
    }

    async fn try_settle(&self, claims: &[Claim], confirm_within: Duration) -> Result<(), DbErr> {
        let mut values = self.claims(claims);
        let confirm_within = Value::from(millis(confirm_within));
        if self.database.is_postgres() {
            values.push(confirm_within);
            return self.run(SETTLE_POSTGRES, values).await.map(|_| ());
        }
        let with_time = [values.clone(), vec![confirm_within]].concat();
        self.run_both([(COPY_TO_TRANSIT, with_time), (LEAVE_OUTBOX, values)]).await.map(|_| ())
    }

    async fn try_extend(&self, claims: &[Claim], lease: Duration) -> Result<(), DbErr> {
        let mut values = self.claims(claims);
        values.push(millis(lease).into());
        self.database.execute(EXTEND, values).await.map(|_| ())
    }

    fn claims(&self, claims: &[Claim]) -> Vec<Value> {
        if self.database.is_postgres() {
            vec![
                claims.iter().map(|claim| claim.sequence).collect::<Vec<i64>>().into(),
                claims.iter().map(|claim| claim.attempt).collect::<Vec<i32>>().into(),
            ]
        } else {
            let rows: serde_json::Value = claims
                .iter()
                .map(|claim| serde_json::json!([claim.sequence, claim.attempt]))
                .collect();
            vec![rows.to_string().into()]
        }
    }
}

impl Backlog for SqlBacklog {
    #[autometrics(struct_name = "SqlBacklog")]
    async fn claim(&self, limit: NonZeroU32, lease: Duration) -> Result<Vec<Claimed>, StoreError> {
        let oldest = self.oldest().await.map_err(unavailable)?;
        let values = vec![i64::from(limit.get()).into(), millis(lease).into(), oldest.into()];
        let rows = self.database.rows(CLAIM, values).await.map_err(unavailable)?;
        let mut claimed: Vec<Claimed> = rows.iter().filter_map(readable).collect();
        // `RETURNING` promises no order.
        claimed.sort_unstable_by_key(|claimed| claimed.claim.sequence);
        Ok(claimed)
    }

    #[autometrics(struct_name = "SqlBacklog")]
    async fn extend(&self, claims: &[Claim], lease: Duration) -> Result<(), StoreError> {
        self.try_extend(claims, lease).await.map_err(unavailable)
    }

    #[autometrics(struct_name = "SqlBacklog")]
    async fn settle(&self, claims: &[Claim], confirm_within: Duration) -> Result<(), StoreError> {
        if claims.is_empty() {
            return Ok(());
        }
        let settle = |places: Range<usize>| self.try_settle(&claims[places], confirm_within);
        let wait = |place: usize, error: DbErr| async move {
            let claim = claims[place];
            tracing::error!(
                sequence = claim.sequence,
                sqlstate = code(&error),
                "the database refuses a settlement; the message waits in the outbox"
            );
            self.try_extend(&[claim], confirm_within).await
        };
        in_parts(claims.len(), settle, wait).await.map(|_| ()).map_err(unavailable)
    }

    #[autometrics(struct_name = "SqlBacklog")]
    async fn sweep(&self) -> Result<Swept, StoreError> {
        let topic = || vec![self.topic.clone().into()];
        while self.database.execute(FORGET_KNOWN, topic()).await.map_err(unavailable)? == SWEPT {}
        let expired = self.end_expired().await.map_err(unavailable)?;
        let waiting_again = self.return_late().await.map_err(unavailable)?;
        let swept = Swept { waiting_again, expired };
        if swept.waiting_again > 0 {
            self.look_again();
        }
        Ok(swept)
    }

    async fn size(&self) -> Result<BacklogSize, StoreError> {
        let oldest = self.oldest().await.map_err(unavailable)?;
        let rows = self.database.rows(SIZE, vec![oldest.into()]).await.map_err(unavailable)?;
        let count = |column| {
            rows.first()
                .map_or(Ok(0), |row| row.try_get::<i64>("", column))
                .map(i64::unsigned_abs)
                .map_err(unavailable)
        };
        Ok(BacklogSize { waiting: count("waiting")?, in_transit: count("in_transit")? })
    }
}

// An outbox without rows begins with what is drawn next.
const OLDEST_POSTGRES: &str = "
SELECT coalesce((SELECT min(sequence) FROM outbox), drawn + 1) AS oldest, drawn
FROM (SELECT pg_sequence_last_value('outbox_sequence_seq') AS drawn) AS it";

// `candidate` takes the oldest messages that nobody holds. `elsewhere` are older messages that are
// no candidates and are not known to be published: a relay has them, and they must reach the broker
// before any younger message to the same phone. What is below the highest candidate is short, since
// published messages leave the table soon.
const CLAIM: Sql = Sql {
    postgres: "
WITH candidate AS MATERIALIZED (
    SELECT sequence, phone
    FROM outbox
    WHERE sequence >= $3 AND claimable_at <= now() AND expires_at > now()
    ORDER BY sequence
    LIMIT $1
    FOR UPDATE SKIP LOCKED
), elsewhere AS MATERIALIZED (
    SELECT sequence, phone
    FROM outbox
    WHERE sequence >= $3 AND sequence < (SELECT max(sequence) FROM candidate)
      AND publications = 0
      AND expires_at > now()
      AND sequence NOT IN (SELECT sequence FROM candidate)
)
UPDATE outbox
SET claimable_at = now() + $2 * interval '1 millisecond', attempt = attempt + 1
WHERE sequence = ANY (ARRAY(
    SELECT sequence
    FROM candidate
    WHERE (phone IN (SELECT phone FROM elsewhere)) IS NOT TRUE OR NOT EXISTS (
        SELECT 1
        FROM elsewhere
        WHERE elsewhere.phone = candidate.phone AND elsewhere.sequence < candidate.sequence
    )
))
RETURNING sequence, attempt, id::text AS id, phone, code, trace,
    (extract(epoch FROM accepted_at) * 1000)::bigint AS accepted_at,
    (extract(epoch FROM expires_at) * 1000)::bigint AS expires_at",
    sqlite: "
WITH clock AS MATERIALIZED (
    SELECT CAST(round(unixepoch('subsec') * 1000) AS INTEGER) AS now
), candidate AS MATERIALIZED (
    SELECT sequence, phone
    FROM clock CROSS JOIN outbox
    WHERE sequence >= $3 AND claimable_at <= clock.now AND expires_at > clock.now
    ORDER BY sequence
    LIMIT $1
), elsewhere AS MATERIALIZED (
    SELECT sequence, phone
    FROM clock CROSS JOIN outbox
    WHERE sequence >= $3 AND sequence < (SELECT max(sequence) FROM candidate)
      AND publications = 0
      AND expires_at > clock.now
      AND sequence NOT IN (SELECT sequence FROM candidate)
)
UPDATE outbox
SET claimable_at = (SELECT now FROM clock) + $2, attempt = attempt + 1
FROM candidate
WHERE outbox.sequence = candidate.sequence AND NOT EXISTS (
    SELECT 1
    FROM elsewhere
    WHERE elsewhere.phone = candidate.phone AND elsewhere.sequence < candidate.sequence
)
RETURNING sequence, attempt, id, phone, code, trace, accepted_at, expires_at",
};

/// Locks what is claimed as `$1`, sequences, and `$2`, attempts, in the order of the sequence: a
/// consumer may be taking the same messages out.
macro_rules! mine {
    () => {
        "
WITH mine AS (
    SELECT own.sequence
    FROM (SELECT * FROM unnest($1::bigint[], $2::integer[]) ORDER BY 1) AS claim (sequence, attempt)
        CROSS JOIN LATERAL (
            SELECT sequence
            FROM outbox
            WHERE sequence = claim.sequence AND attempt = claim.attempt
            FOR UPDATE
        ) AS own
)"
    };
}

const EXTEND: Sql = Sql {
    postgres: concat!(
        mine!(),
        "
UPDATE outbox
SET claimable_at = now() + $3 * interval '1 millisecond'
WHERE sequence = ANY (ARRAY(SELECT sequence FROM mine))"
    ),
    sqlite: "
WITH claim AS MATERIALIZED (
    SELECT value ->> 0 AS sequence, value ->> 1 AS attempt FROM json_each($1)
)
UPDATE outbox
SET claimable_at = CAST(round(unixepoch('subsec') * 1000) AS INTEGER) + $2
FROM claim
WHERE outbox.sequence = claim.sequence AND outbox.attempt = claim.attempt",
};

const SETTLE_POSTGRES: &str = concat!(
    mine!(),
    ", published AS (
    DELETE FROM outbox WHERE sequence = ANY (ARRAY(SELECT sequence FROM mine)) RETURNING *
)
INSERT INTO in_transit
    (sequence, id, phone, code, trace, accepted_at, expires_at, attempt, publications, due_at)
SELECT sequence, id, phone, code, trace, accepted_at, expires_at, attempt, publications + 1,
    now() + $3 * interval '1 millisecond'
FROM published
ON CONFLICT DO NOTHING"
);

// The same in SQLite, where a statement writes to one table.
const COPY_TO_TRANSIT: &str = "
WITH claim AS MATERIALIZED (
    SELECT value ->> 0 AS sequence, value ->> 1 AS attempt FROM json_each($1)
)
INSERT INTO in_transit
    (sequence, id, phone, code, trace, accepted_at, expires_at, attempt, publications,
     published_at, due_at)
SELECT outbox.sequence, id, phone, code, trace, accepted_at, expires_at, outbox.attempt,
    publications + 1, clock.now, clock.now + $2
FROM (SELECT CAST(round(unixepoch('subsec') * 1000) AS INTEGER) AS now) AS clock
    CROSS JOIN claim CROSS JOIN outbox
WHERE outbox.sequence = claim.sequence AND outbox.attempt = claim.attempt
ON CONFLICT DO NOTHING";

const LEAVE_OUTBOX: &str = "
DELETE FROM outbox
WHERE (sequence, attempt) IN (SELECT value ->> 0, value ->> 1 FROM json_each($1))";

/// Rows that one statement of a sweep touches at most: none of ours may take long.
const SWEPT: u64 = 10_000;

/// Until when some group has read all partitions of the topic `$1`, by its own account.
macro_rules! read_until {
    ($never:literal) => {
        concat!(
            "(
    SELECT max(until)
    FROM (
        SELECT min(coalesce(seen_until, ",
            $never,
            ")) AS until
        FROM partition_lease
        WHERE topic = $1
        GROUP BY group_id
    ) AS by_group
)"
        )
    };
}

// A consumer that took a message over while it was being settled could not see it in transit. Looked
// up is only what some group has read past in all partitions, or what has expired: where consumers
// lag behind, the rest is very much, and little of it is known.
const FORGET_KNOWN: Sql = Sql {
    postgres: concat!(
        "
DELETE FROM in_transit
WHERE sequence = ANY (ARRAY(
    SELECT sequence
    FROM in_transit
    WHERE least(due_at, expires_at) <= now()
      AND (expires_at <= now() OR published_at + interval '2 seconds' < ",
        read_until!("'-infinity'"),
        ")
      AND EXISTS (SELECT 1 FROM delivery WHERE delivery.message_id = in_transit.id)
    LIMIT 10000
    FOR UPDATE SKIP LOCKED
))"
    ),
    sqlite: concat!(
        "
DELETE FROM in_transit
WHERE sequence IN (
    SELECT sequence
    FROM in_transit, (SELECT CAST(round(unixepoch('subsec') * 1000) AS INTEGER) AS now)
    WHERE min(due_at, expires_at) <= now
      AND (expires_at <= now OR published_at + 2000 < ",
        read_until!("0"),
        ")
      AND EXISTS (SELECT 1 FROM delivery WHERE delivery.message_id = in_transit.id)
    LIMIT 10000
)"
    ),
};

/// How what expires in one table ends.
struct Expiry {
    find: Sql,
    /// `$1`: is it told of; `$2`: sequences.
    end_postgres: &'static str,
    /// The same in SQLite, where rows are noted before they leave.
    note_sqlite: &'static str,
    leave_sqlite: &'static str,
    /// Deletes without noting.
    forget: Sql,
}

/// What ends with `gone`, which PostgreSQL has just deleted; `$1`: and is told of. Where it ends in
/// the ledger of no group it has failed: see `events::TELL_POSTGRES`.
macro_rules! noted_postgres {
    () => {
        ", told AS (
    INSERT INTO event (id, kind, verification, delivery)
    SELECT gone.id, 'failed', verification.id, 'expired'
    FROM gone CROSS JOIN LATERAL (
        SELECT id FROM verification WHERE id = (left(gone.id::text, 34) || '00')::uuid OFFSET 0
    ) AS verification
    WHERE $1 AND NOT EXISTS (SELECT 1 FROM delivery WHERE delivery.message_id = gone.id)
)
INSERT INTO delivery
    (group_id, topic, partition, message_id, phone, trace, state, accepted_at, expires_at,
     ended_at, detail)
SELECT '', '', -1, id, phone, trace, 'expired', accepted_at, expires_at, now(),
    'no consumer took it over in time'
FROM gone
WHERE NOT EXISTS (SELECT 1 FROM delivery WHERE delivery.message_id = gone.id)
ON CONFLICT DO NOTHING"
    };
}

/// Ends what has expired before a consumer took it over in the ledger of no group (`''`), where no
/// group has it.
macro_rules! end_postgres {
    ($table:literal, $late:literal) => {
        concat!(
            "
WITH late AS (
    SELECT sequence
    FROM ",
            $table,
            "
    WHERE sequence = ANY ($2) AND ",
            $late,
            " <= now()
    FOR UPDATE SKIP LOCKED
), gone AS (
    DELETE FROM ",
            $table,
            " WHERE sequence = ANY (ARRAY(SELECT sequence FROM late)) RETURNING *
)",
            noted_postgres!()
        )
    };
}

/// The same in SQLite, of the sequences `$1`: this notes them, and `leave_sqlite!` deletes them.
macro_rules! note_sqlite {
    ($table:literal, $late:literal) => {
        concat!(
            "
INSERT INTO delivery
    (group_id, topic, partition, message_id, phone, trace, state, accepted_at, expires_at, due_at,
     ended_at, detail)
SELECT '', '', -1, id, phone, trace, 'expired', accepted_at, expires_at, now, now,
    'no consumer took it over in time'
FROM ",
            $table,
            ", (SELECT CAST(round(unixepoch('subsec') * 1000) AS INTEGER) AS now)
WHERE sequence IN (SELECT value FROM json_each($1)) AND ",
            $late,
            " <= now
  AND NOT EXISTS (SELECT 1 FROM delivery WHERE delivery.message_id = ",
            $table,
            ".id)
ON CONFLICT DO NOTHING
RETURNING message_id AS id"
        )
    };
}

macro_rules! leave_sqlite {
    ($table:literal, $late:literal) => {
        concat!(
            "
DELETE FROM ",
            $table,
            "
WHERE sequence IN (SELECT value FROM json_each($1))
  AND ",
            $late,
            " <= CAST(round(unixepoch('subsec') * 1000) AS INTEGER)
  AND EXISTS (SELECT 1 FROM delivery WHERE delivery.message_id = ",
            $table,
            ".id)"
        )
    };
}

const IN_OUTBOX: Expiry = Expiry {
    find: Sql {
        postgres: "
SELECT sequence
FROM outbox
WHERE sequence >= $1 AND greatest(expires_at, claimable_at) <= now()
LIMIT 10000",
        sqlite: "
SELECT sequence
FROM outbox
WHERE sequence >= $1
  AND max(expires_at, claimable_at) <= CAST(round(unixepoch('subsec') * 1000) AS INTEGER)
LIMIT 10000",
    },
    end_postgres: end_postgres!("outbox", "greatest(expires_at, claimable_at)"),
    note_sqlite: note_sqlite!("outbox", "max(expires_at, claimable_at)"),
    leave_sqlite: leave_sqlite!("outbox", "max(expires_at, claimable_at)"),
    forget: Sql {
        postgres: "DELETE FROM outbox WHERE sequence = ANY ($1) AND expires_at <= now()",
        sqlite: "
DELETE FROM outbox
WHERE sequence IN (SELECT value FROM json_each($1))
  AND expires_at <= CAST(round(unixepoch('subsec') * 1000) AS INTEGER)",
    },
};

const IN_TRANSIT: Expiry = Expiry {
    find: Sql {
        postgres: "SELECT sequence FROM in_transit WHERE expires_at <= now() LIMIT 10000",
        sqlite: "
SELECT sequence
FROM in_transit
WHERE expires_at <= CAST(round(unixepoch('subsec') * 1000) AS INTEGER)
LIMIT 10000",
    },
    end_postgres: end_postgres!("in_transit", "expires_at"),
    note_sqlite: note_sqlite!("in_transit", "expires_at"),
    leave_sqlite: leave_sqlite!("in_transit", "expires_at"),
    forget: Sql {
        postgres: "DELETE FROM in_transit WHERE sequence = ANY ($1) AND expires_at <= now()",
        sqlite: "
DELETE FROM in_transit
WHERE sequence IN (SELECT value FROM json_each($1))
  AND expires_at <= CAST(round(unixepoch('subsec') * 1000) AS INTEGER)",
    },
};

// The message keeps its place: `sequence` is what the consumer will name. What `FORGET_KNOWN` had
// no time for is left to the next sweep.
//
// Consumers that lag behind will come to it: what counts is that some group has read all partitions
// as they were two seconds after the publication, by its own account, and has not met it. Where
// none gets so far, because a partition has no reader or the topic began anew, time must do. Each
// publication doubles both times: what groups read and cannot take over must not come for ever.
const LATE_IN_TRANSIT: Sql = Sql {
    postgres: concat!(
        "
SELECT sequence
FROM in_transit
WHERE published_at + (due_at - published_at) * (1 << least(publications - 1, 10)) <= now()
  AND (
      published_at + interval '2 seconds' < ",
        read_until!("'-infinity'"),
        "
      OR published_at + (due_at - published_at) * (8 << least(publications, 10)) <= now()
  )
  AND NOT EXISTS (SELECT 1 FROM delivery WHERE delivery.message_id = in_transit.id)
ORDER BY sequence
LIMIT 10000"
    ),
    sqlite: concat!(
        "
SELECT sequence
FROM in_transit, (SELECT CAST(round(unixepoch('subsec') * 1000) AS INTEGER) AS now)
WHERE published_at + (due_at - published_at) * (1 << min(publications - 1, 10)) <= now
  AND (
      published_at + 2000 < ",
        read_until!("0"),
        "
      OR published_at + (due_at - published_at) * (8 << min(publications, 10)) <= now
  )
  AND NOT EXISTS (SELECT 1 FROM delivery WHERE delivery.message_id = in_transit.id)
ORDER BY sequence
LIMIT 10000"
    ),
};

const RETURN_POSTGRES: &str = "
WITH late AS (
    DELETE FROM in_transit
    WHERE sequence = ANY (ARRAY(
        SELECT sequence
        FROM in_transit
        WHERE sequence = ANY ($1)
          AND NOT EXISTS (SELECT 1 FROM delivery WHERE delivery.message_id = in_transit.id)
        ORDER BY sequence
        FOR UPDATE SKIP LOCKED
    ))
    RETURNING *
)
INSERT INTO outbox
    (sequence, id, phone, code, trace, accepted_at, expires_at, attempt, publications)
SELECT sequence, id, phone, code, trace, accepted_at, expires_at, attempt, publications
FROM late
ON CONFLICT DO NOTHING";

// The same in SQLite.
const COPY_TO_OUTBOX: &str = "
INSERT INTO outbox
    (sequence, id, phone, code, trace, accepted_at, expires_at, attempt, publications)
SELECT sequence, id, phone, code, trace, accepted_at, expires_at, attempt, publications
FROM in_transit
WHERE sequence IN (SELECT value FROM json_each($1))
  AND NOT EXISTS (SELECT 1 FROM delivery WHERE delivery.message_id = in_transit.id)
ORDER BY sequence
ON CONFLICT DO NOTHING";

const LEAVE_TRANSIT: &str = "
DELETE FROM in_transit
WHERE sequence IN (SELECT value FROM json_each($1))
  AND sequence IN (SELECT sequence FROM outbox)";

const SIZE_SQL: &str = "
SELECT
    (SELECT count(*) FROM outbox WHERE sequence >= $1) AS waiting,
    (SELECT count(*) FROM in_transit) AS in_transit";
const SIZE: Sql = Sql { postgres: SIZE_SQL, sqlite: SIZE_SQL };

/// A row that makes no sense was written by somebody else; it must not hold up the others.
fn readable(row: &QueryResult) -> Option<Claimed> {
    read(row)
        .inspect_err(
            |error| tracing::error!(error = %Chain(&**error), "unreadable row in the outbox"),
        )
        .ok()
}

fn read(row: &QueryResult) -> Result<Claimed, BoxError> {
    let text = |column| row.try_get::<String>("", column);
    Ok(Claimed {
        claim: Claim {
            sequence: row.try_get("", "sequence")?,
            attempt: row.try_get("", "attempt")?,
        },
        message: Message {
            id: text("id")?.parse()?,
            phone: text("phone")?.parse()?,
            code: text("code")?.parse()?,
        },
        validity: Validity {
            accepted_at: time(row.try_get("", "accepted_at")?),
            expires_at: time(row.try_get("", "expires_at")?),
        },
        trace: text("trace")?.parse()?,
    })
}

fn unavailable(error: DbErr) -> StoreError {
    Told(error).into()
}
