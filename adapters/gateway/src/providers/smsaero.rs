//! SMS Aero.
//!
//! Sources: the vendor's SDK for Python, smsaero-api 3.2.0 (requests, answers, `callbackUrl`), and its
//! SDK for Go. The numbers of the states, the fields in an error of validation and the form of
//! receipts are not confirmed; the last is a setting. There is no idempotency key and no validity.

use application::ports::{Accepted, GatewayReceipt, Receipt, SendError};
use bytes::Bytes;
use http::Request;
use serde::Serialize;
use serde_json::{Value, json};

use super::reports::{self, Reports};
use crate::{
    answer::{Answer, accepted_by_reference, scalar},
    fields::{Fields, Secret},
    provider::{Outgoing, Provider, ReceiptCall, ReceiptRefused},
    request::{BaseUrl, authorized, basic, post_json},
    spec::{Field, FieldKind, ProviderSpec},
};

#[cfg(test)]
mod tests;

pub(crate) static SPEC: ProviderSpec = ProviderSpec {
    name: "smsaero",
    title: "SMS Aero",
    sender: true,
    params: &[],
    fields: &[
        Field::required("email", FieldKind::Text, "The e-mail address of the account"),
        Field::required("api_key", FieldKind::Secret, "The API key"),
        Field::with_default(
            "from",
            FieldKind::Text,
            "SMS Aero",
            "The sender (`sign`), which SMS Aero has approved",
        ),
        Field::with_default(
            "callback_format",
            FieldKind::Text,
            "JSON",
            "`callbackFormat`, the form of receipts: they are read as JSON, a form or a query",
        ),
        reports::id_field("id"),
        reports::status_field("status"),
        Field::with_default("delivered", FieldKind::Text, "1", "The states that mean delivered"),
        reports::undelivered_field("2, 6"),
        Field::with_default(
            "url",
            FieldKind::Url,
            "https://gate.smsaero.ru",
            "The base URL, such as `https://gate.smsaero.org` or `https://gate.smsaero.net`",
        ),
    ],
    make,
};

#[derive(Debug)]
struct SmsAero {
    email: String,
    api_key: Secret,
    from: String,
    callback_format: String,
    reports: Reports,
    url: BaseUrl,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct SendRequest<'a> {
    number: &'a str,
    text: &'a str,
    sign: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    callback_url: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    callback_format: Option<&'a str>,
}

fn make(fields: &mut Fields<'_>) -> Option<Box<dyn Provider>> {
    let (email, api_key) = (fields.text("email"), fields.secret("api_key"));
    let (from, callback_format) = (fields.text("from"), fields.text("callback_format"));
    let (reports, url) = (Reports::of(fields), fields.url("url"));
    Some(Box::new(SmsAero {
        email: email?,
        api_key: api_key?,
        from: from?,
        callback_format: callback_format?,
        reports: reports?,
        url: url?,
    }))
}

impl SmsAero {
    fn post(&self, path: &str, body: &impl Serialize) -> Request<Bytes> {
        let request = post_json(self.url.at(path), body);
        authorized(request, basic(&self.email, self.api_key.expose()))
    }
}

impl Provider for SmsAero {
    fn request(&self, sms: &Outgoing<'_>) -> Request<Bytes> {
        let callback_url = sms.callback();
        let body = SendRequest {
            number: sms.digits(),
            text: sms.text(),
            sign: sms.sender(Some(&self.from)).unwrap_or_default(),
            callback_url,
            callback_format: callback_url.map(|_| self.callback_format.as_str()),
        };
        self.post("/v2/sms/send", &body)
    }

    /// Errors come with status 200 too: `success` is false, or `result` names the error.
    fn judge(&self, answer: &Answer<'_>) -> Result<Accepted, SendError> {
        let Some(body) = answer.json() else { return Err(answer.refusal("")) };
        match body["result"].as_str() {
            Some("no credits") => return Err(answer.misconfigured("no-credits")),
            Some("reject") => return Err(answer.unroutable("reject")),
            _ => {}
        }
        if !answer.is_success() || body["success"] != true {
            return Err(refused(answer, &body));
        }
        let data = &body["data"];
        // The state 6 is rejected.
        match (scalar(&data["id"]), self.reports.receipt(&state_of(data))) {
            (Some(_), Some(Receipt::Undelivered)) => Err(answer.unroutable("status-6")),
            (Some(id), _) => Ok(accepted_by_reference(id)),
            (None, _) => Err(answer.ambiguous("")),
        }
    }

    fn receipts(&self, call: &ReceiptCall<'_>) -> Result<Vec<GatewayReceipt>, ReceiptRefused> {
        self.reports.receipts(call)
    }

    fn status_request(&self, reference: &str) -> Option<Request<Bytes>> {
        let id: u64 = reference.parse().ok()?;
        Some(self.post("/v2/sms/status", &json!({"id": id})))
    }

    fn judge_status(&self, answer: &Answer<'_>) -> Option<Receipt> {
        let body = answer.json().filter(|_| answer.is_success())?;
        self.reports.receipt(&state_of(&body["data"]))
    }
}

fn state_of(data: &Value) -> String {
    scalar(&data["status"]).unwrap_or_default()
}

/// Returns the class of an error. An error of validation names the wrong fields in `data`.
fn refused(answer: &Answer<'_>, body: &Value) -> SendError {
    let names = |field: &str| !body["data"][field].is_null();
    let is_plain = answer.is_success() || answer.status.as_u16() == 400;
    match () {
        () if is_plain && names("number") => answer.rejected("number"),
        () if is_plain && names("sign") => answer.misconfigured("sign"),
        () if answer.is_success() && body["success"] == false => answer.unroutable(""),
        () => answer.refusal(""),
    }
}
