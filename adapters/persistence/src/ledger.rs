mod buy;
mod entries;
mod entry;
pub(crate) mod gateways;
mod open;
mod outcomes;
mod part;
mod postgres;
mod spending;
mod sqlite;
mod starts;
mod together;

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use application::ports::{
    Admitted, Batch, CallOutcome, DeliveryLedger, Due, Lease, LedgerError, Recorded, Start, Started,
};
use autometrics::autometrics;
use domain::{GatewayName, MessageId, PhoneNumber};

pub(crate) use self::gateways::{CALLED, INTERRUPTED, WITH_CALLED};
use self::{
    entries::Entries,
    entry::EntryRow,
    together::{Admission, Admissions, Outcomes},
};
#[cfg(test)]
use crate::database::Events;
use crate::{awaited_receipts, coalesce::Coalescer, database::Database};

/// What one consumer group knows of the delivery of each message of one topic.
///
/// In PostgreSQL, partitions of a process that take messages over or record outcomes at the same time
/// share a statement and a commit (ADR 84).
#[derive(Debug, Clone)]
pub struct SqlDeliveryLedger {
    entries: Entries,
    admissions: Coalescer<Admissions>,
    outcomes: Coalescer<Outcomes>,
}

/// The entries that a fenced statement returns; none if the lease belongs to another consumer.
type Fenced = Option<Vec<EntryRow>>;

impl SqlDeliveryLedger {
    /// `member` is the name under which the partition leases are held.
    pub fn new(database: Database, group: String, topic: String, member: String) -> Self {
        Self::of(Entries::new(database, group, topic, member))
    }

    fn of(entries: Entries) -> Self {
        Self {
            admissions: together::admissions(entries.clone()),
            outcomes: together::outcomes(entries.clone()),
            entries,
        }
    }

    #[cfg(test)]
    pub(crate) fn with_events(self, events: Events) -> Self {
        Self::of(self.entries.with_events(events))
    }
}

impl DeliveryLedger for SqlDeliveryLedger {
    #[autometrics(struct_name = "SqlDeliveryLedger")]
    async fn admit(&self, lease: &Lease, batch: &Batch) -> Result<Admitted, LedgerError> {
        if self.entries.database.is_postgres() {
            let admission = Admission { lease: lease.clone(), batch: batch.clone() };
            return self.admissions.ask(admission).await;
        }
        self.entries.admit(lease, batch).await
    }

    #[autometrics(struct_name = "SqlDeliveryLedger")]
    async fn start(
        &self,
        lease: &Lease,
        starts: &[Start],
        call_limit: Duration,
    ) -> Result<Started, LedgerError> {
        self.entries.start(lease, starts, call_limit).await
    }

    #[autometrics(struct_name = "SqlDeliveryLedger")]
    async fn finish(&self, outcomes: &[CallOutcome]) -> Result<Vec<Recorded>, LedgerError> {
        if self.entries.database.is_postgres() {
            return self.outcomes.ask(outcomes.to_vec()).await;
        }
        Ok(self.entries.finish(outcomes).await?)
    }

    #[autometrics(struct_name = "SqlDeliveryLedger")]
    async fn open(&self, lease: &Lease) -> Result<Vec<(PhoneNumber, usize)>, LedgerError> {
        Ok(open::phones(&self.entries.database, self.entries.partition(lease)).await?)
    }

    #[autometrics(struct_name = "SqlDeliveryLedger")]
    async fn due(&self, lease: &Lease, limit: usize) -> Result<Vec<Due>, LedgerError> {
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let parameters = self.entries.fence(lease).with("limit", limit);
        let due = open::due(&self.entries.database, parameters).await?;
        due.ok_or(LedgerError::Fenced { partition: lease.partition })
    }

    #[autometrics(struct_name = "SqlDeliveryLedger")]
    async fn passed_over(
        &self,
        messages: &[MessageId],
    ) -> Result<HashMap<MessageId, Vec<GatewayName>>, LedgerError> {
        Ok(awaited_receipts::passed_over(&self.entries.database, messages).await?)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
