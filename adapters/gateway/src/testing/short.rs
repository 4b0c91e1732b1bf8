//! Short forms for the tests of providers that have many cases.

use std::{collections::BTreeMap, time::Duration};

use application::ports::{GatewayReceipt, Receipt, Reported, SendError, Sms, SmsGateway};
use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use domain::MessageId;
use http::Request;
use serde_json::Value;

use super::{Fake, Received, Reply, gateway, judge, receipts};
use crate::{
    provider::{Provider, ReceiptRefused},
    spec::ProviderSpec,
};

/// The id of the message of [`sms`](super::sms).
pub(crate) const ID: &str = "e5babe51-0e3a-5823-8812-6d50d82d603e";

/// The URL that the provider gets for the receipt of [`with_callback`].
pub(crate) const CALLBACK: &str =
    "https://sms.example/v1/receipts/main?id=e5babe51-0e3a-5823-8812-6d50d82d603e&token=t0ken";

/// Returns [`sms`](super::sms) without a URL for its receipt.
pub(crate) fn sms() -> Sms {
    Sms { callback: None, ..super::sms() }
}

/// Returns [`sms`] with another text.
pub(crate) fn sms_with(text: &str) -> Sms {
    Sms { text: text.to_owned(), ..sms() }
}

/// Returns [`sms`] whose code is good for this time.
pub(crate) fn sms_for(seconds: u64) -> Sms {
    Sms { good_for: Duration::from_secs(seconds), ..sms() }
}

/// Returns [`sms`] with [`CALLBACK`].
pub(crate) fn with_callback() -> Sms {
    Sms { callback: Some(CALLBACK.to_owned()), ..sms() }
}

/// Returns the line of a request, its headers in the order of their names, and the body.
pub(crate) fn with_headers(request: &Request<Bytes>) -> String {
    let mut headers: Vec<_> = request
        .headers()
        .iter()
        .map(|(name, value)| format!("{name}: {}\n", String::from_utf8_lossy(value.as_bytes())))
        .collect();
    headers.sort_unstable();
    let body = String::from_utf8_lossy(request.body());
    format!("{} {}\n{}\n{body}", request.method(), request.uri(), headers.concat())
}

/// Returns the JSON of a request, if it is declared as JSON and is JSON.
pub(crate) fn json_of(request: &Received) -> Option<Value> {
    let is_declared = request.header("content-type") == "application/json";
    serde_json::from_str(&request.body).ok().filter(|_| is_declared)
}

/// Returns the fields of a request, if it is declared as a form.
pub(crate) fn form_of(request: &Received) -> Option<BTreeMap<String, String>> {
    let is_declared = request.header("content-type") == "application/x-www-form-urlencoded";
    is_declared.then(|| request.form().into_iter().collect())
}

/// Returns user and password of `Authorization: Basic`.
pub(crate) fn basic_of(request: &Received) -> Option<(String, String)> {
    let value = request.header("authorization").strip_prefix("Basic ")?;
    let text = String::from_utf8(STANDARD.decode(value).ok()?).ok()?;
    text.split_once(':').map(|(user, password)| (user.to_owned(), password.to_owned()))
}

/// Returns the class and the detail of an answer that is not an acceptance.
#[track_caller]
pub(crate) fn refused(provider: &dyn Provider, status: u16, body: &str) -> String {
    judge(provider, status, body).expect_err("the provider refuses").to_string()
}

/// Reads receipts that came with GET and this query.
pub(crate) fn got(
    provider: &dyn Provider,
    query: &str,
) -> Result<Vec<GatewayReceipt>, ReceiptRefused> {
    receipts(provider, "GET", &format!("https://sms.example/v1/receipts/main?{query}"), &[], "")
}

/// Reads receipts that came with POST, this query and this body.
pub(crate) fn posted(
    provider: &dyn Provider,
    query: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> Result<Vec<GatewayReceipt>, ReceiptRefused> {
    let url = format!("https://sms.example/v1/receipts/main?{query}");
    receipts(provider, "POST", &url, headers, body)
}

/// Makes the receipt of the message of [`sms`].
pub(crate) fn of_message(receipt: Receipt) -> GatewayReceipt {
    let id: MessageId = ID.parse().unwrap();
    GatewayReceipt { of: Reported::Message(id), receipt }
}

/// Makes the receipt of the message with this reference.
pub(crate) fn of_reference(reference: &str, receipt: Receipt) -> GatewayReceipt {
    GatewayReceipt { of: Reported::Reference(reference.to_owned()), receipt }
}

/// Checks the outcome of calls that any provider may answer so.
///
/// `table` makes the settings for the URL of a server.
pub(crate) async fn check_common_answers(
    spec: &'static ProviderSpec,
    table: impl Fn(&str) -> Value,
) {
    const GARBAGE: &str = "<html>482915 to 79991234567</html>";
    for (status, body, expected) in [
        (200, "", "ambiguous: status 200"),
        (200, GARBAGE, "ambiguous: status 200"),
        (202, "{}", "ambiguous: status 202"),
        (302, "", "misconfigured: status 302"),
        (400, GARBAGE, "unroutable: status 400"),
        (401, GARBAGE, "misconfigured: status 401"),
        (403, GARBAGE, "misconfigured: status 403"),
        (404, GARBAGE, "misconfigured: status 404"),
        (408, "", "ambiguous: status 408"),
        (422, GARBAGE, "unroutable: status 422"),
        (429, GARBAGE, "throttled: status 429"),
        (500, GARBAGE, "ambiguous: status 500"),
        (502, GARBAGE, "ambiguous: status 502"),
        (503, GARBAGE, "unavailable: status 503"),
    ] {
        let plain = outcome(spec, &table, Reply::text(status, body)).await;
        let reply = Reply::text(status, body).with("retry-after", "7");
        let waiting = outcome(spec, &table, reply.with("location", "/elsewhere")).await;

        assert_eq!(plain.to_string(), expected, "{} {body}", spec.name);
        assert_eq!(waiting.to_string(), expected, "{} {body}", spec.name);
        assert_eq!(asked_pause(&plain), None);
        let seven = matches!(status, 429 | 503).then_some(Duration::from_secs(7));
        assert_eq!(asked_pause(&waiting), seven);
    }
    let long = outcome(spec, &table, Reply::text(200, &"x".repeat(70_000))).await;
    assert_eq!(long.to_string(), "ambiguous: status 200", "{}", spec.name);
    let cut = outcome(spec, &table, Reply::Close).await;
    assert!(matches!(cut, SendError::Ambiguous(_)), "{}: {cut}", spec.name);
}

async fn outcome(
    spec: &'static ProviderSpec,
    table: impl Fn(&str) -> Value,
    reply: Reply,
) -> SendError {
    let fake = Fake::scripted([reply]).await;
    gateway(spec, &table(fake.url())).send(&sms()).await.unwrap_err()
}

fn asked_pause(error: &SendError) -> Option<Duration> {
    match error {
        SendError::Throttled { retry_after, .. } | SendError::Unavailable { retry_after, .. } => {
            *retry_after
        }
        _ => None,
    }
}
