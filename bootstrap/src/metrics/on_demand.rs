//! Metrics that are read from elsewhere when Prometheus asks for them.

use std::sync::{Mutex, PoisonError};

use prometheus::{
    Registry,
    core::{Collector, Desc},
    proto::MetricFamily,
};

/// Metrics whose values are somewhere else.
pub(super) trait Readings: Send + Sync + 'static {
    /// Returns the metrics.
    fn vectors(&self) -> Vec<&dyn Collector>;

    /// Replaces all values of the metrics with the present ones.
    fn fill(&self);
}

/// Registers metrics that are filled each time they are asked for.
pub(super) fn register(registry: &Registry, readings: impl Readings) -> prometheus::Result<()> {
    registry.register(Box::new(OnDemand { readings, filling: Mutex::new(()) }))
}

struct OnDemand<R> {
    readings: R,
    /// Held while the metrics are filled and read.
    filling: Mutex<()>,
}

impl<R: Readings> Collector for OnDemand<R> {
    fn desc(&self) -> Vec<&Desc> {
        self.readings.vectors().into_iter().flat_map(Collector::desc).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let _filling = self.filling.lock().unwrap_or_else(PoisonError::into_inner);
        self.readings.fill();
        self.readings.vectors().into_iter().flat_map(Collector::collect).collect()
    }
}
