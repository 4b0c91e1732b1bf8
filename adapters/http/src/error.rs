use std::{
    error::Error,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use application::{Chain, ports::Violation};
use axum::{
    http::{
        HeaderValue, StatusCode,
        header::{CONNECTION, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE},
    },
    response::{IntoResponse, Response},
};
use tokio::time::Instant;

pub(crate) const JSON: HeaderValue = HeaderValue::from_static("application/json");
pub(crate) const BEARER: HeaderValue = HeaderValue::from_static("Bearer");

const LOG_PAUSE: Duration = Duration::from_secs(1);

/// Logs failures of requests, at most one a second: an outage fails every request, and a line for
/// each would add to the load.
#[derive(Debug)]
pub(crate) struct FailureLog {
    what: &'static str,
    unlogged: Mutex<Unlogged>,
}

/// Failures since the last line.
#[derive(Debug, Default)]
struct Unlogged {
    failures: u64,
    since: Option<Instant>,
}

/// The errors that `/api` and the metrics port answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ApiError {
    #[error("invalid request body")]
    InvalidBody,
    #[error("request body took too long")]
    BodyTimeout,
    #[error("not found")]
    NotFound,
    #[error("method not allowed")]
    MethodNotAllowed,
    #[error("internal error")]
    Internal,
    #[error("API key needed")]
    Unauthorized,
    #[error("token needed")]
    TokenNeeded,
    #[error("API key lacks the scope send")]
    Forbidden,
    #[error("messages to this number are not allowed")]
    NumberRefused,
    #[error("messages to this number are not allowed for now")]
    Blocked,
    #[error("messages to this number cannot be paid for today")]
    BudgetExhausted,
    #[error("too many messages")]
    TooMany { to_number: bool, retry_after: u64 },
    #[error("too busy")]
    Busy,
    #[error("storage unavailable")]
    StorageUnavailable,
}

/// Returns the seconds until all violated limits allow a request again; at least 1.
pub(crate) fn retry_after(violations: &[Violation]) -> u64 {
    violations.iter().map(|violation| seconds(violation.retry_after)).max().unwrap_or(1)
}

/// Rounds up to whole seconds; at least 1.
pub(crate) fn seconds(duration: Duration) -> u64 {
    (duration.as_secs() + u64::from(duration.subsec_nanos() > 0)).max(1)
}

impl FailureLog {
    /// `what` is the log message: what the failures lead to.
    pub(crate) fn new(what: &'static str) -> Self {
        Self { what, unlogged: Mutex::default() }
    }

    pub(crate) fn log(&self, error: &dyn Error) {
        let mut unlogged = self.unlogged.lock().unwrap_or_else(PoisonError::into_inner);
        unlogged.failures += 1;
        if unlogged.since.is_none_or(|since| since.elapsed() >= LOG_PAUSE) {
            let failures = unlogged.failures;
            *unlogged = Unlogged { failures: 0, since: Some(Instant::now()) };
            tracing::warn!(failures, error = %Chain(error), "{}", self.what);
        }
    }
}

impl ApiError {
    const fn answer(self) -> (StatusCode, &'static str) {
        match self {
            Self::InvalidBody => (StatusCode::BAD_REQUEST, r#"{"error":"invalid request body"}"#),
            Self::BodyTimeout => {
                (StatusCode::REQUEST_TIMEOUT, r#"{"error":"request body took too long"}"#)
            }
            Self::NotFound => (StatusCode::NOT_FOUND, r#"{"error":"not found"}"#),
            Self::MethodNotAllowed => {
                (StatusCode::METHOD_NOT_ALLOWED, r#"{"error":"method not allowed"}"#)
            }
            Self::Internal => (StatusCode::INTERNAL_SERVER_ERROR, r#"{"error":"internal error"}"#),
            Self::Unauthorized => (StatusCode::UNAUTHORIZED, r#"{"error":"API key needed"}"#),
            Self::TokenNeeded => (StatusCode::UNAUTHORIZED, r#"{"error":"token needed"}"#),
            Self::Forbidden => {
                (StatusCode::FORBIDDEN, r#"{"error":"API key lacks the scope send"}"#)
            }
            Self::NumberRefused => {
                (StatusCode::FORBIDDEN, r#"{"error":"messages to this number are not allowed"}"#)
            }
            Self::Blocked => (
                StatusCode::FORBIDDEN,
                r#"{"error":"messages to this number are not allowed for now"}"#,
            ),
            Self::BudgetExhausted => (
                StatusCode::FORBIDDEN,
                r#"{"error":"messages to this number cannot be paid for today"}"#,
            ),
            Self::TooMany { to_number: true, .. } => {
                (StatusCode::TOO_MANY_REQUESTS, r#"{"error":"too many messages to this number"}"#)
            }
            Self::TooMany { to_number: false, .. } => {
                (StatusCode::TOO_MANY_REQUESTS, r#"{"error":"too many messages"}"#)
            }
            Self::Busy => (StatusCode::SERVICE_UNAVAILABLE, r#"{"error":"too busy, try again"}"#),
            Self::StorageUnavailable => {
                (StatusCode::SERVICE_UNAVAILABLE, r#"{"error":"storage unavailable, try again"}"#)
            }
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let (status, text) = self.answer();
        let mut response = (status, [(CONTENT_TYPE, JSON)], text).into_response();
        let headers = response.headers_mut();
        match self {
            Self::Busy | Self::StorageUnavailable => {
                headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
            }
            Self::TooMany { retry_after, .. } => {
                headers.insert(RETRY_AFTER, HeaderValue::from(retry_after));
            }
            Self::BodyTimeout => {
                headers.insert(CONNECTION, HeaderValue::from_static("close"));
            }
            Self::Unauthorized | Self::TokenNeeded => {
                headers.insert(WWW_AUTHENTICATE, BEARER);
            }
            Self::InvalidBody
            | Self::NotFound
            | Self::MethodNotAllowed
            | Self::Internal
            | Self::Forbidden
            | Self::NumberRefused
            | Self::Blocked
            | Self::BudgetExhausted => {}
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_are_rounded_up() {
        assert_eq!(seconds(Duration::ZERO), 1);
        assert_eq!(seconds(Duration::from_millis(1)), 1);
        assert_eq!(seconds(Duration::from_secs(60)), 60);
        assert_eq!(seconds(Duration::from_millis(60_001)), 61);
    }
}
