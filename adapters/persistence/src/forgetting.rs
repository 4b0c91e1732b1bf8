//! The erasure of a phone.
//!
//! Each statement is a commit of its own and locks rows of one table, so it takes part in no order of
//! locks. If the work stops halfway, it is done again from the start: each step may be repeated.
//!
//! A row of `delivery` stays without the number, because it keeps a record that is read again from
//! being sent (ADR 67).

mod tables;

use std::collections::{BTreeMap, BTreeSet};

use application::ports::StoreError;
use domain::{MessageId, PhoneNumber, VerificationId};
use sea_orm::FromQueryResult;
use uuid::Uuid;

use self::tables::{ACCOUNT, By, Erasure, WAITING_MESSAGES, all};
use crate::{
    database::{Database, DatabaseError, Parameters, Sql, parsed},
    stories::{
        Looked,
        walk::{LEDGER, VERIFICATIONS},
    },
};

/// Erases phones from the database.
#[derive(Debug, Clone)]
pub struct SqlForgetting {
    database: Database,
    /// The group and the topic of the settings. Other groups are found in the database.
    group: String,
    topic: String,
}

/// The rows of a phone.
#[derive(Debug, Clone)]
pub struct Traces {
    phone: PhoneNumber,
    verifications: Vec<VerificationId>,
    messages: Vec<MessageId>,
    /// The rows of each table.
    pub tables: Vec<Erased>,
}

/// The rows of a table that are to be erased.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Erased {
    pub table: &'static str,
    pub rows: u64,
    /// What becomes of them.
    pub how: &'static str,
}

/// The ids of one statement.
const CHUNK: usize = 1_000;

impl Traces {
    pub fn is_empty(&self) -> bool {
        self.tables.iter().all(|table| table.rows == 0)
    }
}

impl SqlForgetting {
    pub fn new(database: Database, group: String, topic: String) -> Self {
        Self { database, group, topic }
    }

    /// Returns what the database has of a phone. It reads all verifications and the whole ledger, page
    /// by page; `progress` gets the number of rows so far.
    pub async fn find(
        &self,
        phone: &PhoneNumber,
        progress: &(dyn Fn(u64) + Sync),
    ) -> Result<Traces, StoreError> {
        // The messages that wait first: one that is taken over meanwhile is seen in the ledger.
        let mut messages: BTreeSet<MessageId> = self.waiting(phone).await?.into_iter().collect();
        let mut looked = Looked::default();
        let mut walk = async |of: &crate::stories::walk::Walk| {
            of.of_phone(&self.database, phone, u64::MAX, &mut looked, progress).await
        };
        let mut verifications: BTreeSet<VerificationId> =
            walk(&VERIFICATIONS).await?.into_iter().map(VerificationId::of).collect();
        messages.extend(walk(&LEDGER).await?);
        // Also those that an earlier run erased before it stopped halfway.
        verifications.extend(messages.iter().copied().map(VerificationId::of));
        let mut traces = Traces {
            phone: phone.clone(),
            verifications: verifications.into_iter().collect(),
            messages: messages.into_iter().collect(),
            tables: Vec::new(),
        };
        for erasure in all() {
            let rows = self.each(erasure.by, &traces, async |it| self.count(erasure, it).await);
            let rows = rows.await?;
            traces.tables.push(Erased { table: erasure.table, rows, how: erasure.how });
        }
        Ok(traces)
    }

    /// Ends what is underway: verifications are erased with their events, so that no event tells how
    /// their messages end, and no message is sent that no gateway was called for.
    pub async fn stop(&self, traces: &Traces) -> Result<(), StoreError> {
        self.erase_all(&ACCOUNT, traces).await?;
        // Before the messages leave the outbox: whatever was published is then known to each group.
        for (group, topic, partitions) in self.groups().await? {
            let key = adapters_wire::key_of(&traces.phone);
            let partition = adapters_wire::partition_of(key.as_bytes(), partitions);
            for chunk in traces.messages.chunks(CHUNK) {
                let parameters = self
                    .ids(chunk.iter().map(|id| id.as_uuid()))
                    .with("group", group.as_str())
                    .with("topic", topic.as_str())
                    .with("partition", partition);
                self.database.execute(&CLOSE, parameters).await?;
            }
        }
        self.erase_all(&WAITING_MESSAGES, traces).await?;
        self.with_ids(&EXPIRE, traces.messages.iter().map(|id| id.as_uuid())).await?;
        Ok(())
    }

    /// Returns how many messages have not ended: a call of a gateway is in progress, or a consumer is
    /// about to end them.
    pub async fn open(&self, traces: &Traces) -> Result<u64, StoreError> {
        let mut open = 0;
        for chunk in traces.messages.chunks(CHUNK) {
            open += self.number(&OPEN, self.ids(chunk.iter().map(|id| id.as_uuid()))).await?;
        }
        Ok(open)
    }

    /// Ends messages that no consumer ends and for which no call can be in progress.
    pub async fn end_late(&self, traces: &Traces) -> Result<(), StoreError> {
        self.with_ids(&END_LATE, traces.messages.iter().map(|id| id.as_uuid())).await?;
        Ok(())
    }

    /// Erases the number. Every message must have ended.
    pub async fn erase(&self, traces: &Traces) -> Result<(), StoreError> {
        Ok(self.erase_all(all(), traces).await?)
    }

    async fn erase_all(
        &self,
        erasures: impl IntoIterator<Item = &'static Erasure>,
        traces: &Traces,
    ) -> Result<(), DatabaseError> {
        for erasure in erasures {
            let erase = async |parameters| self.database.execute(&erasure.erase, parameters).await;
            self.each(erasure.by, traces, erase).await?;
        }
        Ok(())
    }

    /// Whether a message to the phone was accepted meanwhile. It looks at the newest rows.
    pub async fn is_back(&self, phone: &PhoneNumber) -> Result<bool, StoreError> {
        const NEWEST: u64 = 200_000;
        let parameters = self.database.parameters().with("phone", phone.as_str());
        if self.database.finds(&BACK, parameters).await? {
            return Ok(true);
        }
        let mut looked = Looked::default();
        for walk in [&VERIFICATIONS, &LEDGER] {
            let found = walk.of_phone(&self.database, phone, NEWEST, &mut looked, &|_| ()).await?;
            if !found.is_empty() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    async fn waiting(&self, phone: &PhoneNumber) -> Result<Vec<MessageId>, DatabaseError> {
        #[derive(FromQueryResult)]
        struct Row {
            id: String,
        }

        let parameters = self.database.parameters().with("phone", phone.as_str());
        let rows: Vec<Row> = self.database.rows(&WAITING, parameters).await?;
        rows.iter().map(|row| parsed(&row.id, "an id")).collect()
    }

    /// Returns the groups that may read the topic, each with its number of partitions.
    async fn groups(&self) -> Result<Vec<(String, String, usize)>, DatabaseError> {
        #[derive(FromQueryResult)]
        struct Row {
            group_id: String,
            topic: String,
            partitions: i64,
        }

        let rows: Vec<Row> = self.database.rows(&GROUPS, self.database.parameters()).await?;
        let mut groups: BTreeMap<(String, String), usize> =
            [((self.group.clone(), self.topic.clone()), 1)].into();
        for row in rows {
            let partitions = usize::try_from(row.partitions).unwrap_or(1);
            groups.insert((row.group_id, row.topic), partitions);
        }
        Ok(groups.into_iter().map(|((group, topic), count)| (group, topic, count)).collect())
    }

    /// Calls `act` with the parameters that name the rows of `by`, and adds up what it returns.
    async fn each(
        &self,
        by: By,
        traces: &Traces,
        act: impl AsyncFn(Parameters) -> Result<u64, DatabaseError>,
    ) -> Result<u64, DatabaseError> {
        let ids: Vec<Uuid> = match by {
            By::Phone => {
                let parameters = self.database.parameters().with("phone", traces.phone.as_str());
                return act(parameters).await;
            }
            By::Key => {
                let parameters = self
                    .database
                    .parameters()
                    .with("phone", traces.phone.as_str())
                    .with("key", adapters_wire::key_of(&traces.phone));
                return act(parameters).await;
            }
            By::Messages => traces.messages.iter().map(|id| id.as_uuid()).collect(),
            By::Verifications => traces.verifications.iter().map(|id| id.as_uuid()).collect(),
        };
        let mut rows = 0;
        for chunk in ids.chunks(CHUNK) {
            rows += act(self.ids(chunk.iter().copied())).await?;
        }
        Ok(rows)
    }

    async fn count(&self, erasure: &Erasure, parameters: Parameters) -> Result<u64, DatabaseError> {
        self.number(&erasure.count, parameters).await
    }

    async fn number(&self, sql: &Sql, parameters: Parameters) -> Result<u64, DatabaseError> {
        #[derive(FromQueryResult)]
        struct Row {
            rows: i64,
        }

        let row: Option<Row> = self.database.row(sql, parameters).await?;
        Ok(row.map_or(0, |row| row.rows.unsigned_abs()))
    }

    async fn with_ids(
        &self,
        sql: &Sql,
        ids: impl Iterator<Item = Uuid>,
    ) -> Result<u64, DatabaseError> {
        let ids: Vec<Uuid> = ids.collect();
        let mut rows = 0;
        for chunk in ids.chunks(CHUNK) {
            rows += self.database.execute(sql, self.ids(chunk.iter().copied())).await?;
        }
        Ok(rows)
    }

    fn ids(&self, ids: impl Iterator<Item = Uuid>) -> Parameters {
        self.database.parameters().list("ids", ids)
    }
}

static WAITING: Sql = Sql::new("SELECT {text(id)} AS id FROM outbox WHERE phone = :phone");

static GROUPS: Sql = Sql::new(
    "SELECT group_id, topic, count(*) AS partitions FROM partition_lease GROUP BY group_id, topic",
);

static BACK: Sql = Sql::new(
    "
SELECT 1 FROM phone WHERE phone IN (:phone, 'api:' || :phone)
UNION ALL
SELECT 1 FROM outbox WHERE phone = :phone",
);

// A group that reads the record of such a message knows the message already, and does not send it.
static CLOSE: Sql = Sql::pair(
    "
INSERT INTO delivery
    (group_id, topic, partition, message_id, phone, state, accepted_at, expires_at, ended_at,
     admitted_at, detail)
SELECT DISTINCT ON (known.id) :group, :topic, :partition, known.id, '0000000', 'expired',
    known.accepted_at, known.expires_at, now(), NULL, 'forgotten'
FROM (
    SELECT id, accepted_at, expires_at FROM outbox WHERE id = ANY (:ids::uuid[])
    UNION ALL
    SELECT message_id, accepted_at, expires_at
    FROM delivery
    WHERE message_id = ANY (:ids::uuid[]) AND expires_at > now()
) AS known (id, accepted_at, expires_at)
ORDER BY known.id
ON CONFLICT DO NOTHING",
    "
INSERT INTO delivery
    (group_id, topic, partition, message_id, phone, state, accepted_at, expires_at, ended_at,
     due_at, detail)
SELECT :group, :topic, :partition, known.id, '0000000', 'expired', min(known.accepted_at),
    max(known.expires_at), {now}, {now}, 'forgotten'
FROM (
    SELECT id, accepted_at, expires_at
    FROM outbox WHERE id IN (SELECT value FROM json_each(:ids))
    UNION ALL
    SELECT message_id, accepted_at, expires_at
    FROM delivery
    WHERE message_id IN (SELECT value FROM json_each(:ids)) AND expires_at > {now}
) AS known
WHERE true
GROUP BY known.id
ON CONFLICT DO NOTHING",
);

// As a cancel does: a consumer ends the pending ones at once, and repeats no call.
static EXPIRE: Sql = Sql::pair(
    "
UPDATE delivery
SET expires_at = least(expires_at, now()),
    due_at = CASE state WHEN 'pending' THEN least(due_at, now()) ELSE due_at END
WHERE message_id = ANY (:ids::uuid[]) AND state || '' IN ('pending', 'calling')",
    "
UPDATE delivery
SET expires_at = min(expires_at, {now}),
    due_at = CASE state WHEN 'pending' THEN min(due_at, {now}) ELSE due_at END
WHERE message_id IN (SELECT value FROM json_each(:ids)) AND state IN ('pending', 'calling')",
);

static OPEN: Sql = Sql::pair(
    "
SELECT count(*) AS rows
FROM delivery
WHERE message_id = ANY (:ids::uuid[]) AND state || '' IN ('pending', 'calling')",
    "
SELECT count(*) AS rows
FROM delivery
WHERE message_id IN (SELECT value FROM json_each(:ids)) AND state IN ('pending', 'calling')",
);

// Like the housekeeping, half a minute after the deadline of a call.
static END_LATE: Sql = Sql::pair(
    "
UPDATE delivery
SET state = CASE state WHEN 'pending' THEN 'expired' ELSE 'unknown' END,
    code = NULL, ended_at = now(), detail = 'forgotten'
WHERE message_id = ANY (:ids::uuid[]) AND state || '' IN ('pending', 'calling')
  AND expires_at <= now() AND (state = 'pending' OR due_at <= now() - interval '30 seconds')",
    "
UPDATE delivery
SET state = iif(state = 'pending', 'expired', 'unknown'),
    code = NULL, ended_at = {now}, detail = 'forgotten'
WHERE message_id IN (SELECT value FROM json_each(:ids)) AND state IN ('pending', 'calling')
  AND expires_at <= {now} AND (state = 'pending' OR due_at <= {now} - 30000)",
);
