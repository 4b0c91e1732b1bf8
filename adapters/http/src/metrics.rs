use std::time::Duration;

use application::{Approved, Checked, ports::Violation};
use axum::http::StatusCode;
use domain::{CustomLimit, Origin, Region};
use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, Opts, Registry,
};

/// From the fastest answer of the outbox to more than a client will wait for.
const BUCKETS: [f64; 14] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// The limits of each origin, without those whose key the caller sends.
const LIMITS: [(Origin, &[&str]); 2] = [
    (
        Origin::V1,
        &["phone", "ip", "prefix", "region", "key", "check", "resend", "sends", "attempts"],
    ),
    (Origin::Api, &["phone", "prefix", "region", "key"]),
];

const STARTED: &str = "started";
const APPROVED: &str = "approved";

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
    verifications: IntCounterVec,
    limits: IntCounterVec,
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
    /// also by route, `messager_checks_total`, `messager_verifications_total` and
    /// `messager_limits_reached_total`.
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
        let verifications = IntCounterVec::new(
            Opts::new(
                "messager_verifications_total",
                "Verifications that were started and approved, by origin and region of the number.",
            ),
            &["origin", "region", "event"],
        )?;
        registry.register(Box::new(verifications.clone()))?;
        let limits = IntCounterVec::new(
            Opts::new("messager_limits_reached_total", "Limits that requests have reached."),
            &["origin", "limit"],
        )?;
        registry.register(Box::new(limits.clone()))?;
        for (origin, of_origin) in LIMITS {
            for limit in of_origin {
                limits.with_label_values(&[origin.as_str(), limit]);
            }
        }
        Ok(Self {
            answers,
            durations,
            usual,
            v1_answers,
            v1_durations,
            approved,
            wrong,
            verifications,
            limits,
        })
    }

    /// Starts the verifications of a region at zero. The other regions begin with their first one.
    pub(crate) fn expect_verifications(&self, region: Option<Region>) {
        for origin in [Origin::V1, Origin::Api] {
            for event in [STARTED, APPROVED] {
                self.verified(origin, region, event).inc_by(0);
            }
        }
    }

    /// Starts the limits at zero whose key the caller sends.
    pub(crate) fn expect_limits<'a>(&self, custom: impl Iterator<Item = &'a CustomLimit>) {
        for limit in custom {
            self.limits.with_label_values(&[Origin::V1.as_str(), limit.as_str()]);
        }
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
            Checked::Approved(approved) => {
                self.approved.inc();
                if let Some(Approved { origin: origin @ (Origin::V1 | Origin::Api), region }) =
                    approved
                {
                    self.verified(origin, region, APPROVED).inc();
                }
            }
            Checked::Wrong { .. } => self.wrong.inc(),
        }
    }

    /// Counts a verification that was started, or whose code was sent again by a start.
    pub(crate) fn started(&self, origin: Origin, region: Option<Region>) {
        self.verified(origin, region, STARTED).inc();
        // A counter that starts with its first count hides that count from `rate`.
        self.verified(origin, region, APPROVED).inc_by(0);
    }

    /// Counts each limit once that a request has reached.
    pub(crate) fn limited(&self, origin: Origin, violations: &[Violation]) {
        let mut counted: Vec<&str> = Vec::new();
        for Violation { policy, .. } in violations {
            let limit = policy.name.limit();
            if !counted.contains(&limit) {
                counted.push(limit);
                self.limits.with_label_values(&[origin.as_str(), limit]).inc();
            }
        }
    }

    fn verified(&self, origin: Origin, region: Option<Region>, event: &str) -> IntCounter {
        let region = region.as_ref().map_or("unknown", Region::as_str);
        self.verifications.with_label_values(&[origin.as_str(), region, event])
    }

    /// `route` is the template of a path, never a path.
    pub(crate) fn answered_v1(&self, route: &'static str, status: StatusCode, took: Duration) {
        let label = [route, status.as_str()];
        self.v1_answers.with_label_values(&label).inc();
        self.v1_durations.with_label_values(&label).observe(took.as_secs_f64());
    }
}
