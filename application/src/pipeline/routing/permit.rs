use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};

use domain::{GatewayName, PhoneNumber};

use super::Shared;
use crate::ports::{Accepted, SendError};

/// The right to make one call of one gateway.
///
/// It holds a slot and a token of the gateway's rate. If it is dropped without an outcome, both are
/// given back as if it had never been there.
pub struct Permit<G> {
    pub(super) shared: Arc<Shared<G>>,
    pub(super) name: GatewayName,
    pub(super) gateway: Arc<G>,
    /// The phone number of the message.
    pub(super) to: PhoneNumber,
    pub(super) call_limit: Duration,
    pub(super) sender: Option<Arc<str>>,
    pub(super) params: Arc<BTreeMap<String, String>>,
    pub(super) call: u64,
    pub(super) generation: u64,
    pub(super) is_open: bool,
}

impl<G> Permit<G> {
    pub fn name(&self) -> &GatewayName {
        &self.name
    }

    pub fn gateway(&self) -> &Arc<G> {
        &self.gateway
    }

    /// How long the call lasts at most.
    pub fn call_limit(&self) -> Duration {
        self.call_limit
    }

    /// The sender that the route asks for. `None` stands for the gateway's own.
    pub fn sender(&self) -> Option<&Arc<str>> {
        self.sender.as_ref()
    }

    /// The parameters of the route for the provider.
    pub fn params(&self) -> &Arc<BTreeMap<String, String>> {
        &self.params
    }

    /// Ends the call with its outcome, which counts for the gateway's breaker.
    pub fn record(mut self, result: &Result<Accepted, SendError>) {
        self.is_open = false;
        self.shared.end(&self, result);
    }

    /// Whether the route gave the call settings of its own. If the gateway refuses them, other routes may
    /// still use it.
    pub(super) fn has_settings_of_its_route(&self) -> bool {
        self.sender.is_some() || !self.params.is_empty()
    }
}

impl<G> Drop for Permit<G> {
    fn drop(&mut self) {
        if self.is_open {
            self.shared.give_back(&self.name, self.call, self.generation);
        }
    }
}

impl<G> fmt::Debug for Permit<G> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Permit")
            .field("gateway", &self.name)
            .field("call", &self.call)
            .finish_non_exhaustive()
    }
}
