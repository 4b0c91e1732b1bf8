use std::{
    collections::{BTreeMap, HashMap},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use domain::{GatewayName, PhoneNumber, Region};
use tokio::time::Instant;

use super::{Router, tariff::Tariff};
use crate::ports::{Cost, SmsGateway};

/// The tariffs of gateways, and the budgets that are used up.
#[derive(Debug, Default)]
pub(super) struct Spending(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// Gateways with a budget.
    tariffs: BTreeMap<GatewayName, Tariff>,
    /// Gateways whose budget had no room for a message to this region.
    used_up: HashMap<(GatewayName, Option<Region>), UsedUp>,
}

#[derive(Debug, Clone, Copy)]
struct UsedUp {
    since: Instant,
    /// Until when messages pass the gateway over. Then the ledger is asked again.
    until: Instant,
}

/// The room of a budget for a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Room {
    /// Perhaps enough. The ledger decides.
    Some,
    /// Not enough now. Calls in progress may give something back, or a shorter text may fit: look again
    /// after this time.
    None(Duration),
    /// Not enough for longer than any call lasts.
    Over,
}

/// Longer than a call lasts, so that all that was reserved before is spent or given back.
const SETTLED: Duration = Duration::from_secs(20);
/// How long messages pass over a gateway whose budget had no room, before and after that is settled.
const SOON: Duration = Duration::from_secs(1);
const LATER: Duration = Duration::from_secs(30);

impl Spending {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether any gateway has a budget.
    pub(super) fn is_limited(&self) -> bool {
        !self.inner().tariffs.is_empty()
    }

    pub(super) fn room(&self, gateway: &GatewayName, region: Option<Region>) -> Room {
        let now = Instant::now();
        match self.inner().used_up.get(&(gateway.clone(), region)) {
            Some(used_up) if now >= used_up.until => Room::Some,
            Some(used_up) if now - used_up.since >= SETTLED => Room::Over,
            Some(used_up) => Room::None(used_up.until - now),
            None => Room::Some,
        }
    }
}

impl<G: SmsGateway> Router<G> {
    /// Sets what the calls of gateways cost. A gateway that is not named costs nothing.
    pub fn set_tariffs(&self, tariffs: impl IntoIterator<Item = (GatewayName, Tariff)>) {
        let mut inner = self.shared.spending.inner();
        inner.tariffs = tariffs.into_iter().filter(|(_, tariff)| !tariff.is_free()).collect();
        inner.used_up.clear();
    }

    /// Whether the cost of calls of a gateway is limited.
    pub fn is_limited(&self, gateway: &GatewayName) -> bool {
        self.shared.spending.inner().tariffs.contains_key(gateway)
    }

    /// Returns the cost of a call and its limits, or `None` if no limit counts it. `segments` counts those
    /// of the text, and is asked only if it matters.
    pub fn cost(
        &self,
        gateway: &GatewayName,
        phone: &PhoneNumber,
        segments: impl FnOnce() -> usize,
    ) -> Option<Cost> {
        let tariff = self.shared.spending.inner().tariffs.get(gateway).cloned()?;
        tariff.cost((self.shared.region)(phone), segments())
    }

    /// Notes that the budget of a gateway had no room for a message to this number.
    pub fn note_used_up(&self, gateway: &GatewayName, phone: &PhoneNumber) {
        let region = (self.shared.region)(phone);
        let now = Instant::now();
        let mut inner = self.shared.spending.inner();
        let key = (gateway.clone(), region);
        let since = inner.used_up.get(&key).map(|before| before.since);
        let is_settled = since.is_some_and(|since| now - since >= SETTLED);
        let until = now + if is_settled { LATER } else { SOON };
        inner.used_up.insert(key, UsedUp { since: since.unwrap_or(now), until });
        if since.is_none() {
            let region = region.as_ref().map(Region::as_str);
            tracing::warn!(%gateway, region, "the daily budget of the gateway has no room for a message; messages take another gateway, or wait and then fail");
        }
    }

    /// Notes that the budget of a gateway had room for a message to this number.
    pub fn note_paid(&self, gateway: &GatewayName, phone: &PhoneNumber) {
        if !self.shared.spending.inner().used_up.is_empty() {
            let region = (self.shared.region)(phone);
            self.shared.spending.inner().used_up.remove(&(gateway.clone(), region));
        }
    }
}
