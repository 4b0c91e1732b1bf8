//! Telnyx Messaging.
//!
//! Confirmed by Telnyx's SDK for Python 4.189.0 (fields, states and signatures), its documents
//! about idempotency, and its tables of errors. It has no field for the validity.

use application::ports::{Accepted, GatewayReceipt, Receipt, Reported, SendError};
use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::{HeaderName, HeaderValue, Request};
use serde::Serialize;

use crate::{
    answer::{Answer, accepted, accepted_by_reference, scalar},
    fields::Fields,
    provider::{Outgoing, Provider, ReceiptCall, ReceiptRefused},
    request::{BaseUrl, authorized, bearer, encoded, get, post_json},
    signing::{is_ed25519, is_recent},
    spec::{Field, FieldKind, ProviderSpec},
};

#[cfg(test)]
mod tests;

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// The length of an Ed25519 key.
const PUBLIC_KEY: usize = 32;

pub(crate) static SPEC: ProviderSpec = ProviderSpec {
    name: "telnyx",
    title: "Telnyx",
    sender: true,
    params: &[],
    fields: &[
        Field::required("api_key", FieldKind::Secret, "The API key, `KEY…`."),
        Field::optional(
            "from",
            FieldKind::Text,
            "The sender: a number with `+`, a short code or a name. Needed without \
             `messaging_profile_id`.",
        ),
        Field::optional(
            "messaging_profile_id",
            FieldKind::Text,
            "The messaging profile. Needed if the sender is a name, or if the profile chooses it.",
        ),
        Field::optional(
            "public_key",
            FieldKind::Text,
            "The public key of the account, in base64. If it is set, a receipt must be signed.",
        ),
        Field::with_default("url", FieldKind::Url, "https://api.telnyx.com", "The base URL."),
    ],
    make,
};

#[derive(Debug)]
struct Telnyx {
    url: BaseUrl,
    authorization: HeaderValue,
    from: Option<String>,
    messaging_profile_id: Option<String>,
    public_key: Option<Vec<u8>>,
}

/// The body has nothing that differs at a repeated call: under the same idempotency key, Telnyx
/// refuses a body with other bytes.
#[derive(Serialize)]
struct Body<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    from: Option<&'a str>,
    to: &'a str,
    text: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    messaging_profile_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    encoding: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    webhook_url: Option<&'a str>,
}

fn make(fields: &mut Fields<'_>) -> Option<Box<dyn Provider>> {
    let api_key = fields.secret("api_key");
    let from = fields.text("from");
    let messaging_profile_id = fields.text("messaging_profile_id");
    let key = fields.text("public_key");
    let url = fields.url("url");
    let public_key = key.as_ref().and_then(|text| STANDARD.decode(text).ok());
    let public_key = public_key.filter(|bytes| bytes.len() == PUBLIC_KEY);
    if key.is_some() && public_key.is_none() {
        fields.problem("public_key", "must be 32 bytes in base64");
        return None;
    }
    if messaging_profile_id.is_none() {
        match &from {
            None => fields.problem("from", "is missing, and so is messaging_profile_id"),
            Some(from) if from.bytes().any(|byte| byte.is_ascii_alphabetic()) => {
                fields.problem("messaging_profile_id", "is missing; a sender with a name needs it");
            }
            Some(_) => {}
        }
    }
    Some(Box::new(Telnyx {
        url: url?,
        authorization: bearer(api_key?.expose()),
        from,
        messaging_profile_id,
        public_key,
    }))
}

impl Provider for Telnyx {
    fn request(&self, sms: &Outgoing<'_>) -> Request<Bytes> {
        let body = Body {
            from: sms.sender(self.from.as_deref()),
            to: &sms.e164(),
            text: sms.text(),
            messaging_profile_id: self.messaging_profile_id.as_deref(),
            // Without it the profile may replace characters, so that the text fits into GSM-7.
            encoding: sms.is_unicode().then_some("ucs2"),
            webhook_url: sms.callback(),
        };
        let mut request = post_json(self.url.at("/v2/messages"), &body);
        let key = HeaderValue::from_str(sms.id).expect("a UUID is ASCII");
        request.headers_mut().insert(IDEMPOTENCY_KEY, key);
        authorized(request, self.authorization.clone())
    }

    fn judge(&self, answer: &Answer<'_>) -> Result<Accepted, SendError> {
        let json = answer.json().unwrap_or_default();
        if !answer.is_success() {
            let code = scalar(&json["errors"][0]["code"]).unwrap_or_default();
            return Err(refusal(answer, &code));
        }
        let data = &json["data"];
        let state = data["to"][0]["status"].as_str().unwrap_or_default();
        match (receipt(state), scalar(&data["id"])) {
            (Some(Receipt::Undelivered), _) => {
                let code = scalar(&data["errors"][0]["code"]).unwrap_or_default();
                Err(by_code(answer, &code).unwrap_or_else(|| answer.unroutable(&code)))
            }
            // A signature does not cover the URL, so a signed receipt names only Telnyx's id.
            (_, Some(id)) if self.public_key.is_some() => Ok(accepted_by_reference(id)),
            (_, Some(id)) => Ok(accepted(id)),
            (_, None) => Err(answer.ambiguous("")),
        }
    }

    fn deduplicates(&self) -> bool {
        true
    }

    fn receipts(&self, call: &ReceiptCall<'_>) -> Result<Vec<GatewayReceipt>, ReceiptRefused> {
        self.verify(call)?;
        let json = call.json().ok_or(ReceiptRefused::Unreadable)?;
        let data = &json["data"];
        let (event, payload) = (data["event_type"].as_str(), &data["payload"]);
        let id = scalar(&payload["id"]).ok_or(ReceiptRefused::Unreadable)?;
        let state = payload["to"][0]["status"].as_str().unwrap_or_default();
        let receipt = receipt(state).filter(|_| event == Some("message.finalized"));
        let ours = call.id().filter(|_| self.public_key.is_none());
        let of = ours.map_or(Reported::Reference(id), Reported::Message);
        Ok(receipt.map(|receipt| GatewayReceipt { of, receipt }).into_iter().collect())
    }

    fn verifies_receipts(&self) -> bool {
        self.public_key.is_some()
    }

    fn status_request(&self, reference: &str) -> Option<Request<Bytes>> {
        let url = self.url.at(&format!("/v2/messages/{}", encoded(reference)));
        Some(authorized(get(url), self.authorization.clone()))
    }

    fn judge_status(&self, answer: &Answer<'_>) -> Option<Receipt> {
        let json = answer.json().filter(|_| answer.is_success())?;
        receipt(json["data"]["to"][0]["status"].as_str()?)
    }
}

impl Telnyx {
    /// Checks the Ed25519 signature of the timestamp and the body.
    fn verify(&self, call: &ReceiptCall<'_>) -> Result<(), ReceiptRefused> {
        let Some(key) = &self.public_key else { return Ok(()) };
        let header = |name| call.header(name).ok_or(ReceiptRefused::Unsigned);
        let (signature, timestamp) =
            (header("telnyx-signature-ed25519")?, header("telnyx-timestamp")?);
        let signature = STANDARD.decode(signature).map_err(|_| ReceiptRefused::BadSignature)?;
        let signed = [timestamp.as_bytes(), b"|", call.body].concat();
        let is_good = timestamp.parse().is_ok_and(|at| is_recent(at, call.now))
            && is_ed25519(key, &signed, &signature);
        if is_good { Ok(()) } else { Err(ReceiptRefused::BadSignature) }
    }
}

fn refusal(answer: &Answer<'_>, code: &str) -> SendError {
    by_code(answer, code).unwrap_or_else(|| answer.refusal(code))
}

/// Returns the outcome by Telnyx's code, if it is known.
fn by_code(answer: &Answer<'_>, code: &str) -> Option<SendError> {
    Some(match code {
        // No number.
        "10002" | "10016" | "40012" | "40310" => answer.rejected(code),
        // Credentials, credit, the account.
        "10009" | "10010" | "20002" | "20012" | "20100" | "40314"
        // The sender or its profile.
        | "40013" | "40100" | "40150" | "40151" | "40305" | "40306" | "40308" | "40311" | "40312"
        | "40313" | "40315" | "40320" | "40321" | "40329" | "40333" => answer.misconfigured(code),
        // A limit of the account or of the carrier, or a full queue.
        "10011" | "40011" | "40016" | "40018" | "40318" => answer.throttled(code),
        // 40001 a landline, or a number that Telnyx does not reach; 40300 stopped by the recipient; 40301
        // and 40319 the type of the message; 40309 a region that the profile does not have; 40322 the
        // content.
        "40001" | "40300" | "40301" | "40309" | "40319" | "40322" => answer.unroutable(code),
        _ => return None,
    })
}

/// Returns the final state. `delivery_unconfirmed` is none: the carrier does not report.
fn receipt(state: &str) -> Option<Receipt> {
    match state {
        "delivered" => Some(Receipt::Delivered),
        "delivery_failed" | "sending_failed" | "expired" => Some(Receipt::Undelivered),
        _ => None,
    }
}
