//! sms-gate, the open-source gateway of capcom6 that sends from an Android phone.
//!
//! Sources: its description of the interface (swagger) and the pages on webhooks of `docs-web`, both of 2026-07 and
//! 2026-08. The caller chooses the id of a message, and a second message with that id is refused, so
//! a repeated call sends no second SMS.

use application::ports::{Accepted, GatewayReceipt, Receipt, Reported, SendError};
use bytes::Bytes;
use http::Request;
use ring::hmac::HMAC_SHA256;
use serde::Serialize;
use serde_json::Value;

use super::digest::is_same;
use crate::{
    answer::{Answer, accepted, scalar},
    fields::{Fields, Secret},
    provider::{Outgoing, Provider, ReceiptCall, ReceiptRefused},
    request::{BaseUrl, authorized, basic, bearer, encoded, get, post_json},
    signing::{hex, hmac},
    spec::{Field, FieldKind, ProviderSpec},
};

#[cfg(test)]
mod tests;

/// The shortest `ttl`, in seconds.
const MIN_TTL: u64 = 5;

/// From this priority on, the limits that the phone sets itself do not delay a message.
const PRIORITY: u8 = 100;

pub(crate) static SPEC: ProviderSpec = ProviderSpec {
    name: "smsgate",
    title: "sms-gate (Android)",
    sender: false,
    params: &[],
    fields: &[
        Field::optional(
            "username",
            FieldKind::Text,
            "The user name that the app shows, with `password`",
        ),
        Field::optional("password", FieldKind::Secret, "The password that the app shows"),
        Field::optional(
            "token",
            FieldKind::Secret,
            "An access token with the scope `messages:send`, instead of `username` and `password`",
        ),
        Field::optional(
            "sim",
            FieldKind::Number(1, 3),
            "The SIM card to send from. Without it: the phone's default",
        ),
        Field::optional(
            "signing_key",
            FieldKind::Secret,
            "The key with which the phone signs webhooks. Without it, receipts need the token in the URL",
        ),
        Field::with_default(
            "url",
            FieldKind::Url,
            "https://api.sms-gate.app/3rdparty/v1/messages",
            "Where messages are posted to: `http://<phone>:8080/message` without the cloud",
        ),
    ],
    make,
};

#[derive(Debug)]
struct SmsGate {
    credentials: Credentials,
    sim: Option<u64>,
    signing_key: Option<Secret>,
    url: BaseUrl,
}

#[derive(Debug)]
enum Credentials {
    Basic(String, Secret),
    Token(Secret),
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct SendRequest<'a> {
    id: &'a str,
    phone_numbers: [&'a str; 1],
    text_message: TextMessage<'a>,
    ttl: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    sim_number: Option<u64>,
    priority: u8,
    with_delivery_report: bool,
}

#[derive(Serialize)]
struct TextMessage<'a> {
    text: &'a str,
}

fn make(fields: &mut Fields<'_>) -> Option<Box<dyn Provider>> {
    let credentials = credentials(fields);
    let (sim, signing_key) = (fields.number("sim"), fields.secret("signing_key"));
    let url = fields.url("url");
    Some(Box::new(SmsGate { credentials: credentials?, sim, signing_key, url: url? }))
}

fn credentials(fields: &mut Fields<'_>) -> Option<Credentials> {
    let (username, password) = (fields.text("username"), fields.secret("password"));
    match (username, password, fields.secret("token")) {
        (Some(username), Some(password), None) => Some(Credentials::Basic(username, password)),
        (None, None, Some(token)) => Some(Credentials::Token(token)),
        _ => {
            fields.problem("username", "must be set with `password`, or else `token`");
            None
        }
    }
}

impl SmsGate {
    fn authorized(&self, request: Request<Bytes>) -> Request<Bytes> {
        let value = match &self.credentials {
            Credentials::Basic(username, password) => basic(username, password.expose()),
            Credentials::Token(token) => bearer(token.expose()),
        };
        authorized(request, value)
    }
}

impl Provider for SmsGate {
    fn request(&self, sms: &Outgoing<'_>) -> Request<Bytes> {
        let body = SendRequest {
            id: sms.id,
            phone_numbers: [&sms.e164()],
            text_message: TextMessage { text: sms.text() },
            ttl: sms.validity_seconds(MIN_TTL, u64::MAX),
            sim_number: self.sim,
            priority: PRIORITY,
            with_delivery_report: true,
        };
        self.authorized(post_json(self.url.at(""), &body))
    }

    /// 409 means that the message is there already, from a call whose answer was lost.
    fn judge(&self, answer: &Answer<'_>) -> Result<Accepted, SendError> {
        if answer.status.as_u16() == 409 {
            return Ok(Accepted::default());
        }
        let Some(body) = answer.json().filter(|_| answer.is_success()) else {
            return Err(answer.refusal(""));
        };
        let Some(id) = scalar(&body["id"]) else { return Err(answer.ambiguous("")) };
        match body["state"].as_str() {
            Some("Failed") => Err(answer.unroutable("Failed")),
            _ => Ok(accepted(id)),
        }
    }

    fn deduplicates(&self) -> bool {
        true
    }

    /// A webhook has the event, and the id that we gave the message.
    ///
    /// The age of a signature is not limited, because a phone repeats a webhook for two days, and a
    /// repeated receipt changes nothing.
    fn receipts(&self, call: &ReceiptCall<'_>) -> Result<Vec<GatewayReceipt>, ReceiptRefused> {
        if let Some(key) = &self.signing_key {
            check_signature(key, call)?;
        }
        let body = call.json().ok_or(ReceiptRefused::Unreadable)?;
        let receipt = match body["event"].as_str().ok_or(ReceiptRefused::Unreadable)? {
            "sms:delivered" => Receipt::Delivered,
            "sms:failed" => Receipt::Undelivered,
            _ => return Ok(Vec::new()),
        };
        let id = scalar(&body["payload"]["messageId"]).ok_or(ReceiptRefused::Unreadable)?;
        // A phone also sends what others told it to send. Such ids are unknown.
        let of = id.parse().map_or(Reported::Reference(id), Reported::Message);
        Ok(vec![GatewayReceipt { of, receipt }])
    }

    fn verifies_receipts(&self) -> bool {
        self.signing_key.is_some()
    }

    fn status_request(&self, reference: &str) -> Option<Request<Bytes>> {
        let url = self.url.at(&format!("/{}", encoded(reference)));
        Some(self.authorized(get(url)))
    }

    fn judge_status(&self, answer: &Answer<'_>) -> Option<Receipt> {
        let body: Value = answer.json().filter(|_| answer.is_success())?;
        match body["state"].as_str()? {
            "Delivered" => Some(Receipt::Delivered),
            "Failed" => Some(Receipt::Undelivered),
            _ => None,
        }
    }
}

/// Checks `X-Signature`, the HMAC-SHA256 of the body and `X-Timestamp` in hexadecimal digits.
fn check_signature(key: &Secret, call: &ReceiptCall<'_>) -> Result<(), ReceiptRefused> {
    let (Some(given), Some(timestamp)) = (call.header("x-signature"), call.header("x-timestamp"))
    else {
        return Err(ReceiptRefused::Unsigned);
    };
    let tag = hmac(HMAC_SHA256, key.expose().as_bytes(), &[call.body, timestamp.as_bytes()]);
    if is_same(&hex(tag.as_ref()), given) { Ok(()) } else { Err(ReceiptRefused::BadSignature) }
}
