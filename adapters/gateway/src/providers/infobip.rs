//! Infobip SMS API, version 3.
//!
//! Confirmed by Infobip's API description 3.210.0 of August 2026 and by its documents about reports
//! and logs. The names of single states, other than `REJECTED_DUPLICATE_MESSAGE_ID`, and the place
//! of the ids of India are from memory. Infobip ignores a repeated `messageId` only in accounts for
//! which its support has switched that on.

use application::ports::{Accepted, GatewayReceipt, Receipt, Reported, SendError};
use bytes::Bytes;
use http::{HeaderValue, Request};
use serde_json::{Value, json};

use crate::{
    answer::{Answer, accepted, scalar},
    fields::Fields,
    provider::{Outgoing, Provider, ReceiptCall, ReceiptRefused},
    request::{BaseUrl, authorized, get, post_json, sensitive},
    spec::{Field, FieldKind, ProviderSpec},
};

#[cfg(test)]
mod tests;

/// The longest validity, in minutes.
const MAX_VALIDITY: u64 = 2_880;

const DUPLICATE: &str = "REJECTED_DUPLICATE_MESSAGE_ID";

pub(crate) static SPEC: ProviderSpec = ProviderSpec {
    name: "infobip",
    title: "Infobip",
    sender: true,
    params: &["dlt_entity_id", "dlt_template_id"],
    fields: &[
        Field::required(
            "api_key",
            FieldKind::Secret,
            "The API key, with the scope `sms:message:send`.",
        ),
        Field::required("from", FieldKind::Text, "The sender: a number without `+`, or a name."),
        Field::required(
            "url",
            FieldKind::Url,
            "The base URL of the account, `https://….api.infobip.com`.",
        ),
        Field::with_default(
            "deduplicates",
            FieldKind::Boolean,
            "false",
            "Whether Infobip has switched on the check of duplicate message ids for the account. \
             Then a call without an answer is repeated.",
        ),
    ],
    make,
};

#[derive(Debug)]
struct Infobip {
    url: BaseUrl,
    authorization: HeaderValue,
    from: String,
    deduplicates: bool,
}

fn make(fields: &mut Fields<'_>) -> Option<Box<dyn Provider>> {
    let api_key = fields.secret("api_key");
    let from = fields.text("from");
    let url = fields.url("url");
    let deduplicates = fields.boolean("deduplicates");
    Some(Box::new(Infobip {
        url: url?,
        authorization: sensitive(&format!("App {}", api_key?.expose())),
        from: from?,
        deduplicates: deduplicates?,
    }))
}

impl Provider for Infobip {
    fn request(&self, sms: &Outgoing<'_>) -> Request<Bytes> {
        let mut message = json!({
            "sender": sms.sender(Some(&self.from)),
            "destinations": [{ "to": sms.digits(), "messageId": sms.id }],
            "content": { "text": sms.text() },
            "options": {
                "validityPeriod": {
                    "amount": sms.validity_minutes(1, MAX_VALIDITY),
                    "timeUnit": "MINUTES",
                },
            },
        });
        if let (Some(entity), Some(template)) =
            (sms.param("dlt_entity_id"), sms.param("dlt_template_id"))
        {
            message["options"]["regional"] = json!({
                "indiaDlt": { "principalEntityId": entity, "contentTemplateId": template },
            });
        }
        if let Some(callback) = sms.callback() {
            message["webhooks"] = json!({
                "delivery": { "url": callback, "intermediateReport": false },
                "contentType": "application/json",
                "callbackData": sms.id,
            });
        }
        let request = post_json(self.url.at("/sms/3/messages"), &json!({ "messages": [message] }));
        authorized(request, self.authorization.clone())
    }

    fn judge(&self, answer: &Answer<'_>) -> Result<Accepted, SendError> {
        let json = answer.json().unwrap_or_default();
        if !answer.is_success() {
            return Err(refusal(answer, &json));
        }
        let message = &json["messages"][0];
        let status = &message["status"];
        let name = status["name"].as_str().unwrap_or_default();
        match (status["groupId"].as_u64(), scalar(&message["messageId"])) {
            // The id is ours, so Infobip has this message already.
            (_, Some(id)) if name == DUPLICATE => Ok(accepted(id)),
            (Some(0 | 1 | 3), Some(id)) => Ok(accepted(id)),
            (Some(2 | 4 | 5), _) => Err(by_name(answer, name)),
            _ => Err(answer.ambiguous(name)),
        }
    }

    fn deduplicates(&self) -> bool {
        self.deduplicates
    }

    fn receipts(&self, call: &ReceiptCall<'_>) -> Result<Vec<GatewayReceipt>, ReceiptRefused> {
        let json = call.json().ok_or(ReceiptRefused::Unreadable)?;
        let results = json["results"].as_array().ok_or(ReceiptRefused::Unreadable)?;
        Ok(results.iter().filter_map(reported).collect())
    }

    fn status_request(&self, reference: &str) -> Option<Request<Bytes>> {
        let url = self.url.with_query("/sms/3/logs", &[("messageId", reference)]);
        Some(authorized(get(url), self.authorization.clone()))
    }

    fn judge_status(&self, answer: &Answer<'_>) -> Option<Receipt> {
        let json = answer.json().filter(|_| answer.is_success())?;
        receipt(&json["results"][0]["status"])
    }
}

/// Returns the outcome of a request that Infobip did not understand or did not allow. `violations`
/// name the fields that are wrong.
fn refusal(answer: &Answer<'_>, json: &Value) -> SendError {
    let code = scalar(&json["errorCode"]).unwrap_or_default();
    if answer.status.as_u16() != 400 {
        return answer.refusal(&code);
    }
    let violations = json["violations"].as_array().map_or(&[][..], Vec::as_slice);
    let is_wrong = |part: &str| {
        violations.iter().any(|it| it["property"].as_str().is_some_and(|name| name.ends_with(part)))
    };
    if is_wrong("sender") {
        answer.misconfigured(&code)
    } else if is_wrong("destinations[0].to") {
        answer.rejected(&code)
    } else {
        // The text, the URL for receipts, an option: another provider may take the message.
        answer.unroutable(&code)
    }
}

/// Returns the outcome of a message that Infobip refused inside a 200.
fn by_name(answer: &Answer<'_>, name: &str) -> SendError {
    match name {
        "MISSING_TO" | "REJECTED_INVALID_DESTINATION" => answer.rejected(name),
        "REJECTED_NOT_ENOUGH_CREDITS"
        | "REJECTED_PREPAID_PACKAGE_EXPIRED"
        | "REJECTED_SENDER"
        | "REJECTED_SOURCE" => answer.misconfigured(name),
        "REJECTED_SYSTEM_ERROR" => answer.unavailable(name),
        // The network, the prefix, the number at this provider, its filters, the longest text.
        _ => answer.unroutable(name),
    }
}

fn reported(result: &Value) -> Option<GatewayReceipt> {
    let receipt = receipt(&result["status"])?;
    let ours = [&result["messageId"], &result["callbackData"]]
        .into_iter()
        .find_map(|id| id.as_str()?.parse().ok())
        .map(Reported::Message);
    let of = ours.or_else(|| scalar(&result["messageId"]).map(Reported::Reference))?;
    Some(GatewayReceipt { of, receipt })
}

/// Returns the final state. In the group `DELIVERED`, the state 2 says that the operator has the
/// message, and 5 that the handset has it.
fn receipt(status: &Value) -> Option<Receipt> {
    match (status["groupId"].as_u64()?, status["id"].as_u64()) {
        (3, Some(2)) => None,
        (3, _) => Some(Receipt::Delivered),
        (2 | 4 | 5, _) => Some(Receipt::Undelivered),
        _ => None,
    }
}
