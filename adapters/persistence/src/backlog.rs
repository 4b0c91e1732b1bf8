use std::{num::NonZeroU32, time::Duration};

use application::{
    BoxError, Chain,
    ports::{Backlog, BacklogError, BacklogSize, Claim, Claimed, Swept},
};
use autometrics::autometrics;
use domain::{Message, Validity};
use sea_orm::{ConnectionTrait, DbErr, QueryResult, Value};

use crate::database::{Database, Sql, millis, time};

/// The outbox as a relay reads it.
#[derive(Debug, Clone)]
pub struct SqlBacklog {
    database: Database,
}

impl SqlBacklog {
    pub fn new(database: Database) -> Self {
        Self { database }
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
    async fn claim(
        &self,
        limit: NonZeroU32,
        lease: Duration,
    ) -> Result<Vec<Claimed>, BacklogError> {
        let values = vec![i64::from(limit.get()).into(), millis(lease).into()];
        let rows = self.database.rows(CLAIM, values).await.map_err(unavailable)?;
        let mut claimed: Vec<Claimed> = rows.iter().filter_map(readable).collect();
        // `RETURNING` promises no order.
        claimed.sort_unstable_by_key(|claimed| claimed.claim.sequence);
        Ok(claimed)
    }

    #[autometrics(struct_name = "SqlBacklog")]
    async fn extend(&self, claims: &[Claim], lease: Duration) -> Result<(), BacklogError> {
        let mut values = self.claims(claims);
        values.push(millis(lease).into());
        self.database.execute(EXTEND, values).await.map(|_| ()).map_err(unavailable)
    }

    #[autometrics(struct_name = "SqlBacklog")]
    async fn settle(&self, claims: &[Claim], confirm_within: Duration) -> Result<(), BacklogError> {
        if claims.is_empty() {
            return Ok(());
        }
        let mut values = self.claims(claims);
        if self.database.is_postgres() {
            values.push(millis(confirm_within).into());
            return self.database.execute(SETTLE, values).await.map(|_| ()).map_err(unavailable);
        }
        let transaction = self.database.begin().await.map_err(unavailable)?;
        let with_time = [values.clone(), vec![millis(confirm_within).into()]].concat();
        for (sql, values) in [(SETTLE, with_time), (SETTLE_SQLITE_DELETE, values)] {
            transaction
                .execute_raw(self.database.statement(sql, values))
                .await
                .map_err(unavailable)?;
        }
        transaction.commit().await.map_err(unavailable)
    }

    #[autometrics(struct_name = "SqlBacklog")]
    async fn sweep(&self) -> Result<Swept, BacklogError> {
        let transaction = self.database.begin().await.map_err(unavailable)?;
        let mut affected = [0; 5];
        for (affected, sql) in affected.iter_mut().zip([
            FORGET_KNOWN,
            EXPIRE_OUTBOX,
            EXPIRE_IN_TRANSIT,
            RETURN_LATE,
            FORGET_LATE,
        ]) {
            *affected = transaction
                .execute_raw(self.database.statement(sql, vec![]))
                .await
                .map_err(unavailable)?
                .rows_affected();
        }
        transaction.commit().await.map_err(unavailable)?;
        Ok(Swept { expired: affected[1] + affected[2], waiting_again: affected[3] })
    }

    async fn size(&self) -> Result<BacklogSize, BacklogError> {
        let rows = self.database.rows(SIZE, vec![]).await.map_err(unavailable)?;
        let count = |column| {
            rows.first()
                .map_or(Ok(0), |row| row.try_get::<i64>("", column))
                .map(i64::unsigned_abs)
                .map_err(unavailable)
        };
        Ok(BacklogSize { waiting: count("waiting")?, in_transit: count("in_transit")? })
    }
}

// `candidate` takes the oldest messages that nobody holds. `elsewhere` are older messages, never
// published, that are no candidates: another relay has them, and they must reach the broker
// before any message to the same phone. What is below the highest candidate is short, since
// published messages leave the table.
const CLAIM: Sql = Sql {
    postgres: "
WITH candidate AS MATERIALIZED (
    SELECT sequence, phone
    FROM outbox
    WHERE claimable_at <= now() AND expires_at > now()
    ORDER BY sequence
    LIMIT $1
    FOR UPDATE SKIP LOCKED
), elsewhere AS MATERIALIZED (
    SELECT sequence, phone
    FROM outbox
    WHERE sequence < (SELECT max(sequence) FROM candidate)
      AND publications = 0
      AND expires_at > now()
      AND sequence NOT IN (SELECT sequence FROM candidate)
)
UPDATE outbox
SET claimable_at = now() + $2 * interval '1 millisecond', attempt = outbox.attempt + 1
FROM candidate
WHERE outbox.sequence = candidate.sequence AND NOT EXISTS (
    SELECT 1
    FROM elsewhere
    WHERE elsewhere.phone = candidate.phone AND elsewhere.sequence < candidate.sequence
)
RETURNING outbox.sequence, outbox.attempt, outbox.id::text AS id, outbox.phone, outbox.code,
    outbox.trace, (extract(epoch FROM outbox.accepted_at) * 1000)::bigint AS accepted_at,
    (extract(epoch FROM outbox.expires_at) * 1000)::bigint AS expires_at",
    sqlite: "
WITH clock AS MATERIALIZED (
    SELECT CAST(round(unixepoch('subsec') * 1000) AS INTEGER) AS now
), candidate AS MATERIALIZED (
    SELECT sequence, phone
    FROM clock CROSS JOIN outbox
    WHERE claimable_at <= clock.now AND expires_at > clock.now
    ORDER BY sequence
    LIMIT $1
), elsewhere AS MATERIALIZED (
    SELECT sequence, phone
    FROM clock CROSS JOIN outbox
    WHERE sequence < (SELECT max(sequence) FROM candidate)
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

const EXTEND: Sql = Sql {
    postgres: "
UPDATE outbox
SET claimable_at = now() + $3 * interval '1 millisecond'
FROM unnest($1::bigint[], $2::integer[]) AS claim (sequence, attempt)
WHERE outbox.sequence = claim.sequence AND outbox.attempt = claim.attempt",
    sqlite: "
WITH claim AS MATERIALIZED (
    SELECT value ->> 0 AS sequence, value ->> 1 AS attempt FROM json_each($1)
)
UPDATE outbox
SET claimable_at = CAST(round(unixepoch('subsec') * 1000) AS INTEGER) + $2
FROM claim
WHERE outbox.sequence = claim.sequence AND outbox.attempt = claim.attempt",
};

const SETTLE: Sql = Sql {
    postgres: "
WITH published AS (
    DELETE FROM outbox
    USING unnest($1::bigint[], $2::integer[]) AS claim (sequence, attempt)
    WHERE outbox.sequence = claim.sequence AND outbox.attempt = claim.attempt
    RETURNING outbox.*
)
INSERT INTO in_transit
    (sequence, id, phone, code, trace, accepted_at, expires_at, publications, due_at)
SELECT sequence, id, phone, code, trace, accepted_at, expires_at, publications + 1,
    now() + $3 * (1 << least(publications, 10)) * interval '1 millisecond'
FROM published
ON CONFLICT DO NOTHING",
    sqlite: "
WITH claim AS MATERIALIZED (
    SELECT value ->> 0 AS sequence, value ->> 1 AS attempt FROM json_each($1)
)
INSERT INTO in_transit
    (sequence, id, phone, code, trace, accepted_at, expires_at, publications, due_at)
SELECT outbox.sequence, id, phone, code, trace, accepted_at, expires_at, publications + 1,
    CAST(round(unixepoch('subsec') * 1000) AS INTEGER) + $2 * (1 << min(publications, 10))
FROM claim CROSS JOIN outbox
WHERE outbox.sequence = claim.sequence AND outbox.attempt = claim.attempt
ON CONFLICT DO NOTHING",
};

const SETTLE_SQLITE_DELETE: Sql = Sql {
    postgres: "",
    sqlite: "
DELETE FROM outbox
WHERE (sequence, attempt) IN (SELECT value ->> 0, value ->> 1 FROM json_each($1))",
};

// A consumer that took a message over while it was being settled could not see it in transit.
const FORGET_KNOWN: Sql = Sql {
    postgres: "
DELETE FROM in_transit
USING delivery
WHERE least(in_transit.due_at, in_transit.expires_at) <= now() AND delivery.message_id = in_transit.id",
    sqlite: "
DELETE FROM in_transit
WHERE min(due_at, expires_at) <= CAST(round(unixepoch('subsec') * 1000) AS INTEGER)
  AND EXISTS (SELECT 1 FROM delivery WHERE delivery.message_id = in_transit.id)",
};

const EXPIRE_OUTBOX: Sql = Sql {
    postgres: "DELETE FROM outbox WHERE expires_at <= now() AND claimable_at <= now()",
    sqlite: "
DELETE FROM outbox
WHERE max(expires_at, claimable_at) <= CAST(round(unixepoch('subsec') * 1000) AS INTEGER)",
};

const EXPIRE_IN_TRANSIT: Sql = Sql {
    postgres: "DELETE FROM in_transit WHERE expires_at <= now()",
    sqlite: "
DELETE FROM in_transit
WHERE expires_at <= CAST(round(unixepoch('subsec') * 1000) AS INTEGER)",
};

// The message keeps its place: `sequence` is what the consumer will name.
const RETURN_LATE: Sql = Sql {
    postgres: "
INSERT INTO outbox (sequence, id, phone, code, trace, accepted_at, expires_at, publications)
SELECT sequence, id, phone, code, trace, accepted_at, expires_at, publications
FROM in_transit
WHERE due_at <= now()
FOR UPDATE SKIP LOCKED
ON CONFLICT DO NOTHING",
    sqlite: "
INSERT INTO outbox (sequence, id, phone, code, trace, accepted_at, expires_at, publications)
SELECT sequence, id, phone, code, trace, accepted_at, expires_at, publications
FROM in_transit
WHERE due_at <= CAST(round(unixepoch('subsec') * 1000) AS INTEGER)
ON CONFLICT DO NOTHING",
};

const FORGET_LATE: Sql = Sql {
    postgres: "
DELETE FROM in_transit USING outbox WHERE in_transit.sequence = outbox.sequence",
    sqlite: "DELETE FROM in_transit WHERE sequence IN (SELECT sequence FROM outbox)",
};

const SIZE_SQL: &str = "
SELECT (SELECT count(*) FROM outbox) AS waiting, (SELECT count(*) FROM in_transit) AS in_transit";
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

fn unavailable(error: DbErr) -> BacklogError {
    BacklogError(error.into())
}
