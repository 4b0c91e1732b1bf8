//! Calls of gateways with daily limits on their cost.

use std::{
    sync::{Mutex, atomic::Ordering},
    time::Duration,
};

use application::{
    Chain,
    ports::{CallOutcome, Lease, Start},
};
use domain::MessageId;
use sea_orm::DatabaseConnection;

use super::{
    Fenced,
    entries::Entries,
    entry::EntryRow,
    lock, postgres, spending,
    starts::{Starts, Step},
};
use crate::database::{DatabaseError, Parameters, begin};

/// The result for calls that daily limits had to have room for.
struct Bought {
    entries: Vec<EntryRow>,
    refused: Vec<MessageId>,
}

impl Entries {
    /// Begins the calls that the limits have room for, in one commit. Adds the others to `refused`.
    pub(super) async fn buy_part(
        &self,
        lease: &Lease,
        starts: Starts<'_>,
        call_limit: Duration,
        refused: &Mutex<Vec<MessageId>>,
    ) -> Result<Fenced, DatabaseError> {
        self.buys.store(true, Ordering::Relaxed);
        let call = self.call(lease, call_limit);
        let step = async |it| self.buy(&it, lease, call, starts).await;
        let Some(bought) = self.database.step(step).await? else { return Ok(None) };
        lock(refused).extend(bought.refused);
        Ok(Some(bought.entries))
    }

    async fn buy(
        &self,
        connection: &DatabaseConnection,
        lease: &Lease,
        call: Parameters,
        starts: Starts<'_>,
    ) -> Result<Option<Bought>, DatabaseError> {
        let (none, events) = (self.database.parameters(), self.database.events());
        let transaction = begin(connection).await?;
        let named = starts.with_ids(call.clone());
        let plan = spending::plan(&transaction, named, &none, starts).await?;
        let granted: Vec<&Start> =
            starts.0.iter().copied().filter(|it| plan.granted.contains(&it.id)).collect();
        let parameters = Starts(&granted).with(Step::Buy, call);
        let begun = if self.database.is_postgres() {
            postgres::start_within(&transaction, parameters, events).await?
        } else {
            self.sqlite(lease, events).start_within(&transaction, parameters).await?
        };
        // Without the lease, nothing is committed.
        let Some(entries) = begun else { return Ok(None) };
        let refused = plan.unaffordable.clone();
        let fence = self.fence(lease);
        plan.carry_out(&transaction, fence, &none, &self.group, &entries).await?;
        transaction.commit().await?;
        Ok(Some(Bought { entries, refused }))
    }

    /// Gives back what was reserved for calls that a gateway surely refused. If that fails, the next call
    /// of the message does.
    pub(super) async fn give_back(&self, outcomes: &[CallOutcome]) {
        let refused = outcomes.iter().filter(|outcome| outcome.class.is_refusal());
        let refused: Vec<MessageId> = refused.map(|outcome| outcome.id).collect();
        if refused.is_empty() || !self.buys.load(Ordering::Relaxed) {
            return;
        }
        let step = async |it| {
            let transaction = begin(&it).await?;
            spending::give_back(&self.database, &transaction, &self.group, &refused).await?;
            transaction.commit().await
        };
        if let Err(error) = self.database.step(step).await {
            tracing::debug!(error = %Chain(&error), "the cost of refused calls is given back later");
        }
    }
}
