//! Plivo Messaging.
//!
//! Confirmed by Plivo's SDK for Python 4.63.0 (fields, states and signatures) and by its documents
//! about sending, callbacks and signatures. `message_expiry` is in seconds by an announcement that
//! calls the field by another name. Plivo's errors have a text and no code.

use application::ports::{Accepted, GatewayReceipt, Receipt, Reported, SendError};
use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::{HeaderValue, Method, Request};
use ring::hmac::HMAC_SHA256;
use serde::Serialize;
use serde_json::Value;

use crate::{
    answer::{Answer, accepted, scalar},
    fields::{Fields, Secret},
    provider::{Outgoing, Provider, ReceiptCall, ReceiptRefused},
    request::{BaseUrl, authorized, basic, encoded, get, post_json},
    signing::is_hmac,
    spec::{Field, FieldKind, ProviderSpec},
};

#[cfg(test)]
mod tests;

/// The bounds of `message_expiry`, in seconds.
const VALIDITY: (u64, u64) = (5, 10_799);

pub(crate) static SPEC: ProviderSpec = ProviderSpec {
    name: "plivo",
    title: "Plivo",
    sender: true,
    params: &["dlt_entity_id", "dlt_template_id", "dlt_template_category"],
    fields: &[
        Field::required("auth_id", FieldKind::Text, "The auth id of the account."),
        Field::required(
            "auth_token",
            FieldKind::Secret,
            "The auth token of the account. Receipts are signed with it, too.",
        ),
        Field::optional(
            "from",
            FieldKind::Text,
            "The sender: a number, a short code or a name. Needed without `powerpack_uuid`.",
        ),
        Field::optional(
            "powerpack_uuid",
            FieldKind::Text,
            "The Powerpack that chooses the sender, instead of `from`.",
        ),
        Field::with_default("url", FieldKind::Url, "https://api.plivo.com", "The base URL."),
    ],
    make,
};

#[derive(Debug)]
struct Plivo {
    url: BaseUrl,
    /// The path of the messages of the account, with a slash at its end.
    messages: String,
    authorization: HeaderValue,
    auth_token: Secret,
    from: Option<String>,
    powerpack_uuid: Option<String>,
}

#[derive(Serialize)]
struct Body<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    src: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    powerpack_uuid: Option<&'a str>,
    dst: &'a str,
    text: &'a str,
    r#type: &'static str,
    message_expiry: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    url: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    method: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dlt_entity_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dlt_template_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dlt_template_category: Option<&'a str>,
}

fn make(fields: &mut Fields<'_>) -> Option<Box<dyn Provider>> {
    let auth_id = fields.text("auth_id");
    let auth_token = fields.secret("auth_token");
    let from = fields.text("from");
    let powerpack_uuid = fields.text("powerpack_uuid");
    let url = fields.url("url");
    if from.is_some() == powerpack_uuid.is_some() {
        let problem = if from.is_some() {
            "excludes powerpack_uuid: Plivo takes one of them"
        } else {
            "is missing, and so is powerpack_uuid"
        };
        fields.problem("from", problem);
        return None;
    }
    let (auth_id, auth_token) = (auth_id?, auth_token?);
    Some(Box::new(Plivo {
        url: url?,
        messages: format!("/v1/Account/{}/Message/", encoded(&auth_id)),
        authorization: basic(&auth_id, auth_token.expose()),
        auth_token,
        from,
        powerpack_uuid,
    }))
}

impl Provider for Plivo {
    fn request(&self, sms: &Outgoing<'_>) -> Request<Bytes> {
        let (min, max) = VALIDITY;
        let src = sms.sender(self.from.as_deref());
        let callback = sms.callback();
        let body = Body {
            src,
            // Plivo refuses both.
            powerpack_uuid: self.powerpack_uuid.as_deref().filter(|_| src.is_none()),
            dst: sms.digits(),
            text: sms.text(),
            r#type: "sms",
            message_expiry: sms.validity_seconds(min, max),
            url: callback,
            method: callback.map(|_| "POST"),
            dlt_entity_id: sms.param("dlt_entity_id"),
            dlt_template_id: sms.param("dlt_template_id"),
            dlt_template_category: sms.param("dlt_template_category"),
        };
        authorized(post_json(self.url.at(&self.messages), &body), self.authorization.clone())
    }

    fn judge(&self, answer: &Answer<'_>) -> Result<Accepted, SendError> {
        let json = answer.json().unwrap_or_default();
        if answer.is_success() {
            let id = scalar(&json["message_uuid"][0]).ok_or_else(|| answer.ambiguous(""))?;
            return Ok(accepted(id));
        }
        Err(match answer.status.as_u16() {
            // A text says whether the number or the sender is wrong, so another gateway may do.
            400 if json["error"].is_string() => answer.unroutable(""),
            _ => answer.refusal(""),
        })
    }

    fn receipts(&self, call: &ReceiptCall<'_>) -> Result<Vec<GatewayReceipt>, ReceiptRefused> {
        self.verify(call)?;
        let pairs = if call.method == Method::GET { call.query_pairs() } else { call.form_pairs() };
        let value = |name: &str| pairs.iter().find(|(key, _)| key == name).map(|(_, it)| it);
        let status = value("Status").ok_or(ReceiptRefused::Unreadable)?;
        let uuid = value("MessageUUID").ok_or(ReceiptRefused::Unreadable)?;
        let of = call.id().map_or_else(|| Reported::Reference(uuid.clone()), Reported::Message);
        let receipt = receipt(&Value::from(status.as_str()));
        Ok(receipt.map(|receipt| GatewayReceipt { of, receipt }).into_iter().collect())
    }

    /// False, although the signature is checked: it covers neither the body nor the query, so a
    /// copy of it signs anything. The token in the URL is required, too.
    fn verifies_receipts(&self) -> bool {
        false
    }

    fn status_request(&self, reference: &str) -> Option<Request<Bytes>> {
        let url = self.url.at(&format!("{}{}/", self.messages, encoded(reference)));
        Some(authorized(get(url), self.authorization.clone()))
    }

    fn judge_status(&self, answer: &Answer<'_>) -> Option<Receipt> {
        let json = answer.json().filter(|_| answer.is_success())?;
        receipt(&json["message_state"])
    }
}

impl Plivo {
    /// Checks `X-Plivo-Signature-V2`: HMAC-SHA256 over the URL without its query, and the nonce.
    /// The header with `Ma` is made with the token of the main account.
    fn verify(&self, call: &ReceiptCall<'_>) -> Result<(), ReceiptRefused> {
        let nonce = call.header("x-plivo-signature-v2-nonce").ok_or(ReceiptRefused::Unsigned)?;
        let url = call.url.split_once('?').map_or(call.url, |(url, _)| url);
        let signatures = ["x-plivo-signature-v2", "x-plivo-signature-ma-v2"];
        let mut signatures = signatures.into_iter().filter_map(|name| call.header(name)).peekable();
        if signatures.peek().is_none() {
            return Err(ReceiptRefused::Unsigned);
        }
        let is_good = |signature: &str| {
            let key = self.auth_token.expose().as_bytes();
            let tag = STANDARD.decode(signature).unwrap_or_default();
            is_hmac(HMAC_SHA256, key, &[url.as_bytes(), nonce.as_bytes()], &tag)
        };
        if signatures.any(is_good) { Ok(()) } else { Err(ReceiptRefused::BadSignature) }
    }
}

/// Returns the final state. `queued` and `sent` are none.
fn receipt(state: &Value) -> Option<Receipt> {
    match state.as_str()? {
        "delivered" | "read" => Some(Receipt::Delivered),
        "undelivered" | "failed" | "rejected" => Some(Receipt::Undelivered),
        _ => None,
    }
}
