//! The variables of templates.

use std::{collections::BTreeMap, time::SystemTime};

use chrono::{DateTime, SecondsFormat, Utc};
use http::Request;
use minijinja::Value;

use crate::{fields::Secret, provider::Outgoing};

/// The settings that templates may use.
#[derive(Debug, Default)]
pub(super) struct Own {
    pub(super) sender: Option<String>,
    pub(super) username: Option<String>,
    pub(super) password: Option<Secret>,
    pub(super) token: Option<Secret>,
    pub(super) secret: Option<Secret>,
}

/// The variables of requests.
pub(super) const NAMES: &[&str] = &[
    "phone",
    "e164",
    "text",
    "code",
    "id",
    "sender",
    "validity",
    "validity_minutes",
    "expires_at",
    "expires_unix",
    "timestamp",
    "timestamp_ms",
    "now",
    "unicode",
    "segments",
    "callback",
    "params",
    "username",
    "password",
    "token",
    "secret",
];

/// The variables of a signature beside those of requests.
pub(super) const OF_REQUEST: &[&str] = &["body", "method", "path", "query", "url", "host"];

/// The longest validity that a template can name: a day.
const LONGEST: u64 = 86_400;

/// Returns the variables of one SMS.
pub(super) fn of(sms: &Outgoing<'_>, own: &Own) -> Value {
    let measure = sms.measure();
    let expires_at = sms.sms.expires_at;
    Value::from(BTreeMap::from([
        ("phone", Value::from(sms.digits())),
        ("e164", sms.e164().into()),
        ("text", sms.text().into()),
        ("code", sms.sms.code.as_str().into()),
        ("id", sms.id.into()),
        ("sender", sms.sender(own.sender.as_deref()).into()),
        ("validity", sms.validity_seconds(1, LONGEST).into()),
        ("validity_minutes", sms.validity_minutes(1, LONGEST / 60).into()),
        ("expires_at", rfc3339(expires_at).into()),
        ("expires_unix", unix_millis(expires_at).div_euclid(1_000).into()),
        ("timestamp", unix_millis(sms.now).div_euclid(1_000).into()),
        ("timestamp_ms", unix_millis(sms.now).into()),
        ("now", rfc3339(sms.now).into()),
        ("unicode", sms.is_unicode().into()),
        ("segments", measure.segments.into()),
        ("callback", sms.callback().into()),
        ("params", (&*sms.sms.params).into()),
        ("username", own.username.as_deref().into()),
        ("password", exposed(own.password.as_ref())),
        ("token", exposed(own.token.as_ref())),
        ("secret", exposed(own.secret.as_ref())),
    ]))
}

/// Returns the variables of two SMS that no one receives, to try templates with: one with all that
/// may be missing, and one without it.
pub(super) fn samples(own: &Own) -> [Value; 2] {
    let secret = |set: &Option<Secret>| exposed(set.as_ref());
    let sample = |has_all: bool| {
        let optional = |text: &str| has_all.then(|| text.to_owned());
        Value::from(BTreeMap::from([
            ("phone", Value::from("15550100000")),
            ("e164", "+15550100000".into()),
            ("text", if has_all { "Your code: 000000" } else { "Код: «000000» & \"\n\"" }.into()),
            ("code", "000000".into()),
            ("id", "00000000-0000-7000-8000-000000000000".into()),
            ("sender", own.sender.clone().or_else(|| optional("Sender")).into()),
            ("validity", 300.into()),
            ("validity_minutes", 5.into()),
            ("expires_at", "2026-11-30T15:19:42.049Z".into()),
            ("expires_unix", 1_796_051_982.into()),
            ("timestamp", 1_796_051_682.into()),
            ("timestamp_ms", 1_796_051_682_049_i64.into()),
            ("now", "2026-11-30T15:14:42.049Z".into()),
            ("unicode", (!has_all).into()),
            ("segments", 1.into()),
            ("callback", optional("https://sms.example/v1/receipts/main?id=0&token=t").into()),
            ("params", Value::from(BTreeMap::<String, String>::new())),
            ("username", own.username.clone().into()),
            ("password", secret(&own.password)),
            ("token", secret(&own.token)),
            ("secret", secret(&own.secret)),
        ]))
    };
    [sample(true), sample(false)]
}

/// Adds the parts of the request, for its signature.
pub(super) fn of_request(variables: &Value, request: &Request<bytes::Bytes>) -> Value {
    let uri = request.uri();
    let parts = Value::from(BTreeMap::from([
        ("body", Value::from(String::from_utf8_lossy(request.body()))),
        ("method", request.method().as_str().into()),
        ("path", uri.path().into()),
        ("query", uri.query().unwrap_or_default().into()),
        ("url", uri.to_string().into()),
        ("host", uri.authority().map_or("", |it| it.as_str()).into()),
    ]));
    minijinja::context! { ..parts, ..variables.clone() }
}

/// An absent value is undefined, so that an entry that consists of it is left out.
fn exposed(secret: Option<&Secret>) -> Value {
    secret.map(Secret::expose).map_or(Value::UNDEFINED, Value::from)
}

fn rfc3339(time: SystemTime) -> String {
    DateTime::<Utc>::from(time).to_rfc3339_opts(SecondsFormat::Millis, true)
}

fn unix_millis(time: SystemTime) -> i64 {
    DateTime::<Utc>::from(time).timestamp_millis()
}
