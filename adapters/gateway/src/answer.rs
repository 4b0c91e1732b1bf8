//! The answer of a provider, and the outcomes that it may stand for.

use std::time::Duration;

use application::ports::{Accepted, SendError};
use http::{HeaderMap, StatusCode};
use serde_json::Value;

use crate::wire;

/// The longest code of a provider that an error repeats.
const MAX_CODE: usize = 64;

/// The longest code of digits that an error repeats. A phone number has at least seven.
const MAX_DIGITS: usize = 6;

/// The answer of a provider to one request.
#[derive(Clone, Copy)]
pub(crate) struct Answer<'a> {
    pub(crate) status: StatusCode,
    pub(crate) headers: &'a HeaderMap,
    /// `None` if the body is too long, or broke off.
    pub(crate) body: Option<&'a [u8]>,
}

impl Answer<'_> {
    pub(crate) fn is_success(&self) -> bool {
        self.status.is_success()
    }

    /// Returns the body, if it was read and is JSON. The content type is not looked at.
    pub(crate) fn json(&self) -> Option<Value> {
        serde_json::from_slice(self.body?).ok()
    }

    /// Returns the body, if it was read and is UTF-8.
    pub(crate) fn text(&self) -> Option<&str> {
        str::from_utf8(self.body?).ok()
    }

    /// Returns the pause that the provider asks for with `Retry-After`.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        wire::retry_after(self.headers)
    }

    /// Returns the text of an error: the status, and the provider's code if it is a symbol.
    ///
    /// A code that might be a text, a phone number or longer than 64 characters is left out.
    pub(crate) fn detail(&self, code: &str) -> String {
        let status = self.status.as_u16();
        if is_symbol(code) {
            format!("status {status}, code {code}")
        } else {
            format!("status {status}")
        }
    }

    pub(crate) fn rejected(&self, code: &str) -> SendError {
        SendError::Rejected(self.detail(code))
    }

    pub(crate) fn unroutable(&self, code: &str) -> SendError {
        SendError::Unroutable(self.detail(code))
    }

    pub(crate) fn misconfigured(&self, code: &str) -> SendError {
        SendError::Misconfigured(self.detail(code))
    }

    pub(crate) fn throttled(&self, code: &str) -> SendError {
        SendError::Throttled { detail: self.detail(code), retry_after: self.retry_after() }
    }

    pub(crate) fn unavailable(&self, code: &str) -> SendError {
        SendError::Unavailable { detail: self.detail(code), retry_after: self.retry_after() }
    }

    pub(crate) fn ambiguous(&self, code: &str) -> SendError {
        SendError::Ambiguous(self.detail(code))
    }

    /// Returns the outcome by the status, for an answer that the body does not explain. `code` goes
    /// into the text.
    ///
    /// No status says that the number is bad. A provider whose body says so judges that before, and
    /// so does one that answers 404 for a recipient.
    ///
    /// A status 2xx is ambiguous, because the provider documents a body that is not there. A redirect
    /// is a wrong URL, so nothing was taken.
    pub(crate) fn refusal(&self, code: &str) -> SendError {
        match self.status.as_u16() {
            429 => self.throttled(code),
            503 => self.unavailable(code),
            // Nothing about the recipient makes a path, a method or a content type wrong.
            300..=399 | 401..=406 | 410 | 415 => self.misconfigured(code),
            400..=499 if self.status != StatusCode::REQUEST_TIMEOUT => self.unroutable(code),
            _ => self.ambiguous(code),
        }
    }
}

/// Makes the outcome of an SMS that the provider took under `reference`.
pub(crate) fn accepted(reference: impl Into<String>) -> Accepted {
    Accepted { reference: Some(reference.into()), receipts_by_reference: false }
}

/// Makes the outcome of an SMS whose receipts name it by `reference` only.
pub(crate) fn accepted_by_reference(reference: impl Into<String>) -> Accepted {
    Accepted { reference: Some(reference.into()), receipts_by_reference: true }
}

/// Returns a text or a number of JSON as text, unless it is empty.
pub(crate) fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::String(text) if !text.is_empty() => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

fn is_symbol(code: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    let digits = code.bytes().filter(u8::is_ascii_digit).count();
    (1..=MAX_CODE).contains(&code.len()) && code.bytes().all(allowed) && digits <= MAX_DIGITS
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn answer(status: u16, headers: &HeaderMap) -> Answer<'_> {
        Answer { status: StatusCode::from_u16(status).unwrap(), headers, body: None }
    }

    #[test]
    fn refusal_follows_the_status() {
        let headers = HeaderMap::new();
        let class = |status| answer(status, &headers).refusal("").class().as_str();
        for (expected, statuses) in [
            ("throttled", &[429_u16][..]),
            ("unavailable", &[503]),
            (
                "misconfigured",
                &[300, 301, 302, 304, 307, 308, 401, 402, 403, 404, 405, 406, 410, 415],
            ),
            ("unroutable", &[400, 409, 422, 499]),
            ("ambiguous", &[100, 199, 200, 204, 299, 408, 500, 501, 502, 504, 599, 600, 999]),
        ] {
            for &status in statuses {
                assert_eq!(class(status), expected, "{status}");
            }
        }
    }

    #[test]
    fn detail_repeats_symbols_only() {
        let headers = HeaderMap::new();
        let detail = |code| answer(400, &headers).detail(code);
        for code in ["21211", "InvalidNumber", "EC_1", "a-b", "0"] {
            assert_eq!(detail(code), format!("status 400, code {code}"));
        }
        let long = "x".repeat(65);
        for text in ["", "79991234567", "a79991234567", "7999-123-4567", "your code", "+1", &long] {
            assert_eq!(detail(text), "status 400");
        }
    }

    #[test]
    fn throttled_and_unavailable_have_the_retry_time() {
        let headers: HeaderMap =
            [(http::header::RETRY_AFTER, "7".parse().unwrap())].into_iter().collect();
        let retry_after = Some(Duration::from_secs(7));

        let (busy, down) = (answer(429, &headers).refusal("1"), answer(503, &headers).refusal(""));

        let detail = "status 429, code 1".to_owned();
        assert_eq!(busy, SendError::Throttled { detail, retry_after });
        let detail = "status 503".to_owned();
        assert_eq!(down, SendError::Unavailable { detail, retry_after });
    }

    #[test]
    fn body_is_json_or_text_if_it_was_read() {
        let headers = HeaderMap::new();
        let with = |body| Answer { body, ..answer(200, &headers) };

        assert_eq!(with(Some(b"[1]")).json(), Some(json!([1])));
        assert_eq!(with(Some(b"OK")).json(), None);
        assert_eq!(with(Some(b"OK")).text(), Some("OK"));
        assert_eq!(with(Some(b"\xff")).text(), None);
        assert_eq!((with(None).json(), with(None).text()), (None, None));
        assert!(with(None).is_success());
    }

    #[test]
    fn scalar_is_a_text_or_a_number() {
        assert_eq!(scalar(&json!("a")).as_deref(), Some("a"));
        assert_eq!(scalar(&json!(9_007_199_254_740_993_u64)).as_deref(), Some("9007199254740993"));
        for value in [json!(""), json!(null), json!(true), json!(["a"]), json!({})] {
            assert_eq!(scalar(&value), None, "{value}");
        }
    }
}
