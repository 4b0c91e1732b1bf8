//! The answer that shows a verification.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use application::ports::{Event, EventKind, EventReason, History, Verification};
use axum::http::StatusCode;
use chrono::{DateTime, SecondsFormat, Utc};
use domain::{ATTEMPTS, Channel, GatewayName, Pacing, Scope, VerificationStatus};
use serde::Serialize;
use utoipa::openapi::{
    Object, ObjectBuilder, Ref, Type,
    schema::{ArrayBuilder, KnownFormat, SchemaFormat, SchemaType},
};

use super::{
    endpoint::Model,
    handler::{V1Handler, V1Request},
    openapi::schema::{count, known, said, string, string_schema, time},
    reply::Reply,
};

pub(super) static VERIFICATION: Model =
    Model { name: "Verification", schema: |_| verification(), parts: &[&VERIFICATION_EVENT] };

static VERIFICATION_EVENT: Model =
    Model { name: "VerificationEvent", schema: |_| event(), parts: &[] };

#[derive(Serialize)]
struct VerificationView<'a> {
    id: String,
    status: &'static str,
    /// Masked.
    phone: String,
    channel: &'static str,
    expires_at: String,
    /// The earliest time of a resend. `None` if no resend is left.
    resend_after: Option<String>,
    attempts_left: u8,
    sends_left: u8,
    #[serde(skip_serializing_if = "Option::is_none")]
    metadata: Option<BTreeMap<&'a str, String>>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    test: bool,
    events: Vec<EventView<'a>>,
}

#[derive(Serialize)]
struct EventView<'a> {
    r#type: &'static str,
    at: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    gateway: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    channel: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
}

/// Shows a verification to the caller.
///
/// The metadata is shown to a key with the scope `read`, and to the key that started the
/// verification.
pub(super) fn shown(
    v1: &V1Handler,
    status: StatusCode,
    history: &History,
    request: &V1Request<'_>,
) -> Reply {
    let starter = history.verification.api_key;
    let may_read = request
        .api_key
        .is_none_or(|key| starter == Some(key) || v1.use_cases.allows(key, Scope::Read));
    let view = VerificationView::of(history, &v1.settings.pacing);
    let metadata = view.metadata.filter(|_| may_read);
    Reply::json(status, &VerificationView { metadata, ..view })
}

impl<'a> VerificationView<'a> {
    fn of(history: &'a History, pacing: &Pacing) -> Self {
        let History { verification, events } = history;
        let attempts_left = ATTEMPTS.saturating_sub(verification.attempts);
        let metadata = verification.metadata.as_ref();
        Self {
            id: verification.id.to_string(),
            status: verification.status.as_str(),
            phone: verification.phone.masked(),
            channel: history.channel().as_str(),
            expires_at: rfc3339(verification.expires_at),
            resend_after: resend_after(verification, pacing).map(rfc3339),
            attempts_left,
            sends_left: pacing.sends_left(verification.asked_sends()),
            metadata: metadata.and_then(|text| serde_json::from_str(text.as_str()).ok()),
            test: verification.is_test(),
            events: events.iter().map(EventView::of).collect(),
        }
    }
}

impl<'a> EventView<'a> {
    fn of(event: &'a Event) -> Self {
        let gateway = event.gateway.as_ref().map(GatewayName::as_str);
        let channel = event.channel.map(Channel::as_str);
        let reason = event.reason.map(EventReason::as_str);
        Self { r#type: event.kind.as_str(), at: rfc3339(event.at), gateway, channel, reason }
    }
}

fn resend_after(verification: &Verification, pacing: &Pacing) -> Option<SystemTime> {
    let usable =
        verification.status == VerificationStatus::Pending && verification.attempts < ATTEMPTS;
    let wait: Duration = pacing.wait_after(verification.asked_sends()).filter(|_| usable)?;
    verification.sent_at.checked_add(wait)
}

fn rfc3339(time: SystemTime) -> String {
    DateTime::<Utc>::from(time).to_rfc3339_opts(SecondsFormat::Millis, true)
}

fn verification() -> Object {
    let resend_after = ObjectBuilder::new()
        .schema_type(SchemaType::from_iter([Type::String, Type::Null]))
        .format(Some(SchemaFormat::KnownFormat(KnownFormat::DateTime)))
        .description(Some("The earliest time of the next resend, or null if no resend is left."));
    let metadata = ObjectBuilder::new().additional_properties(Some(string_schema())).description(
        Some("Shown to keys with the scope read or admin, and to the key that started the verification."),
    );
    let events = ArrayBuilder::new().items(Ref::from_schema_name("VerificationEvent"));
    let test = ObjectBuilder::new()
        .schema_type(Type::Boolean)
        .description(Some("Present and true for a test number, to which nothing is sent."));
    ObjectBuilder::new()
        .property("id", string())
        .property("status", known(&["pending", "approved", "expired", "canceled"]))
        .property("phone", said(string(), "Masked, such as +7999*****67."))
        .property("channel", said(known(&channels()), CHANNEL))
        .property("expires_at", time())
        .property("resend_after", resend_after)
        .property("attempts_left", count())
        .property("sends_left", count())
        .property("metadata", metadata)
        .property("test", test)
        .property("events", events)
        .required("id")
        .required("status")
        .required("phone")
        .required("channel")
        .required("expires_at")
        .required("resend_after")
        .required("attempts_left")
        .required("sends_left")
        .required("events")
        .build()
}

const CHANNEL: &str =
    "The channel of the latest message that a gateway was called for. `sms` before the first call.";

const CHANNEL_OF_EVENT: &str =
    "The channel by which the gateway brings the code. Present if `gateway` is.";

fn channels() -> [&'static str; 2] {
    Channel::ALL.map(Channel::as_str)
}

const GATEWAY: &str = "The configured name of the gateway. Only on sent, delivered and failed, if a gateway was called, and on rerouted: the gateway without the receipt.";
const REASON: &str = "On failed: why no gateway was called. On rerouted: why the code was sent again through another gateway.";

fn event() -> Object {
    // A blocked send has no verification.
    let kinds = EventKind::ALL.into_iter().filter(|kind| *kind != EventKind::Blocked);
    let kinds: Vec<&str> = kinds.map(EventKind::as_str).collect();
    ObjectBuilder::new()
        .property("type", known(&kinds))
        .property("at", time())
        .property("gateway", said(string(), GATEWAY))
        .property("channel", said(known(&channels()), CHANNEL_OF_EVENT))
        .property("reason", said(known(&EventReason::words()), REASON))
        .required("type")
        .required("at")
        .build()
}
