//! Errors as `application/problem+json` (RFC 9457).

use axum::{
    extract::Request,
    http::{
        HeaderMap, HeaderName, HeaderValue,
        header::{CONNECTION, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE},
    },
    response::{IntoResponse, Response},
};
use domain::VerificationStatus;
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::reply::Reply;
use crate::error::BEARER;

pub(super) use self::kind::ProblemKind;

mod kind;

pub(super) const PROBLEM_JSON: &str = "application/problem+json";

/// An error answer: a kind, and what it adds for this request. It never repeats a value of the
/// request.
#[derive(Debug)]
pub(super) struct Problem {
    kind: ProblemKind,
    extra: Map<String, Value>,
    headers: Vec<(HeaderName, HeaderValue)>,
}

/// A value of a request, and the rule that it breaks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Fault {
    /// The place in the body, as a JSON pointer. `None` if the value is in a header.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) pointer: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) header: Option<&'static str>,
    pub(super) detail: &'static str,
}

#[derive(Serialize)]
struct Body<'a> {
    r#type: String,
    title: &'static str,
    status: u16,
    detail: &'static str,
    instance: &'a str,
    code: &'static str,
    #[serde(flatten)]
    extra: &'a Map<String, Value>,
}

impl Problem {
    pub(super) fn new(kind: ProblemKind) -> Self {
        let headers = match kind {
            ProblemKind::Unauthorized => vec![(WWW_AUTHENTICATE, BEARER)],
            ProblemKind::RequestTimeout => vec![(CONNECTION, HeaderValue::from_static("close"))],
            ProblemKind::IdempotencyRunning | ProblemKind::ReducedCapacity => {
                vec![(RETRY_AFTER, HeaderValue::from_static("1"))]
            }
            _ => Vec::new(),
        };
        Self { kind, extra: Map::new(), headers }
    }

    pub(super) fn invalid(faults: &[Fault]) -> Self {
        Self::new(ProblemKind::Invalid).with("errors", json!(faults))
    }

    #[must_use]
    pub(super) fn with(mut self, member: &str, value: Value) -> Self {
        self.extra.insert(member.to_owned(), value);
        self
    }

    #[must_use]
    pub(super) fn with_header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.push((name, value));
        self
    }

    /// Returns the 410 for a verification that has ended.
    pub(super) fn gone(status: VerificationStatus) -> Self {
        Self::new(ProblemKind::Gone).with("verification_status", json!(status.as_str()))
    }

    /// Returns the answer to a request for `path`.
    pub(super) fn reply(self, path: &str) -> Reply {
        let meaning = self.kind.meaning();
        let body = Body {
            r#type: meaning.uri(),
            title: meaning.title,
            status: meaning.status.as_u16(),
            detail: meaning.detail,
            instance: path,
            code: meaning.code,
            extra: &self.extra,
        };
        let body = serde_json::to_string(&body).expect("texts and numbers are JSON");
        let mut headers = HeaderMap::from_iter(self.headers);
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(PROBLEM_JSON));
        Reply { status: meaning.status, headers, body }
    }
}

/// Answers 405. axum adds the `Allow` header.
pub(super) async fn refuse_method(request: Request) -> Response {
    refuse(ProblemKind::MethodNotAllowed, &request)
}

/// Answers 404.
pub(super) async fn refuse_path(request: Request) -> Response {
    refuse(ProblemKind::NotFound, &request)
}

fn refuse(kind: ProblemKind, request: &Request) -> Response {
    Problem::new(kind).reply(request.uri().path()).into_response()
}

impl From<ProblemKind> for Problem {
    fn from(kind: ProblemKind) -> Self {
        Self::new(kind)
    }
}

impl Fault {
    pub(super) fn at(pointer: impl Into<String>, detail: &'static str) -> Self {
        Self { pointer: Some(pointer.into()), header: None, detail }
    }

    pub(super) fn in_header(header: &'static str, detail: &'static str) -> Self {
        Self { pointer: None, header: Some(header), detail }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invalid_request_lists_places_and_rules() {
        let faults = [Fault::at("/ttl", "a rule"), Fault::in_header("idempotency-key", "another")];

        let reply = Problem::invalid(&faults).reply("/v1/verifications");

        assert_eq!(reply.headers[CONTENT_TYPE], "application/problem+json");
        let body: Value = serde_json::from_str(&reply.body).unwrap();
        let expected = json!({
            "type": "https://messager.dev/problems/invalid",
            "title": "Invalid request",
            "status": 422,
            "detail": "Each entry of errors names a value and the rule that it breaks.",
            "instance": "/v1/verifications",
            "code": "invalid",
            "errors": [
                {"pointer": "/ttl", "detail": "a rule"},
                {"header": "idempotency-key", "detail": "another"},
            ],
        });
        assert_eq!(body, expected);
    }
}
