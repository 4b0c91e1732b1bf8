//! MessageBird (now Bird), the SMS API at `rest.messagebird.com`.
//!
//! Confirmed by MessageBird's SDK for Python 2.2.0 (fields and signatures) and by its documents
//! about receipts. The codes of errors are from memory. Not confirmed: that receipts of SMS are
//! signed.

use application::ports::{Accepted, GatewayReceipt, Receipt, Reported, SendError};
use bytes::Bytes;
use http::{HeaderValue, Request};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    answer::{Answer, accepted, scalar},
    fields::{Fields, Secret},
    provider::{Outgoing, Provider, ReceiptCall, ReceiptRefused},
    request::{BaseUrl, authorized, encoded, get, post_json, sensitive},
    signing::{jwt, sha256_hex},
    spec::{Field, FieldKind, ProviderSpec},
};

#[cfg(test)]
mod tests;

/// The longest validity that is asked for, in seconds.
const MAX_VALIDITY: u64 = 86_400;

/// The longest name of a sender.
const MAX_NAME: usize = 11;

pub(crate) static SPEC: ProviderSpec = ProviderSpec {
    name: "messagebird",
    title: "MessageBird",
    sender: true,
    params: &[],
    fields: &[
        Field::required("access_key", FieldKind::Secret, "The access key."),
        Field::required(
            "from",
            FieldKind::Text,
            "The sender: a number, or a name of at most 11 letters and digits.",
        ),
        Field::optional(
            "signing_key",
            FieldKind::Secret,
            "The signing key of the account. If it is set, a receipt must be signed with it.",
        ),
        Field::with_default("url", FieldKind::Url, "https://rest.messagebird.com", "The base URL."),
    ],
    make,
};

#[derive(Debug)]
struct MessageBird {
    url: BaseUrl,
    authorization: HeaderValue,
    from: String,
    signing_key: Option<Secret>,
}

#[derive(Serialize)]
struct NewMessage<'a> {
    originator: &'a str,
    recipients: &'a str,
    body: &'a str,
    /// Without it MessageBird sends no receipts.
    reference: &'a str,
    validity: u64,
    /// `plain`, the default, replaces characters outside GSM-7.
    datacoding: &'static str,
    #[serde(rename = "reportUrl", skip_serializing_if = "Option::is_none")]
    report_url: Option<String>,
}

/// The claims of the token that signs a call.
#[derive(Deserialize)]
struct Claims {
    iss: String,
    /// Required, and checked with the signature.
    #[serde(rename = "nbf")]
    _nbf: f64,
    #[serde(rename = "exp")]
    _exp: f64,
    url_hash: String,
    payload_hash: Option<String>,
}

fn make(fields: &mut Fields<'_>) -> Option<Box<dyn Provider>> {
    let access_key = fields.secret("access_key");
    let from = fields.text("from");
    let signing_key = fields.secret("signing_key");
    let url = fields.url("url");
    let is_name = |from: &str| from.bytes().any(|byte| byte.is_ascii_alphabetic());
    if from.as_deref().is_some_and(|from| is_name(from) && from.chars().count() > MAX_NAME) {
        fields.problem("from", "must have at most 11 characters, if it is a name");
        return None;
    }
    Some(Box::new(MessageBird {
        url: url?,
        authorization: sensitive(&format!("AccessKey {}", access_key?.expose())),
        from: from?,
        signing_key,
    }))
}

impl Provider for MessageBird {
    fn request(&self, sms: &Outgoing<'_>) -> Request<Bytes> {
        let message = NewMessage {
            originator: sms.sender(Some(&self.from)).unwrap_or_default(),
            recipients: sms.digits(),
            body: sms.text(),
            reference: sms.id,
            validity: sms.validity_seconds(1, MAX_VALIDITY),
            datacoding: if sms.is_unicode() { "unicode" } else { "plain" },
            // Their receipts have an `id` of their own, and our reference.
            report_url: sms.callback_without_id(),
        };
        authorized(post_json(self.url.at("/messages"), &message), self.authorization.clone())
    }

    fn judge(&self, answer: &Answer<'_>) -> Result<Accepted, SendError> {
        let json = answer.json().unwrap_or_default();
        if !answer.is_success() {
            return Err(refusal(answer, &json["errors"][0]));
        }
        let recipient = &json["recipients"]["items"][0];
        match (receipt(&recipient["status"]), scalar(&json["id"])) {
            (Some(Receipt::Undelivered), _) => {
                let code = scalar(&recipient["statusErrorCode"]).unwrap_or_default();
                Err(answer.unroutable(&code))
            }
            (_, Some(id)) => Ok(accepted(id)),
            (_, None) => Err(answer.ambiguous("")),
        }
    }

    fn receipts(&self, call: &ReceiptCall<'_>) -> Result<Vec<GatewayReceipt>, ReceiptRefused> {
        self.verify(call)?;
        let pairs = call.query_pairs();
        let value = |name: &str| pairs.iter().find(|(key, _)| key == name).map(|(_, it)| &**it);
        let status = value("status").ok_or(ReceiptRefused::Unreadable)?;
        let of = value("reference")
            .and_then(|id| id.parse().ok())
            .map(Reported::Message)
            .or_else(|| value("id").map(|id| Reported::Reference(id.to_owned())))
            .ok_or(ReceiptRefused::Unreadable)?;
        let receipt = receipt(&Value::from(status));
        Ok(receipt.map(|receipt| GatewayReceipt { of, receipt }).into_iter().collect())
    }

    fn verifies_receipts(&self) -> bool {
        self.signing_key.is_some()
    }

    fn status_request(&self, reference: &str) -> Option<Request<Bytes>> {
        let url = self.url.at(&format!("/messages/{}", encoded(reference)));
        Some(authorized(get(url), self.authorization.clone()))
    }

    fn judge_status(&self, answer: &Answer<'_>) -> Option<Receipt> {
        let json = answer.json().filter(|_| answer.is_success())?;
        receipt(&json["recipients"]["items"][0]["status"])
    }
}

impl MessageBird {
    /// Checks the token, which covers the whole URL and the body.
    fn verify(&self, call: &ReceiptCall<'_>) -> Result<(), ReceiptRefused> {
        let Some(key) = &self.signing_key else { return Ok(()) };
        let token = call.header("messagebird-signature-jwt").ok_or(ReceiptRefused::Unsigned)?;
        let claims: Claims = jwt::claims(token, key.expose().as_bytes(), call.now)
            .ok_or(ReceiptRefused::BadSignature)?;
        let payload = (!call.body.is_empty()).then(|| sha256_hex(call.body));
        let is_good = claims.iss == "MessageBird"
            && claims.url_hash == sha256_hex(call.url.as_bytes())
            && claims.payload_hash.filter(|hash| !hash.is_empty()) == payload;
        if is_good { Ok(()) } else { Err(ReceiptRefused::BadSignature) }
    }
}

/// Returns the outcome by MessageBird's code, and by the field that it complains about.
fn refusal(answer: &Answer<'_>, error: &Value) -> SendError {
    let code = scalar(&error["code"]).unwrap_or_default();
    match (code.as_str(), error["parameter"].as_str().unwrap_or_default()) {
        // 2 key, 20 and 98 no such thing at this URL, 25 credit.
        ("2" | "20" | "25" | "98", _) | ("9" | "10" | "21", "originator" | "reportUrl") => {
            answer.misconfigured(&code)
        }
        ("9" | "10" | "21", "recipients" | "recipient") => answer.rejected(&code),
        // Also a body that is too long, which another gateway may take.
        ("9" | "10" | "21", _) => answer.unroutable(&code),
        ("99", _) => answer.ambiguous(&code),
        _ => answer.refusal(&code),
    }
}

/// Returns the final state. `scheduled`, `sent` and `buffered` are none.
fn receipt(status: &Value) -> Option<Receipt> {
    match status.as_str()? {
        "delivered" => Some(Receipt::Delivered),
        "delivery_failed" | "expired" => Some(Receipt::Undelivered),
        _ => None,
    }
}
