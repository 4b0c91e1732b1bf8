use std::collections::HashMap;

use domain::GatewayName;

/// The concurrent calls of one partition, by gateway.
#[derive(Debug, Clone)]
pub struct PartitionLoad {
    /// The maximum number for each gateway.
    limit: usize,
    calls: HashMap<GatewayName, usize>,
}

impl PartitionLoad {
    /// No calls yet, and at most `limit` of each gateway.
    pub fn new(limit: usize) -> Self {
        Self { limit, calls: HashMap::new() }
    }

    pub fn begin(&mut self, gateway: &GatewayName) {
        *self.calls.entry(gateway.clone()).or_default() += 1;
    }

    pub fn end(&mut self, gateway: &GatewayName) {
        if let Some(calls) = self.calls.get_mut(gateway) {
            *calls = calls.saturating_sub(1);
        }
    }

    pub(super) fn is_full(&self, gateway: &GatewayName) -> bool {
        self.calls.get(gateway).is_some_and(|calls| *calls >= self.limit)
    }
}
