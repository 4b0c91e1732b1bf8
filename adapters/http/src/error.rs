use axum::{
    http::{
        HeaderValue, StatusCode,
        header::{CONNECTION, CONTENT_TYPE, RETRY_AFTER},
    },
    response::{IntoResponse, Response},
};

pub(crate) const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// Every way in which a request is not answered as asked.
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
    #[error("too many messages to this number")]
    TooMany,
    #[error("too busy")]
    Busy,
    #[error("storage unavailable")]
    StorageUnavailable,
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
            Self::TooMany => {
                (StatusCode::TOO_MANY_REQUESTS, r#"{"error":"too many messages to this number"}"#)
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
        if status == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        if status == StatusCode::REQUEST_TIMEOUT {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}
