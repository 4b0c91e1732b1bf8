use std::time::{Duration, SystemTime};

use application::ports::{Accepted, SendError, Sms};
use bytes::Bytes;
use chrono::{DateTime, SecondsFormat, Utc};
use http::{
    HeaderMap, StatusCode,
    header::{DATE, RETRY_AFTER},
};
use serde::{Deserialize, Serialize};

/// Longer names are cut: ours to store, theirs to choose.
const MAX_REFERENCE_CHARS: usize = 200;

/// A code is long dead after that, and an event old, whatever we are asked for.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(24 * 60 * 60);

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
    message_id: String,
}

/// The body of the request that hands `sms` over under the name `id`.
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

/// What an answer means. `body` is what could be read of it.
///
/// The status alone decides. A 500, 502 or 504 may come from a gateway that has the message: that
/// it is called again is safe only because it knows the message by its idempotency key.
pub(crate) fn judge(
    status: StatusCode,
    headers: &HeaderMap,
    body: Option<&[u8]>,
) -> Result<Accepted, SendError> {
    let detail = format!("status {}", status.as_u16());
    match status.as_u16() {
        200..=299 => Ok(Accepted { reference: body.and_then(reference) }),
        429 => Err(SendError::Throttled { detail, retry_after: retry_after(headers) }),
        503 => Err(SendError::Unavailable { detail, retry_after: retry_after(headers) }),
        408 => Err(SendError::Ambiguous(detail)),
        401..=403 => Err(SendError::Misconfigured(detail)),
        100..=499 => Err(SendError::Rejected(detail)),
        // What is above 599 is no status, and RFC 9110 §15 has it read as a server's failure.
        _ => Err(SendError::Ambiguous(detail)),
    }
}

/// The gateway's name for the message, if the body is the JSON that holds one.
///
/// Control characters are dropped: PostgreSQL stores no text with a NUL in it.
fn reference(body: &[u8]) -> Option<String> {
    let response: SendResponse = serde_json::from_slice(body).ok()?;
    let printable = response.message_id.chars().filter(|char| !char.is_control());
    Some(printable.take(MAX_REFERENCE_CHARS).collect()).filter(|name: &String| !name.is_empty())
}

/// A date is measured against the answer's own `Date`, so that no clock of ours is asked; only an
/// answer without one is believed to have the time that we have.
pub(crate) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = |name| headers.get(name)?.to_str().ok().map(str::trim);
    let value = text(RETRY_AFTER)?;
    let wait = if !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit()) {
        // The only digits that are no u64 are too many.
        Duration::from_secs(value.parse().unwrap_or(u64::MAX))
    } else {
        let until = httpdate::parse_http_date(value).ok()?;
        let now = text(DATE).and_then(|date| httpdate::parse_http_date(date).ok());
        until.duration_since(now.unwrap_or_else(our_time)).unwrap_or(Duration::ZERO)
    };
    Some(wait.min(MAX_RETRY_AFTER))
}

#[expect(clippy::disallowed_methods, reason = "for an answer that says a date and not its own")]
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
    fn reads_retry_after_in_both_forms() {
        const DATE: Option<&str> = Some("Tue, 15 Nov 1994 08:12:31 GMT");
        check_retry_after("0", None, Some(0));
        check_retry_after("120", None, Some(120));
        check_retry_after(" 7 ", None, Some(7));
        check_retry_after("Tue, 15 Nov 1994 08:12:41 GMT", DATE, Some(10));
        check_retry_after("Tuesday, 15-Nov-94 08:12:41 GMT", DATE, Some(10));
        check_retry_after("Tue, 15 Nov 1994 08:12:01 GMT", DATE, Some(0));
        // Without a date of the answer's own, ours: long after that.
        check_retry_after("Tue, 15 Nov 1994 08:12:41 GMT", None, Some(0));
        check_retry_after("Tue, 15 Nov 1994 08:12:41 GMT", Some("today"), Some(0));
    }

    #[test]
    fn caps_retry_after_at_a_day() {
        const DATE: Option<&str> = Some("Tue, 15 Nov 1994 08:12:31 GMT");
        check_retry_after("86401", None, Some(86_400));
        check_retry_after("99999999999999999999999", None, Some(86_400));
        check_retry_after("Wed, 15 Nov 1995 08:12:41 GMT", DATE, Some(86_400));
    }

    #[test]
    fn ignores_a_retry_after_that_says_nothing() {
        const DATE: Option<&str> = Some("Tue, 15 Nov 1994 08:12:31 GMT");
        check_retry_after("", None, None);
        check_retry_after("-1", None, None);
        check_retry_after("1.5", None, None);
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
    fn takes_a_name_where_there_is_one() {
        check_reference(br#"{"message_id":"a-1","more":[1]}"#, Some("a-1"));
        check_reference(br#"{"message_id":"a\u0000b\n"}"#, Some("ab"));
        check_reference(br#"{"message_id":"\u0000"}"#, None);
        check_reference(br#"{"message_id":""}"#, None);
        check_reference(br#"{"message_id":17}"#, None);
        check_reference(br#"{"message_id":null}"#, None);
        check_reference(br#"{"message_id":"a"#, None);
        check_reference(b"{\"message_id\":\"\xff\"}", None);
        check_reference(b"OK", None);
        check_reference(b"", None);
    }

    #[test]
    fn cuts_a_long_name_between_characters() {
        let body = format!(r#"{{"message_id":"{}"}}"#, "ы".repeat(201));

        assert_eq!(reference(body.as_bytes()), Some("ы".repeat(200)));
    }
}
