//! The kinds of errors, and what clients see of each.

use axum::http::StatusCode;

/// The kinds of errors that `/v1` answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::v1) enum ProblemKind {
    MalformedBody,
    UnreadableReceipt,
    Unauthorized,
    Forbidden,
    RegionNotAllowed,
    NumberTypeNotAllowed,
    AbnormalUsage,
    BudgetExhausted,
    UnverifiedReceipt,
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

/// The answer to a kind of error.
#[derive(Debug)]
pub(in crate::v1) struct Meaning {
    kind: ProblemKind,
    pub(in crate::v1) status: StatusCode,
    registry: Registry,
    /// The last segment of the type. Stable: clients tell problems apart by it.
    pub(in crate::v1) code: &'static str,
    pub(in crate::v1) title: &'static str,
    pub(in crate::v1) detail: &'static str,
}

/// Where the type of a problem is defined.
#[derive(Debug, Clone, Copy)]
enum Registry {
    Messager,
    Iana,
}

/// The kinds in the order of [`ProblemKind`].
static MEANINGS: [Meaning; 22] = [
    Meaning {
        kind: ProblemKind::MalformedBody,
        status: StatusCode::BAD_REQUEST,
        registry: Registry::Messager,
        code: "malformed-body",
        title: "Malformed body",
        detail: "The body must be a valid JSON object.",
    },
    Meaning {
        kind: ProblemKind::UnreadableReceipt,
        status: StatusCode::BAD_REQUEST,
        registry: Registry::Messager,
        code: "unreadable-receipt",
        title: "Unreadable receipt",
        detail: "The provider of this gateway does not report deliveries in this form.",
    },
    Meaning {
        kind: ProblemKind::Unauthorized,
        status: StatusCode::UNAUTHORIZED,
        registry: Registry::Messager,
        code: "unauthorized",
        title: "API key required",
        detail: "Send a valid API key as Authorization: Bearer <key>.",
    },
    Meaning {
        kind: ProblemKind::Forbidden,
        status: StatusCode::FORBIDDEN,
        registry: Registry::Messager,
        code: "forbidden",
        title: "API key lacks a scope",
        detail: "The API key does not have the scope that this operation requires.",
    },
    Meaning {
        kind: ProblemKind::RegionNotAllowed,
        status: StatusCode::FORBIDDEN,
        registry: Registry::Messager,
        code: "region-not-allowed",
        title: "Region not allowed",
        detail: "This service does not send to numbers of this region.",
    },
    Meaning {
        kind: ProblemKind::NumberTypeNotAllowed,
        status: StatusCode::FORBIDDEN,
        registry: Registry::Messager,
        code: "number-type-not-allowed",
        title: "Number type not allowed",
        detail: "This service does not send to numbers of this type.",
    },
    Meaning {
        kind: ProblemKind::AbnormalUsage,
        status: StatusCode::FORBIDDEN,
        registry: Registry::Iana,
        code: "abnormal-usage-detected",
        title: "Request refused",
        detail: "The service refused this request.",
    },
    Meaning {
        kind: ProblemKind::BudgetExhausted,
        status: StatusCode::FORBIDDEN,
        registry: Registry::Messager,
        code: "budget-exhausted",
        title: "Daily budget used up",
        detail: "Every gateway for this number has used up its daily budget. A new day begins at \
                 midnight UTC.",
    },
    Meaning {
        kind: ProblemKind::UnverifiedReceipt,
        status: StatusCode::FORBIDDEN,
        registry: Registry::Messager,
        code: "unverified-receipt",
        title: "Unverified receipt",
        detail: "The token of the URL or the signature of the provider is missing or wrong.",
    },
    Meaning {
        kind: ProblemKind::NotFound,
        status: StatusCode::NOT_FOUND,
        registry: Registry::Messager,
        code: "not-found",
        title: "Not found",
        detail: "The path, the verification, the message or the gateway does not exist.",
    },
    Meaning {
        kind: ProblemKind::MethodNotAllowed,
        status: StatusCode::METHOD_NOT_ALLOWED,
        registry: Registry::Messager,
        code: "method-not-allowed",
        title: "Method not allowed",
        detail: "The Allow header lists the methods of this path.",
    },
    Meaning {
        kind: ProblemKind::RequestTimeout,
        status: StatusCode::REQUEST_TIMEOUT,
        registry: Registry::Messager,
        code: "request-timeout",
        title: "Request timeout",
        detail: "The body did not arrive in time.",
    },
    Meaning {
        kind: ProblemKind::TooLarge,
        status: StatusCode::PAYLOAD_TOO_LARGE,
        registry: Registry::Messager,
        code: "too-large",
        title: "Body too large",
        detail: "The body is longer than the longest valid one.",
    },
    Meaning {
        kind: ProblemKind::UnsupportedMediaType,
        status: StatusCode::UNSUPPORTED_MEDIA_TYPE,
        registry: Registry::Messager,
        code: "unsupported-media-type",
        title: "Unsupported media type",
        detail: "The Content-Type header must be application/json.",
    },
    Meaning {
        kind: ProblemKind::AlreadyApproved,
        status: StatusCode::CONFLICT,
        registry: Registry::Messager,
        code: "already-approved",
        title: "Already approved",
        detail: "The verification has already been approved.",
    },
    Meaning {
        kind: ProblemKind::IdempotencyRunning,
        status: StatusCode::CONFLICT,
        registry: Registry::Messager,
        code: "idempotency-running",
        title: "Request in progress",
        detail: "Another request with this Idempotency-Key is still in progress.",
    },
    Meaning {
        kind: ProblemKind::Gone,
        status: StatusCode::GONE,
        registry: Registry::Messager,
        code: "gone",
        title: "Verification ended",
        detail: "The verification has expired or was canceled.",
    },
    Meaning {
        kind: ProblemKind::Invalid,
        status: StatusCode::UNPROCESSABLE_ENTITY,
        registry: Registry::Messager,
        code: "invalid",
        title: "Invalid request",
        detail: "Each entry of errors names a value and the rule that it breaks.",
    },
    Meaning {
        kind: ProblemKind::IdempotencyMismatch,
        status: StatusCode::UNPROCESSABLE_ENTITY,
        registry: Registry::Messager,
        code: "idempotency-mismatch",
        title: "Idempotency-Key already used",
        detail: "Another request with this Idempotency-Key had a different body.",
    },
    Meaning {
        kind: ProblemKind::QuotaExceeded,
        status: StatusCode::TOO_MANY_REQUESTS,
        registry: Registry::Iana,
        code: "quota-exceeded",
        title: "Rate limit exceeded",
        detail: "The limits in violated-policies are exhausted. Retry-After says when to retry.",
    },
    Meaning {
        kind: ProblemKind::Internal,
        status: StatusCode::INTERNAL_SERVER_ERROR,
        registry: Registry::Messager,
        code: "internal",
        title: "Internal error",
        detail: "The request failed because of an error in the service.",
    },
    Meaning {
        kind: ProblemKind::ReducedCapacity,
        status: StatusCode::SERVICE_UNAVAILABLE,
        registry: Registry::Iana,
        code: "temporary-reduced-capacity",
        title: "Temporarily unavailable",
        detail: "The service cannot handle the request now. Try again later.",
    },
];

impl ProblemKind {
    pub(in crate::v1) fn all() -> impl Iterator<Item = Self> {
        MEANINGS.iter().map(|meaning| meaning.kind)
    }

    pub(in crate::v1) fn meaning(self) -> &'static Meaning {
        &MEANINGS[self as usize]
    }
}

impl Meaning {
    /// Returns the type. Stable: clients tell problems apart by it.
    pub(in crate::v1) fn uri(&self) -> String {
        let prefix = match self.registry {
            Registry::Messager => "https://messager.dev/problems/",
            Registry::Iana => "https://iana.org/assignments/http-problem-types#",
        };
        format!("{prefix}{}", self.code)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_kind_has_its_row_and_its_own_type() {
        for kind in ProblemKind::all() {
            assert_eq!(kind.meaning().kind, kind);
        }
        let types: HashSet<_> = MEANINGS.iter().map(Meaning::uri).collect();
        let codes: HashSet<_> = MEANINGS.iter().map(|meaning| meaning.code).collect();

        assert_eq!((types.len(), codes.len()), (22, 22));
    }

    #[test]
    fn types_are_stable() {
        let all = MEANINGS.each_ref().map(|meaning| (meaning.status.as_u16(), meaning.code));

        let expected = [
            (400, "malformed-body"),
            (400, "unreadable-receipt"),
            (401, "unauthorized"),
            (403, "forbidden"),
            (403, "region-not-allowed"),
            (403, "number-type-not-allowed"),
            (403, "abnormal-usage-detected"),
            (403, "budget-exhausted"),
            (403, "unverified-receipt"),
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
}
