use std::time::{Duration, SystemTime};

use application::ports::{Accepted, SendError, Sms};
use bytes::Bytes;
use chrono::{DateTime, SecondsFormat, Utc};
use http::{
    HeaderMap, StatusCode,
    header::{DATE, RETRY_AFTER},
};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

/// The longest reference that is stored. The gateway chooses its length, and a longer one is cut.
const MAX_REFERENCE_CHARS: usize = 200;

/// The longest pause that a server can ask for. After it a code has expired and an event is old.
pub(crate) const MAX_RETRY_AFTER: Duration = Duration::from_secs(24 * 60 * 60);

#[derive(Serialize)]
struct SendRequest<'a> {
    id: &'a str,
    phone: &'a str,
    code: &'a str,
    text: &'a str,
    expires_at: &'a str,
}

#[derive(Deserialize)]
struct SendResponse {
    /// The unparsed text, so that a number keeps all its digits.
    message_id: Box<RawValue>,
}

/// Makes the body of the request that sends `sms` with the id `id`.
pub(crate) fn encode(sms: &Sms, id: &str) -> Bytes {
    let expires_at =
        DateTime::<Utc>::from(sms.expires_at).to_rfc3339_opts(SecondsFormat::Millis, true);
    let request = SendRequest {
        id,
        phone: sms.message.phone.as_str(),
        code: sms.code.as_str(),
        text: &sms.text,
        expires_at: &expires_at,
    };
    serde_json::to_vec(&request).expect("a struct of texts is JSON").into()
}

/// Returns the outcome of an answer. `body` is none if it could not be read.
///
/// Only the status decides. A gateway that answers 500, 502 or 504 may have the message. Another
/// call is safe only because the gateway recognises the message by its idempotency key.
pub(crate) fn judge(
    status: StatusCode,
    headers: &HeaderMap,
    body: Option<&[u8]>,
) -> Result<Accepted, SendError> {
    let detail = format!("status {}", status.as_u16());
    match status.as_u16() {
        200..=299 => {
            Ok(Accepted { reference: body.and_then(reference), receipts_by_reference: false })
        }
        429 => Err(SendError::Throttled { detail, retry_after: retry_after(headers) }),
        503 => Err(SendError::Unavailable { detail, retry_after: retry_after(headers) }),
        408 => Err(SendError::Ambiguous(detail)),
        // The URL or the account is wrong, whatever the number is.
        300..=399 | 401..=406 | 410 | 415 => Err(SendError::Misconfigured(detail)),
        100..=499 => Err(SendError::Rejected(detail)),
        // RFC 9110 §15: a status above 599 is invalid and is treated as a server error.
        _ => Err(SendError::Ambiguous(detail)),
    }
}

/// Returns the gateway's reference for the message: `message_id` of the body, a text or a number.
fn reference(body: &[u8]) -> Option<String> {
    let response: SendResponse = serde_json::from_slice(body).ok()?;
    let name = response.message_id.get();
    let name = match name.as_bytes().first()? {
        b'"' => serde_json::from_str(name).ok()?,
        b'-' | b'0'..=b'9' => name.to_owned(),
        _ => return None,
    };
    Some(printable(&name)).filter(|name| !name.is_empty())
}

/// Returns a reference as it is stored: without control characters, because PostgreSQL cannot store
/// a text with a NUL, and cut at its greatest length.
pub(crate) fn printable(reference: &str) -> String {
    reference.chars().filter(|char| !char.is_control()).take(MAX_REFERENCE_CHARS).collect()
}

/// Returns the pause that the server asks for: `Retry-After` in seconds or as a date (RFC 9110
/// §10.2.3).
///
/// Fractions of a second are accepted, although RFC 9110 has none, because servers that compute
/// their limits send them. A date is compared with the `Date` of the answer, and with our clock
/// only if the answer has none.
pub(crate) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = |name| headers.get(name)?.to_str().ok().map(str::trim);
    let value = text(RETRY_AFTER)?;
    let wait = seconds(value).or_else(|| {
        let until = date(value)?;
        let now = text(DATE).and_then(date).unwrap_or_else(our_time);
        Some(until.duration_since(now).unwrap_or(Duration::ZERO))
    })?;
    Some(wait.min(MAX_RETRY_AFTER))
}

/// Returns the pause that a server asks for in seconds, with or without a fraction.
pub(crate) fn pause(text: &str) -> Option<Duration> {
    seconds(text.trim()).map(|wait| wait.min(MAX_RETRY_AFTER))
}

/// Parses digits, with or without a fraction.
fn seconds(text: &str) -> Option<Duration> {
    let is_number = text.starts_with(|char: char| char.is_ascii_digit())
        && text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    if !is_number {
        return None;
    }
    let seconds = text.parse::<f64>().ok()?;
    // The conversion fails only if the number is too large.
    Some(Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX))
}

/// Parses a date of HTTP, or one of RFC 3339, which some servers send instead.
fn date(text: &str) -> Option<SystemTime> {
    let rfc3339 = || DateTime::parse_from_rfc3339(text).ok().map(SystemTime::from);
    httpdate::parse_http_date(text).ok().or_else(rfc3339)
}

#[expect(clippy::disallowed_methods, reason = "for an answer with a date and without its own time")]
fn our_time() -> SystemTime {
    SystemTime::now()
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[track_caller]
    fn check_retry_after(value: &str, date: Option<&str>, expected: Option<u64>) {
        let mut headers = HeaderMap::new();
        headers.insert(RETRY_AFTER, value.parse().unwrap());
        if let Some(date) = date {
            headers.insert(DATE, date.parse().unwrap());
        }
        assert_eq!(retry_after(&headers), expected.map(Duration::from_secs), "{value:?}");
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        const DATE: Option<&str> = Some("Tue, 15 Nov 1994 08:12:31 GMT");
        check_retry_after("0", None, Some(0));
        check_retry_after("120", None, Some(120));
        check_retry_after(" 7 ", None, Some(7));
        check_retry_after("007", None, Some(7));
        check_retry_after("Tue, 15 Nov 1994 08:12:41 GMT", DATE, Some(10));
        check_retry_after("Tuesday, 15-Nov-94 08:12:41 GMT", DATE, Some(10));
        check_retry_after("Tue, 15 Nov 1994 08:12:01 GMT", DATE, Some(0));
        // Without a `Date` our clock counts, which is long after that.
        check_retry_after("Tue, 15 Nov 1994 08:12:41 GMT", None, Some(0));
        check_retry_after("Tue, 15 Nov 1994 08:12:41 GMT", Some("today"), Some(0));
    }

    #[test]
    fn retry_after_may_have_a_fraction_or_a_date_of_rfc_3339() {
        const DATE: Option<&str> = Some("Tue, 15 Nov 1994 08:12:31 GMT");
        check_retry_after("1994-11-15T08:12:41Z", DATE, Some(10));
        check_retry_after("1994-11-15T09:12:41+01:00", DATE, Some(10));
        check_retry_after("30.", None, Some(30));
        check_retry_after("99999999999.5", None, Some(86_400));

        let mut headers = HeaderMap::new();
        headers.insert(RETRY_AFTER, HeaderValue::from_static("3.5"));
        assert_eq!(retry_after(&headers), Some(Duration::from_millis(3500)));
        headers.insert(RETRY_AFTER, HeaderValue::from_static("0.25"));
        assert_eq!(retry_after(&headers), Some(Duration::from_millis(250)));
    }

    #[test]
    fn retry_after_is_at_most_a_day() {
        const DATE: Option<&str> = Some("Tue, 15 Nov 1994 08:12:31 GMT");
        check_retry_after("86401", None, Some(86_400));
        check_retry_after("99999999999999999999999", None, Some(86_400));
        check_retry_after("Wed, 15 Nov 1995 08:12:41 GMT", DATE, Some(86_400));
    }

    #[test]
    fn invalid_retry_after_is_ignored() {
        const DATE: Option<&str> = Some("Tue, 15 Nov 1994 08:12:31 GMT");
        check_retry_after("", None, None);
        check_retry_after("-1", None, None);
        check_retry_after("1.5.2", None, None);
        check_retry_after(".", None, None);
        check_retry_after("1e3", None, None);
        check_retry_after("inf", None, None);
        check_retry_after("NaN", None, None);
        check_retry_after("5s", None, None);
        check_retry_after("soon", DATE, None);
        let mut headers = HeaderMap::new();
        assert_eq!(retry_after(&headers), None);
        headers.insert(RETRY_AFTER, HeaderValue::from_bytes(b"\xff").unwrap());
        assert_eq!(retry_after(&headers), None);
    }

    #[track_caller]
    fn check_reference(body: &[u8], expected: Option<&str>) {
        assert_eq!(reference(body).as_deref(), expected, "{}", body.escape_ascii());
    }

    #[test]
    fn reference_is_a_text_or_a_number() {
        check_reference(br#"{"message_id":"a-1","more":[1]}"#, Some("a-1"));
        check_reference(br#"{"message_id":"a\u0000b\n"}"#, Some("ab"));
        check_reference(br#"{"message_id":"\u0000"}"#, None);
        check_reference(br#"{"message_id":""}"#, None);
        check_reference(br#"{"message_id":17}"#, Some("17"));
        check_reference(br#"{"message_id": -1.50e3 }"#, Some("-1.50e3"));
        check_reference(
            br#"{"message_id":123456789012345678901234567890}"#,
            Some("123456789012345678901234567890"),
        );
        check_reference(br#"{"message_id":true}"#, None);
        check_reference(br#"{"message_id":["a"]}"#, None);
        check_reference(br#"{"message_id":{"id":"a"}}"#, None);
        check_reference(br#"{"message_id":null}"#, None);
        check_reference(br#"{"message_id":"a"#, None);
        check_reference(b"{\"message_id\":\"\xff\"}", None);
        check_reference(b"OK", None);
        check_reference(b"", None);
    }

    #[test]
    fn long_reference_is_cut_between_characters() {
        let body = format!(r#"{{"message_id":"{}"}}"#, "ы".repeat(201));

        assert_eq!(reference(body.as_bytes()), Some("ы".repeat(200)));
    }
}
