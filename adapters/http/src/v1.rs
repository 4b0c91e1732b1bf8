//! The API of verifications.

use std::{error::Error, sync::Arc, time::Duration};

use application::{
    AnswerOnce, Authorize, AuthorizeError, CancelVerification, CheckCode, FindVerification,
    NoteReceipt, Repeatable, ResendVerification, StartVerification,
    ports::{AnswerClaim, Answers, ApiKeys, Outbox, Verifications},
};
use axum::{
    Router,
    body::{Body, Bytes},
    extract::{RawPathParams, Request, rejection::RawPathParamsRejection},
    http::{HeaderMap, Method, StatusCode, header::CONTENT_TYPE, request::Parts},
    response::{IntoResponse, Response},
    routing::{any, get, post},
};
use domain::{ApiKeyId, Scope, VerificationId, VerificationStatus};
use rand_core::CryptoRng;
use serde_json::json;
use tokio::time::Instant;

pub use self::settings::V1Settings;
use self::{
    answer::Reply,
    problem::{Problem, ProblemKind},
};
use crate::{
    auth::{self, ApiAuth},
    error::{FailureLog, JSON},
    metrics::ApiMetrics,
    request::{Unread, is_json, media_type, read_within},
};

mod answer;
mod body;
mod checks;
mod idempotency;
mod limits;
mod openapi;
mod problem;
mod receipts;
mod settings;
#[cfg(test)]
mod tests;
mod typed;
mod verifications;

/// Bytes of a body. A start with all that it may hold takes a third of it.
const MAX_BODY: usize = 16 * 1024;

/// What `/v1` does.
#[derive(Debug)]
pub struct V1<O, V, A, K, R> {
    pub start: StartVerification<O, V, R>,
    pub resend: Arc<ResendVerification<V, R>>,
    pub check: CheckCode<V>,
    pub find: FindVerification<V>,
    pub cancel: CancelVerification<V>,
    pub receipts: NoteReceipt<V>,
    pub answers: AnswerOnce<A>,
    pub auth: Arc<Authorize<K>>,
}

/// What `/v1` can be asked for. Each has a path of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operation {
    Start,
    Find,
    Check,
    CheckByPhone,
    Resend,
    Cancel,
    Receipt,
}

struct Surface<O, V, A, K, R> {
    v1: Arc<V1<O, V, A, K, R>>,
    metrics: ApiMetrics,
    settings: Arc<V1Settings>,
    failures: FailureLog,
}

/// A request, whole.
struct Asked {
    path: String,
    headers: HeaderMap,
    id: Option<String>,
    body: Vec<u8>,
    api_key: Option<ApiKeyId>,
}

/// `/v1` and its description at `/openapi.json`.
///
/// Every answer is counted in `metrics`, except to paths that are not there. The router has no
/// fallback, so that it can be merged with the one of `/api`.
pub fn v1_router<O, V, A, K, R>(
    v1: Arc<V1<O, V, A, K, R>>,
    metrics: ApiMetrics,
    settings: Arc<V1Settings>,
) -> Router
where
    O: Outbox,
    V: Verifications,
    A: Answers,
    K: ApiKeys,
    R: CryptoRng + Send + 'static,
{
    let description = Bytes::from(openapi::text(&settings));
    let describe = async move || ([(CONTENT_TYPE, JSON)], description).into_response();
    let failures = FailureLog::new("verifications are not served");
    let surface = Arc::new(Surface { v1, metrics, settings, failures });
    let mut router = Router::new()
        .route("/openapi.json", get(describe).fallback(refuse_method))
        .route("/v1", any(refuse_path))
        .route("/v1/", any(refuse_path))
        .route("/v1/{*rest}", any(refuse_path));
    for operation in Operation::ALL {
        let (answering, refusing) = (Arc::clone(&surface), Arc::clone(&surface));
        let answer = move |id: Result<RawPathParams, RawPathParamsRejection>, request: Request| {
            let id = id.ok().and_then(|id| id.iter().next().map(|(_, id)| id.to_owned()));
            Arc::clone(&answering).answer(operation, id, request)
        };
        let refuse = async move |request: Request| {
            let response = refuse_method(request).await;
            refusing.metrics.answered_v1(operation.route(), response.status(), Duration::ZERO);
            response
        };
        let answer = if operation.method() == Method::GET { get(answer) } else { post(answer) };
        router = router.route(operation.route(), answer.fallback(refuse));
    }
    router
}

/// axum adds the `Allow` header.
async fn refuse_method(request: Request) -> Response {
    refuse(ProblemKind::MethodNotAllowed, &request)
}

async fn refuse_path(request: Request) -> Response {
    refuse(ProblemKind::NotFound, &request)
}

fn refuse(kind: ProblemKind, request: &Request) -> Response {
    Problem::new(kind).reply(request.uri().path()).into_response()
}

fn ended(status: VerificationStatus) -> Problem {
    Problem::new(ProblemKind::Gone).with("verification_status", json!(status.as_str()))
}

impl Operation {
    pub(crate) const ALL: [Self; 7] = [
        Self::Start,
        Self::Find,
        Self::Check,
        Self::CheckByPhone,
        Self::Resend,
        Self::Cancel,
        Self::Receipt,
    ];

    /// The template of its path.
    pub(crate) const fn route(self) -> &'static str {
        match self {
            Self::Start => "/v1/verifications",
            Self::Find => "/v1/verifications/{id}",
            Self::Check => "/v1/verifications/{id}/checks",
            Self::CheckByPhone => "/v1/verifications/check",
            Self::Resend => "/v1/verifications/{id}/resend",
            Self::Cancel => "/v1/verifications/{id}/cancel",
            Self::Receipt => "/v1/receipts",
        }
    }

    pub(crate) const fn method(self) -> Method {
        match self {
            Self::Find => Method::GET,
            Self::Start
            | Self::Check
            | Self::CheckByPhone
            | Self::Resend
            | Self::Cancel
            | Self::Receipt => Method::POST,
        }
    }

    /// What an API key must be good for.
    pub(crate) const fn scope(self) -> Scope {
        match self {
            Self::Start | Self::Resend | Self::Cancel | Self::Receipt => Scope::Send,
            Self::Check | Self::CheckByPhone => Scope::Check,
            Self::Find => Scope::Read,
        }
    }

    /// Whether it heeds `Idempotency-Key`.
    pub(crate) const fn is_repeatable(self) -> bool {
        match self {
            Self::Start | Self::Check | Self::CheckByPhone | Self::Resend => true,
            // These can be repeated as they are.
            Self::Find | Self::Cancel | Self::Receipt => false,
        }
    }

    pub(crate) const fn success(self) -> StatusCode {
        match self {
            Self::Start | Self::Resend => StatusCode::ACCEPTED,
            Self::Find | Self::Check | Self::CheckByPhone | Self::Cancel => StatusCode::OK,
            Self::Receipt => StatusCode::NO_CONTENT,
        }
    }
}

impl<O, V, A, K, R> Surface<O, V, A, K, R>
where
    O: Outbox,
    V: Verifications,
    A: Answers,
    K: ApiKeys,
    R: CryptoRng + Send + 'static,
{
    async fn answer(
        self: Arc<Self>,
        operation: Operation,
        id: Option<String>,
        request: Request,
    ) -> Response {
        let started = Instant::now();
        let (head, body) = request.into_parts();
        let path = head.uri.path().to_owned();
        let caller = self.authorize(operation, &head.headers).await;
        let body = self.read(operation, body, &head.headers, caller.is_ok()).await;
        // A client that goes away must leave nothing half done.
        let work = tokio::spawn(Arc::clone(&self).work(operation, id, head, caller, body));
        let done = work.await.unwrap_or_else(|error| {
            if error.is_panic() {
                tracing::error!("a request's handler panicked");
            }
            Err(ProblemKind::Internal.into())
        });
        let reply = done.unwrap_or_else(|problem| problem.reply(&path));
        self.metrics.answered_v1(operation.route(), reply.status, started.elapsed());
        reply.into_response()
    }

    async fn read(
        &self,
        operation: Operation,
        body: Body,
        headers: &HeaderMap,
        is_allowed: bool,
    ) -> Result<Vec<u8>, Problem> {
        if operation.method() == Method::GET {
            return Ok(Vec::new());
        }
        let patience = self.settings.body_timeout;
        let read = read_within(patience, body, headers, MAX_BODY, is_allowed).await;
        read.map_err(|error| match error {
            Unread::TooLong => ProblemKind::TooLarge.into(),
            Unread::BrokenOff => ProblemKind::MalformedBody.into(),
            Unread::TooLate => ProblemKind::RequestTimeout.into(),
        })
    }

    async fn work(
        self: Arc<Self>,
        operation: Operation,
        id: Option<String>,
        head: Parts,
        caller: Result<Option<ApiKeyId>, Problem>,
        body: Result<Vec<u8>, Problem>,
    ) -> Result<Reply, Problem> {
        let api_key = caller?;
        let key = if operation.is_repeatable() { idempotency::key(&head.headers)? } else { None };
        let key = key.map(str::to_owned);
        let (path, headers) = (head.uri.path().to_owned(), head.headers);
        let asked = Asked { path, headers, id, body: body?, api_key };
        let Some(key) = key else { return self.act(operation, &asked, None).await };
        let method = operation.method();
        let request = Repeatable { api_key, method: method.as_str(), path: &asked.path, key: &key };
        let work = |claim| self.act(operation, &asked, Some(claim));
        match idempotency::once(&self.v1.answers, request, &asked.body, work).await {
            Ok(done) => done,
            Err(error) => Err(self.unavailable(&error)),
        }
    }

    async fn authorize(
        &self,
        operation: Operation,
        headers: &HeaderMap,
    ) -> Result<Option<ApiKeyId>, Problem> {
        if self.settings.auth == ApiAuth::None {
            return Ok(None);
        }
        match auth::caller(&self.v1.auth, headers, operation.scope()).await {
            Ok(id) => Ok(Some(id)),
            Err(AuthorizeError::Unknown) => Err(ProblemKind::Unauthorized.into()),
            Err(AuthorizeError::Lacks(scope)) => {
                Err(Problem::new(ProblemKind::Forbidden).with("scope", json!(scope.as_str())))
            }
            Err(error @ AuthorizeError::Unavailable(_)) => Err(self.unavailable(&error)),
        }
    }

    async fn act(
        &self,
        operation: Operation,
        asked: &Asked,
        claim: Option<AnswerClaim>,
    ) -> Result<Reply, Problem> {
        match operation {
            Operation::Start => self.start(asked, claim).await,
            Operation::CheckByPhone => self.check_by_phone(asked, claim).await,
            Operation::Find => self.find(asked.id()?, asked).await,
            Operation::Check => self.check(asked.id()?, asked, claim).await,
            Operation::Resend => self.resend(asked.id()?, asked, claim).await,
            Operation::Cancel => self.cancel(asked.id()?, asked).await,
            Operation::Receipt => self.note_receipt(asked).await,
        }
    }

    fn unavailable(&self, error: &dyn Error) -> Problem {
        self.failures.log(error);
        ProblemKind::ReducedCapacity.into()
    }
}

impl Asked {
    /// What is no id is the id of nothing.
    fn id(&self) -> Result<VerificationId, Problem> {
        let id = self.id.as_deref().and_then(|id| id.parse().ok());
        id.ok_or_else(|| ProblemKind::NotFound.into())
    }

    fn json(&self) -> Result<&[u8], Problem> {
        if is_json(&media_type(&self.headers)) {
            Ok(&self.body)
        } else {
            Err(ProblemKind::UnsupportedMediaType.into())
        }
    }
}
