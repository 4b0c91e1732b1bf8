use axum::{
    Router,
    extract::State,
    http::{HeaderMap, HeaderValue, StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
    routing::get,
};
use prometheus::{Registry, TextEncoder};
use serde::Serialize;

use crate::{
    Exemplars, MetricsToken, Readiness,
    error::{ApiError, JSON},
    openmetrics::{self, takes_open_metrics},
};

#[derive(Serialize)]
struct ReadinessPage<'a> {
    status: &'static str,
    checks: &'a Readiness,
}

/// The router of the metrics port: `/metrics`, `/healthz`, `/readyz`.
///
/// `/healthz` reports only that the process runs: a restart would not repair a dependency.
///
/// If exemplars are kept, a caller that accepts `OpenMetrics` gets it.
///
/// If there is a token, callers of `/metrics` must show it. Probes never need it.
pub fn metrics_router(
    registry: Registry,
    readiness: Readiness,
    token: Option<MetricsToken>,
    exemplars: Exemplars,
) -> Router {
    Router::new()
        .route("/metrics", get(metrics).with_state((registry, token, exemplars)))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz).with_state(readiness))
        .method_not_allowed_fallback(async || ApiError::MethodNotAllowed)
        .fallback(async || ApiError::NotFound)
}

async fn metrics(
    State((registry, token, exemplars)): State<(Registry, Option<MetricsToken>, Exemplars)>,
    headers: HeaderMap,
) -> Response {
    const TEXT: HeaderValue = HeaderValue::from_static(prometheus::TEXT_FORMAT);
    const OPEN_METRICS: HeaderValue = HeaderValue::from_static(openmetrics::OPEN_METRICS);
    if token.is_some_and(|token| !token.is_shown(&headers)) {
        return ApiError::TokenNeeded.into_response();
    }
    let families = registry.gather();
    let (kind, encoded) = if exemplars.are_kept() && takes_open_metrics(&headers) {
        (OPEN_METRICS, exemplars.encode(&families))
    } else {
        (TEXT, TextEncoder::new().encode_to_string(&families))
    };
    match encoded {
        Ok(text) => ([(CONTENT_TYPE, kind)], text).into_response(),
        Err(error) => {
            tracing::error!(%error, "cannot encode the metrics");
            ApiError::Internal.into_response()
        }
    }
}

async fn healthz() -> Response {
    ([(CONTENT_TYPE, JSON)], r#"{"status":"ok"}"#).into_response()
}

async fn readyz(State(readiness): State<Readiness>) -> Response {
    let (code, status) = if readiness.is_ready() {
        (StatusCode::OK, "ready")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "not ready")
    };
    let page = serde_json::to_string(&ReadinessPage { status, checks: &readiness })
        .expect("names and texts are JSON");
    (code, [(CONTENT_TYPE, JSON)], page).into_response()
}

#[cfg(test)]
mod tests {
    use axum::{
        body::Body,
        http::{
            Request,
            header::{AUTHORIZATION, WWW_AUTHENTICATE},
        },
    };
    use http_body_util::BodyExt;
    use tower::ServiceExt;

    use super::*;
    use crate::ApiMetrics;

    async fn get(router: &Router, path: &str) -> (StatusCode, String, String) {
        let request = Request::get(path).body(Body::empty()).unwrap();
        let response = router.clone().oneshot(request).await.unwrap();
        let status = response.status();
        let kind = response.headers()[CONTENT_TYPE].to_str().unwrap().to_owned();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, kind, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn metrics_are_in_the_text_format_of_prometheus() {
        let registry = Registry::new();
        ApiMetrics::register(&registry).unwrap();
        let router = metrics_router(registry, Readiness::new(&[]), None, Exemplars::default());

        let (status, kind, text) = get(&router, "/metrics").await;

        assert_eq!((status, kind.as_str()), (StatusCode::OK, "text/plain; version=0.0.4"));
        for status in ["200", "400", "503"] {
            assert!(text.contains(&format!("total_messages{{status=\"{status}\"}} 0\n")), "{text}");
        }
    }

    #[tokio::test]
    async fn openmetrics_is_sent_only_with_exemplars() {
        let ask = async |exemplars| {
            let router = metrics_router(Registry::new(), Readiness::new(&[]), None, exemplars);
            let request = Request::get("/metrics").header("accept", openmetrics::OPEN_METRICS);
            let response = router.oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
            response.headers()[CONTENT_TYPE].to_str().unwrap().to_owned()
        };

        let exemplars = Exemplars::kept(|| std::time::SystemTime::UNIX_EPOCH);
        assert_eq!(ask(exemplars).await, openmetrics::OPEN_METRICS);
        assert_eq!(ask(Exemplars::default()).await, prometheus::TEXT_FORMAT);
    }

    #[tokio::test]
    async fn metrics_are_shown_to_callers_with_the_token_only() {
        let token = "metrics-token-of-32-characters-xx";
        let registry = Registry::new();
        ApiMetrics::register(&registry).unwrap();
        let router =
            metrics_router(registry, Readiness::new(&[]), token.parse().ok(), Exemplars::default());
        let ask = async |path: &str, shown: &[&str]| {
            let mut request = Request::get(path);
            for value in shown {
                request = request.header(AUTHORIZATION, *value);
            }
            let request = request.body(Body::empty()).unwrap();
            router.clone().oneshot(request).await.unwrap()
        };

        let good = format!("Bearer {token}");
        assert_eq!(ask("/metrics", &[&good]).await.status(), StatusCode::OK);
        let (longer, wrong) = (format!("{good}x"), good.replace("xx", "xy"));
        let (shorter, basic) = (good[..good.len() - 1].to_owned(), good.replace("Bearer", "Basic"));
        let cases: [&[&str]; 6] =
            [&[], &[&longer], &[&wrong], &[&shorter], &[&basic], &[&good, &good]];
        for bad in cases {
            let refused = ask("/metrics", bad).await;
            assert_eq!(refused.status(), StatusCode::UNAUTHORIZED, "{bad:?}");
            assert_eq!(refused.headers()[WWW_AUTHENTICATE], "Bearer");
            let body = refused.into_body().collect().await.unwrap().to_bytes();
            assert_eq!(body, r#"{"error":"token needed"}"#);
        }
        for probe in ["/healthz", "/readyz"] {
            assert_eq!(ask(probe, &[]).await.status(), StatusCode::OK, "{probe}");
        }
    }

    #[tokio::test]
    async fn process_is_healthy_always_and_ready_if_all_checks_are_up() {
        let readiness = Readiness::new(&["database", "broker"]);
        let router = metrics_router(Registry::new(), readiness.clone(), None, Exemplars::default());
        let json = |status, text: &str| (status, "application/json".to_owned(), text.to_owned());

        assert_eq!(get(&router, "/healthz").await, json(StatusCode::OK, r#"{"status":"ok"}"#));
        readiness.set_up("database");
        readiness.set_down("broker", "no \"route\"");
        assert_eq!(
            get(&router, "/readyz").await,
            json(
                StatusCode::SERVICE_UNAVAILABLE,
                r#"{"status":"not ready","checks":{"database":"up","broker":"down: no \"route\""}}"#,
            )
        );
        readiness.set_up("broker");
        assert_eq!(
            get(&router, "/readyz").await,
            json(StatusCode::OK, r#"{"status":"ready","checks":{"database":"up","broker":"up"}}"#)
        );
        assert_eq!(
            get(&router, "/").await,
            json(StatusCode::NOT_FOUND, r#"{"error":"not found"}"#)
        );
    }
}
