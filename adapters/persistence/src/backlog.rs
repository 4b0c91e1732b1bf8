mod claims;
mod expiry;
mod postgres;
mod sqlite;
mod transit;
mod watermark;

use std::{num::NonZeroU32, ops::Range, time::Duration};

use application::ports::{Backlog, BacklogSize, Claim, Claimed, StoreError, Swept};
use autometrics::autometrics;
use sea_orm::FromQueryResult;

use self::{
    claims::{ClaimedRow, claim_rows},
    watermark::Watermark,
};
use crate::{
    database::{Database, DatabaseError, Sql, lasting, millis},
    refusal::{code, in_parts},
};

/// The outbox as a relay reads it.
#[derive(Debug, Clone)]
pub struct SqlBacklog {
    database: Database,
    topic: String,
    watermark: Watermark,
}

impl SqlBacklog {
    /// `topic` is where the messages are published to.
    pub fn new(database: Database, topic: String) -> Self {
        Self { watermark: Watermark::new(database.clone()), database, topic }
    }

    /// Returns the low watermark.
    #[cfg(test)]
    pub(crate) async fn oldest(&self) -> Result<i64, DatabaseError> {
        self.watermark.sequence().await
    }

    /// For tests, which have no time for inserts that take long.
    #[cfg(test)]
    pub(crate) fn with_insert_limit(self, insert_limit: Duration) -> Self {
        Self { watermark: self.watermark.with_insert_limit(insert_limit), ..self }
    }

    #[cfg(test)]
    pub(crate) fn look_again(&self) {
        self.watermark.look_again();
    }

    /// Ends messages that expired before a consumer took them over. Returns how many.
    pub(crate) async fn end_expired(&self) -> Result<u64, DatabaseError> {
        let oldest = self.watermark.sequence().await?;
        expiry::end_expired(&self.database, oldest).await
    }

    async fn try_settle(
        &self,
        claims: &[Claim],
        confirm_within: Duration,
    ) -> Result<(), DatabaseError> {
        let parameters = self.database.parameters().with("confirm_within", millis(confirm_within));
        let parameters = claim_rows(parameters, claims);
        if self.database.is_postgres() {
            return postgres::settle(&self.database, parameters).await;
        }
        self.database.step(async |it| sqlite::settle(&it, parameters).await).await
    }

    async fn try_extend(&self, claims: &[Claim], lease: Duration) -> Result<(), DatabaseError> {
        let parameters = self.database.parameters().with("lease", millis(lease));
        self.database.execute(&claims::EXTEND, claim_rows(parameters, claims)).await?;
        Ok(())
    }
}

impl Backlog for SqlBacklog {
    #[autometrics(struct_name = "SqlBacklog")]
    async fn claim(&self, limit: NonZeroU32, lease: Duration) -> Result<Vec<Claimed>, StoreError> {
        let parameters = self
            .database
            .parameters()
            .with("limit", i64::from(limit.get()))
            .with("lease", millis(lease))
            .with("oldest", self.watermark.sequence().await?);
        let claimed = self.database.readable_rows(&claims::CLAIM, parameters, ClaimedRow::claimed);
        let mut claimed = claimed.await?;
        // `RETURNING` promises no order.
        claimed.sort_unstable_by_key(|claimed| claimed.claim.sequence);
        Ok(claimed)
    }

    #[autometrics(struct_name = "SqlBacklog")]
    async fn extend(&self, claims: &[Claim], lease: Duration) -> Result<(), StoreError> {
        Ok(self.try_extend(claims, lease).await?)
    }

    #[autometrics(struct_name = "SqlBacklog")]
    async fn settle(&self, claims: &[Claim], confirm_within: Duration) -> Result<(), StoreError> {
        if claims.is_empty() {
            return Ok(());
        }
        let settle = |places: Range<usize>| self.try_settle(&claims[places], confirm_within);
        let wait = |place: usize, error: DatabaseError| async move {
            let claim = claims[place];
            tracing::error!(
                sequence = claim.sequence,
                sqlstate = code(&error),
                "the database refuses a settlement; the message waits in the outbox"
            );
            self.try_extend(&[claim], confirm_within).await
        };
        in_parts(claims.len(), settle, wait).await?;
        Ok(())
    }

    #[autometrics(struct_name = "SqlBacklog")]
    async fn sweep(&self) -> Result<Swept, StoreError> {
        transit::forget_known(&self.database, &self.topic).await?;
        let expired = self.end_expired().await?;
        let waiting_again = transit::return_late(&self.database, &self.topic).await?;
        if waiting_again > 0 {
            self.watermark.look_again();
        }
        Ok(Swept { waiting_again, expired })
    }

    async fn size(&self) -> Result<BacklogSize, StoreError> {
        static SIZE: Sql = Sql::new(
            "
SELECT
    (SELECT count(*) FROM outbox WHERE sequence >= :oldest) AS waiting,
    (SELECT count(*) FROM in_transit) AS in_transit,
    (SELECT {millis({now} - accepted_at)} FROM outbox WHERE sequence >= :oldest
     ORDER BY sequence LIMIT 1) AS oldest_waiting,
    (SELECT {millis({now} - accepted_at)} FROM in_transit
     ORDER BY sequence LIMIT 1) AS oldest_in_transit",
        );

        #[derive(FromQueryResult)]
        struct Row {
            waiting: i64,
            in_transit: i64,
            oldest_waiting: Option<i64>,
            oldest_in_transit: Option<i64>,
        }

        let oldest = self.watermark.sequence().await?;
        let row: Option<Row> =
            self.database.row(&SIZE, self.database.parameters().with("oldest", oldest)).await?;
        let row = row.ok_or_else(|| DatabaseError::missing("the size of the backlog"))?;
        Ok(BacklogSize {
            waiting: row.waiting.unsigned_abs(),
            in_transit: row.in_transit.unsigned_abs(),
            oldest_waiting: lasting(row.oldest_waiting.unwrap_or_default()),
            oldest_in_transit: lasting(row.oldest_in_transit.unwrap_or_default()),
        })
    }
}
