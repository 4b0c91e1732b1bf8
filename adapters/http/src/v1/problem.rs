//! Errors as `application/problem+json` (RFC 9457).

use axum::{
    extract::Request,
    http::{
        HeaderMap, HeaderName, HeaderValue, StatusCode,
        header::{CONNECTION, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE},
    },
    response::{IntoResponse, Response},
};
use domain::VerificationStatus;
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::reply::Reply;
use crate::error::BEARER;

pub(super) const PROBLEM_JSON: &str = "application/problem+json";

/// Every way in which a request of `/v1` is not answered as asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum ProblemKind {
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
pub(super) struct Problem {
    kind: ProblemKind,
    extra: Map<String, Value>,
    headers: Vec<(HeaderName, HeaderValue)>,
}

/// One rule that a request breaks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Fault {
    /// Where in the body, as a JSON pointer; none: it is not in the body.
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

/// What a kind means to a client.
#[derive(Debug)]
pub(super) struct Meaning {
    kind: ProblemKind,
    pub(super) status: StatusCode,
    registry: Registry,
    /// The last segment of the type. Stable: clients tell problems apart by it.
    pub(super) code: &'static str,
    pub(super) title: &'static str,
    pub(super) detail: &'static str,
}

/// Where the type of a problem is defined.
#[derive(Debug, Clone, Copy)]
enum Registry {
    Messager,
    Iana,
}

/// The kinds in the order of [`ProblemKind`].
static MEANINGS: [Meaning; 19] = [
    Meaning {
        kind: ProblemKind::MalformedBody,
        status: StatusCode::BAD_REQUEST,
        registry: Registry::Messager,
        code: "malformed-body",
        title: "Body cannot be read",
        detail: "The body is not the JSON object that is expected here.",
    },
    Meaning {
        kind: ProblemKind::Unauthorized,
        status: StatusCode::UNAUTHORIZED,
        registry: Registry::Messager,
        code: "unauthorized",
        title: "API key needed",
        detail: "Send a valid API key as Authorization: Bearer <key>.",
    },
    Meaning {
        kind: ProblemKind::Forbidden,
        status: StatusCode::FORBIDDEN,
        registry: Registry::Messager,
        code: "forbidden",
        title: "API key lacks a scope",
        detail: "The API key is valid, but not for this.",
    },
    Meaning {
        kind: ProblemKind::RegionNotAllowed,
        status: StatusCode::FORBIDDEN,
        registry: Registry::Messager,
        code: "region-not-allowed",
        title: "Region not allowed",
        detail: "Nothing is sent to numbers of this region.",
    },
    Meaning {
        kind: ProblemKind::NumberTypeNotAllowed,
        status: StatusCode::FORBIDDEN,
        registry: Registry::Messager,
        code: "number-type-not-allowed",
        title: "Type of number not allowed",
        detail: "Nothing is sent to numbers of this type.",
    },
    Meaning {
        kind: ProblemKind::AbnormalUsage,
        status: StatusCode::FORBIDDEN,
        registry: Registry::Iana,
        code: "abnormal-usage-detected",
        title: "Refused",
        detail: "The request is refused.",
    },
    Meaning {
        kind: ProblemKind::NotFound,
        status: StatusCode::NOT_FOUND,
        registry: Registry::Messager,
        code: "not-found",
        title: "Not found",
        detail: "There is no such verification or path.",
    },
    Meaning {
        kind: ProblemKind::MethodNotAllowed,
        status: StatusCode::METHOD_NOT_ALLOWED,
        registry: Registry::Messager,
        code: "method-not-allowed",
        title: "Method not allowed",
        detail: "The header Allow lists the methods of this path.",
    },
    Meaning {
        kind: ProblemKind::RequestTimeout,
        status: StatusCode::REQUEST_TIMEOUT,
        registry: Registry::Messager,
        code: "request-timeout",
        title: "Body took too long",
        detail: "The body did not arrive in time.",
    },
    Meaning {
        kind: ProblemKind::TooLarge,
        status: StatusCode::PAYLOAD_TOO_LARGE,
        registry: Registry::Messager,
        code: "too-large",
        title: "Body too large",
        detail: "A body has at most 16384 bytes.",
    },
    Meaning {
        kind: ProblemKind::UnsupportedMediaType,
        status: StatusCode::UNSUPPORTED_MEDIA_TYPE,
        registry: Registry::Messager,
        code: "unsupported-media-type",
        title: "Body is not JSON",
        detail: "The header Content-Type must say application/json.",
    },
    Meaning {
        kind: ProblemKind::AlreadyApproved,
        status: StatusCode::CONFLICT,
        registry: Registry::Messager,
        code: "already-approved",
        title: "Approved before",
        detail: "The verification was approved before.",
    },
    Meaning {
        kind: ProblemKind::IdempotencyRunning,
        status: StatusCode::CONFLICT,
        registry: Registry::Messager,
        code: "idempotency-running",
        title: "Request is running",
        detail: "A request with this Idempotency-Key is not finished yet.",
    },
    Meaning {
        kind: ProblemKind::Gone,
        status: StatusCode::GONE,
        registry: Registry::Messager,
        code: "gone",
        title: "Verification has ended",
        detail: "The verification has expired or was canceled.",
    },
    Meaning {
        kind: ProblemKind::Invalid,
        status: StatusCode::UNPROCESSABLE_ENTITY,
        registry: Registry::Messager,
        code: "invalid",
        title: "Body cannot be used",
        detail: "Each of errors names a place and the rule that it breaks.",
    },
    Meaning {
        kind: ProblemKind::IdempotencyMismatch,
        status: StatusCode::UNPROCESSABLE_ENTITY,
        registry: Registry::Messager,
        code: "idempotency-mismatch",
        title: "Idempotency-Key was used for another request",
        detail: "A request with this Idempotency-Key had another body.",
    },
    Meaning {
        kind: ProblemKind::QuotaExceeded,
        status: StatusCode::TOO_MANY_REQUESTS,
        registry: Registry::Iana,
        code: "quota-exceeded",
        title: "Limit reached",
        detail: "Each of violated-policies is used up. Retry-After says for how long.",
    },
    Meaning {
        kind: ProblemKind::Internal,
        status: StatusCode::INTERNAL_SERVER_ERROR,
        registry: Registry::Messager,
        code: "internal",
        title: "Internal error",
        detail: "The request failed, and it is not the caller's fault.",
    },
    Meaning {
        kind: ProblemKind::ReducedCapacity,
        status: StatusCode::SERVICE_UNAVAILABLE,
        registry: Registry::Iana,
        code: "temporary-reduced-capacity",
        title: "Temporarily unavailable",
        detail: "Try again.",
    },
];

impl ProblemKind {
    pub(super) fn all() -> impl Iterator<Item = Self> {
        MEANINGS.iter().map(|meaning| meaning.kind)
    }

    pub(super) fn meaning(self) -> &'static Meaning {
        &MEANINGS[self as usize]
    }
}

impl Meaning {
    /// Returns the type. Stable: clients tell problems apart by it.
    pub(super) fn uri(&self) -> String {
        let prefix = match self.registry {
            Registry::Messager => "https://messager.dev/problems/",
            Registry::Iana => "https://iana.org/assignments/http-problem-types#",
        };
        format!("{prefix}{}", self.code)
    }
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
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_kind_has_a_row_and_a_type_of_its_own() {
        for kind in ProblemKind::all() {
            assert_eq!(kind.meaning().kind, kind);
        }
        let types: HashSet<_> = MEANINGS.iter().map(Meaning::uri).collect();
        let codes: HashSet<_> = MEANINGS.iter().map(|meaning| meaning.code).collect();

        assert_eq!((types.len(), codes.len()), (19, 19));
    }

    #[test]
    fn types_are_stable() {
        let all = MEANINGS.each_ref().map(|meaning| (meaning.status.as_u16(), meaning.code));

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
