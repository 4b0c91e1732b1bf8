//! Twilio Programmable Messaging.
//!
//! Confirmed by Twilio's API description of April 2026 (`Messages.json`), its SDK for Python
//! 9.13.0 (signatures) and its test credentials (the codes 21211, 21408, 21610, 21611, 21612 and
//! 21614). The other codes are from memory. A create has no idempotency key.

use std::collections::BTreeSet;

use application::ports::{Accepted, GatewayReceipt, Receipt, Reported, SendError};
use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::{HeaderValue, Request, Uri};
use ring::hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY;

use crate::{
    answer::{Answer, accepted, scalar},
    fields::{Fields, Secret},
    provider::{Outgoing, Provider, ReceiptCall, ReceiptRefused},
    request::{BaseUrl, authorized, basic, encoded, get, post_form},
    signing::{is_hmac, sha256_hex},
    spec::{Field, FieldKind, ProviderSpec},
};

#[cfg(test)]
mod tests;

/// The longest time in seconds that a message may wait in Twilio's queue.
const MAX_VALIDITY: u64 = 36_000;

pub(crate) static SPEC: ProviderSpec = ProviderSpec {
    name: "twilio",
    title: "Twilio",
    sender: true,
    params: &[],
    fields: &[
        Field::required("account_sid", FieldKind::Text, "The account, `AC…`."),
        Field::required(
            "auth_token",
            FieldKind::Secret,
            "The primary auth token of the account. Receipts are signed with it, too.",
        ),
        Field::optional(
            "from",
            FieldKind::Text,
            "The sender: a number with `+`, a short code or a name. Needed without \
             `messaging_service_sid`.",
        ),
        Field::optional(
            "messaging_service_sid",
            FieldKind::Text,
            "The messaging service that chooses the sender, `MG…`.",
        ),
        Field::with_default(
            "url",
            FieldKind::Url,
            "https://api.twilio.com",
            "The base URL, such as `https://api.dublin.ie1.twilio.com` for the region Ireland.",
        ),
    ],
    make,
};

#[derive(Debug)]
struct Twilio {
    /// The path of the account's messages, without `.json`.
    messages: String,
    url: BaseUrl,
    authorization: HeaderValue,
    auth_token: Secret,
    from: Option<String>,
    messaging_service_sid: Option<String>,
}

fn make(fields: &mut Fields<'_>) -> Option<Box<dyn Provider>> {
    let account_sid = fields.text("account_sid");
    let auth_token = fields.secret("auth_token");
    let from = fields.text("from");
    let messaging_service_sid = fields.text("messaging_service_sid");
    let url = fields.url("url");
    if from.is_none() && messaging_service_sid.is_none() {
        fields.problem("from", "is missing, and so is messaging_service_sid");
        return None;
    }
    let (account_sid, auth_token) = (account_sid?, auth_token?);
    Some(Box::new(Twilio {
        messages: format!("/2010-04-01/Accounts/{}/Messages", encoded(&account_sid)),
        url: url?,
        authorization: basic(&account_sid, auth_token.expose()),
        auth_token,
        from,
        messaging_service_sid,
    }))
}

impl Provider for Twilio {
    fn request(&self, sms: &Outgoing<'_>) -> Request<Bytes> {
        let to = sms.e164();
        let validity = sms.validity_seconds(1, MAX_VALIDITY).to_string();
        let sender = match (sms.sender(self.from.as_deref()), &self.messaging_service_sid) {
            // A route's sender replaces the service, whose pool may not have that sender.
            (Some(from), None) => ("From", from),
            (Some(from), Some(_)) if sms.sender(None).is_some() => ("From", from),
            (_, Some(service)) => ("MessagingServiceSid", service.as_str()),
            (None, None) => ("From", ""),
        };
        let mut pairs =
            vec![("To", &*to), sender, ("Body", sms.text()), ("ValidityPeriod", &*validity)];
        pairs.extend(sms.callback().map(|url| ("StatusCallback", url)));
        let request = post_form(self.url.at(&format!("{}.json", self.messages)), &pairs);
        authorized(request, self.authorization.clone())
    }

    fn judge(&self, answer: &Answer<'_>) -> Result<Accepted, SendError> {
        let json = answer.json().unwrap_or_default();
        if !answer.is_success() {
            return Err(refusal(answer, &scalar(&json["code"]).unwrap_or_default()));
        }
        match (scalar(&json["error_code"]), scalar(&json["sid"])) {
            (Some(code), _) => Err(by_code(answer, &code)),
            (None, Some(sid)) => Ok(accepted(sid)),
            (None, None) => Err(answer.ambiguous("")),
        }
    }

    fn receipts(&self, call: &ReceiptCall<'_>) -> Result<Vec<GatewayReceipt>, ReceiptRefused> {
        self.verify(call)?;
        let pairs = call.form_pairs();
        let value = |name: &str| pairs.iter().find(|(key, _)| key == name).map(|(_, it)| it);
        let status = value("MessageStatus").ok_or(ReceiptRefused::Unreadable)?;
        let sid = value("MessageSid").ok_or(ReceiptRefused::Unreadable)?;
        // The signature covers the query, so our id in it is as good as theirs.
        let of = call.id().map_or_else(|| Reported::Reference(sid.clone()), Reported::Message);
        Ok(receipt(status).map(|receipt| GatewayReceipt { of, receipt }).into_iter().collect())
    }

    fn verifies_receipts(&self) -> bool {
        true
    }

    fn status_request(&self, reference: &str) -> Option<Request<Bytes>> {
        let url = self.url.at(&format!("{}/{}.json", self.messages, encoded(reference)));
        Some(authorized(get(url), self.authorization.clone()))
    }

    fn judge_status(&self, answer: &Answer<'_>) -> Option<Receipt> {
        let json = answer.json().filter(|_| answer.is_success())?;
        receipt(json["status"].as_str()?)
    }
}

impl Twilio {
    /// Checks `X-Twilio-Signature`: HMAC-SHA1 over the URL and, of a form, the sorted parameters. A
    /// body of another type is covered by `bodySHA256` in the URL.
    fn verify(&self, call: &ReceiptCall<'_>) -> Result<(), ReceiptRefused> {
        let signature = call.header("x-twilio-signature").ok_or(ReceiptRefused::Unsigned)?;
        let signature = STANDARD.decode(signature).map_err(|_| ReceiptRefused::BadSignature)?;
        let query = call.query_pairs();
        let body_hash = query.iter().find(|(name, _)| name == "bodySHA256").map(|(_, hash)| hash);
        let parameters = match body_hash {
            Some(hash) if *hash == sha256_hex(call.body) => String::new(),
            Some(_) => return Err(ReceiptRefused::BadSignature),
            None => {
                let sorted: BTreeSet<_> = call.form_pairs().into_iter().collect();
                sorted.iter().flat_map(|(name, value)| [&**name, &**value]).collect()
            }
        };
        let is_signed = |url: &str| {
            let parts = [url.as_bytes(), parameters.as_bytes()];
            let key = self.auth_token.expose().as_bytes();
            is_hmac(HMAC_SHA1_FOR_LEGACY_USE_ONLY, key, &parts, &signature)
        };
        // Twilio signs some calls with the default port in the URL, and some without a port.
        let is_good =
            is_signed(call.url) || other_spellings(call.url).iter().any(|url| is_signed(url));
        if is_good { Ok(()) } else { Err(ReceiptRefused::BadSignature) }
    }
}

/// Returns the URL without its port, and with the default port.
fn other_spellings(url: &str) -> Vec<String> {
    let Some(parsed) = url.parse::<Uri>().ok() else { return Vec::new() };
    let (Some(scheme), Some(authority)) = (parsed.scheme_str(), parsed.authority()) else {
        return Vec::new();
    };
    let rest = url.get(scheme.len() + 3 + authority.as_str().len()..).unwrap_or_default();
    let host = authority.host();
    let port = if scheme == "https" { 443 } else { 80 };
    vec![format!("{scheme}://{host}{rest}"), format!("{scheme}://{host}:{port}{rest}")]
}

fn refusal(answer: &Answer<'_>, code: &str) -> SendError {
    match answer.status.as_u16() {
        400 if !code.is_empty() => by_code(answer, code),
        _ => answer.refusal(code),
    }
}

/// Returns the outcome by Twilio's code. An unknown code says that Twilio did not take the message,
/// and not that no other gateway would.
fn by_code(answer: &Answer<'_>, code: &str) -> SendError {
    match code {
        // No number, a landline, or a short code.
        "21211" | "21217" | "21265" | "21401" | "21604" | "21614" | "21635" => {
            answer.rejected(code)
        }
        // Credentials, the account, its sender, its messaging service.
        "20003" | "20005" | "20006" | "21212" | "21603" | "21606" | "21659" | "21660" | "21701"
        | "21703" | "21704" | "21705" | "30002" => answer.misconfigured(code),
        // The queue of the sender is full; too many messages a second.
        "14107" | "20429" | "21611" | "30001" => answer.throttled(code),
        // 21408 region, 21608 trial account, 21610 opted out, 21612 no route, and all that we do
        // not know.
        _ => answer.unroutable(code),
    }
}

/// Returns the final state. `partially_delivered` and `read` are of other channels.
fn receipt(status: &str) -> Option<Receipt> {
    match status {
        "delivered" | "read" => Some(Receipt::Delivered),
        "undelivered" | "failed" | "canceled" => Some(Receipt::Undelivered),
        _ => None,
    }
}
