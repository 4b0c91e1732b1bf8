//! Errors as `application/problem+json` (RFC 9457).

use axum::http::{
    HeaderMap, HeaderName, HeaderValue, StatusCode,
    header::{CONNECTION, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE},
};
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::answer::Reply;
use crate::error::BEARER;

pub(crate) const PROBLEM_JSON: &str = "application/problem+json";

/// Every way in which a request of `/v1` is not answered as asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum ProblemKind {
    MalformedBody,
    Unauthorized,
    Forbidden,
    RegionNotAllowed,
    NumberTypeNotAllowed,
    AbnormalUsage,
    NotFound,
    MethodNotAllowed,
    RequestTimeout,
    TooLarge,
    UnsupportedMediaType,
    AlreadyApproved,
    IdempotencyRunning,
    Gone,
    Invalid,
    IdempotencyMismatch,
    QuotaExceeded,
    Internal,
    ReducedCapacity,
}

/// A kind with what is to be said of the request at hand, and never a value that stands in it.
#[derive(Debug)]
pub(crate) struct Problem {
    kind: ProblemKind,
    extra: Map<String, Value>,
    headers: Vec<(HeaderName, HeaderValue)>,
}

/// One rule that a request breaks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Fault {
    /// Where in the body, as a JSON pointer; none: it is not in the body.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) pointer: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) header: Option<&'static str>,
    pub(crate) detail: &'static str,
}

#[derive(Serialize)]
struct Body<'a> {
    r#type: &'static str,
    title: &'static str,
    status: u16,
    detail: &'static str,
    instance: &'a str,
    code: &'static str,
    #[serde(flatten)]
    extra: &'a Map<String, Value>,
}

/// What a kind is to a client.
pub(crate) struct Meaning {
    pub(crate) status: StatusCode,
    /// Stable: clients tell problems apart by it.
    pub(crate) uri: &'static str,
    pub(crate) title: &'static str,
    pub(crate) detail: &'static str,
}

impl ProblemKind {
    pub(crate) const ALL: [Self; 19] = [
        Self::MalformedBody,
        Self::Unauthorized,
        Self::Forbidden,
        Self::RegionNotAllowed,
        Self::NumberTypeNotAllowed,
        Self::AbnormalUsage,
        Self::NotFound,
        Self::MethodNotAllowed,
        Self::RequestTimeout,
        Self::TooLarge,
        Self::UnsupportedMediaType,
        Self::AlreadyApproved,
        Self::IdempotencyRunning,
        Self::Gone,
        Self::Invalid,
        Self::IdempotencyMismatch,
        Self::QuotaExceeded,
        Self::Internal,
        Self::ReducedCapacity,
    ];

    #[expect(clippy::too_many_lines, reason = "a table")]
    pub(crate) const fn meaning(self) -> Meaning {
        let (status, uri, title, detail) = match self {
            Self::MalformedBody => (
                StatusCode::BAD_REQUEST,
                "https://messager.dev/problems/malformed-body",
                "Body cannot be read",
                "The body is not the JSON object that is expected here.",
            ),
            Self::Unauthorized => (
                StatusCode::UNAUTHORIZED,
                "https://messager.dev/problems/unauthorized",
                "API key needed",
                "Send a valid API key as Authorization: Bearer <key>.",
            ),
            Self::Forbidden => (
                StatusCode::FORBIDDEN,
                "https://messager.dev/problems/forbidden",
                "API key lacks a scope",
                "The API key is valid, but not for this.",
            ),
            Self::RegionNotAllowed => (
                StatusCode::FORBIDDEN,
                "https://messager.dev/problems/region-not-allowed",
                "Region not allowed",
                "Nothing is sent to numbers of this region.",
            ),
            Self::NumberTypeNotAllowed => (
                StatusCode::FORBIDDEN,
                "https://messager.dev/problems/number-type-not-allowed",
                "Type of number not allowed",
                "Nothing is sent to numbers of this type.",
            ),
            Self::AbnormalUsage => (
                StatusCode::FORBIDDEN,
                "https://iana.org/assignments/http-problem-types#abnormal-usage-detected",
                "Refused",
                "The request is refused.",
            ),
            Self::NotFound => (
                StatusCode::NOT_FOUND,
                "https://messager.dev/problems/not-found",
                "Not found",
                "There is no such verification or path.",
            ),
            Self::MethodNotAllowed => (
                StatusCode::METHOD_NOT_ALLOWED,
                "https://messager.dev/problems/method-not-allowed",
                "Method not allowed",
                "The header Allow lists the methods of this path.",
            ),
            Self::RequestTimeout => (
                StatusCode::REQUEST_TIMEOUT,
                "https://messager.dev/problems/request-timeout",
                "Body took too long",
                "The body did not arrive in time.",
            ),
            Self::TooLarge => (
                StatusCode::PAYLOAD_TOO_LARGE,
                "https://messager.dev/problems/too-large",
                "Body too large",
                "A body has at most 16384 bytes.",
            ),
            Self::UnsupportedMediaType => (
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "https://messager.dev/problems/unsupported-media-type",
                "Body is not JSON",
                "The header Content-Type must say application/json.",
            ),
            Self::AlreadyApproved => (
                StatusCode::CONFLICT,
                "https://messager.dev/problems/already-approved",
                "Approved before",
                "The verification was approved before.",
            ),
            Self::IdempotencyRunning => (
                StatusCode::CONFLICT,
                "https://messager.dev/problems/idempotency-running",
                "Request is running",
                "A request with this Idempotency-Key is not finished yet.",
            ),
            Self::Gone => (
                StatusCode::GONE,
                "https://messager.dev/problems/gone",
                "Verification has ended",
                "The verification has expired or was canceled.",
            ),
            Self::Invalid => (
                StatusCode::UNPROCESSABLE_ENTITY,
                "https://messager.dev/problems/invalid",
                "Body cannot be used",
                "Each of errors names a place and the rule that it breaks.",
            ),
            Self::IdempotencyMismatch => (
                StatusCode::UNPROCESSABLE_ENTITY,
                "https://messager.dev/problems/idempotency-mismatch",
                "Idempotency-Key was used for another request",
                "A request with this Idempotency-Key had another body.",
            ),
            Self::QuotaExceeded => (
                StatusCode::TOO_MANY_REQUESTS,
                "https://iana.org/assignments/http-problem-types#quota-exceeded",
                "Limit reached",
                "Each of violated-policies is used up. Retry-After says for how long.",
            ),
            Self::Internal => (
                StatusCode::INTERNAL_SERVER_ERROR,
                "https://messager.dev/problems/internal",
                "Internal error",
                "The request failed, and it is not the caller's fault.",
            ),
            Self::ReducedCapacity => (
                StatusCode::SERVICE_UNAVAILABLE,
                "https://iana.org/assignments/http-problem-types#temporary-reduced-capacity",
                "Temporarily unavailable",
                "Try again.",
            ),
        };
        Meaning { status, uri, title, detail }
    }

    /// The last segment of the type.
    pub(crate) fn code(self) -> &'static str {
        let uri = self.meaning().uri;
        uri.rsplit(['/', '#']).next().unwrap_or(uri)
    }
}

impl Problem {
    pub(crate) fn new(kind: ProblemKind) -> Self {
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

    pub(crate) fn invalid(faults: &[Fault]) -> Self {
        Self::new(ProblemKind::Invalid).with("errors", json!(faults))
    }

    #[must_use]
    pub(crate) fn with(mut self, member: &str, value: Value) -> Self {
        self.extra.insert(member.to_owned(), value);
        self
    }

    #[must_use]
    pub(crate) fn with_header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.push((name, value));
        self
    }

    /// As the answer to a request for `path`.
    pub(crate) fn reply(self, path: &str) -> Reply {
        let Meaning { status, uri, title, detail } = self.kind.meaning();
        let body = Body {
            r#type: uri,
            title,
            status: status.as_u16(),
            detail,
            instance: path,
            code: self.kind.code(),
            extra: &self.extra,
        };
        let body = serde_json::to_string(&body).expect("texts and numbers are JSON");
        let mut headers = HeaderMap::from_iter(self.headers);
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(PROBLEM_JSON));
        Reply { status, headers, body }
    }
}

impl From<ProblemKind> for Problem {
    fn from(kind: ProblemKind) -> Self {
        Self::new(kind)
    }
}

impl Fault {
    pub(crate) fn at(pointer: impl Into<String>, detail: &'static str) -> Self {
        Self { pointer: Some(pointer.into()), header: None, detail }
    }

    pub(crate) fn in_header(header: &'static str, detail: &'static str) -> Self {
        Self { pointer: None, header: Some(header), detail }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_kind_has_a_type_of_its_own() {
        let types: HashSet<_> = ProblemKind::ALL.map(|kind| kind.meaning().uri).into();
        let codes: HashSet<_> = ProblemKind::ALL.map(ProblemKind::code).into();

        assert_eq!((types.len(), codes.len()), (19, 19));
    }

    #[test]
    fn types_are_stable() {
        let all = ProblemKind::ALL.map(|kind| (kind.meaning().status.as_u16(), kind.code()));

        let expected = [
            (400, "malformed-body"),
            (401, "unauthorized"),
            (403, "forbidden"),
            (403, "region-not-allowed"),
            (403, "number-type-not-allowed"),
            (403, "abnormal-usage-detected"),
            (404, "not-found"),
            (405, "method-not-allowed"),
            (408, "request-timeout"),
            (413, "too-large"),
            (415, "unsupported-media-type"),
            (409, "already-approved"),
            (409, "idempotency-running"),
            (410, "gone"),
            (422, "invalid"),
            (422, "idempotency-mismatch"),
            (429, "quota-exceeded"),
            (500, "internal"),
            (503, "temporary-reduced-capacity"),
        ];
        assert_eq!(all, expected);
    }

    #[test]
    fn a_problem_says_what_where_and_why() {
        let faults = [Fault::at("/ttl", "a rule"), Fault::in_header("idempotency-key", "another")];

        let reply = Problem::invalid(&faults).reply("/v1/verifications");

        assert_eq!(reply.headers[CONTENT_TYPE], "application/problem+json");
        let body: Value = serde_json::from_str(&reply.body).unwrap();
        let expected = json!({
            "type": "https://messager.dev/problems/invalid",
            "title": "Body cannot be used",
            "status": 422,
            "detail": "Each of errors names a place and the rule that it breaks.",
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
