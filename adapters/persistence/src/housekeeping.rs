mod entries;
mod prune;

use std::time::Duration;

use application::ports::StoreError;
use autometrics::autometrics;
use sea_orm::FromQueryResult;

use crate::{
    backlog,
    database::{Database, DatabaseError, Sql, millis},
    receipts::references,
};

/// Ends, wipes and deletes what its owner should have ended and did not: rows of groups and topics
/// that no process has any more (ADR 34).
///
/// Any process may do it, and several at a time.
#[derive(Debug, Clone)]
pub struct SqlHousekeeping {
    database: Database,
}

/// What [`SqlHousekeeping::end_expired`] ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Expired {
    /// Messages that no consumer had taken over.
    pub untaken: u64,
    /// Messages of lost consumers that were still to be sent.
    pub expired: u64,
    /// Messages of lost consumers that may have been sent.
    pub unknown: u64,
    /// Records of the embedded queue.
    pub records: u64,
}

/// How long a consumer that holds its partition has to end an expired entry. It does not end an
/// entry that it cannot read.
const OVERDUE: Duration = Duration::from_secs(3_600);

impl SqlHousekeeping {
    pub fn new(database: Database) -> Self {
        Self { database }
    }

    /// Ends what has expired and wipes its codes: messages that no consumer took over, entries of
    /// partitions that no living consumer holds, and records of the embedded queue.
    ///
    /// Also stores the receipts that a crash left beside their messages.
    ///
    /// A call that may still be under way is left alone until half a minute after its end. Then it
    /// ends as unknown.
    #[autometrics(struct_name = "SqlHousekeeping")]
    pub async fn end_expired(&self) -> Result<Expired, StoreError> {
        Ok(self.try_end_expired().await?)
    }

    /// Deletes what is older than `retention`, of any group or topic: ended entries, dead letters,
    /// and the leases of groups without a consumer. Returns how many rows.
    ///
    /// Also ends entries that have been expired for an hour under a living consumer, and deletes
    /// members that died a day ago, the states of gateways of processes that died an hour ago, events
    /// that were not posted for a week, references of gateways that no receipt will name any more, and
    /// notes of gateways on messages that have expired.
    #[autometrics(struct_name = "SqlHousekeeping")]
    pub async fn prune(&self, retention: Duration) -> Result<u64, StoreError> {
        let overdue = self.database.parameters().with("overdue", millis(OVERDUE));
        entries::end(&self.database, &entries::OVERDUE, &overdue).await?;
        Ok(prune::prune(&self.database, retention).await?)
    }

    /// Returns the age of the oldest row version that PostgreSQL must keep for a transaction, a
    /// replication slot or a prepared transaction, in transactions. `None` on SQLite.
    ///
    /// While it grows, dead rows of the outbox stay, and every statement passes them.
    pub async fn xmin_age(&self) -> Result<Option<u64>, StoreError> {
        if !self.database.is_postgres() {
            return Ok(None);
        }
        let row: Option<XminRow> = self.database.row(&XMIN_AGE, self.database.parameters()).await?;
        Ok(row.map(|row| row.age.unsigned_abs()))
    }

    async fn try_end_expired(&self) -> Result<Expired, DatabaseError> {
        let untaken = backlog::end_expired(&self.database).await?;
        let parameters = self.database.parameters();
        let (expired, unknown) =
            entries::end(&self.database, &entries::ABANDONED, &parameters).await?;
        let records = prune::trim(&self.database).await?;
        references::settle_rest(&self.database).await?;
        Ok(Expired { untaken, expired, unknown, records })
    }
}

#[derive(FromQueryResult)]
struct XminRow {
    age: i64,
}

// A session of another database keeps no rows of this one. Everyone may read these columns, also of
// sessions of other roles.
static XMIN_AGE: Sql = Sql::new(
    "
SELECT coalesce(max(age), 0)::bigint AS age
FROM (
    SELECT greatest(age(backend_xid), age(backend_xmin)) AS age
    FROM pg_stat_activity
    WHERE datid IS NULL OR datname = current_database()
    UNION ALL
    SELECT age(xmin) FROM pg_replication_slots
    UNION ALL
    SELECT age(transaction) FROM pg_prepared_xacts WHERE database = current_database()
) AS kept",
);
