use std::time::Duration;

use application::ports::{DeadLetter, DeadLetters, Incoming, Revived, StoreError};
use sea_orm::FromQueryResult;

use crate::database::{Database, Sql, begin, since_1970, time};

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
        let parameters = self.database.parameters().with("limit", limit);
        let rows: Vec<Row> = self.database.rows(&LIST, parameters).await?;
        Ok(rows.into_iter().map(DeadLetter::from).collect())
    }

    async fn find(&self, id: i64) -> Result<Option<DeadLetter>, StoreError> {
        let parameters = self.database.parameters().with("id", id);
        let row: Option<Row> = self.database.row(&FIND, parameters).await?;
        Ok(row.map(DeadLetter::from))
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
        let Incoming { message, trace, sequence, .. } = message;
        let parameters = || self.database.parameters();
        let id = parameters().with("id", letter.id);
        let named = parameters().id("message", message.id.as_uuid());
        let stored = named.clone().with("sequence", sequence.unwrap_or(-1));
        let take = id
            .clone()
            .id("message", message.id.as_uuid())
            .with("phone", message.phone.as_str())
            .with("code", message.code.as_text().into_owned())
            .with("trace", trace.as_ref().map(|trace| trace.as_str().to_owned()))
            .with("accepted_at", since_1970(accepted_at));
        let revived = self.database.step(async |connection| {
            let transaction = begin(&connection).await?;
            let left: Option<Left> = transaction.row(&LEAVE_OUTBOX, stored).await?;
            let expires_at = since_1970(expires_at);
            let expires_at = left.map_or(expires_at, |left| left.expires_at.min(expires_at));
            let expiry = parameters().with("expires_at", expires_at);
            if transaction.finds(&IS_LATE, expiry).await?
                || transaction.finds(&HAS_ENDED, named).await?
            {
                // At once: a dropped transaction locks the row until its connection is used again.
                transaction.rollback().await?;
                return Ok(Revived::Expired);
            }
            let taken = transaction.execute(&TAKE, take.with("expires_at", expires_at)).await?;
            transaction.execute(&DISCARD, id).await?;
            transaction.commit().await?;
            Ok(if taken > 0 { Revived::Pending } else { Revived::KnownAlready })
        });
        Ok(revived.await?)
    }

    async fn discard(&self, id: i64) -> Result<bool, StoreError> {
        let parameters = self.database.parameters().with("id", id);
        Ok(self.database.execute(&DISCARD, parameters).await? > 0)
    }
}

static LIST: Sql = Sql::new(
    "
SELECT id, group_id, topic, partition, record_offset, reason, {millis(recorded_at)} AS recorded_at
FROM dead_letter
ORDER BY id
LIMIT :limit",
);

static FIND: Sql = Sql::new(
    "
SELECT id, group_id, topic, partition, record_offset, reason, {millis(recorded_at)} AS recorded_at
FROM dead_letter
WHERE id = :id",
);

// As in an admission: a cancel lets the row expire, and then the message ends under no group.
static LEAVE_OUTBOX: Sql = Sql::new(
    "
DELETE FROM outbox
WHERE sequence = :sequence AND id = :message
RETURNING {millis(expires_at)} AS expires_at",
);

#[derive(FromQueryResult)]
struct Left {
    expires_at: i64,
}

// After the row of the outbox is locked, so that an end in the same commit is seen.
static HAS_ENDED: Sql =
    Sql::new("SELECT 1 FROM delivery WHERE message_id = :message AND group_id = ''");

static IS_LATE: Sql = Sql::pair(
    "SELECT 1 WHERE to_timestamp(:expires_at / 1000.0) <= now()",
    "SELECT 1 WHERE :expires_at <= {now}",
);

// The consumer that holds the partition finds it among its open entries.
static TAKE: Sql = Sql::pair(
    "
INSERT INTO delivery
    (group_id, topic, partition, message_id, phone, code, trace, state, accepted_at, expires_at)
SELECT group_id, topic, partition, :message, :phone, :code, :trace, 'pending',
    least(to_timestamp(:accepted_at / 1000.0), now()),
    least(to_timestamp(:expires_at / 1000.0), now() + interval '1 day')
FROM dead_letter
WHERE id = :id
ON CONFLICT DO NOTHING",
    "
INSERT INTO delivery
    (group_id, topic, partition, message_id, phone, code, trace, state, accepted_at, expires_at,
     admitted_at, due_at)
SELECT group_id, topic, partition, :message, :phone, :code, :trace, 'pending',
    min(:accepted_at, now), min(:expires_at, now + 86400000), now, now
FROM dead_letter, (SELECT {now} AS now)
WHERE id = :id
ON CONFLICT DO NOTHING",
);

static DISCARD: Sql = Sql::new("DELETE FROM dead_letter WHERE id = :id");

#[derive(FromQueryResult)]
struct Row {
    id: i64,
    group_id: String,
    topic: String,
    partition: i32,
    record_offset: i64,
    reason: String,
    recorded_at: i64,
}

impl From<Row> for DeadLetter {
    fn from(row: Row) -> Self {
        Self {
            id: row.id,
            group: row.group_id,
            topic: row.topic,
            partition: row.partition,
            offset: row.record_offset,
            reason: row.reason,
            recorded_at: time(row.recorded_at),
        }
    }
}
