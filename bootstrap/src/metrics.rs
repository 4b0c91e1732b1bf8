//! The metrics of the service. Dashboards and alerts depend on their names.

mod budgets;
mod certificates;
mod gateways;
mod health;
mod on_demand;
mod receipts;
mod spans;
mod steps;

use adapters_persistence::Expired;
use std::time::Duration;

use application::{
    Delivered, Flushed, Posted, Relayed,
    ports::{BacklogSize, DeliveryState},
};
use domain::GatewayName;
use prometheus::{
    GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry,
};

pub(crate) use self::{
    budgets::BudgetMetrics, certificates::CertificateMetrics, gateways::GatewayMetrics,
    health::HealthMetrics, spans::SpanMetrics, steps::Step,
};
pub use self::{receipts::ReceiptMetrics, steps::StepMetrics};

/// Metrics of the relay.
#[derive(Debug, Clone)]
pub struct RelayMetrics {
    published: IntCounter,
    republished: IntCounter,
    expired: IntCounter,
    backlog: IntGaugeVec,
    oldest: GaugeVec,
    time_to_publish: Histogram,
}

/// The states of messages in the backlog.
const WAITING: &str = "waiting";
const IN_TRANSIT: &str = "in_transit";

impl RelayMetrics {
    /// `expired` is the counter of the process.
    pub fn register(
        registry: &Registry,
        expired: IntCounter,
        steps: &StepMetrics,
    ) -> prometheus::Result<Self> {
        let metrics = Self {
            published: counter(
                registry,
                "processed_messages",
                "Messages published to the broker.",
            )?,
            republished: counter(
                registry,
                "messager_republished_messages_total",
                "Published messages that no consumer took over in time and that are published again.",
            )?,
            expired,
            backlog: registered(
                registry,
                IntGaugeVec::new(
                    Opts::new(
                        "messager_backlog_messages",
                        "Messages that no consumer has taken over: waiting to be published, or in transit.",
                    ),
                    &["state"],
                ),
            )?,
            oldest: registered(
                registry,
                GaugeVec::new(
                    Opts::new(
                        "messager_backlog_oldest_age_seconds",
                        "Time since the acceptance of the oldest message that no consumer has taken over, by state. 0 if there is none.",
                    ),
                    &["state"],
                ),
            )?,
            time_to_publish: steps.of(Step::Published),
        };
        metrics.size(&BacklogSize::default());
        Ok(metrics)
    }

    pub fn relayed(&self, relayed: &Relayed) {
        self.published.inc_by(relayed.published.len() as u64);
        observe(&self.time_to_publish, &relayed.published);
        self.republished.inc_by(relayed.overdue as u64);
    }

    pub fn expired(&self, messages: u64) {
        self.expired.inc_by(messages);
    }

    pub fn size(&self, size: &BacklogSize) {
        for (state, messages, oldest) in [
            (WAITING, size.waiting, size.oldest_waiting),
            (IN_TRANSIT, size.in_transit, size.oldest_in_transit),
        ] {
            self.backlog.with_label_values(&[state]).set(messages.cast_signed());
            self.oldest.with_label_values(&[state]).set(oldest.as_secs_f64());
        }
    }
}

/// Registers the counter of expired messages. Every role that ends such messages shares it.
pub(crate) fn expired_messages(registry: &Registry) -> prometheus::Result<IntCounter> {
    counter(
        registry,
        "messager_expired_messages_total",
        "Messages that expired before a consumer took them over. They are not sent.",
    )
}

/// Metrics of the housekeeping.
#[derive(Debug, Clone)]
pub struct HousekeepingMetrics {
    untaken: IntCounter,
    abandoned: IntCounterVec,
    xmin_age: IntGauge,
}

impl HousekeepingMetrics {
    /// `untaken` is the counter of the process.
    pub fn register(registry: &Registry, untaken: IntCounter) -> prometheus::Result<Self> {
        let xmin_age = IntGauge::new(
            "messager_database_xmin_age_transactions",
            "Age of the oldest row version that PostgreSQL must keep, in transactions. 0 on SQLite.",
        );
        let abandoned = IntCounterVec::new(
            Opts::new(
                "messager_abandoned_messages_total",
                "Messages that the housekeeping ended because their consumer no longer runs, by outcome.",
            ),
            &["outcome"],
        );
        let metrics = Self {
            untaken,
            abandoned: registered(registry, abandoned)?,
            xmin_age: registered(registry, xmin_age)?,
        };
        // A counter that starts with its first count hides that count from `rate`.
        for outcome in ["expired", "unknown"] {
            metrics.abandoned.with_label_values(&[outcome]);
        }
        Ok(metrics)
    }

    pub fn ended(&self, ended: &Expired) {
        self.untaken.inc_by(ended.untaken);
        self.abandoned.with_label_values(&["expired"]).inc_by(ended.expired);
        self.abandoned.with_label_values(&["unknown"]).inc_by(ended.unknown);
    }

    pub fn xmin_age(&self, transactions: u64) {
        self.xmin_age.set(i64::try_from(transactions).unwrap_or(i64::MAX));
    }
}

/// Registers `processed_messages` in a process that publishes nothing: the Go service exported it on
/// the metrics port of its API, where it stays 0.
pub fn register_no_publications(registry: &Registry) -> prometheus::Result<()> {
    counter(registry, "processed_messages", "Messages published to the broker.").map(|_| ())
}

const CALL_SECONDS: &str = "messager_gateway_call_duration_seconds";
const CALL_BUCKETS: [f64; 12] =
    [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];

/// Metrics of the consumer.
#[derive(Debug, Clone)]
pub struct DeliveryMetrics {
    records: IntCounterVec,
    deliveries: IntCounterVec,
    time_to_take_over: Histogram,
    time_to_send: Histogram,
    steps: StepMetrics,
    call_durations: HistogramVec,
    calls: IntCounter,
    retries: IntCounter,
    held_back: IntCounter,
    unaffordable: IntCounter,
    deferred: IntCounter,
    lag: IntGaugeVec,
    held: IntGauge,
}

impl DeliveryMetrics {
    pub fn register(registry: &Registry, steps: &StepMetrics) -> prometheus::Result<Self> {
        let metrics = Self {
            records: registered(
                registry,
                IntCounterVec::new(
                    Opts::new("messager_records_total", "Records read from the broker, by kind."),
                    &["kind"],
                ),
            )?,
            deliveries: registered(
                registry,
                IntCounterVec::new(
                    Opts::new("messager_deliveries_total", "Messages that ended, by outcome."),
                    &["outcome"],
                ),
            )?,
            time_to_take_over: steps.of(Step::TakenOver),
            time_to_send: steps.of(Step::Sent),
            steps: steps.clone(),
            call_durations: registered(
                registry,
                HistogramVec::new(
                    HistogramOpts::new(
                        CALL_SECONDS,
                        "How long calls of a gateway took, also those that failed.",
                    )
                    .buckets(CALL_BUCKETS.to_vec()),
                    &["gateway"],
                ),
            )?,
            calls: counter(registry, "messager_gateway_calls_total", "Calls of the gateway.")?,
            retries: counter(
                registry,
                "messager_gateway_retries_total",
                "Calls of the gateway that failed and will be retried.",
            )?,
            held_back: counter(
                registry,
                "messager_gateway_retries_held_back_total",
                "Retries that were due and were postponed, because the gateway accepts too few calls.",
            )?,
            unaffordable: counter(
                registry,
                "messager_budget_failures_total",
                "Accepted messages that failed because every gateway of their route has used its daily budget up.",
            )?,
            deferred: counter(
                registry,
                "messager_deferred_messages_total",
                "Times that a message was left in the ledger because no gateway could take it.",
            )?,
            lag: registered(
                registry,
                IntGaugeVec::new(
                    Opts::new(
                        "messager_partition_lag",
                        "Records of a partition that are not read yet.",
                    ),
                    &["partition"],
                ),
            )?,
            held: registered(
                registry,
                IntGauge::new("messager_partitions_held", "Partitions that this consumer reads."),
            )?,
        };
        // A counter that starts with its first count hides that count from `rate`.
        for kind in ["admitted", "passed_over", "unreadable"] {
            metrics.records.with_label_values(&[kind]);
        }
        for outcome in ["sent", "failed", "expired", "unknown"] {
            metrics.deliveries.with_label_values(&[outcome]);
        }
        Ok(metrics)
    }

    /// Starts the series of a gateway at zero.
    pub fn expect(&self, gateway: &GatewayName) {
        self.call_durations.with_label_values(&[gateway.as_str()]);
    }

    pub fn delivered(&self, partition: i32, delivered: &Delivered) {
        let records = |kind| self.records.with_label_values(&[kind]);
        records("admitted").inc_by(delivered.admitted as u64);
        observe(&self.time_to_take_over, &delivered.ages);
        records("passed_over").inc_by(delivered.passed_over as u64);
        records("unreadable").inc_by(delivered.unreadable as u64);
        self.calls.inc_by(delivered.calls as u64);
        for (gateway, took, trace) in &delivered.durations {
            let (labels, seconds) = ([("gateway", gateway.as_str())], took.as_secs_f64());
            self.call_durations.with_label_values(&[gateway.as_str()]).observe(seconds);
            let exemplars = self.steps.exemplars();
            exemplars.note(CALL_SECONDS, &labels, &CALL_BUCKETS, seconds, trace.as_ref());
        }
        for (age, trace) in &delivered.sent_traces {
            self.steps.note(Step::Sent, *age, Some(trace));
        }
        self.retries.inc_by(delivered.retries as u64);
        self.held_back.inc_by(delivered.held_back as u64);
        self.unaffordable.inc_by(delivered.unaffordable as u64);
        self.deferred.inc_by(delivered.deferred as u64);
        for ended in &delivered.ended {
            self.deliveries.with_label_values(&[ended.state.as_str()]).inc();
            if ended.state == DeliveryState::Sent {
                self.time_to_send.observe(ended.age.as_secs_f64());
            }
        }
        if let Some(lag) = delivered.lag {
            self.lag.with_label_values(&[&partition.to_string()]).set(lag);
        }
    }

    pub fn held(&self, partitions: usize) {
        self.held.set(i64::try_from(partitions).unwrap_or(i64::MAX));
    }

    /// Drops the lag of a partition that another consumer now reads and reports.
    pub fn left(&self, partition: i32) {
        // The lag may never have been set.
        let _ = self.lag.remove_label_values(&[&partition.to_string()]);
    }
}

/// Metrics of the guard.
#[derive(Debug, Clone)]
pub struct GuardMetrics {
    decisions: IntCounter,
    lost: IntCounter,
}

impl GuardMetrics {
    pub fn register(registry: &Registry) -> prometheus::Result<Self> {
        Ok(Self {
            decisions: counter(
                registry,
                "messager_guard_decisions_total",
                "Messages for which a rule of the guard fired, whether or not it blocked them.",
            )?,
            lost: counter(
                registry,
                "messager_guard_decisions_lost_total",
                "Decisions of the guard that were not stored, because there were too many.",
            )?,
        })
    }

    pub fn flushed(&self, flushed: &Flushed) {
        self.decisions.inc_by(flushed.decisions as u64 + flushed.lost);
        self.lost.inc_by(flushed.lost);
    }
}

/// Metrics of events.
#[derive(Debug, Clone)]
pub struct EventMetrics {
    events: IntCounterVec,
}

impl EventMetrics {
    pub fn register(registry: &Registry) -> prometheus::Result<Self> {
        let events = IntCounterVec::new(
            Opts::new("messager_events_total", "Posts of events, by outcome."),
            &["outcome"],
        );
        let metrics = Self { events: registered(registry, events)? };
        // A counter that starts with its first count hides that count from `rate`.
        for outcome in ["delivered", "retried", "dropped"] {
            metrics.events.with_label_values(&[outcome]);
        }
        Ok(metrics)
    }

    pub fn posted(&self, posted: &Posted) {
        let events = |outcome| self.events.with_label_values(&[outcome]);
        events("delivered").inc_by(posted.delivered as u64);
        events("retried").inc_by(posted.retried as u64);
        events("dropped").inc_by(posted.dropped as u64);
    }
}

/// Observes many durations at once: a local histogram touches the shared one only when it is flushed.
fn observe(histogram: &Histogram, durations: &[Duration]) {
    if durations.is_empty() {
        return;
    }
    let batch = histogram.local();
    for duration in durations {
        batch.observe(duration.as_secs_f64());
    }
    batch.flush();
}

fn counter(registry: &Registry, name: &str, help: &str) -> prometheus::Result<IntCounter> {
    registered(registry, IntCounter::new(name, help))
}

fn registered<M: prometheus::core::Collector + Clone + 'static>(
    registry: &Registry,
    metric: prometheus::Result<M>,
) -> prometheus::Result<M> {
    let metric = metric?;
    registry.register(Box::new(metric.clone()))?;
    Ok(metric)
}
