//! The interface of a provider that is called over HTTP.
//!
//! A provider is pure: it makes a request, and judges an answer. It does no IO and reads no clock.

use std::{
    borrow::Cow,
    fmt,
    time::{Duration, SystemTime},
};

use application::ports::{Accepted, GatewayReceipt, Receipt, SendError, Sms};
use bytes::Bytes;
use domain::{Channel, Encoding, Measure};
use http::{HeaderMap, Method, Request};

use crate::answer::Answer;

/// A provider of SMS with an HTTP interface.
pub(crate) trait Provider: fmt::Debug + Send + Sync + 'static {
    /// Makes the request that sends one SMS to one recipient.
    ///
    /// A provider has this, or [`prepare`](Self::prepare) if making a request can fail.
    fn request(&self, sms: &Outgoing<'_>) -> Request<Bytes> {
        let _ = sms;
        Request::default()
    }

    /// Makes the request, or returns the reason why this SMS cannot be sent.
    fn prepare(&self, sms: &Outgoing<'_>) -> Result<Request<Bytes>, SendError> {
        Ok(self.request(sms))
    }

    /// Returns the outcome that the answer to [`request`](Self::request) stands for.
    fn judge(&self, answer: &Answer<'_>) -> Result<Accepted, SendError>;

    /// Makes the request that asks the provider for an id before the SMS is sent, or returns the reason
    /// why this SMS cannot be sent. `None` if the provider has no such request.
    ///
    /// The provider sends at most one SMS under such an id. It is stored before
    /// [`prepare`](Self::prepare) gets it, and a repeated call uses it again (ADR 59).
    fn reserve(&self, sms: &Outgoing<'_>) -> Option<Result<Request<Bytes>, SendError>> {
        let _ = sms;
        None
    }

    /// Returns the id that the answer to [`reserve`](Self::reserve) gives.
    fn judge_reservation(&self, answer: &Answer<'_>) -> Result<String, SendError> {
        Err(answer.refusal(""))
    }

    /// Returns the outcome that the answer to a request with a reservation stands for.
    fn judge_reserved(
        &self,
        answer: &Answer<'_>,
        reservation: &Reservation,
    ) -> Result<Accepted, SendError> {
        let _ = reservation;
        self.judge(answer)
    }

    /// Whether the provider documents that it recognises a repeated request by our id, or by the id of a
    /// reservation.
    fn deduplicates(&self) -> bool {
        false
    }

    /// The channel by which the provider brings a code to the user.
    fn channel(&self) -> Channel {
        Channel::Sms
    }

    /// Reads what the provider posted to `/v1/receipts/{gateway}`.
    ///
    /// A state that is not final is no receipt. A call with intermediate states only gives an empty
    /// list.
    fn receipts(&self, call: &ReceiptCall<'_>) -> Result<Vec<GatewayReceipt>, ReceiptRefused> {
        let _ = call;
        Err(ReceiptRefused::Unreadable)
    }

    /// Whether [`receipts`](Self::receipts) reads what the provider reports, if it knows where to.
    fn reports_receipts(&self) -> bool {
        true
    }

    /// Whether the provider reports to this URL. Some limit its length or its scheme.
    fn takes_callback(&self, url: &str) -> bool {
        let _ = url;
        true
    }

    /// Whether [`receipts`](Self::receipts) checks a signature. If not, the token in the URL is
    /// required.
    fn verifies_receipts(&self) -> bool {
        false
    }

    /// The answer that the provider expects to a receipt.
    fn receipt_reply(&self) -> ReceiptReply {
        ReceiptReply::EMPTY
    }

    /// Makes a request for the state of the message with this reference, if the provider has one.
    fn status_request(&self, reference: &str) -> Option<Request<Bytes>> {
        let _ = reference;
        None
    }

    /// Returns the final state that the answer to [`status_request`](Self::status_request) names.
    fn judge_status(&self, answer: &Answer<'_>) -> Option<Receipt> {
        let _ = answer;
        None
    }
}

/// An SMS on its way to a provider.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Outgoing<'a> {
    pub(crate) sms: &'a Sms,
    /// The id of the message, as text.
    pub(crate) id: &'a str,
    /// The time of the grant of the call, by the database clock. It serves for signatures.
    pub(crate) now: SystemTime,
    /// The id that the provider has reserved for it.
    pub(crate) reserved: Option<&'a str>,
}

/// The id under which a provider sends an SMS at most once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Reservation {
    pub(crate) id: String,
    /// Whether an earlier call made it, and may have sent the SMS under it.
    pub(crate) is_earlier: bool,
}

impl<'a> Outgoing<'a> {
    pub(crate) fn new(sms: &'a Sms, id: &'a str) -> Self {
        let now = sms.expires_at.checked_sub(sms.good_for).unwrap_or(SystemTime::UNIX_EPOCH);
        Self { sms, id, now, reserved: None }
    }

    pub(crate) fn text(&self) -> &'a str {
        &self.sms.text
    }

    /// Returns the number without a leading `+`.
    pub(crate) fn digits(&self) -> &'a str {
        self.sms.message.phone.as_str()
    }

    /// Returns the number with a leading `+`.
    pub(crate) fn e164(&self) -> String {
        format!("+{}", self.digits())
    }

    pub(crate) fn measure(&self) -> Measure {
        Measure::of(&self.sms.text)
    }

    /// Whether the text does not fit into GSM-7, so that it is sent as UCS-2.
    pub(crate) fn is_unicode(&self) -> bool {
        self.measure().encoding == Encoding::Ucs2
    }

    /// Returns for how many whole seconds the code stays valid, at least `min` and at most `max`.
    pub(crate) fn validity_seconds(&self, min: u64, max: u64) -> u64 {
        self.sms.good_for.as_secs().clamp(min, max)
    }

    /// Returns for how many minutes the code stays valid, rounded up, at least `min` and at most
    /// `max`.
    pub(crate) fn validity_minutes(&self, min: u64, max: u64) -> u64 {
        self.sms.good_for.as_secs().div_ceil(60).clamp(min, max)
    }

    /// Returns the instant at which the code expires, or the latest that the provider takes.
    pub(crate) fn expires_within(&self, max: Duration) -> SystemTime {
        self.sms.expires_at.min(self.now + max)
    }

    /// Returns the sender of the route, or else the gateway's own.
    pub(crate) fn sender<'s>(&self, default: Option<&'s str>) -> Option<&'s str>
    where
        'a: 's,
    {
        self.sms.sender.as_deref().or(default)
    }

    /// Returns what the route gives for `name`.
    pub(crate) fn param(&self, name: &str) -> Option<&'a str> {
        self.sms.params.get(name).map(String::as_str)
    }

    /// Returns the URL to which the provider shall report the delivery of this message.
    pub(crate) fn callback(&self) -> Option<&'a str> {
        self.sms.callback.as_deref()
    }

    /// Returns the same URL without our id, for a provider that repeats our id by itself. It is
    /// shorter, and a parameter `id` of the provider does not meet ours.
    pub(crate) fn callback_without_id(&self) -> Option<String> {
        let (path, query) = self.callback()?.split_once('?')?;
        let rest: Vec<&str> = query.split('&').filter(|pair| !pair.starts_with("id=")).collect();
        Some(format!("{path}?{}", rest.join("&")))
    }
}

/// A call of a provider to `/v1/receipts/{gateway}`.
#[derive(Clone, Copy)]
pub struct ReceiptCall<'a> {
    pub method: &'a Method,
    /// The public URL with the query, as the provider called it. It may contain a token.
    pub url: &'a str,
    /// The query of `url`, without the `?`.
    pub query: &'a str,
    pub headers: &'a HeaderMap,
    pub body: &'a [u8],
    /// The present time. It limits the age of a signature.
    pub now: SystemTime,
}

impl ReceiptCall<'_> {
    /// Returns the pairs of the query, decoded, in their order.
    pub(crate) fn query_pairs(&self) -> Vec<(String, String)> {
        form_urlencoded::parse(self.query.as_bytes()).into_owned().collect()
    }

    /// Returns the pairs of a form in the body, decoded, in their order.
    pub(crate) fn form_pairs(&self) -> Vec<(String, String)> {
        form_urlencoded::parse(self.body).into_owned().collect()
    }

    /// Returns the body, if it is JSON.
    pub(crate) fn json(&self) -> Option<serde_json::Value> {
        serde_json::from_slice(self.body).ok()
    }

    /// Returns the value of a header that occurs once.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut values = self.headers.get_all(name).into_iter();
        let value = values.next()?.to_str().ok()?;
        values.next().is_none().then_some(value)
    }

    /// Returns our id from the URL that we gave the provider for this message.
    pub(crate) fn id(&self) -> Option<domain::MessageId> {
        let pairs = form_urlencoded::parse(self.query.as_bytes());
        pairs.filter(|(name, _)| name == "id").find_map(|(_, id)| id.parse().ok())
    }
}

/// Shows the method only: the rest contains numbers and tokens.
impl fmt::Debug for ReceiptCall<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReceiptCall").field("method", self.method).finish_non_exhaustive()
    }
}

/// The reason why a call is not taken for receipts. It contains no value of the call.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReceiptRefused {
    #[error("the receipt has no signature")]
    Unsigned,
    #[error("the signature of the receipt is wrong or too old")]
    BadSignature,
    #[error("the receipt is not in the form that this provider documents")]
    Unreadable,
    /// It lacks what the settings describe.
    #[error("the receipt has no {0}")]
    Lacks(String),
}

/// The answer that a provider expects to a receipt: status 200 with this body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReceiptReply {
    pub content_type: &'static str,
    pub body: Cow<'static, str>,
}

impl ReceiptReply {
    pub const EMPTY: Self = Self::text("");

    pub const fn text(body: &'static str) -> Self {
        Self { content_type: "text/plain; charset=utf-8", body: Cow::Borrowed(body) }
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::sms;

    use super::*;

    #[test]
    fn callback_may_go_without_our_id() {
        for (url, expected) in [
            ("https://a.example/r?id=1&token=t", "https://a.example/r?token=t"),
            ("https://a.example/r?token=t&id=1", "https://a.example/r?token=t"),
            ("https://a.example/r?token=id=1", "https://a.example/r?token=id=1"),
        ] {
            let sms = Sms { callback: Some(url.to_owned()), ..sms() };

            assert_eq!(Outgoing::new(&sms, "").callback_without_id().as_deref(), Some(expected));
        }
    }
}
