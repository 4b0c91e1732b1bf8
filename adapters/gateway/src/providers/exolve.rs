//! MTS Exolve.
//!
//! Sources: the vendor's page on `SendSMS` (the address, the fields and the key); more than ten public
//! implementations agree on them and on `message_id`. The body of an error and the form of receipts
//! are not confirmed, so the fields and states of receipts are settings. There is no idempotency key,
//! no validity and no URL for receipts in a request: the account has one.

use application::ports::{Accepted, GatewayReceipt, SendError};
use bytes::Bytes;
use http::Request;
use serde::Serialize;

use super::reports::{self, Reports};
use crate::{
    answer::{Answer, accepted_by_reference, scalar},
    fields::{Fields, Secret},
    provider::{Outgoing, Provider, ReceiptCall, ReceiptRefused},
    request::{BaseUrl, authorized, bearer, post_json},
    spec::{Field, FieldKind, ProviderSpec},
};

#[cfg(test)]
mod tests;

pub(crate) static SPEC: ProviderSpec = ProviderSpec {
    name: "exolve",
    title: "MTS Exolve",
    sender: true,
    params: &["template"],
    fields: &[
        Field::required("api_key", FieldKind::Secret, "The API key of the application"),
        Field::required(
            "from",
            FieldKind::Text,
            "The sender: a number of digits, or a registered name",
        ),
        Field::optional(
            "template",
            FieldKind::Text,
            "`template_resource_id` of the registered text",
        ),
        reports::id_field("message_id"),
        reports::status_field("status"),
        reports::delivered_field("delivered"),
        reports::undelivered_field("undelivered, failed, expired, rejected"),
        Field::with_default("url", FieldKind::Url, "https://api.exolve.ru", "The base URL"),
    ],
    make,
};

#[derive(Debug)]
struct Exolve {
    api_key: Secret,
    from: String,
    template: Option<String>,
    reports: Reports,
    url: BaseUrl,
}

/// `number` is the sender, and `destination` the recipient.
#[derive(Serialize)]
struct SendSms<'a> {
    number: &'a str,
    destination: &'a str,
    text: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    template_resource_id: Option<&'a str>,
}

fn make(fields: &mut Fields<'_>) -> Option<Box<dyn Provider>> {
    let (api_key, from) = (fields.secret("api_key"), fields.text("from"));
    let template = fields.text("template");
    let (reports, url) = (Reports::of(fields), fields.url("url"));
    Some(Box::new(Exolve {
        api_key: api_key?,
        from: from?,
        template,
        reports: reports?,
        url: url?,
    }))
}

impl Provider for Exolve {
    fn request(&self, sms: &Outgoing<'_>) -> Request<Bytes> {
        let body = SendSms {
            number: sms.sender(Some(&self.from)).unwrap_or_default(),
            destination: sms.digits(),
            text: sms.text(),
            template_resource_id: sms.param("template").or(self.template.as_deref()),
        };
        let request = post_json(self.url.at("/messaging/v1/SendSMS"), &body);
        authorized(request, bearer(self.api_key.expose()))
    }

    fn judge(&self, answer: &Answer<'_>) -> Result<Accepted, SendError> {
        let body = answer.json().unwrap_or_default();
        let code = scalar(&body["error"]["code"]).unwrap_or_default();
        if !answer.is_success() {
            return Err(answer.refusal(&code));
        }
        if !body["error"].is_null() {
            return Err(answer.unroutable(&code));
        }
        scalar(&body["message_id"]).map(accepted_by_reference).ok_or_else(|| answer.ambiguous(""))
    }

    fn receipts(&self, call: &ReceiptCall<'_>) -> Result<Vec<GatewayReceipt>, ReceiptRefused> {
        self.reports.receipts(call)
    }
}
