use std::time::Duration;

use adapters_http::Exemplars;
use application::TraceParent;
use prometheus::{Histogram, HistogramOpts, HistogramVec, Registry};

use super::registered;

/// The time from the acceptance of a message to each later step. All parts of a process share it.
#[derive(Debug, Clone)]
pub struct StepMetrics {
    steps: HistogramVec,
    exemplars: Exemplars,
}

const NAME: &str = "messager_time_to_step_seconds";
const BUCKETS: [f64; 17] = [
    0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0,
    300.0, 600.0,
];

/// A step of a message after its acceptance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// The broker has stored it. A message that is published again counts again.
    Published,
    /// A consumer has it in its ledger.
    TakenOver,
    /// A gateway has accepted it.
    Sent,
    /// The gateway reports that it was delivered.
    Delivered,
}

impl StepMetrics {
    pub fn register(registry: &Registry) -> prometheus::Result<Self> {
        let steps = HistogramVec::new(
            HistogramOpts::new(
                NAME,
                "Time from the acceptance of a message to a later step, by step.",
            )
            .buckets(BUCKETS.to_vec()),
            &["step"],
        );
        Ok(Self { steps: registered(registry, steps)?, exemplars: Exemplars::default() })
    }

    /// Keeps exemplars, also of the other metrics that get these steps.
    #[must_use]
    pub(crate) fn with_exemplars(self, exemplars: Exemplars) -> Self {
        Self { exemplars, ..self }
    }

    pub(crate) fn exemplars(&self) -> &Exemplars {
        &self.exemplars
    }

    /// Notes the trace of a message that reached a step at this age.
    pub(crate) fn note(&self, step: Step, age: Duration, trace: Option<&TraceParent>) {
        let labels = [("step", step.as_str())];
        self.exemplars.note(NAME, &labels, &BUCKETS, age.as_secs_f64(), trace);
    }

    /// Returns the histogram of a step, which has a series from then on. The caller keeps it, because
    /// a lookup takes a lock.
    pub(crate) fn of(&self, step: Step) -> Histogram {
        self.steps.with_label_values(&[step.as_str()])
    }
}

impl Step {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Published => "published",
            Self::TakenOver => "taken_over",
            Self::Sent => "sent",
            Self::Delivered => "delivered",
        }
    }
}

#[cfg(test)]
mod tests {
    use application::{Delivered, Relayed};
    use prometheus::TextEncoder;

    use super::*;
    use crate::metrics::{DeliveryMetrics, RelayMetrics, expired_messages};

    #[test]
    fn steps_of_a_process_start_at_zero_and_count_each_message_of_a_batch() {
        let registry = Registry::new();
        let steps = StepMetrics::register(&registry).unwrap();
        let expired = expired_messages(&registry).unwrap();
        let relay = RelayMetrics::register(&registry, expired, &steps).unwrap();
        let shown = || TextEncoder::new().encode_to_string(&registry.gather()).unwrap();
        for line in [
            r#"messager_time_to_step_seconds_count{step="published"} 0"#,
            r#"messager_backlog_messages{state="waiting"} 0"#,
            r#"messager_backlog_oldest_age_seconds{state="in_transit"} 0"#,
        ] {
            assert!(shown().contains(line), "{line} is not in {}", shown());
        }
        assert!(!shown().contains("taken_over"), "a processor takes nothing over");

        let delivery = DeliveryMetrics::register(&registry, &steps).unwrap();
        let ages = || [1, 2, 20].map(Duration::from_secs).to_vec();
        relay.relayed(&Relayed { found: 3, published: ages(), ..Relayed::default() });
        delivery.delivered(0, &Delivered { admitted: 3, ages: ages(), ..Delivered::default() });

        for line in [
            "processed_messages 3",
            r#"messager_time_to_step_seconds_bucket{step="published",le="2.5"} 2"#,
            r#"messager_time_to_step_seconds_count{step="published"} 3"#,
            r#"messager_time_to_step_seconds_sum{step="taken_over"} 23"#,
            r#"messager_time_to_step_seconds_count{step="sent"} 0"#,
        ] {
            assert!(shown().contains(line), "{line} is not in {}", shown());
        }
    }
}
