//! Calls of one provider without a server.

use std::time::Duration;

use application::ports::{Accepted, GatewayReceipt, Receipt, SendError, Sms};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode};
use serde_json::Value;

use super::{AMPLE, assert_tells_nothing, now};
use crate::{
    answer::Answer,
    authorities::Authorities,
    client::ClientSettings,
    fields::Fields,
    http_gateway::HttpGateway,
    provider::{Outgoing, Provider, ReceiptCall, ReceiptRefused},
    spec::ProviderSpec,
};

/// Makes a provider of these settings, which must be good.
#[track_caller]
pub(crate) fn made(spec: &'static ProviderSpec, table: &Value) -> Box<dyn Provider> {
    let mut fields = Fields::new(spec.fields, table.as_object().unwrap());
    let provider = (spec.make)(&mut fields);
    fields.refuse_unknown(&[spec.fields]);
    assert_eq!(fields.into_problems(), [], "of {}", spec.name);
    provider.unwrap()
}

/// Returns what is wrong with these settings.
pub(crate) fn problems(spec: &'static ProviderSpec, table: &Value) -> Vec<String> {
    let mut fields = Fields::new(spec.fields, table.as_object().unwrap());
    let provider = (spec.make)(&mut fields);
    fields.refuse_unknown(&[spec.fields]);
    let problems = fields.into_problems();
    assert!(provider.is_some() || !problems.is_empty(), "no provider, and no problem");
    problems.iter().map(ToString::to_string).collect()
}

/// Makes a gateway that opens a connection for each call.
pub(crate) fn http_gateway(provider: Box<dyn Provider>, timeout: Duration) -> HttpGateway {
    let authorities = Authorities::Public;
    let settings = ClientSettings { timeout, keep_alive: Duration::ZERO, authorities };
    HttpGateway::new(provider, settings).unwrap()
}

pub(crate) fn request_of(provider: &dyn Provider, sms: &Sms) -> Request<Bytes> {
    provider.prepare(&Outgoing::new(sms, &sms.message.id.to_string())).unwrap()
}

/// Makes an answer without headers, for `judge_status` and helpers.
pub(crate) fn answer<'a>(status: u16, headers: &'a HeaderMap, body: &'a str) -> Answer<'a> {
    let status = StatusCode::from_u16(status).unwrap();
    Answer { status, headers, body: Some(body.as_bytes()) }
}

/// Returns the outcome of an answer without headers.
pub(crate) fn judge(
    provider: &dyn Provider,
    status: u16,
    body: &str,
) -> Result<Accepted, SendError> {
    judge_with(provider, status, &[], Some(body))
}

/// Returns the outcome of an answer. Without a body it was too long, or broke off.
#[track_caller]
pub(crate) fn judge_with(
    provider: &dyn Provider,
    status: u16,
    headers: &[(&str, &str)],
    body: Option<&str>,
) -> Result<Accepted, SendError> {
    let headers = header_map(headers);
    let whole = answer(status, &headers, body.unwrap_or_default());
    let outcome = provider.judge(&Answer { body: body.map(str::as_bytes), ..whole });
    if let Err(error) = &outcome {
        assert_tells_nothing(&format!("{error} {error:?}"));
    }
    outcome
}

/// Returns the state that an answer to the question for it names.
pub(crate) fn status_of(provider: &dyn Provider, status: u16, body: &str) -> Option<Receipt> {
    provider.judge_status(&answer(status, &HeaderMap::new(), body))
}

/// Makes a gateway that calls the provider over HTTP. Each call has a connection of its own.
#[track_caller]
pub(crate) fn gateway(spec: &'static ProviderSpec, table: &Value) -> HttpGateway {
    http_gateway(made(spec, table), AMPLE)
}

/// Returns method, URL, `Authorization`, content type and body of a request, with a line for each.
pub(crate) fn written(request: &Request<Bytes>) -> String {
    let header = |name| request.headers().get(name).map_or("", |value| value.to_str().unwrap());
    format!(
        "{} {}\n{}\n{}\n{}",
        request.method(),
        request.uri(),
        header("authorization"),
        header("content-type"),
        str::from_utf8(request.body()).unwrap()
    )
}

/// Returns the class of the outcome of an answer without headers: `accepted`, `rejected` and so on.
#[track_caller]
pub(crate) fn class_of(provider: &dyn Provider, status: u16, body: &str) -> &'static str {
    class(judge(provider, status, body))
}

/// Checks the outcomes of answers that no body explains, which are the same for all providers.
#[track_caller]
pub(crate) fn check_unexplained(provider: &dyn Provider) {
    for (status, expected) in [
        (200, "ambiguous"),
        (302, "misconfigured"),
        (400, "unroutable"),
        (401, "misconfigured"),
        (403, "misconfigured"),
        (408, "ambiguous"),
        (422, "unroutable"),
        (429, "throttled"),
        (500, "ambiguous"),
        (502, "ambiguous"),
        (503, "unavailable"),
        (504, "ambiguous"),
    ] {
        for body in ["", "<html>no</html>", "{", "[]", "null", "{}", r#"{"x":"79991234567"}"#] {
            assert_eq!(class_of(provider, status, body), expected, "{status} {body:?}");
        }
        assert_eq!(class(judge_with(provider, status, &[], None)), expected, "{status}");
    }
    let detail = || "status 429".to_owned();
    let busy = judge_with(provider, 429, &[("retry-after", "7")], Some(""));
    let retry_after = Some(Duration::from_secs(7));
    assert_eq!(busy, Err(SendError::Throttled { detail: detail(), retry_after }));
    let busy = judge_with(provider, 429, &[], Some(""));
    assert_eq!(busy, Err(SendError::Throttled { detail: detail(), retry_after: None }));
}

fn class(outcome: Result<Accepted, SendError>) -> &'static str {
    outcome.map_or_else(|error| error.class().as_str(), |_| "accepted")
}

/// Calls `read` with a call for receipts, at [`now`]. `url` is the whole public URL.
pub(crate) fn receipt_call<T>(
    method: &str,
    url: &str,
    headers: &[(&str, &str)],
    body: &str,
    read: impl FnOnce(&ReceiptCall<'_>) -> T,
) -> T {
    let query = url.split_once('?').map_or("", |(_, query)| query);
    let (method, headers) = (method.parse::<Method>().unwrap(), header_map(headers));
    read(&ReceiptCall {
        method: &method,
        url,
        query,
        headers: &headers,
        body: body.as_bytes(),
        now: now(),
    })
}

/// Returns the receipts that a provider reads in a call.
pub(crate) fn receipts(
    provider: &dyn Provider,
    method: &str,
    url: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> Result<Vec<GatewayReceipt>, ReceiptRefused> {
    receipt_call(method, url, headers, body, |call| provider.receipts(call))
}

fn header_map(headers: &[(&str, &str)]) -> HeaderMap {
    let headers = headers.iter().map(|(name, value)| {
        (name.parse::<HeaderName>().unwrap(), HeaderValue::from_str(value).unwrap())
    });
    headers.collect()
}
