//! An operation of `/v1`: its description, and how a request for it is answered.

use std::sync::Arc;

use application::{Repeatable, TraceParent, ports::AnswerClaim};
use axum::{
    body::Body,
    extract::{RawPathParams, Request, rejection::RawPathParamsRejection},
    http::{HeaderMap, StatusCode, request::Parts},
    response::{IntoResponse, Response},
    routing::{MethodRouter, get, post},
};
use domain::{ApiKeyId, Scope};
use futures_util::future::BoxFuture;
use utoipa::openapi::Object;

use super::{
    handler::{V1Handler, V1Request},
    idempotency,
    problem::{Problem, ProblemKind, refuse_method},
    reply::Reply,
    settings::V1Settings,
};
use crate::request::{Unread, read_within};

/// The longest body in bytes. The longest valid start is a third of it.
const MAX_BODY: usize = 16 * 1024;

/// One operation of `/v1`. The router, the metrics and the `OpenAPI` document are made from it.
#[derive(Debug)]
pub(super) struct Endpoint {
    /// The name of the operation in the `OpenAPI` document and in generated clients. Stable.
    pub(super) operation_id: &'static str,
    pub(super) method: Method,
    /// The template of the path, which is also a label of metrics.
    pub(super) route: &'static str,
    /// The scope that an API key needs.
    pub(super) scope: Scope,
    /// Whether the operation honours `Idempotency-Key`. One that does not is safe to repeat.
    pub(super) takes_idempotency_key: bool,
    pub(super) success: StatusCode,
    pub(super) tag: &'static str,
    pub(super) summary: &'static str,
    pub(super) description: &'static str,
    pub(super) success_description: &'static str,
    /// The JSON body of a request. Without a model, the body is ignored.
    pub(super) request: Option<&'static Model>,
    /// The JSON body of a successful answer.
    pub(super) answer: Option<&'static Model>,
    /// The problems in addition to the problems of the method, the body and `Idempotency-Key`.
    pub(super) problems: &'static [ProblemKind],
    /// Operations on the resource that this one creates. Its answer has a `Location` then.
    pub(super) links: &'static [&'static Endpoint],
    pub(super) handle: Handle,
}

pub(super) type Handle =
    for<'a> fn(&'a V1Handler, &'a V1Request<'a>) -> BoxFuture<'a, Result<Reply, Problem>>;

/// The method of an operation. `/v1` has no others.
#[derive(Debug, Clone, Copy)]
pub(super) enum Method {
    Get,
    Post,
}

impl Method {
    /// Whether the body of a request is read, although it may be ignored afterwards.
    pub(super) fn has_body(self) -> bool {
        match self {
            Self::Get => false,
            Self::Post => true,
        }
    }

    /// Returns the method as a request line has it. Part of the fingerprint of `Idempotency-Key`.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Post => "POST",
        }
    }
}

/// A named schema of the `OpenAPI` document.
#[derive(Debug)]
pub(super) struct Model {
    pub(super) name: &'static str,
    pub(super) schema: fn(&V1Settings) -> Object,
    /// The models that the schema refers to.
    pub(super) parts: &'static [&'static Model],
}

impl Endpoint {
    pub(super) fn has_id(&self) -> bool {
        self.route.contains("{id}")
    }

    /// Returns the route's methods: its own, and 405 for every other.
    pub(super) fn method_router(&'static self, v1: &Arc<V1Handler>) -> MethodRouter {
        let (answering, refusing) = (Arc::clone(v1), Arc::clone(v1));
        let answer = move |id: Result<RawPathParams, RawPathParamsRejection>, request: Request| {
            let id = id.ok().and_then(|id| id.iter().next().map(|(_, id)| id.to_owned()));
            self.answer(Arc::clone(&answering), id, request)
        };
        let refuse = async move |request: Request| {
            let response = refuse_method(request).await;
            refusing.metrics.refused_v1(self.route, response.status());
            response
        };
        let router = match self.method {
            Method::Get => get(answer),
            Method::Post => post(answer),
        };
        router.fallback(refuse)
    }

    async fn answer(
        &'static self,
        v1: Arc<V1Handler>,
        id: Option<String>,
        request: Request,
    ) -> Response {
        let mut observed = v1.metrics.begin(self.method.as_str(), self.route, request.headers());
        let trace = observed.trace.take();
        let (head, body) = request.into_parts();
        let path = head.uri.path().to_owned();
        let api_key = v1.authorize(&head.headers, self.scope).await;
        let body = self.read(&v1, body, &head.headers, api_key.is_ok()).await;
        // A separate task goes on if the client disconnects, so that no work is left half done.
        let work = {
            let v1 = Arc::clone(&v1);
            async move { self.work(&v1, id, head, api_key?, body, trace).await }
        };
        let done = tokio::spawn(work).await.unwrap_or_else(|error| {
            if error.is_panic() {
                tracing::error!("a request's handler panicked");
            }
            Err(ProblemKind::Internal.into())
        });
        let reply = done.unwrap_or_else(|problem| problem.reply(&path));
        v1.metrics.answered_v1(self.route, reply.status, observed);
        reply.into_response()
    }

    async fn read(
        &self,
        v1: &V1Handler,
        body: Body,
        headers: &HeaderMap,
        is_allowed: bool,
    ) -> Result<Vec<u8>, Problem> {
        if !self.method.has_body() {
            return Ok(Vec::new());
        }
        let patience = v1.settings.body_timeout;
        let read = read_within(patience, body, headers, MAX_BODY, is_allowed).await;
        read.map(|content| content.bytes).map_err(|error| match error {
            Unread::TooLong => ProblemKind::TooLarge.into(),
            Unread::BrokenOff => ProblemKind::MalformedBody.into(),
            Unread::TooLate | Unread::NoRoom => ProblemKind::RequestTimeout.into(),
        })
    }

    async fn work(
        &self,
        v1: &V1Handler,
        id: Option<String>,
        head: Parts,
        api_key: Option<ApiKeyId>,
        body: Result<Vec<u8>, Problem>,
        trace: Option<TraceParent>,
    ) -> Result<Reply, Problem> {
        let headers = &head.headers;
        let key = if self.takes_idempotency_key { idempotency::key(headers)? } else { None };
        let body = &body?;
        let request = V1Request { headers, id: id.as_deref(), body, api_key, trace, claim: None };
        let Some(key) = key else { return (self.handle)(v1, &request).await };
        let (method, path) = (self.method.as_str(), head.uri.path());
        let repeatable = Repeatable { api_key, method, path, key };
        let work = |claim: AnswerClaim| {
            let request = V1Request { claim: Some(claim), ..request.clone() };
            async move { (self.handle)(v1, &request).await }
        };
        match idempotency::once(&*v1.use_cases, repeatable, body, work).await {
            Ok(done) => done,
            Err(error) => Err(v1.unavailable(&error)),
        }
    }
}
