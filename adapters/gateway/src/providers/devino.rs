//! Devino Online.
//!
//! Sources: ten public implementations agree on the address, the key and the fields `from`, `to` and
//! `text`; two of them on `validity`, `priority`, the codes `OK` and `REJECTED`, and the reasons, and
//! one on `callback_url`. The unit of `validity` and the form of receipts are not confirmed, so both
//! are settings. There is no idempotency key.

use application::ports::{Accepted, GatewayReceipt, SendError};
use bytes::Bytes;
use http::Request;
use serde_json::{Map, Value, json};

use super::reports::{self, Reports};
use crate::{
    answer::{Answer, accepted_by_reference, scalar},
    fields::{Fields, Secret},
    provider::{Outgoing, Provider, ReceiptCall, ReceiptRefused},
    request::{BaseUrl, authorized, post_json, sensitive},
    spec::{Field, FieldKind, ProviderSpec},
};

#[cfg(test)]
mod tests;

/// The highest `priority`.
const URGENT: u8 = 3;

pub(crate) static SPEC: ProviderSpec = ProviderSpec {
    name: "devino",
    title: "Devino",
    sender: true,
    params: &[],
    fields: &[
        Field::required("api_key", FieldKind::Secret, "The API key"),
        Field::required("from", FieldKind::Text, "The sender, which Devino has approved"),
        Field::with_default(
            "validity",
            FieldKind::OneOf(&["seconds", "minutes", "off"]),
            "seconds",
            "The unit of `validity`. If it is wrong, an SMS can arrive after its code has expired; it never expires too early",
        ),
        Field::with_default(
            "callback_field",
            FieldKind::Text,
            "callback_url",
            "The field of a message with the URL for its receipts",
        ),
        reports::id_field("messageId"),
        reports::status_field("status"),
        reports::delivered_field("delivered"),
        reports::undelivered_field("undelivered, failed, expired, rejected, deleted"),
        Field::with_default("url", FieldKind::Url, "https://api.devino.online", "The base URL"),
    ],
    make,
};

#[derive(Debug)]
struct Devino {
    api_key: Secret,
    from: String,
    /// The seconds of a unit of `validity`.
    unit: Option<u64>,
    callback_field: String,
    reports: Reports,
    url: BaseUrl,
}

fn make(fields: &mut Fields<'_>) -> Option<Box<dyn Provider>> {
    let (api_key, from) = (fields.secret("api_key"), fields.text("from"));
    let unit = fields.one_of("validity").map(|unit| match unit {
        "seconds" => Some(1),
        "minutes" => Some(60),
        _ => None,
    });
    let callback_field = fields.text("callback_field");
    let (reports, url) = (Reports::of(fields), fields.url("url"));
    Some(Box::new(Devino {
        api_key: api_key?,
        from: from?,
        unit: unit?,
        callback_field: callback_field?,
        reports: reports?,
        url: url?,
    }))
}

impl Provider for Devino {
    fn request(&self, sms: &Outgoing<'_>) -> Request<Bytes> {
        let mut message = Map::new();
        message.insert("from".to_owned(), sms.sender(Some(&self.from)).into());
        message.insert("to".to_owned(), sms.digits().into());
        message.insert("text".to_owned(), sms.text().into());
        message.insert("priority".to_owned(), URGENT.into());
        if let Some(unit) = self.unit {
            // Rounded down, because a code must not arrive after its end.
            let validity = sms.validity_seconds(unit, u64::MAX) / unit;
            message.insert("validity".to_owned(), validity.into());
        }
        if let Some(callback) = sms.callback() {
            message.insert(self.callback_field.clone(), callback.into());
        }
        let request = post_json(self.url.at("/sms/messages"), &json!({"messages": [message]}));
        authorized(request, sensitive(&format!("Key {}", self.api_key.expose())))
    }

    /// A rejection comes with status 200. The result is in the list `result`, or not in a list.
    fn judge(&self, answer: &Answer<'_>) -> Result<Accepted, SendError> {
        let Some(body) = answer.json().filter(|_| answer.is_success()) else {
            return Err(answer.refusal(""));
        };
        let result = body["result"].get(0).unwrap_or(&body);
        match result["code"].as_str() {
            Some("OK") => scalar(&result["messageId"])
                .map(accepted_by_reference)
                .ok_or_else(|| answer.ambiguous("")),
            Some("REJECTED") => Err(rejected(answer, &result["reasons"][0])),
            _ => Err(answer.ambiguous("")),
        }
    }

    fn receipts(&self, call: &ReceiptCall<'_>) -> Result<Vec<GatewayReceipt>, ReceiptRefused> {
        self.reports.receipts(call)
    }
}

/// Returns the class of a rejection. `ref` names the field that is wrong.
fn rejected(answer: &Answer<'_>, reason: &Value) -> SendError {
    let field = reason["ref"].as_str().unwrap_or_default();
    match reason["key"].as_str() {
        Some("billing.error") => answer.misconfigured("billing"),
        Some("forbidden") => answer.misconfigured("forbidden"),
        Some("too.many.messages") => answer.throttled("too-many"),
        Some("invalid" | "must.be.not.null") if field.ends_with("to") => answer.rejected("to"),
        Some("invalid" | "must.be.not.null") => answer.misconfigured("invalid"),
        Some("length.too.long") => answer.unroutable("too-long"),
        _ => answer.unroutable("REJECTED"),
    }
}
