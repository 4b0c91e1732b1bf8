use std::time::Duration;

use application::{Approved, Checked, OpenSpan, SpanKind, TraceParent, Tracer, ports::Violation};
use axum::http::{HeaderMap, StatusCode};
use domain::{CustomLimit, Origin, Region};
use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, Opts, Registry,
};
use tokio::time::Instant;

use crate::{openmetrics::Exemplars, request::trace};

/// From the fastest answer of the outbox to more than a client will wait for.
const BUCKETS: [f64; 14] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

const API_SECONDS: &str = "messager_http_request_duration_seconds";
const V1_SECONDS: &str = "messager_v1_request_duration_seconds";

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

/// Answers of the API, counted and timed by status, and the spans of its requests.
#[derive(Debug, Clone)]
pub struct ApiMetrics {
    tracer: Tracer,
    exemplars: Exemplars,
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

/// A request that is being answered.
#[derive(Debug)]
pub(crate) struct Observed {
    started: Instant,
    /// The span of the request, or the trace of the caller if no span is recorded.
    pub(crate) trace: Option<TraceParent>,
    span: Option<OpenSpan>,
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
                API_SECONDS,
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
                V1_SECONDS,
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
            tracer: Tracer::default(),
            exemplars: Exemplars::default(),
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

    /// Records a span of each request with this tracer, and keeps exemplars.
    #[must_use]
    pub fn traced(self, tracer: Tracer, exemplars: Exemplars) -> Self {
        Self { tracer, exemplars, ..self }
    }

    /// Begins a request. `route` is the template of its path: a path may hold a token.
    pub(crate) fn begin(
        &self,
        method: &'static str,
        route: &'static str,
        headers: &HeaderMap,
    ) -> Observed {
        let name = format_args!("{method} {route}");
        let (trace, mut span) = self.tracer.enter(trace(headers), SpanKind::Server, name);
        if let Some(span) = &mut span {
            span.set("http.request.method", method);
            span.set("http.route", route);
        }
        Observed { started: Instant::now(), trace, span }
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

    /// Counts the answer to a request of `/api`.
    pub(crate) fn answered(&self, status: StatusCode, request: Observed) {
        let (took, trace) = request.end(status);
        self.count(status, took);
        let labels = [("status", status.as_str())];
        self.exemplars.note(API_SECONDS, &labels, &BUCKETS, took.as_secs_f64(), trace.as_ref());
    }

    /// Counts a request of `/api` that was refused at once.
    pub(crate) fn refused(&self, status: StatusCode) {
        self.count(status, Duration::ZERO);
    }

    fn count(&self, status: StatusCode, took: Duration) {
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

    /// Counts the answer to a request of `/v1`. `route` is the template of a path, never a path.
    pub(crate) fn answered_v1(&self, route: &'static str, status: StatusCode, request: Observed) {
        let (took, trace) = request.end(status);
        self.count_v1(route, status, took);
        let labels = [("route", route), ("status", status.as_str())];
        self.exemplars.note(V1_SECONDS, &labels, &BUCKETS, took.as_secs_f64(), trace.as_ref());
    }

    /// Counts a request of `/v1` that was refused at once.
    pub(crate) fn refused_v1(&self, route: &'static str, status: StatusCode) {
        self.count_v1(route, status, Duration::ZERO);
    }

    fn count_v1(&self, route: &'static str, status: StatusCode, took: Duration) {
        let label = [route, status.as_str()];
        self.v1_answers.with_label_values(&label).inc();
        self.v1_durations.with_label_values(&label).observe(took.as_secs_f64());
    }
}

impl Observed {
    /// Ends the span. Returns how long the request took, and the span.
    fn end(self, status: StatusCode) -> (Duration, Option<TraceParent>) {
        let took = self.started.elapsed();
        let trace = self.span.as_ref().map(|it| it.context().clone());
        if let Some(mut span) = self.span {
            span.set("http.response.status_code", status.as_u16());
            // As the semantic conventions require, only a server error fails the span of a server.
            if status.is_server_error() {
                span.fail(status.as_str().to_owned());
            }
        }
        (took, trace)
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use application::{Attribute, Sampler, Span, Spans};
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;

    const TRACE: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    fn traced() -> (ApiMetrics, Spans) {
        let rng = StdRng::seed_from_u64(1);
        let (tracer, spans) = Tracer::start(Sampler::default(), || SystemTime::UNIX_EPOCH, rng, 9);
        (
            ApiMetrics::register(&Registry::new()).unwrap().traced(tracer, Exemplars::default()),
            spans,
        )
    }

    fn taken(spans: &mut Spans) -> Vec<Span> {
        let mut batch = Vec::new();
        spans.take(&mut batch, 9);
        batch
    }

    #[test]
    fn request_is_a_span_below_that_of_the_caller() {
        let (metrics, mut spans) = traced();
        let headers = HeaderMap::from_iter([(
            axum::http::HeaderName::from_static("traceparent"),
            TRACE.parse().unwrap(),
        )]);

        let request = metrics.begin("GET", "/v1/verifications/{id}", &headers);
        let trace = request.trace.clone();
        metrics.answered_v1("/v1/verifications/{id}", StatusCode::NOT_FOUND, request);

        let [span] = &taken(&mut spans)[..] else { panic!("one span") };
        assert_eq!(
            (span.name.as_str(), span.kind),
            ("GET /v1/verifications/{id}", SpanKind::Server)
        );
        assert_eq!(
            (trace.as_ref(), span.parent.clone()),
            (Some(&span.context), TRACE.parse().ok())
        );
        let attributes = [
            ("http.request.method", Attribute::from("GET")),
            ("http.route", Attribute::from("/v1/verifications/{id}")),
            ("http.response.status_code", Attribute::from(404_u16)),
        ];
        assert_eq!((&span.attributes[..], &span.error), (&attributes[..], &None));
    }

    #[test]
    fn only_a_server_error_fails_the_span() {
        let (metrics, mut spans) = traced();
        for status in [StatusCode::TOO_MANY_REQUESTS, StatusCode::SERVICE_UNAVAILABLE] {
            metrics.answered(status, metrics.begin("POST", "/api", &HeaderMap::new()));
        }

        let errors: Vec<_> = taken(&mut spans).into_iter().map(|span| span.error).collect();
        assert_eq!(errors, [None, Some("503".into())]);
    }

    #[test]
    fn span_of_a_request_whose_client_left_has_no_status() {
        let (metrics, mut spans) = traced();

        drop(metrics.begin("POST", "/api", &HeaderMap::new()));

        let [span] = &taken(&mut spans)[..] else { panic!("one span") };
        assert_eq!(span.attributes.len(), 2);
    }

    #[test]
    fn trace_of_the_caller_is_passed_on_if_tracing_is_off() {
        let metrics = ApiMetrics::register(&Registry::new()).unwrap();
        let mut headers = HeaderMap::new();
        assert!(metrics.begin("POST", "/api", &headers).trace.is_none());

        headers.insert("traceparent", TRACE.parse().unwrap());
        assert_eq!(metrics.begin("POST", "/api", &headers).trace, TRACE.parse().ok());
    }
}
