//! What they are answered.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use application::ports::{Answer, Event, History, Verification};
use axum::{
    body::Body,
    http::{
        HeaderMap, HeaderName, HeaderValue, StatusCode,
        header::{CACHE_CONTROL, CONTENT_TYPE, LOCATION},
    },
    response::{IntoResponse, Response},
};
use chrono::{DateTime, SecondsFormat, Utc};
use domain::{ATTEMPTS, Pacing, VerificationStatus};
use serde::Serialize;

use crate::error::JSON;

/// An answer, whole and ready to be kept.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: String,
}

/// A verification as its owner sees it.
#[derive(Serialize)]
struct Seen<'a> {
    id: String,
    status: &'static str,
    /// Masked.
    phone: String,
    channel: &'static str,
    expires_at: String,
    /// When a resend may be asked for; none: there will be no other.
    resend_after: Option<String>,
    attempts_left: u8,
    sends_left: u8,
    #[serde(skip_serializing_if = "Option::is_none")]
    metadata: Option<BTreeMap<&'a str, String>>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    test: bool,
    events: Vec<SeenEvent>,
}

#[derive(Serialize)]
struct SeenEvent {
    r#type: &'static str,
    at: String,
}

/// What a tried code was.
#[derive(Serialize)]
pub(super) struct Tried {
    valid: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    attempts_left: Option<u8>,
}

impl Reply {
    pub(super) fn json(status: StatusCode, body: &impl Serialize) -> Self {
        let body = serde_json::to_string(body).expect("texts and numbers are JSON");
        Self { status, headers: HeaderMap::from_iter([(CONTENT_TYPE, JSON)]), body }
    }

    /// There is nothing to say.
    pub(super) fn empty() -> Self {
        Self { status: StatusCode::NO_CONTENT, headers: HeaderMap::new(), body: String::new() }
    }

    pub(super) fn verification(
        status: StatusCode,
        history: &History,
        pacing: &Pacing,
        with_metadata: bool,
    ) -> Self {
        let seen = Seen::of(history, pacing);
        let metadata = seen.metadata.filter(|_| with_metadata);
        Self::json(status, &Seen { metadata, ..seen })
    }

    /// Tells where the verification is found.
    #[must_use]
    pub(super) fn located(mut self, verification: &Verification) -> Self {
        let location = format!("/v1/verifications/{}", verification.id);
        let location = HeaderValue::try_from(location).expect("an id is ASCII");
        self.headers.insert(LOCATION, location);
        self
    }

    /// For those who ask again.
    pub(crate) fn to_keep(&self) -> Answer {
        let text = |(name, value): (&HeaderName, &HeaderValue)| {
            Some((name.as_str().to_owned(), value.to_str().ok()?.to_owned()))
        };
        Answer {
            status: self.status.as_u16(),
            headers: self.headers.iter().filter_map(text).collect(),
            body: self.body.clone(),
        }
    }

    /// What was kept. One that cannot be read any more is an error of ours.
    pub(crate) fn kept(answer: Answer) -> Self {
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
        // A `String` would bring a type of its own where there is no body.
        (self.status, self.headers, Body::from(self.body)).into_response()
    }
}

impl<'a> Seen<'a> {
    fn of(history: &'a History, pacing: &Pacing) -> Self {
        let History { verification, events } = history;
        let attempts_left = ATTEMPTS.saturating_sub(verification.attempts);
        let metadata = verification.metadata.as_ref();
        Self {
            id: verification.id.to_string(),
            status: verification.status.as_str(),
            phone: verification.phone.masked(),
            channel: "sms",
            expires_at: rfc3339(verification.expires_at),
            resend_after: resend_after(verification, pacing).map(rfc3339),
            attempts_left,
            sends_left: pacing.sends_left(verification.sends),
            metadata: metadata.and_then(|text| serde_json::from_str(text.as_str()).ok()),
            test: verification.is_test(),
            events: events.iter().map(SeenEvent::of).collect(),
        }
    }
}

impl SeenEvent {
    fn of(event: &Event) -> Self {
        Self { r#type: event.kind.as_str(), at: rfc3339(event.at) }
    }
}

impl Tried {
    pub(super) const RIGHT: Self =
        Self { valid: true, status: Some("approved"), attempts_left: None };

    /// None: nothing is said of the verification, not even whether there is one.
    pub(super) fn wrong(attempts_left: Option<u8>) -> Self {
        let status = attempts_left.map(|_| VerificationStatus::Pending.as_str());
        Self { valid: false, status, attempts_left }
    }
}

fn resend_after(verification: &Verification, pacing: &Pacing) -> Option<SystemTime> {
    let usable =
        verification.status == VerificationStatus::Pending && verification.attempts < ATTEMPTS;
    let wait: Duration = pacing.wait_after(verification.sends).filter(|_| usable)?;
    verification.sent_at.checked_add(wait)
}

fn rfc3339(time: SystemTime) -> String {
    DateTime::<Utc>::from(time).to_rfc3339_opts(SecondsFormat::Millis, true)
}
