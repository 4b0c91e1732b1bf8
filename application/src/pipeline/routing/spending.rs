use std::{
    collections::{BTreeMap, HashMap},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use domain::{GatewayName, PhoneNumber, Region};
use tokio::time::Instant;

use super::{Router, tariff::Tariff};
use crate::ports::{Cost, SmsGateway};

/// What calls cost, and which gateways have used up what they may cost.
#[derive(Debug, Default)]
pub(super) struct Spending(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// Gateways with a budget.
    tariffs: BTreeMap<GatewayName, Tariff>,
    /// Until when messages to a region pass a gateway over.
    used_up: HashMap<(GatewayName, Option<Region>), Instant>,
}

/// How long messages pass a gateway over that has used up its budget. Then one of them asks the ledger
/// again: the day may have ended, or a refused call may have given something back.
const USED_UP: Duration = Duration::from_secs(30);

impl Spending {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether any gateway has a budget.
    pub(super) fn is_limited(&self) -> bool {
        !self.inner().tariffs.is_empty()
    }

    pub(super) fn is_used_up(&self, gateway: &GatewayName, region: Option<Region>) -> bool {
        let used_up = &self.inner().used_up;
        used_up.get(&(gateway.clone(), region)).is_some_and(|until| Instant::now() < *until)
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

    /// Notes that a gateway has used up what it may cost for messages like one to this number.
    pub fn note_used_up(&self, gateway: &GatewayName, phone: &PhoneNumber) {
        let region = (self.shared.region)(phone);
        let now = Instant::now();
        let key = (gateway.clone(), region);
        let before = self.shared.spending.inner().used_up.insert(key, now + USED_UP);
        if before.is_none() {
            let region = region.as_ref().map(Region::as_str);
            tracing::warn!(%gateway, region, "the gateway has used up its daily budget; messages take another gateway or fail");
        }
    }
}
