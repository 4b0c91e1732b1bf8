//! Messaggio.
//!
//! Sources: eight public implementations agree on the request and on the answer; one of them reports
//! a real SMS of 2026-08. One shows the request for states. The vendor's description
//! `messaggio_api_01062026_en_4.yaml` could not be read, so the codes of receipts are settings.
//! `external_id` comes back in receipts, and is not known to prevent a second SMS.

use application::ports::{Accepted, GatewayReceipt, Receipt, Reported, SendError};
use bytes::Bytes;
use http::Request;
use serde::Serialize;
use serde_json::{Value, json};

use super::reports::States;
use crate::{
    answer::{Answer, accepted, scalar},
    fields::{Fields, Secret},
    provider::{Outgoing, Provider, ReceiptCall, ReceiptRefused},
    request::{BaseUrl, post_json, sensitive},
    spec::{Field, FieldKind, ProviderSpec},
};

#[cfg(test)]
mod tests;

pub(crate) static SPEC: ProviderSpec = ProviderSpec {
    name: "messaggio",
    title: "Messaggio",
    sender: true,
    params: &[],
    fields: &[
        Field::required("login", FieldKind::Secret, "The login of the project, the only secret"),
        Field::required(
            "from",
            FieldKind::Text,
            "The code of the sender (\"Code API\"), which is not its name",
        ),
        Field::with_default(
            "delivered",
            FieldKind::Text,
            "67, 69, 70",
            "The codes of receipts that mean delivered",
        ),
        Field::with_default(
            "undelivered",
            FieldKind::Text,
            "60, 65, 68, 85, 87, 89, 90, 91, 92, 94, 95, 96, 97, 98, 196",
            "The codes of receipts that mean undelivered. Other codes are not final",
        ),
        Field::with_default("url", FieldKind::Url, "https://msg.messaggio.com", "The base URL"),
    ],
    make,
};

#[derive(Debug)]
struct Messaggio {
    login: Secret,
    from: String,
    states: States,
    url: BaseUrl,
}

#[derive(Serialize)]
struct SendRequest<'a> {
    recipients: [Recipient<'a>; 1],
    channels: [&'a str; 1],
    options: Options<'a>,
    sms: Channel<'a>,
}

#[derive(Serialize)]
struct Recipient<'a> {
    phone: &'a str,
}

#[derive(Serialize)]
struct Options<'a> {
    ttl: u64,
    external_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    dlr_callback_url: Option<&'a str>,
}

#[derive(Serialize)]
struct Channel<'a> {
    from: &'a str,
    content: [Content<'a>; 1],
}

#[derive(Serialize)]
struct Content<'a> {
    r#type: &'a str,
    text: &'a str,
}

fn make(fields: &mut Fields<'_>) -> Option<Box<dyn Provider>> {
    let (login, from) = (fields.secret("login"), fields.text("from"));
    let (states, url) = (States::of(fields), fields.url("url"));
    Some(Box::new(Messaggio { login: login?, from: from?, states: states?, url: url? }))
}

impl Messaggio {
    fn post(&self, path: &str, body: &impl Serialize) -> Request<Bytes> {
        let mut request = post_json(self.url.at(path), body);
        request.headers_mut().insert("messaggio-login", sensitive(self.login.expose()));
        request
    }
}

impl Provider for Messaggio {
    fn request(&self, sms: &Outgoing<'_>) -> Request<Bytes> {
        let from = sms.sender(Some(&self.from)).unwrap_or_default();
        let body = SendRequest {
            recipients: [Recipient { phone: sms.digits() }],
            channels: ["sms"],
            options: Options {
                ttl: sms.validity_seconds(1, u64::MAX),
                external_id: sms.id,
                dlr_callback_url: sms.callback(),
            },
            sms: Channel { from, content: [Content { r#type: "text", text: sms.text() }] },
        };
        self.post("/api/v1/send", &body)
    }

    /// An error of the recipient comes with status 200. Only an id without an error is an acceptance.
    fn judge(&self, answer: &Answer<'_>) -> Result<Accepted, SendError> {
        let Some(body) = answer.json().filter(|_| answer.is_success()) else {
            return Err(answer.refusal(""));
        };
        let message = &body["messages"][0];
        if !message["error"].is_null() {
            return Err(answer.unroutable("recipient"));
        }
        scalar(&message["message_id"]).map(accepted).ok_or_else(|| answer.ambiguous(""))
    }

    /// A receipt has our id as `external_id`, and a code as `status`. A post may have several.
    fn receipts(&self, call: &ReceiptCall<'_>) -> Result<Vec<GatewayReceipt>, ReceiptRefused> {
        let body = call.json().ok_or(ReceiptRefused::Unreadable)?;
        let one = std::slice::from_ref(&body);
        let entries = body.as_array().map_or(one, Vec::as_slice);
        let statuses = || entries.iter().filter(|entry| entry["type"] == "status");
        if statuses().next().is_none() {
            return Err(ReceiptRefused::Unreadable);
        }
        Ok(statuses().filter_map(|entry| self.receipt_of(entry)).collect())
    }

    fn status_request(&self, reference: &str) -> Option<Request<Bytes>> {
        let body = json!({
            "recipients": [{"id": reference}], "channels": ["sms"], "sms": [{"from": self.from}],
        });
        Some(self.post("/api/v1/statuses", &body))
    }

    fn judge_status(&self, answer: &Answer<'_>) -> Option<Receipt> {
        let body = answer.json().filter(|_| answer.is_success())?;
        self.states.receipt(&code_of(&body["statuses"][0])?)
    }
}

impl Messaggio {
    fn receipt_of(&self, entry: &Value) -> Option<GatewayReceipt> {
        let receipt = self.states.receipt(&code_of(entry)?)?;
        let ours = scalar(&entry["external_id"]).and_then(|id| id.parse().ok());
        let of = ours.map(Reported::Message);
        let of = of.or_else(|| scalar(&entry["message_id"]).map(Reported::Reference))?;
        Some(GatewayReceipt { of, receipt })
    }
}

/// Returns the code of a state, which a receipt has as `status`, and an answer as `status.status`.
fn code_of(entry: &Value) -> Option<String> {
    scalar(&entry["status"]).or_else(|| scalar(&entry["status"]["status"]))
}
