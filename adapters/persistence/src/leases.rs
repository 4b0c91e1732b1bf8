use std::time::Duration;

use application::{
    BoxError,
    ports::{Lease, PartitionLeases, Renewed, StoreError},
};
use autometrics::autometrics;
use sea_orm::{DatabaseConnection, DbErr, QueryResult, Value};

use crate::database::{Database, Sql, Told, begin, millis, time};

/// The partitions of one topic, shared among the consumers of one group.
#[derive(Debug, Clone)]
pub struct SqlPartitionLeases {
    database: Database,
    group: String,
    topic: String,
    member: String,
}

impl SqlPartitionLeases {
    /// `member` names this consumer; no other may ever have the name.
    pub fn new(database: Database, group: String, topic: String, member: String) -> Self {
        Self { database, group, topic, member }
    }

    /// The parameters that most statements begin with.
    fn values<const N: usize>(&self, more: [Value; N]) -> Vec<Value> {
        [Value::from(self.group.clone()), self.topic.clone().into()]
            .into_iter()
            .chain(more)
            .collect()
    }

    /// `renew`, in one commit.
    async fn renew_on(
        &self,
        connection: &DatabaseConnection,
        leases: &[Lease],
        ttl: Duration,
    ) -> Result<Renewed, DbErr> {
        let member = || Value::from(self.member.clone());
        let transaction = begin(connection).await?;

        let announce = self.values([member(), millis(ttl).into()]);
        transaction.execute_raw(self.database.statement(ANNOUNCE, announce)).await?;

        let mut held = Vec::with_capacity(leases.len());
        for lease in leases {
            let values = self.values([
                member(),
                millis(ttl).into(),
                lease.partition.into(),
                lease.epoch.into(),
                lease.seen.map_or(UNKNOWN, |at| millis(at.elapsed())).into(),
            ]);
            let renewed = transaction.execute_raw(self.database.statement(RENEW, values)).await?;
            if renewed.rows_affected() > 0 {
                held.push(lease.partition);
            }
        }

        let counts =
            transaction.query_one_raw(self.database.statement(COUNT, self.values([]))).await?;
        let count = |column| -> Result<usize, DbErr> {
            let count = counts.as_ref().map_or(Ok(0), |row| row.try_get::<i64>("", column))?;
            Ok(usize::try_from(count).unwrap_or(0))
        };
        let (members, partitions) = (count("members")?, count("partitions")?);
        transaction.commit().await?;
        Ok(Renewed { held, members, partitions })
    }
}

impl PartitionLeases for SqlPartitionLeases {
    #[autometrics(struct_name = "SqlPartitionLeases")]
    async fn register(&self, partitions: &[i32]) -> Result<(), StoreError> {
        let list: Value = if self.database.is_postgres() {
            partitions.to_vec().into()
        } else {
            serde_json::json!(partitions).to_string().into()
        };
        self.database.execute(REGISTER, self.values([list])).await.map_err(unavailable)?;
        Ok(())
    }

    #[autometrics(struct_name = "SqlPartitionLeases")]
    async fn renew(&self, leases: &[Lease], ttl: Duration) -> Result<Renewed, StoreError> {
        self.database
            .step(async |connection| self.renew_on(&connection, leases, ttl).await)
            .await
            .map_err(unavailable)
    }

    #[autometrics(struct_name = "SqlPartitionLeases")]
    async fn acquire(&self, limit: usize, ttl: Duration) -> Result<Vec<Lease>, StoreError> {
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let values = self.values([self.member.clone().into(), millis(ttl).into(), limit.into()]);
        let rows = self.database.rows(ACQUIRE, values).await.map_err(unavailable)?;
        rows.iter().map(read).collect::<Result<_, _>>().map_err(StoreError::Unavailable)
    }

    #[autometrics(struct_name = "SqlPartitionLeases")]
    async fn release(&self, lease: &Lease) -> Result<(), StoreError> {
        let values =
            self.values([self.member.clone().into(), lease.partition.into(), lease.epoch.into()]);
        self.database.execute(RELEASE, values).await.map_err(unavailable)?;
        Ok(())
    }

    #[autometrics(struct_name = "SqlPartitionLeases")]
    async fn leave(&self) -> Result<(), StoreError> {
        let values = self.values([self.member.clone().into()]);
        self.database.execute(LEAVE, values).await.map_err(unavailable)?;
        Ok(())
    }
}

/// For a time that is not known.
const UNKNOWN: i64 = -1;

// The first epoch is the time: a table that was wiped must not give an old epoch again, since
// `delivery.epoch` is compared with it.
const REGISTER: Sql = Sql {
    postgres: "
INSERT INTO partition_lease (group_id, topic, partition, epoch, added_later)
SELECT $1, $2, partition, (extract(epoch FROM now()) * 1000)::bigint,
    EXISTS (SELECT 1 FROM partition_lease AS known WHERE known.group_id = $1 AND known.topic = $2)
FROM unnest($3::integer[]) AS new (partition)
ON CONFLICT DO NOTHING",
    sqlite: "
INSERT INTO partition_lease (group_id, topic, partition, epoch, added_later)
SELECT $1, $2, value, CAST(round(unixepoch('subsec') * 1000) AS INTEGER),
    EXISTS (SELECT 1 FROM partition_lease AS known WHERE known.group_id = $1 AND known.topic = $2)
FROM json_each($3)
WHERE true
ON CONFLICT DO NOTHING",
};

const ANNOUNCE: Sql = Sql {
    postgres: "
INSERT INTO consumer_member (group_id, topic, member, expires_at)
VALUES ($1, $2, $3, now() + $4 * interval '1 millisecond')
ON CONFLICT (group_id, topic, member) DO UPDATE SET expires_at = excluded.expires_at",
    sqlite: "
INSERT INTO consumer_member (group_id, topic, member, expires_at)
VALUES ($1, $2, $3, CAST(round(unixepoch('subsec') * 1000) AS INTEGER) + $4)
ON CONFLICT (group_id, topic, member) DO UPDATE SET expires_at = excluded.expires_at",
};

// Not `AND expires_at > now()`: a lease that ran out is ours until somebody raises its epoch.
const RENEW: Sql = Sql {
    postgres: "
UPDATE partition_lease
SET expires_at = now() + $4 * interval '1 millisecond',
    seen_until = CASE WHEN $7 < 0 THEN seen_until
        ELSE greatest(seen_until, now() - $7 * interval '1 millisecond') END
WHERE group_id = $1 AND topic = $2 AND owner = $3 AND partition = $5 AND epoch = $6",
    sqlite: "
UPDATE partition_lease
SET expires_at = CAST(round(unixepoch('subsec') * 1000) AS INTEGER) + $4,
    seen_until = CASE WHEN $7 < 0 THEN seen_until
        ELSE max(coalesce(seen_until, 0), CAST(round(unixepoch('subsec') * 1000) AS INTEGER) - $7)
        END
WHERE group_id = $1 AND topic = $2 AND owner = $3 AND partition = $5 AND epoch = $6",
};

const COUNT: Sql = Sql {
    postgres: "
SELECT
    (SELECT count(*) FROM consumer_member
     WHERE group_id = $1 AND topic = $2 AND expires_at > now()) AS members,
    (SELECT count(*) FROM partition_lease WHERE group_id = $1 AND topic = $2) AS partitions",
    sqlite: "
SELECT
    (SELECT count(*) FROM consumer_member
     WHERE group_id = $1 AND topic = $2
       AND expires_at > CAST(round(unixepoch('subsec') * 1000) AS INTEGER)) AS members,
    (SELECT count(*) FROM partition_lease WHERE group_id = $1 AND topic = $2) AS partitions",
};

const ACQUIRE: Sql = Sql {
    postgres: "
WITH free AS (
    SELECT partition
    FROM partition_lease
    WHERE group_id = $1 AND topic = $2 AND (owner IS NULL OR expires_at <= now())
    ORDER BY partition
    LIMIT $5
    FOR UPDATE SKIP LOCKED
)
UPDATE partition_lease
SET owner = $3, epoch = epoch + 1, expires_at = now() + $4 * interval '1 millisecond'
FROM free
WHERE group_id = $1 AND topic = $2 AND partition_lease.partition = free.partition
RETURNING partition_lease.partition, epoch, next_offset, added_later,
    CASE WHEN next_offset IS NULL AND NOT EXISTS (
        SELECT 1
        FROM partition_lease AS other
        WHERE other.topic = $2 AND other.group_id <> $1 AND other.next_offset IS NOT NULL
    ) THEN (extract(epoch FROM now()) * 1000)::bigint END AS first_at",
    sqlite: "
UPDATE partition_lease
SET owner = $3, epoch = epoch + 1,
    expires_at = CAST(round(unixepoch('subsec') * 1000) AS INTEGER) + $4
WHERE (group_id, topic, partition) IN (
    SELECT group_id, topic, partition
    FROM partition_lease
    WHERE group_id = $1 AND topic = $2 AND (
        owner IS NULL OR expires_at <= CAST(round(unixepoch('subsec') * 1000) AS INTEGER)
    )
    ORDER BY partition
    LIMIT $5
)
RETURNING partition, epoch, next_offset, added_later,
    iif(next_offset IS NULL AND NOT EXISTS (
        SELECT 1
        FROM partition_lease AS other
        WHERE other.topic = $2 AND other.group_id <> $1 AND other.next_offset IS NOT NULL
    ), CAST(round(unixepoch('subsec') * 1000) AS INTEGER), NULL) AS first_at",
};

// When it was given up tells how long the group has been without a consumer.
const RELEASE: Sql = Sql {
    postgres: "
UPDATE partition_lease
SET owner = NULL, expires_at = now()
WHERE group_id = $1 AND topic = $2 AND owner = $3 AND partition = $4 AND epoch = $5",
    sqlite: "
UPDATE partition_lease
SET owner = NULL, expires_at = CAST(round(unixepoch('subsec') * 1000) AS INTEGER)
WHERE group_id = $1 AND topic = $2 AND owner = $3 AND partition = $4 AND epoch = $5",
};

const LEAVE_SQL: &str =
    "DELETE FROM consumer_member WHERE group_id = $1 AND topic = $2 AND member = $3";
const LEAVE: Sql = Sql { postgres: LEAVE_SQL, sqlite: LEAVE_SQL };

fn read(row: &QueryResult) -> Result<Lease, BoxError> {
    Ok(Lease {
        partition: row.try_get("", "partition")?,
        epoch: row.try_get("", "epoch")?,
        next_offset: row.try_get("", "next_offset")?,
        added_later: row.try_get("", "added_later")?,
        first_at: row.try_get::<Option<i64>>("", "first_at")?.map(time),
        seen: None,
    })
}

fn unavailable(error: DbErr) -> StoreError {
    Told(error).into()
}
