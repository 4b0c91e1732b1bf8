//! Telegram Gateway: codes for users of Telegram, as messages there.
//!
//! Confirmed by Telegram's description of the API and its tutorial: requests, answers, the states, the
//! signature, and that a reserved `request_id` sends once without a fee, and that repeated calls with it
//! fail. Both name `ACCESS_TOKEN_INVALID` as the only error; the other names come from a public client
//! (`tg-gateway-go`). Neither says with which HTTP status an error comes.

use std::time::Duration;

use application::ports::{Accepted, GatewayReceipt, Receipt, Reported, SendError};
use bytes::Bytes;
use domain::Channel;
use http::{HeaderValue, Request};
use ring::{digest, hmac::HMAC_SHA256};
use serde::Serialize;
use serde_json::{Value, json};

use crate::{
    answer::{Answer, accepted, scalar},
    fields::{Fields, Secret},
    provider::{Outgoing, Provider, ReceiptCall, ReceiptRefused, ReceiptReply, Reservation},
    request::{BaseUrl, authorized, bearer, post_json},
    signing::{hex_decoded, is_hmac, is_recent},
    spec::{Field, FieldKind, ProviderSpec},
    wire::MAX_RETRY_AFTER,
};

#[cfg(test)]
mod tests;

/// The longest code that Telegram takes. The shortest is that of our codes, too.
const MAX_CODE: usize = 8;

/// The longest URL for reports, in bytes.
const MAX_CALLBACK: usize = 256;

/// The shortest and the longest time for which Telegram tries to deliver, in seconds.
const VALIDITY: (u64, u64) = (30, 3_600);

pub(crate) static SPEC: ProviderSpec = ProviderSpec {
    name: "telegram",
    title: "Telegram Gateway",
    sender: false,
    params: &[],
    fields: &[
        Field::required("access_token", FieldKind::Secret, "The API token of the account."),
        Field::optional(
            "sender_username",
            FieldKind::Text,
            "The verified channel of the account that codes come from, without `@`. Without it, they \
             come from Telegram's own.",
        ),
        Field::with_default(
            "url",
            FieldKind::Url,
            "https://gatewayapi.telegram.org",
            "The base URL.",
        ),
    ],
    make,
};

#[derive(Debug)]
struct Telegram {
    url: BaseUrl,
    authorization: HeaderValue,
    access_token: Secret,
    sender_username: Option<String>,
}

#[derive(Serialize)]
struct Verification<'a> {
    phone_number: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    request_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sender_username: Option<&'a str>,
    code: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    callback_url: Option<&'a str>,
    payload: &'a str,
    ttl: u64,
}

fn make(fields: &mut Fields<'_>) -> Option<Box<dyn Provider>> {
    let access_token = fields.secret("access_token");
    let sender_username = fields.text("sender_username");
    let url = fields.url("url");
    let access_token = access_token?;
    Some(Box::new(Telegram {
        url: url?,
        authorization: bearer(access_token.expose()),
        access_token,
        sender_username,
    }))
}

impl Provider for Telegram {
    /// The sender of the route is for SMS.
    fn request(&self, sms: &Outgoing<'_>) -> Request<Bytes> {
        let callback = sms.callback_without_id();
        let body = Verification {
            phone_number: &sms.e164(),
            request_id: sms.reserved,
            sender_username: self.sender_username.as_deref(),
            code: sms.sms.code.as_str(),
            callback_url: callback.as_deref().filter(|url| self.takes_callback(url)),
            payload: sms.id,
            ttl: sms.validity_seconds(VALIDITY.0, VALIDITY.1),
        };
        self.call("/sendVerificationMessage", &body)
    }

    fn takes_callback(&self, url: &str) -> bool {
        url.starts_with("https://") && url.len() <= MAX_CALLBACK
    }

    fn judge(&self, answer: &Answer<'_>) -> Result<Accepted, SendError> {
        Ok(accepted(request_id(answer)?))
    }

    /// A positive answer costs as much as the message, which is then free.
    fn reserve(&self, sms: &Outgoing<'_>) -> Option<Result<Request<Bytes>, SendError>> {
        if sms.sms.code.as_str().len() > MAX_CODE {
            let detail = format!("not called: the code has more than {MAX_CODE} digits");
            return Some(Err(SendError::Unroutable(detail)));
        }
        let body = json!({ "phone_number": sms.e164() });
        Some(Ok(self.call("/checkSendAbility", &body)))
    }

    fn judge_reservation(&self, answer: &Answer<'_>) -> Result<String, SendError> {
        request_id(answer)
    }

    fn judge_reserved(
        &self,
        answer: &Answer<'_>,
        reservation: &Reservation,
    ) -> Result<Accepted, SendError> {
        let json = answer.json().unwrap_or_default();
        let code = error_of(&json);
        match code {
            // Only we have the id, so it was our message.
            "MESSAGE_ALREADY_SENT" => Ok(accepted(&*reservation.id)),
            // The documents do not name the error of a repeated call.
            _ if reservation.is_earlier && !code.is_empty() && by_code(answer, code).is_none() => {
                Err(answer.ambiguous(code))
            }
            _ => self.judge(answer),
        }
    }

    fn deduplicates(&self) -> bool {
        true
    }

    fn channel(&self) -> Channel {
        Channel::Telegram
    }

    fn receipts(&self, call: &ReceiptCall<'_>) -> Result<Vec<GatewayReceipt>, ReceiptRefused> {
        self.verify(call)?;
        let json = call.json().ok_or(ReceiptRefused::Unreadable)?;
        let state = json["delivery_status"]["status"].as_str();
        let ours = json["payload"].as_str().and_then(|payload| payload.parse().ok());
        let of = match (ours, scalar(&json["request_id"])) {
            (Some(id), _) => Reported::Message(id),
            (None, Some(reference)) => Reported::Reference(reference),
            (None, None) => return Err(ReceiptRefused::Unreadable),
        };
        let receipt = state.and_then(receipt);
        Ok(receipt.map(|receipt| GatewayReceipt { of, receipt }).into_iter().collect())
    }

    fn verifies_receipts(&self) -> bool {
        true
    }

    /// Telegram repeats a report that is not answered with 200.
    fn receipt_reply(&self) -> ReceiptReply {
        ReceiptReply::text("ok")
    }

    fn status_request(&self, reference: &str) -> Option<Request<Bytes>> {
        Some(self.call("/checkVerificationStatus", &json!({ "request_id": reference })))
    }

    fn judge_status(&self, answer: &Answer<'_>) -> Option<Receipt> {
        let json = answer.json().filter(|json| json["ok"] == true)?;
        receipt(json["result"]["delivery_status"]["status"].as_str()?)
    }
}

impl Telegram {
    fn call(&self, method: &str, body: &impl Serialize) -> Request<Bytes> {
        authorized(post_json(self.url.at(method), body), self.authorization.clone())
    }

    /// Checks the HMAC of the timestamp and the body, under the hash of the token.
    fn verify(&self, call: &ReceiptCall<'_>) -> Result<(), ReceiptRefused> {
        let header = |name| call.header(name).ok_or(ReceiptRefused::Unsigned);
        let (signature, timestamp) =
            (header("x-request-signature")?, header("x-request-timestamp")?);
        let signature = hex_decoded(signature).ok_or(ReceiptRefused::BadSignature)?;
        let key = digest::digest(&digest::SHA256, self.access_token.expose().as_bytes());
        let signed: [&[u8]; 3] = [timestamp.as_bytes(), b"\n", call.body];
        let is_good = timestamp.parse().is_ok_and(|at| is_recent(at, call.now))
            && is_hmac(HMAC_SHA256, key.as_ref(), &signed, &signature);
        if is_good { Ok(()) } else { Err(ReceiptRefused::BadSignature) }
    }
}

/// Returns the id of the request that an answer is about, or the refusal.
fn request_id(answer: &Answer<'_>) -> Result<String, SendError> {
    let json = answer.json().unwrap_or_default();
    match scalar(&json["result"]["request_id"]) {
        Some(id) if json["ok"] == true => Ok(id),
        _ => Err(refusal(answer, error_of(&json))),
    }
}

/// Returns the name of the error, or an empty text.
fn error_of(json: &Value) -> &str {
    let error = json["error"].as_str().filter(|_| json["ok"] == false);
    error.unwrap_or_default()
}

fn refusal(answer: &Answer<'_>, code: &str) -> SendError {
    if let Some(known) = by_code(answer, code) {
        return known;
    }
    match answer.status.as_u16() {
        // `"ok": false` means that nothing was sent.
        200 | 400 | 404 | 409 | 422 if !code.is_empty() => answer.unroutable(code),
        _ => answer.refusal(code),
    }
}

/// Returns the outcome by the name of the error, if it is known.
fn by_code(answer: &Answer<'_>, code: &str) -> Option<SendError> {
    if let Some(seconds) = code.strip_prefix("FLOOD_WAIT") {
        let seconds = seconds.strip_prefix('_').and_then(|seconds| seconds.parse().ok());
        let wait = seconds.map(|seconds| Duration::from_secs(seconds).min(MAX_RETRY_AFTER));
        let retry_after = wait.or(answer.retry_after());
        return Some(SendError::Throttled { detail: answer.detail(code), retry_after });
    }
    Some(match code {
        // Another gateway may reach the number: it is not a user of Telegram.
        "PHONE_NUMBER_INVALID"
        | "PHONE_NUMBER_NOT_FOUND"
        | "PHONE_NUMBER_NOT_AVAILABLE"
        | "PHONE_NUMBER_MISMATCH" => answer.unroutable(code),
        // The account, its sender, `PUBLIC_URL` or the base URL.
        "ACCESS_TOKEN_INVALID"
        | "ACCESS_TOKEN_REQUIRED"
        | "BALANCE_NOT_ENOUGH"
        | "SENDER_USERNAME_INVALID"
        | "SENDER_NOT_VERIFIED"
        | "SENDER_NOT_OWNED"
        | "CALLBACK_URL_INVALID"
        | "UNKNOWN_METHOD" => answer.misconfigured(code),
        _ => return None,
    })
}

/// Returns the final state. `sent` is not one.
fn receipt(state: &str) -> Option<Receipt> {
    match state {
        "delivered" | "read" => Some(Receipt::Delivered),
        "expired" | "revoked" => Some(Receipt::Undelivered),
        _ => None,
    }
}
