mod expiry;
mod look;
mod tenure;
mod untaken;

use std::{num::NonZeroU32, ops::RangeInclusive, time::Duration};

use application::ports::{Backlog, BacklogSize, Found, Reached, StoreError, Tenure};
use autometrics::autometrics;
use sea_orm::FromQueryResult;

pub(crate) use self::expiry::end_expired;
use crate::database::{Database, DatabaseError, Sql, lasting};

/// The outbox as a relay reads it.
#[derive(Debug, Clone)]
pub struct SqlBacklog {
    database: Database,
    topic: String,
    owner: String,
}

impl SqlBacklog {
    /// `topic` is where the messages are published to. `owner` is a name that no other process has.
    pub fn new(database: Database, topic: String, owner: String) -> Self {
        Self { database, topic, owner }
    }
}

impl Backlog for SqlBacklog {
    #[autometrics(struct_name = "SqlBacklog")]
    async fn acquire(&self, lease: Duration) -> Result<Option<Tenure>, StoreError> {
        Ok(tenure::acquire(&self.database, &self.owner, lease).await?)
    }

    #[autometrics(struct_name = "SqlBacklog")]
    async fn renew(
        &self,
        tenure: &Tenure,
        reached: Reached,
        lease: Duration,
    ) -> Result<bool, StoreError> {
        Ok(tenure::renew(&self.database, &self.owner, tenure, reached, lease).await?)
    }

    #[autometrics(struct_name = "SqlBacklog")]
    async fn release(&self, tenure: &Tenure, reached: Reached) -> Result<(), StoreError> {
        Ok(tenure::release(&self.database, &self.owner, tenure, reached).await?)
    }

    #[autometrics(struct_name = "SqlBacklog")]
    async fn look(
        &self,
        tenure: &Tenure,
        gaps: &[RangeInclusive<i64>],
        cursor: i64,
        limit: NonZeroU32,
    ) -> Result<Found, StoreError> {
        Ok(look::look(&self.database, tenure, gaps, cursor, limit).await?)
    }

    #[autometrics(struct_name = "SqlBacklog")]
    async fn survey(&self, tenure: &Tenure) -> Result<Option<Duration>, StoreError> {
        tenure::note_oldest(&self.database, &self.owner, tenure).await?;
        Ok(untaken::last_read(&self.database, &self.topic).await?)
    }

    #[autometrics(struct_name = "SqlBacklog")]
    async fn untaken(
        &self,
        range: RangeInclusive<i64>,
        limit: NonZeroU32,
    ) -> Result<Vec<i64>, StoreError> {
        Ok(untaken::untaken(&self.database, range, limit).await?)
    }

    #[autometrics(struct_name = "SqlBacklog")]
    async fn end_expired(&self) -> Result<u64, StoreError> {
        Ok(end_expired(&self.database).await?)
    }

    #[autometrics(struct_name = "SqlBacklog")]
    async fn size(&self) -> Result<BacklogSize, StoreError> {
        let row: Option<SizeRow> = self.database.row(&SIZE, self.database.parameters()).await?;
        let row = row.ok_or_else(|| DatabaseError::missing("the size of the backlog"))?;
        Ok(BacklogSize {
            waiting: row.waiting.unsigned_abs(),
            in_transit: row.in_transit.unsigned_abs(),
            oldest_waiting: lasting(row.oldest_waiting.unwrap_or_default()),
            oldest_in_transit: lasting(row.oldest_in_transit.unwrap_or_default()),
        })
    }
}

#[derive(FromQueryResult)]
struct SizeRow {
    waiting: i64,
    in_transit: i64,
    oldest_waiting: Option<i64>,
    oldest_in_transit: Option<i64>,
}

static SIZE: Sql = Sql::new(
    "
SELECT
    (SELECT count(*) FROM outbox WHERE sequence > published) AS waiting,
    (SELECT count(*) FROM outbox WHERE sequence BETWEEN oldest AND published) AS in_transit,
    (SELECT {millis({now} - accepted_at)} FROM outbox WHERE sequence > published
     ORDER BY sequence LIMIT 1) AS oldest_waiting,
    (SELECT {millis({now} - accepted_at)} FROM outbox WHERE sequence BETWEEN oldest AND published
     ORDER BY sequence LIMIT 1) AS oldest_in_transit
FROM relay",
);
