use std::time::Duration;

use application::ports::{DeadLetter, DeadLetters, Incoming, Revived, StoreError};
use sea_orm::{DbErr, QueryResult, Value};

use crate::database::{Database, Sql, Told, begin, since_1970, time};

/// The dead letters of all groups.
#[derive(Debug, Clone)]
pub struct SqlDeadLetters {
    database: Database,
}

impl SqlDeadLetters {
    pub fn new(database: Database) -> Self {
        Self { database }
    }
}

impl DeadLetters for SqlDeadLetters {
    async fn list(&self, limit: u64) -> Result<Vec<DeadLetter>, StoreError> {
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let rows = self.database.rows(LIST, vec![limit.into()]).await.map_err(unavailable)?;
        rows.iter().map(|row| read(row).map_err(unavailable)).collect()
    }

    async fn find(&self, id: i64) -> Result<Option<DeadLetter>, StoreError> {
        let rows = self.database.rows(FIND, vec![id.into()]).await.map_err(unavailable)?;
        rows.first().map(|row| read(row).map_err(unavailable)).transpose()
    }

    async fn revive(
        &self,
        letter: &DeadLetter,
        message: &Incoming,
        default_ttl: Duration,
    ) -> Result<Revived, StoreError> {
        let (accepted_at, expires_at) = match message.validity {
            Some(validity) => (validity.accepted_at, validity.expires_at),
            None => (letter.recorded_at, letter.recorded_at + default_ttl),
        };
        let Incoming { message, trace, .. } = message;
        let take = vec![
            letter.id.into(),
            if self.database.is_postgres() {
                message.id.as_uuid().into()
            } else {
                message.id.to_string().into()
            },
            message.phone.as_str().into(),
            message.code.as_text().into_owned().into(),
            Value::from(trace.as_ref().map(|trace| trace.as_str().to_owned())),
            since_1970(accepted_at).into(),
            since_1970(expires_at).into(),
        ];
        let revived = self.database.step(async |connection| {
            let transaction = begin(&connection).await?;
            let statement = |sql, values| self.database.statement(sql, values);
            let rows = transaction
                .query_all_raw(statement(IS_LATE, vec![since_1970(expires_at).into()]))
                .await?;
            if !rows.is_empty() {
                return Ok(Revived::Expired);
            }
            let taken = transaction.execute_raw(statement(TAKE, take)).await?.rows_affected();
            transaction.execute_raw(statement(DISCARD, vec![letter.id.into()])).await?;
            transaction.commit().await?;
            Ok(if taken > 0 { Revived::Pending } else { Revived::KnownAlready })
        });
        revived.await.map_err(unavailable)
    }

    async fn discard(&self, id: i64) -> Result<bool, StoreError> {
        let discarded = self.database.execute(DISCARD, vec![id.into()]).await;
        discarded.map(|rows| rows > 0).map_err(unavailable)
    }
}

const LIST: Sql = Sql {
    postgres: "
SELECT id, group_id, topic, partition, record_offset, reason,
    (extract(epoch FROM recorded_at) * 1000)::bigint AS recorded_at
FROM dead_letter
ORDER BY id
LIMIT $1",
    sqlite: "
SELECT id, group_id, topic, partition, record_offset, reason, recorded_at
FROM dead_letter
ORDER BY id
LIMIT $1",
};

const FIND: Sql = Sql {
    postgres: "
SELECT id, group_id, topic, partition, record_offset, reason,
    (extract(epoch FROM recorded_at) * 1000)::bigint AS recorded_at
FROM dead_letter
WHERE id = $1",
    sqlite: "
SELECT id, group_id, topic, partition, record_offset, reason, recorded_at
FROM dead_letter
WHERE id = $1",
};

const IS_LATE: Sql = Sql {
    postgres: "SELECT 1 WHERE to_timestamp($1 / 1000.0) <= now()",
    sqlite: "SELECT 1 WHERE $1 <= CAST(round(unixepoch('subsec') * 1000) AS INTEGER)",
};

// Whoever holds the partition finds it among its open entries.
const TAKE: Sql = Sql {
    postgres: "
INSERT INTO delivery
    (group_id, topic, partition, message_id, phone, code, trace, state, accepted_at, expires_at)
SELECT group_id, topic, partition, $2, $3, $4, $5, 'pending',
    least(to_timestamp($6 / 1000.0), now()),
    least(to_timestamp($7 / 1000.0), now() + interval '1 day')
FROM dead_letter
WHERE id = $1
ON CONFLICT DO NOTHING",
    sqlite: "
INSERT INTO delivery
    (group_id, topic, partition, message_id, phone, code, trace, state, accepted_at, expires_at,
     admitted_at, due_at)
SELECT group_id, topic, partition, $2, $3, $4, $5, 'pending', min($6, now),
    min($7, now + 86400000), now, now
FROM dead_letter, (SELECT CAST(round(unixepoch('subsec') * 1000) AS INTEGER) AS now)
WHERE id = $1
ON CONFLICT DO NOTHING",
};

const DISCARD_SQL: &str = "DELETE FROM dead_letter WHERE id = $1";
const DISCARD: Sql = Sql { postgres: DISCARD_SQL, sqlite: DISCARD_SQL };

fn read(row: &QueryResult) -> Result<DeadLetter, DbErr> {
    Ok(DeadLetter {
        id: row.try_get("", "id")?,
        group: row.try_get("", "group_id")?,
        topic: row.try_get("", "topic")?,
        partition: row.try_get("", "partition")?,
        offset: row.try_get("", "record_offset")?,
        reason: row.try_get("", "reason")?,
        recorded_at: time(row.try_get("", "recorded_at")?),
    })
}

fn unavailable(error: DbErr) -> StoreError {
    Told(error).into()
}
