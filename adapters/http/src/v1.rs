//! `/v1`: verifications.
//!
//! [`ENDPOINTS`] lists the operations. Each is described beside its handler, and the router, the
//! metrics and the `OpenAPI` document are made from the descriptions.

use std::sync::Arc;

use axum::{
    Router,
    body::Bytes,
    http::header::CONTENT_TYPE,
    response::IntoResponse,
    routing::{any, get},
};

use self::{
    endpoint::Endpoint,
    handler::V1Handler,
    problem::{refuse_method, refuse_path},
};
pub use self::{
    gateway_receipts::{
        NoReceipts, ReceiptAnswer, ReceiptError, ReceiptGateway, ReceiptGateways, ReceiptRequest,
        receipts_router,
    },
    settings::V1Settings,
    use_cases::{UseCases, V1},
};
use crate::{
    error::{FailureLog, JSON},
    metrics::ApiMetrics,
};

mod body;
mod cancel;
mod check;
mod check_by_phone;
mod endpoint;
mod find;
mod gateway_receipts;
mod handler;
mod idempotency;
mod limits;
mod openapi;
mod problem;
mod receipt;
mod reply;
mod resend;
mod settings;
mod start;
#[cfg(test)]
mod tests;
mod typed;
mod use_cases;
mod verification;

/// The operations of `/v1`.
static ENDPOINTS: &[&Endpoint] = &[
    &start::ENDPOINT,
    &find::ENDPOINT,
    &check::ENDPOINT,
    &check_by_phone::ENDPOINT,
    &resend::ENDPOINT,
    &cancel::ENDPOINT,
    &receipt::ENDPOINT,
];

/// The router of `/v1` and `/openapi.json`.
///
/// Every answer is counted in `metrics`, except answers to unknown paths. The router has no
/// fallback, so that it can be merged with the router of `/api`.
pub fn v1_router(
    use_cases: Arc<impl UseCases>,
    metrics: ApiMetrics,
    settings: Arc<V1Settings>,
) -> Router {
    let description = Bytes::from(openapi::text(ENDPOINTS, &settings));
    let describe = async move || ([(CONTENT_TYPE, JSON)], description).into_response();
    let failures = FailureLog::new("cannot reach the database; /v1 answers 503");
    let v1 = Arc::new(V1Handler { use_cases, settings, metrics, failures });
    let mut router = Router::new()
        .route("/openapi.json", get(describe).fallback(refuse_method))
        .route("/v1", any(refuse_path))
        .route("/v1/", any(refuse_path))
        .route("/v1/{*rest}", any(refuse_path));
    for endpoint in ENDPOINTS {
        v1.metrics.expect_v1(endpoint.route, endpoint.success);
        router = router.route(endpoint.route, endpoint.method_router(&v1));
    }
    v1.metrics.expect_verifications(v1.settings.default_region);
    v1.metrics.expect_limits(v1.settings.limits.custom.keys());
    router
}
