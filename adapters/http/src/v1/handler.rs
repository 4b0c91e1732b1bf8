//! The context and the request of a handler of `/v1`.

use std::{error::Error, sync::Arc};

use application::{
    AuthorizeError, TraceParent,
    ports::{AnswerClaim, Violation},
};
use axum::http::HeaderMap;
use domain::{ApiKeyId, Origin, Policy, Scope, VerificationId};
use serde_json::json;

use super::{
    limits::exceeded,
    problem::{Problem, ProblemKind},
    settings::V1Settings,
    use_cases::UseCases,
};
use crate::{
    auth::ApiAuth,
    error::FailureLog,
    metrics::ApiMetrics,
    request::{is_json, media_type},
};

/// The context that all handlers share.
pub(super) struct V1Handler {
    pub(super) use_cases: Arc<dyn UseCases>,
    pub(super) settings: Arc<V1Settings>,
    pub(super) metrics: ApiMetrics,
    pub(super) failures: FailureLog,
}

/// An authorized request whose body has been read.
#[derive(Clone)]
pub(super) struct V1Request<'a> {
    pub(super) headers: &'a HeaderMap,
    /// The `{id}` of the path.
    pub(super) id: Option<&'a str>,
    pub(super) body: &'a [u8],
    pub(super) api_key: Option<ApiKeyId>,
    /// The span of the request, or the trace of the caller.
    pub(super) trace: Option<TraceParent>,
    /// The claim on the request's `Idempotency-Key`, if it has one.
    pub(super) claim: Option<AnswerClaim>,
}

impl V1Handler {
    /// Returns the API key of the caller, or `None` if `/v1` needs none.
    pub(super) async fn authorize(
        &self,
        headers: &HeaderMap,
        scope: Scope,
    ) -> Result<Option<ApiKeyId>, Problem> {
        if self.settings.auth == ApiAuth::None {
            return Ok(None);
        }
        match self.use_cases.authorize(headers, scope).await {
            Ok(id) => Ok(Some(id)),
            Err(AuthorizeError::Unknown) => Err(ProblemKind::Unauthorized.into()),
            Err(AuthorizeError::Lacks(scope)) => {
                Err(Problem::new(ProblemKind::Forbidden).with("scope", json!(scope.as_str())))
            }
            Err(error @ AuthorizeError::Unavailable(_)) => Err(self.unavailable(&error)),
        }
    }

    /// Counts the limits that a request has reached, and returns the problem for the client.
    pub(super) fn limited(&self, violations: &[Violation], policies: Vec<Policy>) -> Problem {
        self.metrics.limited(Origin::V1, violations);
        exceeded(violations, policies)
    }

    /// Logs a failure of the database and returns the problem for the client.
    pub(super) fn unavailable(&self, error: &dyn Error) -> Problem {
        self.failures.log(error);
        ProblemKind::ReducedCapacity.into()
    }
}

impl V1Request<'_> {
    /// Parses the id in the path. A malformed id is answered 404, like an unknown one.
    pub(super) fn id(&self) -> Result<VerificationId, Problem> {
        let id = self.id.and_then(|id| id.parse().ok());
        id.ok_or_else(|| ProblemKind::NotFound.into())
    }

    /// Returns the body of a request whose media type is JSON.
    pub(super) fn json(&self) -> Result<&[u8], Problem> {
        if is_json(&media_type(self.headers)) {
            Ok(self.body)
        } else {
            Err(ProblemKind::UnsupportedMediaType.into())
        }
    }
}
