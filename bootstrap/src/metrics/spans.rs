use prometheus::{IntCounterVec, Opts, Registry};

use super::registered;

/// Metrics of the export of spans.
#[derive(Debug, Clone)]
pub(crate) struct SpanMetrics(IntCounterVec);

const EXPORTED: &str = "exported";
const DROPPED: &str = "dropped";

impl SpanMetrics {
    pub(crate) fn register(registry: &Registry) -> prometheus::Result<Self> {
        let spans = IntCounterVec::new(
            Opts::new(
                "messager_spans_total",
                "Spans that ended, by result: taken by the collector, or dropped.",
            ),
            &["result"],
        );
        let metrics = Self(registered(registry, spans)?);
        // A counter that starts with its first count hides that count from `rate`.
        metrics.exported(0);
        metrics.dropped(0);
        Ok(metrics)
    }

    pub(crate) fn exported(&self, spans: u64) {
        self.0.with_label_values(&[EXPORTED]).inc_by(spans);
    }

    pub(crate) fn dropped(&self, spans: u64) {
        self.0.with_label_values(&[DROPPED]).inc_by(spans);
    }
}
