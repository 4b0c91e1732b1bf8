use std::time::Duration;

use application::ports::{Lease, PartitionLeases, Renewed, StoreError};
use autometrics::autometrics;
use sea_orm::{DatabaseConnection, FromQueryResult};

use crate::database::{Database, DatabaseError, Parameters, Sql, begin, millis, time};

/// The partitions of one topic, shared among the consumers of one group.
#[derive(Debug, Clone)]
pub struct SqlPartitionLeases {
    database: Database,
    group: String,
    topic: String,
    member: String,
}

impl SqlPartitionLeases {
    /// `member` names this consumer. No other consumer may ever have the name.
    pub fn new(database: Database, group: String, topic: String, member: String) -> Self {
        Self { database, group, topic, member }
    }

    fn group(&self) -> Parameters {
        self.database
            .parameters()
            .with("group", self.group.as_str())
            .with("topic", self.topic.as_str())
    }

    fn member(&self) -> Parameters {
        self.group().with("member", self.member.as_str())
    }

    /// `renew`, in one commit.
    async fn renew_on(
        &self,
        connection: &DatabaseConnection,
        leases: &[Lease],
        ttl: Duration,
    ) -> Result<Renewed, DatabaseError> {
        let transaction = begin(connection).await?;
        let member = || self.member().with("ttl", millis(ttl));
        transaction.execute(&ANNOUNCE, member()).await?;
        let counts: Option<Counts> = transaction.row(&COUNT, self.group()).await?;
        let Counts { members, partitions } =
            counts.ok_or_else(|| DatabaseError::missing("counts"))?;

        // Last, because messages that are taken over wait for these locks. In the order in which
        // admissions lock the leases, too.
        let mut leases: Vec<&Lease> = leases.iter().collect();
        leases.sort_unstable_by_key(|lease| lease.partition);
        let mut held = Vec::with_capacity(leases.len());
        for lease in leases {
            let parameters = member()
                .with("partition", lease.partition)
                .with("epoch", lease.epoch)
                .with("seen_ago", lease.seen.map_or(UNKNOWN, |at| millis(at.elapsed())));
            if transaction.execute(&RENEW, parameters).await? > 0 {
                held.push(lease.partition);
            }
        }

        transaction.commit().await?;
        let count = |count| usize::try_from(count).unwrap_or(0);
        Ok(Renewed { held, members: count(members), partitions: count(partitions) })
    }
}

impl PartitionLeases for SqlPartitionLeases {
    #[autometrics(struct_name = "SqlPartitionLeases")]
    async fn register(&self, partitions: &[i32]) -> Result<(), StoreError> {
        let partitions = partitions.iter();
        let parameters =
            self.group().rows("new", partitions, |new| new.column("partition", |it| *it));
        self.database.execute(&REGISTER, parameters).await?;
        Ok(())
    }

    #[autometrics(struct_name = "SqlPartitionLeases")]
    async fn renew(&self, leases: &[Lease], ttl: Duration) -> Result<Renewed, StoreError> {
        let step = async |connection| self.renew_on(&connection, leases, ttl).await;
        Ok(self.database.step(step).await?)
    }

    #[autometrics(struct_name = "SqlPartitionLeases")]
    async fn acquire(&self, limit: usize, ttl: Duration) -> Result<Vec<Lease>, StoreError> {
        let parameters = self
            .member()
            .with("ttl", millis(ttl))
            .with("limit", i64::try_from(limit).unwrap_or(i64::MAX));
        let rows: Vec<LeaseRow> = self.database.rows(&ACQUIRE, parameters).await?;
        Ok(rows.into_iter().map(Lease::from).collect())
    }

    #[autometrics(struct_name = "SqlPartitionLeases")]
    async fn release(&self, lease: &Lease) -> Result<(), StoreError> {
        let parameters =
            self.member().with("partition", lease.partition).with("epoch", lease.epoch);
        self.database.execute(&RELEASE, parameters).await?;
        Ok(())
    }

    #[autometrics(struct_name = "SqlPartitionLeases")]
    async fn leave(&self) -> Result<(), StoreError> {
        self.database.execute(&LEAVE, self.member()).await?;
        Ok(())
    }
}

/// Stands for a time that is not known.
const UNKNOWN: i64 = -1;

static REGISTER: Sql = Sql::new(
    "
INSERT INTO partition_lease (group_id, topic, partition, epoch, added_later)
SELECT :group, :topic, partition,
    -- The first epoch is the time: a table that was wiped must not give an old epoch again, as
    -- `delivery.epoch` is compared with it.
    {millis({now})},
    EXISTS (
        SELECT 1
        FROM partition_lease AS known
        WHERE known.group_id = :group AND known.topic = :topic
    )
FROM :new
WHERE true
ON CONFLICT DO NOTHING",
);

static ANNOUNCE: Sql = Sql::new(
    "
INSERT INTO consumer_member (group_id, topic, member, expires_at)
VALUES (:group, :topic, :member, {now} + {duration(:ttl)})
ON CONFLICT (group_id, topic, member) DO UPDATE SET expires_at = excluded.expires_at",
);

// Without `AND expires_at > now()`: a lease that has ended is still ours until another consumer
// raises its epoch.
static RENEW: Sql = Sql::pair(
    "
UPDATE partition_lease
SET expires_at = now() + {duration(:ttl)},
    seen_until = CASE WHEN :seen_ago < 0 THEN seen_until
        ELSE greatest(seen_until, now() - {duration(:seen_ago)}) END
WHERE group_id = :group AND topic = :topic AND owner = :member AND partition = :partition
  AND epoch = :epoch",
    "
UPDATE partition_lease
SET expires_at = {now} + :ttl,
    seen_until = CASE WHEN :seen_ago < 0 THEN seen_until
        ELSE max(coalesce(seen_until, 0), {now} - :seen_ago) END
WHERE group_id = :group AND topic = :topic AND owner = :member AND partition = :partition
  AND epoch = :epoch",
);

static COUNT: Sql = Sql::new(
    "
SELECT
    (SELECT count(*) FROM consumer_member
     WHERE group_id = :group AND topic = :topic AND expires_at > {now}) AS members,
    (SELECT count(*) FROM partition_lease WHERE group_id = :group AND topic = :topic) AS partitions",
);

static ACQUIRE: Sql = Sql::pair(
    "
WITH free AS (
    SELECT partition
    FROM partition_lease
    WHERE group_id = :group AND topic = :topic AND (owner IS NULL OR expires_at <= now())
    ORDER BY partition
    LIMIT :limit
    FOR UPDATE SKIP LOCKED
)
UPDATE partition_lease
SET owner = :member, epoch = epoch + 1, expires_at = now() + {duration(:ttl)}
FROM free
WHERE group_id = :group AND topic = :topic AND partition_lease.partition = free.partition
RETURNING partition_lease.partition, epoch, next_offset, added_later,
    CASE WHEN next_offset IS NULL AND NOT EXISTS (
        SELECT 1
        FROM partition_lease AS other
        WHERE other.topic = :topic AND other.group_id <> :group AND other.next_offset IS NOT NULL
    ) THEN {millis(now())} END AS first_at",
    "
UPDATE partition_lease
SET owner = :member, epoch = epoch + 1, expires_at = {now} + :ttl
WHERE (group_id, topic, partition) IN (
    SELECT group_id, topic, partition
    FROM partition_lease
    WHERE group_id = :group AND topic = :topic AND (owner IS NULL OR expires_at <= {now})
    ORDER BY partition
    LIMIT :limit
)
RETURNING partition, epoch, next_offset, added_later,
    iif(next_offset IS NULL AND NOT EXISTS (
        SELECT 1
        FROM partition_lease AS other
        WHERE other.topic = :topic AND other.group_id <> :group AND other.next_offset IS NOT NULL
    ), {now}, NULL) AS first_at",
);

// Its time tells how long the group has been without a consumer.
static RELEASE: Sql = Sql::new(
    "
UPDATE partition_lease
SET owner = NULL, expires_at = {now}
WHERE group_id = :group AND topic = :topic AND owner = :member AND partition = :partition
  AND epoch = :epoch",
);

static LEAVE: Sql = Sql::new(
    "DELETE FROM consumer_member WHERE group_id = :group AND topic = :topic AND member = :member",
);

#[derive(FromQueryResult)]
struct Counts {
    members: i64,
    partitions: i64,
}

#[derive(FromQueryResult)]
struct LeaseRow {
    partition: i32,
    epoch: i64,
    next_offset: Option<i64>,
    added_later: bool,
    first_at: Option<i64>,
}

impl From<LeaseRow> for Lease {
    fn from(row: LeaseRow) -> Self {
        Self {
            partition: row.partition,
            epoch: row.epoch,
            next_offset: row.next_offset,
            added_later: row.added_later,
            first_at: row.first_at.map(time),
            seen: None,
        }
    }
}
