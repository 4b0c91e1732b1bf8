use std::time::Duration;

use application::Checked;
use axum::http::StatusCode;
use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, Opts, Registry,
};

/// From the fastest answer of the outbox to more than a client will wait for.
const BUCKETS: [f64; 14] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// Answers of the API, counted and timed by status.
#[derive(Debug, Clone)]
pub struct ApiMetrics {
    answers: IntCounterVec,
    durations: HistogramVec,
    /// Looked up once, because a lookup takes a lock.
    usual: [(StatusCode, IntCounter, Histogram); 3],
    v1_answers: IntCounterVec,
    v1_durations: HistogramVec,
    approved: IntCounter,
    wrong: IntCounter,
}

/// The metrics of [`crate::serve`].
#[derive(Debug, Clone)]
pub struct ConnectionMetrics {
    pub(crate) refused: IntCounter,
    pub(crate) dropped: IntCounter,
}

impl ConnectionMetrics {
    /// Registers `messager_connections_refused_total` and `messager_connections_dropped_total`.
    pub fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let refused = IntCounter::new(
            "messager_connections_refused_total",
            "Connections refused because all were taken: answered with 503, or closed.",
        )?;
        let dropped = IntCounter::new(
            "messager_connections_dropped_total",
            "Connections that made no progress and were dropped to make room for others.",
        )?;
        registry.register(Box::new(refused.clone()))?;
        registry.register(Box::new(dropped.clone()))?;
        Ok(Self { refused, dropped })
    }
}

impl ApiMetrics {
    /// Registers `total_messages` and `messager_http_request_duration_seconds` for `/api`, and
    /// `messager_v1_requests_total` and `messager_v1_request_duration_seconds` for `/v1`, these
    /// also by route, and `messager_checks_total`.
    ///
    /// The usual statuses of `/api` start at zero, so that the first failure is seen as a rise.
    /// [`v1_router`](crate::v1_router) adds those of `/v1`.
    pub fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let answers = IntCounterVec::new(
            Opts::new("total_messages", "Answers of the API, by HTTP status."),
            &["status"],
        )?;
        let durations = HistogramVec::new(
            HistogramOpts::new(
                "messager_http_request_duration_seconds",
                "Time from the head of a request to the answer, by HTTP status.",
            )
            .buckets(BUCKETS.to_vec()),
            &["status"],
        )?;
        registry.register(Box::new(answers.clone()))?;
        registry.register(Box::new(durations.clone()))?;
        let series = |status: StatusCode| {
            let label = [status.as_str()];
            (status, answers.with_label_values(&label), durations.with_label_values(&label))
        };
        let usual = [StatusCode::OK, StatusCode::BAD_REQUEST, StatusCode::SERVICE_UNAVAILABLE];
        let usual = usual.map(series);
        let v1_answers = IntCounterVec::new(
            Opts::new("messager_v1_requests_total", "Answers of /v1, by route and HTTP status."),
            &["route", "status"],
        )?;
        let v1_durations = HistogramVec::new(
            HistogramOpts::new(
                "messager_v1_request_duration_seconds",
                "Time from the head of a request to the answer, by route and HTTP status.",
            )
            .buckets(BUCKETS.to_vec()),
            &["route", "status"],
        )?;
        registry.register(Box::new(v1_answers.clone()))?;
        registry.register(Box::new(v1_durations.clone()))?;
        let checks = IntCounterVec::new(
            Opts::new("messager_checks_total", "Codes checked through /v1, by result."),
            &["result"],
        )?;
        registry.register(Box::new(checks.clone()))?;
        let [approved, wrong] = ["approved", "wrong"].map(|it| checks.with_label_values(&[it]));
        Ok(Self { answers, durations, usual, v1_answers, v1_durations, approved, wrong })
    }

    /// Starts the usual statuses of a route of `/v1` at zero.
    pub(crate) fn expect_v1(&self, route: &'static str, success: StatusCode) {
        for status in [success, StatusCode::SERVICE_UNAVAILABLE] {
            let label = [route, status.as_str()];
            self.v1_answers.with_label_values(&label);
            self.v1_durations.with_label_values(&label);
        }
    }

    pub(crate) fn answered(&self, status: StatusCode, took: Duration) {
        let seconds = took.as_secs_f64();
        if let Some((_, answers, durations)) = self.usual.iter().find(|usual| usual.0 == status) {
            answers.inc();
            durations.observe(seconds);
        } else {
            self.answers.with_label_values(&[status.as_str()]).inc();
            self.durations.with_label_values(&[status.as_str()]).observe(seconds);
        }
    }

    /// A check that was answered from a kept answer is not counted again.
    pub(crate) fn checked(&self, checked: Checked) {
        match checked {
            Checked::Approved => self.approved.inc(),
            Checked::Wrong { .. } => self.wrong.inc(),
        }
    }

    /// `route` is the template of a path, never a path.
    pub(crate) fn answered_v1(&self, route: &'static str, status: StatusCode, took: Duration) {
        let label = [route, status.as_str()];
        self.v1_answers.with_label_values(&label).inc();
        self.v1_durations.with_label_values(&label).observe(took.as_secs_f64());
    }
}
