//! Ends and deletes verifications whose time is up, and what was counted around them.
//!
//! Each statement touches 10,000 rows at most, so that none takes long.

use std::time::Duration;

use sea_orm::{DatabaseConnection, FromQueryResult};

use crate::database::{Database, DatabaseError, Sql, begin, clock, millis};

/// Ends pending verifications whose time is up. Returns how many.
pub(super) async fn expire(database: &Database) -> Result<u64, DatabaseError> {
    #[derive(FromQueryResult)]
    struct Row {
        expired: i64,
    }

    let recorded = database.events().are_recorded();
    if database.is_postgres() {
        let parameters = database.parameters().with("events", recorded);
        let row: Option<Row> = database.row(&EXPIRE_POSTGRES, parameters).await?;
        return Ok(row.map_or(0, |row| row.expired.unsigned_abs()));
    }
    let expire = async |connection: DatabaseConnection| {
        let transaction = begin(&connection).await?;
        let parameters = database.parameters().with("now", clock(&transaction).await?);
        if recorded {
            transaction.execute(&RECORD_EXPIRED_SQLITE, parameters.clone()).await?;
        }
        let expired = transaction.execute(&EXPIRE_SQLITE, parameters).await?;
        transaction.commit().await?;
        Ok(expired)
    };
    database.step(expire).await
}

/// Deletes what is older than `retention`, and what has ended. Returns how many rows.
pub(super) async fn prune(database: &Database, retention: Duration) -> Result<u64, DatabaseError> {
    let (mut pruned, mut failure) = (0, None);
    let old = || database.parameters().with("retention", millis(retention));
    // One that takes too long must not keep the others from being pruned.
    for (sql, parameters) in [
        (&OLD_VERIFICATIONS, old()),
        (&OLD_DECISIONS, old()),
        (&OLD_GUARD_COUNTS, old()),
        (&ENDED_PHONES, database.parameters()),
        (&ENDED_COUNTERS, database.parameters()),
        (&ENDED_ANSWERS, database.parameters()),
    ] {
        match database.execute(sql, parameters).await {
            Ok(rows) => pruned += rows,
            Err(error) => failure = Some(error),
        }
    }
    failure.map_or(Ok(pruned), Err)
}

static EXPIRE_POSTGRES: Sql = Sql::new(
    "
WITH late AS (
    SELECT id
    FROM verification
    WHERE status = 'pending' AND expires_at <= now()
    ORDER BY expires_at
    LIMIT 10000
    FOR UPDATE SKIP LOCKED
), expired AS (
    UPDATE verification
    SET status = 'expired', ended_at = expires_at, code_hash = NULL, seed = NULL
    FROM late
    WHERE verification.id = late.id
    RETURNING verification.id
), told AS (
    INSERT INTO event (kind, verification) SELECT 'expired', id FROM expired WHERE :events
)
SELECT count(*) AS expired FROM expired",
);

// Before they are ended.
static RECORD_EXPIRED_SQLITE: Sql = Sql::new(
    "
INSERT INTO event (kind, verification, at, due_at)
SELECT 'expired', id, {now}, {now}
FROM verification
WHERE status = 'pending' AND expires_at <= {now}
ORDER BY expires_at, id
LIMIT 10000",
);

static EXPIRE_SQLITE: Sql = Sql::new(
    "
UPDATE verification
SET status = 'expired', ended_at = expires_at, code_hash = NULL, seed = NULL
WHERE id IN (
    SELECT id
    FROM verification
    WHERE status = 'pending' AND expires_at <= {now}
    ORDER BY expires_at, id
    LIMIT 10000
)",
);

static OLD_VERIFICATIONS: Sql = Sql::pair(
    "
DELETE FROM verification
WHERE id IN (
    SELECT id
    FROM verification
    WHERE created_at < now() - {duration(:retention)} AND expires_at <= now()
    ORDER BY created_at
    LIMIT 10000
    FOR UPDATE SKIP LOCKED
)",
    "
DELETE FROM verification
WHERE id IN (
    SELECT id
    FROM verification, (SELECT {now} AS now)
    WHERE created_at < now - :retention AND expires_at <= now
    LIMIT 10000
)",
);

// Fewer rows: each holds up to a thousand decisions.
static OLD_DECISIONS: Sql = Sql::pair(
    "
DELETE FROM guard_decision
WHERE id IN (
    SELECT id
    FROM guard_decision
    WHERE decided_at < now() - {duration(:retention)}
    ORDER BY id
    LIMIT 1000
    FOR UPDATE SKIP LOCKED
)",
    "
DELETE FROM guard_decision
WHERE id IN (SELECT id FROM guard_decision WHERE decided_at < {now} - :retention LIMIT 1000)",
);

// Not before two of the longest windows that a guard may have, which are 14 days.
static OLD_GUARD_COUNTS: Sql = Sql::pair(
    "
DELETE FROM guard_count
WHERE (scope, key) IN (
    SELECT scope, key
    FROM guard_count
    WHERE began_at < now() - greatest({duration(:retention)}, interval '14 days')
      AND (allowed_until IS NULL OR allowed_until < now())
    LIMIT 10000
    FOR UPDATE SKIP LOCKED
)",
    "
DELETE FROM guard_count
WHERE (scope, key) IN (
    SELECT scope, key
    FROM guard_count
    WHERE began_at < {now} - max(:retention, 1209600000)
      AND (allowed_until IS NULL OR allowed_until < {now})
    LIMIT 10000
)",
);

static ENDED_PHONES: Sql = Sql::pair(
    "
DELETE FROM phone
WHERE phone IN (
    SELECT phone
    FROM phone
    WHERE greatest(newest_until, api_newest_until, ends_1, ends_2, ends_3) <= now()
    LIMIT 10000
    FOR UPDATE SKIP LOCKED
)",
    "
DELETE FROM phone
WHERE phone IN (
    SELECT phone
    FROM phone
    WHERE max(newest_until, api_newest_until, ends_1, ends_2, ends_3) <= {now}
    LIMIT 10000
)",
);

static ENDED_COUNTERS: Sql = Sql::pair(
    "
DELETE FROM limit_counter
WHERE (policy, key) IN (
    SELECT policy, key FROM limit_counter WHERE ends_at <= now() LIMIT 10000 FOR UPDATE SKIP LOCKED
)",
    "
DELETE FROM limit_counter
WHERE (policy, key) IN (SELECT policy, key FROM limit_counter WHERE ends_at <= {now} LIMIT 10000)",
);

static ENDED_ANSWERS: Sql = Sql::pair(
    "
DELETE FROM idempotency
WHERE key_hash IN (
    SELECT key_hash FROM idempotency WHERE expires_at <= now() LIMIT 10000 FOR UPDATE SKIP LOCKED
)",
    "
DELETE FROM idempotency
WHERE key_hash IN (SELECT key_hash FROM idempotency WHERE expires_at <= {now} LIMIT 10000)",
);
