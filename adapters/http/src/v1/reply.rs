//! An answer of `/v1`.

use application::ports::Answer;
use axum::{
    body::Body,
    http::{
        HeaderMap, HeaderName, HeaderValue, StatusCode,
        header::{CACHE_CONTROL, CONTENT_TYPE, LOCATION},
    },
    response::{IntoResponse, Response},
};
use domain::VerificationId;
use serde::Serialize;

use crate::error::JSON;

/// An answer in a form that can be stored for its `Idempotency-Key`.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: String,
}

impl Reply {
    pub(super) fn json(status: StatusCode, body: &impl Serialize) -> Self {
        let body = serde_json::to_string(body).expect("texts and numbers are JSON");
        Self { status, headers: HeaderMap::from_iter([(CONTENT_TYPE, JSON)]), body }
    }

    /// Returns a 204.
    pub(super) fn empty() -> Self {
        Self { status: StatusCode::NO_CONTENT, headers: HeaderMap::new(), body: String::new() }
    }

    /// Adds the `Location` of a verification.
    #[must_use]
    pub(super) fn located(mut self, id: VerificationId) -> Self {
        let location = format!("/v1/verifications/{id}");
        let location = HeaderValue::try_from(location).expect("an id is ASCII");
        self.headers.insert(LOCATION, location);
        self
    }

    /// Returns the answer in the form in which it is stored.
    pub(super) fn to_keep(&self) -> Answer {
        let text = |(name, value): (&HeaderName, &HeaderValue)| {
            Some((name.as_str().to_owned(), value.to_str().ok()?.to_owned()))
        };
        Answer {
            status: self.status.as_u16(),
            headers: self.headers.iter().filter_map(text).collect(),
            body: self.body.clone(),
        }
    }

    /// Restores a stored answer. A stored answer that is not valid HTTP becomes a 500.
    pub(super) fn kept(answer: Answer) -> Self {
        let header = |(name, value): (String, String)| {
            Some((HeaderName::try_from(name).ok()?, HeaderValue::try_from(value).ok()?))
        };
        Self {
            status: StatusCode::from_u16(answer.status)
                .unwrap_or(StatusCode::INTERNAL_SERVER_ERROR),
            headers: answer.headers.into_iter().filter_map(header).collect(),
            body: answer.body,
        }
    }
}

impl IntoResponse for Reply {
    fn into_response(mut self) -> Response {
        self.headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        // A `String` would add a `Content-Type`, also to an empty body.
        (self.status, self.headers, Body::from(self.body)).into_response()
    }
}
