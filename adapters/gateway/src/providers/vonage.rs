//! Vonage SMS API.
//!
//! Confirmed by Vonage's SDK for Python (`vonage-sms` 1.2.0: fields and limits), its table of
//! errors of the SMS API, and its documents about receipts and signatures. Not confirmed: which of
//! the two signatures an account gets, and that a GET is signed without the parameters of our own
//! URL.

use std::collections::BTreeMap;

use application::ports::{Accepted, GatewayReceipt, Receipt, Reported, SendError};
use bytes::Bytes;
use http::Request;
use ring::hmac::{Algorithm, HMAC_SHA1_FOR_LEGACY_USE_ONLY, HMAC_SHA256, HMAC_SHA512};
use serde::Deserialize;
use serde_json::Value;

use crate::{
    answer::{Answer, accepted, scalar},
    fields::{Fields, Secret},
    provider::{Outgoing, Provider, ReceiptCall, ReceiptRefused},
    providers::digest::{is_same, md5_hex},
    request::{BaseUrl, post_form},
    signing::{hex_decoded, is_hmac, is_recent, jwt, sha256_hex},
    spec::{Field, FieldKind, ProviderSpec},
};

#[cfg(test)]
mod tests;

/// The bounds of `ttl`, in seconds. Vonage counts milliseconds.
const VALIDITY: (u64, u64) = (20, 604_800);

/// The longest `callback`. A longer one is left out, and the URL of the account is called instead.
const MAX_CALLBACK: usize = 100;

pub(crate) static SPEC: ProviderSpec = ProviderSpec {
    name: "vonage",
    title: "Vonage (SMS API)",
    sender: true,
    params: &["dlt_entity_id", "dlt_template_id"],
    fields: &[
        Field::required("api_key", FieldKind::Text, "The API key of the account."),
        Field::required("api_secret", FieldKind::Secret, "The API secret of the account."),
        Field::required("from", FieldKind::Text, "The sender: a number without `+`, or a name."),
        Field::optional(
            "signature_secret",
            FieldKind::Secret,
            "The signature secret of the account. If it is set, a receipt must be signed with it.",
        ),
        Field::with_default(
            "signature_method",
            FieldKind::OneOf(&["sha256", "sha512", "sha1", "md5hash"]),
            "sha256",
            "The method that the account signs with: an HMAC, or the MD5 hash that accounts begin \
             with. The HMAC with MD5 is not supported.",
        ),
        Field::with_default("url", FieldKind::Url, "https://rest.nexmo.com", "The base URL."),
    ],
    make,
};

#[derive(Debug)]
struct Vonage {
    url: BaseUrl,
    api_key: String,
    api_secret: Secret,
    from: String,
    signature: Option<(Secret, Method)>,
}

/// The way in which the parameter `sig` is made.
#[derive(Debug, Clone, Copy)]
enum Method {
    Hmac(Algorithm),
    /// MD5 of the parameters and, behind them, the secret.
    Md5Hash,
}

/// The claims of the token that signs a call.
#[derive(Deserialize)]
struct Claims {
    payload_hash: Option<String>,
}

fn make(fields: &mut Fields<'_>) -> Option<Box<dyn Provider>> {
    let api_key = fields.text("api_key");
    let api_secret = fields.secret("api_secret");
    let from = fields.text("from");
    let secret = fields.secret("signature_secret");
    let method = match fields.one_of("signature_method") {
        Some("sha1") => Method::Hmac(HMAC_SHA1_FOR_LEGACY_USE_ONLY),
        Some("sha512") => Method::Hmac(HMAC_SHA512),
        Some("md5hash") => Method::Md5Hash,
        _ => Method::Hmac(HMAC_SHA256),
    };
    let url = fields.url("url");
    Some(Box::new(Vonage {
        url: url?,
        api_key: api_key?,
        api_secret: api_secret?,
        from: from?,
        signature: secret.map(|secret| (secret, method)),
    }))
}

impl Provider for Vonage {
    fn request(&self, sms: &Outgoing<'_>) -> Request<Bytes> {
        let (min, max) = VALIDITY;
        let ttl = (sms.validity_seconds(min, max) * 1000).to_string();
        let mut pairs = vec![
            ("api_key", &*self.api_key),
            ("api_secret", self.api_secret.expose()),
            ("from", sms.sender(Some(&self.from)).unwrap_or_default()),
            ("to", sms.digits()),
            ("text", sms.text()),
            ("type", if sms.is_unicode() { "unicode" } else { "text" }),
            ("ttl", &*ttl),
            ("client-ref", sms.id),
        ];
        // `client-ref` brings our id back.
        let callback = sms.callback_without_id().filter(|url| self.takes_callback(url));
        pairs.extend(callback.as_deref().map(|url| ("callback", url)));
        pairs.extend(sms.param("dlt_entity_id").map(|id| ("entity-id", id)));
        pairs.extend(sms.param("dlt_template_id").map(|id| ("content-id", id)));
        post_form(self.url.at("/sms/json"), &pairs)
    }

    fn takes_callback(&self, url: &str) -> bool {
        url.len() <= MAX_CALLBACK
    }

    /// Vonage answers 200 to everything, with one entry for each segment.
    fn judge(&self, answer: &Answer<'_>) -> Result<Accepted, SendError> {
        if !answer.is_success() {
            return Err(answer.refusal(""));
        }
        let json = answer.json().unwrap_or_default();
        let Some(segments) = json["messages"].as_array().filter(|all| !all.is_empty()) else {
            return Err(answer.ambiguous(""));
        };
        let code = |segment: &Value| scalar(&segment["status"]).unwrap_or_default();
        let refused = segments.iter().map(code).find(|code| code != "0");
        let taken = segments.iter().find(|segment| code(segment) == "0");
        match (refused, taken.and_then(|segment| scalar(&segment["message-id"]))) {
            (None, Some(reference)) => Ok(accepted(reference)),
            (None, None) => Err(answer.ambiguous("")),
            // Segments are on their way, and the phone cannot join them.
            (Some(code), _) if taken.is_some() => Err(answer.ambiguous(&code)),
            (Some(code), _) => Err(by_code(answer, &code)),
        }
    }

    fn receipts(&self, call: &ReceiptCall<'_>) -> Result<Vec<GatewayReceipt>, ReceiptRefused> {
        let values = values(call).ok_or(ReceiptRefused::Unreadable)?;
        if let Some((secret, method)) = &self.signature {
            verify(call, &values, secret, *method)?;
        }
        let value = |name: &str| values.get(name).filter(|text| !text.is_empty());
        let status = value("status").ok_or(ReceiptRefused::Unreadable)?;
        let named = value("client-ref").and_then(|id| id.parse().ok()).map(Reported::Message);
        // The signature covers no URL, so our id in it counts only together with its token.
        let of_url = || call.id().filter(|_| self.signature.is_none()).map(Reported::Message);
        let of = named
            .or_else(of_url)
            .or_else(|| value("messageId").cloned().map(Reported::Reference))
            .ok_or(ReceiptRefused::Unreadable)?;
        Ok(receipt(status).map(|receipt| GatewayReceipt { of, receipt }).into_iter().collect())
    }

    fn verifies_receipts(&self) -> bool {
        self.signature.is_some()
    }
}

/// Returns the outcome by Vonage's status. An unknown one says that Vonage did not take the
/// message.
fn by_code(answer: &Answer<'_>, code: &str) -> SendError {
    match code {
        // 1 too fast, 10 too many binds.
        "1" | "10" => answer.throttled(code),
        // An internal error: the message may be on its way.
        "5" => answer.ambiguous(code),
        // Vonage could not submit the message.
        "13" => answer.unavailable(code),
        // 2 missing parameter, 4 credentials, 8 account barred, 9 no credit, 11 no HTTP, 14
        // signature, 19 facility, 23 callback, 32 and 33 signature, 34 method.
        "2" | "4" | "8" | "9" | "11" | "14" | "19" | "23" | "32" | "33" | "34" => {
            answer.misconfigured(code)
        }
        // 3 invalid parameter, 6 unknown prefix, 7 barred number, 12 too long, 15 a sender that
        // this country does not allow, 22 network, 29 a trial account. They depend on the message.
        _ => answer.unroutable(code),
    }
}

/// Returns the final state. `accepted`, `buffered` and `unknown` are none.
fn receipt(status: &str) -> Option<Receipt> {
    match status {
        "delivered" => Some(Receipt::Delivered),
        "expired" | "failed" | "rejected" | "deleted" | "undeliverable" => {
            Some(Receipt::Undelivered)
        }
        _ => None,
    }
}

/// Returns the parameters of a receipt: of the query, of a form or of JSON, as the account has it.
fn values(call: &ReceiptCall<'_>) -> Option<BTreeMap<String, String>> {
    if call.method == http::Method::GET {
        let own = |name: &str| name == "id" || name == "token";
        return Some(call.query_pairs().into_iter().filter(|(name, _)| !own(name)).collect());
    }
    match call.json() {
        Some(Value::Object(object)) => {
            let text = |value: &Value| match value {
                Value::String(text) => Some(text.clone()),
                Value::Number(number) => Some(number.to_string()),
                _ => None,
            };
            Some(object.iter().filter_map(|(name, it)| Some((name.clone(), text(it)?))).collect())
        }
        Some(_) => None,
        None => Some(call.form_pairs().into_iter().collect()),
    }
}

/// Checks the token in `Authorization`, or else the parameter `sig`.
fn verify(
    call: &ReceiptCall<'_>,
    values: &BTreeMap<String, String>,
    secret: &Secret,
    method: Method,
) -> Result<(), ReceiptRefused> {
    let secret = secret.expose();
    if let Some(token) = call.header("authorization").and_then(|it| it.strip_prefix("Bearer ")) {
        let claims: Claims =
            jwt::claims(token, secret.as_bytes(), call.now).ok_or(ReceiptRefused::BadSignature)?;
        // Without a body nothing but the query has the receipt, and this token does not sign it.
        let hash = claims.payload_hash.filter(|_| !call.body.is_empty());
        let is_good = hash.is_some_and(|it| it.eq_ignore_ascii_case(&sha256_hex(call.body)));
        return if is_good { Ok(()) } else { Err(ReceiptRefused::BadSignature) };
    }
    let signature = values.get("sig").ok_or(ReceiptRefused::Unsigned)?;
    // `&` and `=` in a value would look like the next parameter.
    let signed: String = values
        .iter()
        .filter(|(name, _)| *name != "sig")
        .flat_map(|(name, it)| ["&".into(), name.clone(), "=".into(), it.replace(['&', '='], "_")])
        .collect();
    let sent_at = values.get("timestamp").and_then(|it| it.parse().ok());
    let is_good = sent_at.is_some_and(|at| is_recent(at, call.now))
        && match method {
            Method::Hmac(algorithm) => {
                let tag = hex_decoded(signature).unwrap_or_default();
                is_hmac(algorithm, secret.as_bytes(), &[signed.as_bytes()], &tag)
            }
            Method::Md5Hash => is_same(&md5_hex(&format!("{signed}{secret}")), signature),
        };
    if is_good { Ok(()) } else { Err(ReceiptRefused::BadSignature) }
}
