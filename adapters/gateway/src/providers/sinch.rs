//! Sinch SMS, the REST API.
//!
//! Confirmed by Sinch's SDK for Python 2.3.0 and by its documents about reports and statuses. The
//! form of an error, `{code, text}`, is from memory. Receipts are not signed. There is no
//! idempotency key.

use std::time::{Duration, SystemTime};

use application::ports::{Accepted, GatewayReceipt, Receipt, Reported, SendError};
use bytes::Bytes;
use chrono::{DateTime, SecondsFormat, Utc};
use domain::MessageId;
use http::{HeaderValue, Request};
use serde::Serialize;
use serde_json::Value;

use crate::{
    answer::{Answer, accepted, scalar},
    fields::Fields,
    provider::{Outgoing, Provider, ReceiptCall, ReceiptRefused},
    request::{BaseUrl, authorized, bearer, encoded, get, post_json},
    spec::{Field, FieldKind, ProviderSpec},
};

#[cfg(test)]
mod tests;

/// The longest time for which Sinch tries to deliver.
const MAX_VALIDITY: Duration = Duration::from_secs(3 * 24 * 60 * 60);

pub(crate) static SPEC: ProviderSpec = ProviderSpec {
    name: "sinch",
    title: "Sinch",
    sender: true,
    params: &[],
    fields: &[
        Field::required("service_plan_id", FieldKind::Text, "The service plan."),
        Field::required("api_token", FieldKind::Secret, "The API token of the service plan."),
        Field::required("from", FieldKind::Text, "The sender: a number, a short code or a name."),
        Field::with_default(
            "region",
            FieldKind::OneOf(&["us", "eu", "au", "br", "ca"]),
            "us",
            "The region of the service plan, which names the host.",
        ),
        Field::optional(
            "url",
            FieldKind::Url,
            "The base URL instead of that of the region, `https://{region}.sms.api.sinch.com`.",
        ),
    ],
    make,
};

#[derive(Debug)]
struct Sinch {
    url: BaseUrl,
    /// The path of the service plan.
    plan: String,
    authorization: HeaderValue,
    from: String,
}

#[derive(Serialize)]
struct Batch<'a> {
    from: &'a str,
    to: [&'a str; 1],
    body: &'a str,
    r#type: &'static str,
    delivery_report: &'static str,
    expire_at: String,
    client_reference: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    callback_url: Option<&'a str>,
}

fn make(fields: &mut Fields<'_>) -> Option<Box<dyn Provider>> {
    let plan = fields.text("service_plan_id");
    let api_token = fields.secret("api_token");
    let from = fields.text("from");
    let region = fields.one_of("region");
    let own = fields.url("url");
    if fields.is_set("url") && own.is_none() {
        return None;
    }
    let url = own.or_else(|| BaseUrl::parse(&format!("https://{}.sms.api.sinch.com", region?)));
    Some(Box::new(Sinch {
        url: url?,
        plan: format!("/xms/v1/{}", encoded(&plan?)),
        authorization: bearer(api_token?.expose()),
        from: from?,
    }))
}

impl Provider for Sinch {
    fn request(&self, sms: &Outgoing<'_>) -> Request<Bytes> {
        let callback = sms.callback();
        let batch = Batch {
            from: sms.sender(Some(&self.from)).unwrap_or_default(),
            to: [sms.digits()],
            body: sms.text(),
            r#type: "mt_text",
            delivery_report: if callback.is_some() { "per_recipient" } else { "none" },
            expire_at: date(sms.expires_within(MAX_VALIDITY)),
            client_reference: sms.id,
            callback_url: callback,
        };
        let url = self.url.at(&format!("{}/batches", self.plan));
        authorized(post_json(url, &batch), self.authorization.clone())
    }

    fn judge(&self, answer: &Answer<'_>) -> Result<Accepted, SendError> {
        let json = answer.json().unwrap_or_default();
        if answer.is_success() {
            let id = scalar(&json["id"]).ok_or_else(|| answer.ambiguous(""))?;
            return Ok(accepted(id));
        }
        let code = scalar(&json["code"]).unwrap_or_default();
        Err(match answer.status.as_u16() {
            // Its code says that a field is wrong, and not which.
            400 if !code.is_empty() => answer.unroutable(&code),
            _ => answer.refusal(&code),
        })
    }

    fn receipts(&self, call: &ReceiptCall<'_>) -> Result<Vec<GatewayReceipt>, ReceiptRefused> {
        let json = call.json().ok_or(ReceiptRefused::Unreadable)?;
        let batch_id = scalar(&json["batch_id"]).ok_or(ReceiptRefused::Unreadable)?;
        let ours = json["client_reference"].as_str().and_then(|id| id.parse().ok());
        let of =
            ours.or_else(|| call.id()).map_or(Reported::Reference(batch_id), Reported::Message);
        let receipt = match json["type"].as_str() {
            Some("recipient_delivery_report_sms") => receipt(&json["status"]),
            Some("delivery_report_sms") => of_batch(&json),
            _ => return Err(ReceiptRefused::Unreadable),
        };
        Ok(receipt.map(|receipt| GatewayReceipt { of, receipt }).into_iter().collect())
    }

    fn status_request(&self, reference: &str) -> Option<Request<Bytes>> {
        // A message whose answer was lost is known by our id only.
        let url = if reference.parse::<MessageId>().is_ok() {
            let path = format!("{}/delivery_reports", self.plan);
            self.url.with_query(&path, &[("client_reference", reference)])
        } else {
            let batch = encoded(reference);
            self.url.at(&format!("{}/batches/{batch}/delivery_report", self.plan))
        };
        Some(authorized(get(url), self.authorization.clone()))
    }

    fn judge_status(&self, answer: &Answer<'_>) -> Option<Receipt> {
        let json = answer.json().filter(|_| answer.is_success())?;
        let found = &json["delivery_reports"][0]["status"];
        if found.is_null() { of_batch(&json) } else { receipt(found) }
    }
}

fn date(time: SystemTime) -> String {
    DateTime::<Utc>::from(time).to_rfc3339_opts(SecondsFormat::Millis, true)
}

/// Returns the state of a batch, which has one recipient.
fn of_batch(report: &Value) -> Option<Receipt> {
    let statuses = report["statuses"].as_array()?;
    if statuses.len() == 1 { receipt(&statuses[0]["status"]) } else { None }
}

/// Returns the final state, which the documents and the SDK write in different case. After
/// `Unknown` is not final.
fn receipt(status: &Value) -> Option<Receipt> {
    match status.as_str()?.to_ascii_lowercase().as_str() {
        "delivered" => Some(Receipt::Delivered),
        "failed" | "expired" | "rejected" | "aborted" | "cancelled" | "deleted" => {
            Some(Receipt::Undelivered)
        }
        _ => None,
    }
}
