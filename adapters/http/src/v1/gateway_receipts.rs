//! `/v1/receipts/{gateway}`: what providers report, each in its own form.
//!
//! It is no [`Endpoint`](super::endpoint::Endpoint): a provider has no API key, chooses the method and
//! the body, and expects its own answer.

use std::{borrow::Cow, sync::Arc, time::Duration};

use application::{
    TraceParent, VaultClosed,
    ports::{GatewayReceipt, StoreError},
};
use axum::{
    Router,
    body::Body,
    extract::{RawPathParams, Request, rejection::RawPathParamsRejection},
    http::{HeaderMap, HeaderValue, Method, StatusCode, header::CONTENT_TYPE, request::Parts},
    response::{IntoResponse, Response},
    routing::get,
};
use domain::GatewayName;
use futures_util::future::BoxFuture;

use super::{
    problem::{Problem, ProblemKind, refuse_method},
    reply::Reply,
    settings::V1Settings,
};
use crate::{
    error::FailureLog,
    metrics::ApiMetrics,
    request::{Content, Unread, read_within},
};

pub(super) const ROUTE: &str = "/v1/receipts/{gateway}";

/// The query parameter that has the token of the gateway.
pub(super) const TOKEN: &str = "token";

/// The longest body in bytes. Providers that report many receipts in one call send up to 1,000 short
/// entries.
const MAX_BODY: usize = 64 * 1024;

/// The gateways whose providers report over HTTP.
pub trait ReceiptGateways: Send + Sync + 'static {
    fn find(&self, name: &GatewayName) -> Result<Arc<dyn ReceiptGateway>, NoReceipts>;
}

/// The reason why a gateway takes no receipts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoReceipts {
    /// No gateway has this name, or its provider does not report over HTTP.
    Unknown,
    /// The settings of the gateway cannot be used in this process: a secret is not here. The provider
    /// should repeat the call.
    Unusable,
}

/// A gateway whose provider reports over HTTP.
pub trait ReceiptGateway: Send + Sync + 'static {
    /// Whether [`read`](Self::read) checks a signature. Otherwise the caller must show the token.
    fn is_signed(&self) -> bool;

    /// Whether `token` is a token of this gateway.
    fn accept(&self, token: &str) -> Result<bool, VaultClosed>;

    /// Reads what the provider sent. There may be nothing final in it.
    fn read(&self, call: &ReceiptRequest<'_>) -> Result<Vec<GatewayReceipt>, ReceiptError>;

    /// Stores a receipt. Returns once it is stored, or known to be of no message of ours. `request` is
    /// the span of the request that brought it.
    fn note(
        &self,
        receipt: GatewayReceipt,
        request: Option<TraceParent>,
    ) -> BoxFuture<'_, Result<(), StoreError>>;

    /// Counts a call that was refused.
    fn refused(&self, error: ReceiptError);

    /// Returns the answer that the provider expects.
    fn answer(&self) -> ReceiptAnswer;
}

/// The request of a provider.
#[derive(Debug, Clone, Copy)]
pub struct ReceiptRequest<'a> {
    pub method: &'a Method,
    /// As it came, without the question mark.
    pub query: &'a str,
    pub headers: &'a HeaderMap,
    pub body: &'a [u8],
}

/// The reason why a call was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReceiptError {
    /// The token or the signature is missing or wrong.
    Unverified,
    /// The provider does not send receipts in this form.
    Unreadable,
}

/// The answer to a provider. An empty one is a 204, and any other a 200.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReceiptAnswer {
    pub content_type: &'static str,
    pub body: Cow<'static, str>,
}

struct Desk {
    gateways: Arc<dyn ReceiptGateways>,
    metrics: ApiMetrics,
    body_timeout: Duration,
    failures: FailureLog,
}

/// The router of `/v1/receipts/{gateway}`. The `OpenAPI` document of
/// [`v1_router`](crate::v1_router) describes it.
pub fn receipts_router(
    gateways: Arc<dyn ReceiptGateways>,
    metrics: ApiMetrics,
    settings: &V1Settings,
) -> Router {
    metrics.expect_v1(ROUTE, StatusCode::NO_CONTENT);
    let failures = FailureLog::new("cannot store delivery receipts; /v1/receipts answers 503");
    let body_timeout = settings.body_timeout;
    let desk = Arc::new(Desk { gateways, metrics, body_timeout, failures });
    let (taking, refusing) = (Arc::clone(&desk), desk);
    let take = move |name: Result<RawPathParams, RawPathParamsRejection>, request: Request| {
        let name = name.ok().and_then(|name| name.iter().next().map(|(_, name)| name.to_owned()));
        Arc::clone(&taking).take(name, request)
    };
    let refuse = async move |request: Request| {
        let response = refuse_method(request).await;
        refusing.metrics.refused_v1(ROUTE, response.status());
        response
    };
    Router::new().route(ROUTE, get(take.clone()).post(take).fallback(refuse))
}

impl Desk {
    async fn take(self: Arc<Self>, name: Option<String>, request: Request) -> Response {
        let method = if request.method() == Method::GET { "GET" } else { "POST" };
        let mut observed = self.metrics.begin(method, ROUTE, request.headers());
        let trace = observed.trace.take();
        let (head, body) = request.into_parts();
        let path = head.uri.path().to_owned();
        // Strangers are refused before their body is kept, and before the database is asked.
        let gateway = self.admit(name.as_deref(), &head);
        let body = self.read(body, &head, gateway.is_ok()).await;
        // A separate task goes on if the provider disconnects, so that no work is left half done.
        let work = {
            let desk = Arc::clone(&self);
            async move { desk.note(&*gateway?, &head, &body?.bytes, trace).await }
        };
        let done = tokio::spawn(work).await.unwrap_or_else(|error| {
            if error.is_panic() {
                tracing::error!("the handler of a receipt panicked");
            }
            Err(ProblemKind::Internal.into())
        });
        let reply = done.unwrap_or_else(|problem| problem.reply(&path));
        self.metrics.answered_v1(ROUTE, reply.status, observed);
        reply.into_response()
    }

    /// Returns the gateway if the caller may report its receipts, as far as that shows without a
    /// body.
    fn admit(&self, name: Option<&str>, head: &Parts) -> Result<Arc<dyn ReceiptGateway>, Problem> {
        let name = name.and_then(|name| name.parse().ok()).ok_or(ProblemKind::NotFound)?;
        let gateway = self.gateways.find(&name).map_err(|none| match none {
            NoReceipts::Unknown => ProblemKind::NotFound,
            NoReceipts::Unusable => ProblemKind::ReducedCapacity,
        })?;
        if gateway.is_signed() {
            return Ok(gateway);
        }
        let accepted = match token(head) {
            Some(token) => gateway.accept(&token),
            None => Ok(false),
        };
        match accepted {
            Ok(true) => Ok(gateway),
            Ok(false) => Err(refuse(&*gateway, ReceiptError::Unverified)),
            Err(error) => {
                self.failures.log(&error);
                Err(ProblemKind::ReducedCapacity.into())
            }
        }
    }

    async fn read(
        &self,
        body: Body,
        head: &Parts,
        is_allowed: bool,
    ) -> Result<Content<'static>, Problem> {
        let read = read_within(self.body_timeout, body, &head.headers, MAX_BODY, is_allowed).await;
        read.map_err(|error| match error {
            Unread::TooLong => ProblemKind::TooLarge.into(),
            Unread::BrokenOff => ProblemKind::UnreadableReceipt.into(),
            Unread::TooLate | Unread::NoRoom => ProblemKind::RequestTimeout.into(),
        })
    }

    /// Stores all receipts of a call. After a failure the provider repeats the call, which is safe.
    async fn note(
        &self,
        gateway: &dyn ReceiptGateway,
        head: &Parts,
        body: &[u8],
        trace: Option<TraceParent>,
    ) -> Result<Reply, Problem> {
        let call = ReceiptRequest {
            method: &head.method,
            query: head.uri.query().unwrap_or_default(),
            headers: &head.headers,
            body,
        };
        let receipts = gateway.read(&call).map_err(|error| refuse(gateway, error))?;
        for receipt in receipts {
            gateway.note(receipt, trace.clone()).await.map_err(|error| {
                self.failures.log(&error);
                ProblemKind::ReducedCapacity
            })?;
        }
        Ok(Reply::from(gateway.answer()))
    }
}

/// Returns the token in the query. Of several, the first counts.
fn token(head: &Parts) -> Option<String> {
    let query = head.uri.query().unwrap_or_default().as_bytes();
    let mut pairs = form_urlencoded::parse(query);
    pairs.find(|(name, _)| name == TOKEN).map(|(_, token)| token.into_owned())
}

fn refuse(gateway: &dyn ReceiptGateway, error: ReceiptError) -> Problem {
    gateway.refused(error);
    match error {
        ReceiptError::Unverified => ProblemKind::UnverifiedReceipt.into(),
        ReceiptError::Unreadable => ProblemKind::UnreadableReceipt.into(),
    }
}

impl From<ReceiptAnswer> for Reply {
    fn from(answer: ReceiptAnswer) -> Self {
        if answer.body.is_empty() {
            return Self::empty();
        }
        let content_type = HeaderValue::from_static(answer.content_type);
        Self {
            status: StatusCode::OK,
            headers: HeaderMap::from_iter([(CONTENT_TYPE, content_type)]),
            body: answer.body.into_owned(),
        }
    }
}
