//! SMS.ru.
//!
//! Sources: the page `sms/send` of SMS.ru as its partner tele2.sms.ru shows it (the request, the form
//! of the answer); the other codes and states agree in several public implementations, and the form
//! and the hash of receipts in three. SMS.ru documents no idempotency key.

use application::ports::{Accepted, GatewayReceipt, Receipt, Reported, SendError};
use bytes::Bytes;
use http::Request;
use serde_json::Value;

use super::digest::is_same;
use crate::{
    answer::{Answer, accepted_by_reference, scalar},
    fields::{Fields, Secret},
    provider::{Outgoing, Provider, ReceiptCall, ReceiptRefused, ReceiptReply},
    request::{BaseUrl, post_form},
    signing::sha256_hex,
    spec::{Field, FieldKind, ProviderSpec},
};

#[cfg(test)]
mod tests;

/// The longest `ttl`, in minutes.
const MAX_TTL: u64 = 1440;

pub(crate) static SPEC: ProviderSpec = ProviderSpec {
    name: "smsru",
    title: "SMS.ru",
    sender: true,
    params: &[],
    fields: &[
        Field::required(
            "api_id",
            FieldKind::Secret,
            "`api_id` of the account. It also verifies receipts",
        ),
        Field::optional(
            "from",
            FieldKind::Text,
            "The sender, which SMS.ru has approved. Without it: the account's default",
        ),
        Field::with_default(
            "test",
            FieldKind::Boolean,
            "false",
            "`true`: SMS.ru accepts SMS and sends none",
        ),
        Field::with_default(
            "receipt_hash",
            FieldKind::Boolean,
            "true",
            "`false`: receipts need the token in the URL instead of `hash`",
        ),
        Field::with_default("url", FieldKind::Url, "https://sms.ru", "The base URL"),
    ],
    make,
};

#[derive(Debug)]
struct SmsRu {
    api_id: Secret,
    from: Option<String>,
    test: bool,
    receipt_hash: bool,
    url: BaseUrl,
}

fn make(fields: &mut Fields<'_>) -> Option<Box<dyn Provider>> {
    let (api_id, from, url) = (fields.secret("api_id"), fields.text("from"), fields.url("url"));
    let (test, receipt_hash) = (fields.boolean("test"), fields.boolean("receipt_hash"));
    Some(Box::new(SmsRu {
        api_id: api_id?,
        from,
        test: test?,
        receipt_hash: receipt_hash?,
        url: url?,
    }))
}

impl Provider for SmsRu {
    /// `ttl` is rounded down, because a code must not arrive after its end.
    fn request(&self, sms: &Outgoing<'_>) -> Request<Bytes> {
        let ttl = (sms.validity_seconds(60, MAX_TTL * 60) / 60).to_string();
        let mut pairs = vec![
            ("api_id", self.api_id.expose()),
            ("to", sms.digits()),
            ("msg", sms.text()),
            ("json", "1"),
            ("ttl", &*ttl),
        ];
        pairs.extend(sms.sender(self.from.as_deref()).map(|from| ("from", from)));
        if self.test {
            pairs.push(("test", "1"));
        }
        post_form(self.url.at("/sms/send"), &pairs)
    }

    /// The answer has a code for the request, and one for the recipient.
    fn judge(&self, answer: &Answer<'_>) -> Result<Accepted, SendError> {
        let Some(body) = answer.json().filter(|_| answer.is_success()) else {
            return Err(answer.refusal(""));
        };
        if let Some(code) = code_of(&body).filter(|&code| code != 100) {
            return Err(refused(answer, code));
        }
        let Some(sent) = first_of(&body["sms"]) else { return Err(answer.refusal("")) };
        match (code_of(sent), scalar(&sent["sms_id"])) {
            (Some(100), Some(id)) => Ok(accepted_by_reference(id)),
            (None | Some(100), _) => Err(answer.ambiguous("")),
            (Some(code), _) => Err(refused(answer, code)),
        }
    }

    /// A post has up to a hundred records `data[0]`, `data[1]` …, and `hash`, the SHA-256 of `api_id`
    /// and all records.
    fn receipts(&self, call: &ReceiptCall<'_>) -> Result<Vec<GatewayReceipt>, ReceiptRefused> {
        let pairs = call.form_pairs();
        let records = records(&pairs);
        if self.receipt_hash {
            let hash = pairs.iter().find(|(name, _)| name == "hash");
            let (_, hash) = hash.ok_or(ReceiptRefused::Unsigned)?;
            let expected =
                sha256_hex((self.api_id.expose().to_owned() + &records.concat()).as_bytes());
            if !is_same(&expected, hash) {
                return Err(ReceiptRefused::BadSignature);
            }
        }
        if records.is_empty() {
            return Err(ReceiptRefused::Unreadable);
        }
        Ok(records.into_iter().filter_map(receipt_of).collect())
    }

    fn verifies_receipts(&self) -> bool {
        self.receipt_hash
    }

    /// After another body, SMS.ru repeats the post for five days.
    fn receipt_reply(&self) -> ReceiptReply {
        ReceiptReply::text("100")
    }

    fn status_request(&self, reference: &str) -> Option<Request<Bytes>> {
        let pairs = [("api_id", self.api_id.expose()), ("sms_id", reference), ("json", "1")];
        Some(post_form(self.url.at("/sms/status"), &pairs))
    }

    fn judge_status(&self, answer: &Answer<'_>) -> Option<Receipt> {
        let body = answer.json().filter(|_| answer.is_success())?;
        state(code_of(first_of(&body["sms"])?)?)
    }
}

/// Returns the class of a code that is not an acceptance.
fn refused(answer: &Answer<'_>, code: u64) -> SendError {
    let text = code.to_string();
    match code {
        // The account: id, credit, sender, limits, tokens. The request itself: 208, 210, 211, 213.
        200 | 201 | 204 | 206 | 208 | 210 | 211 | 213 | 300..=302 => answer.misconfigured(&text),
        220 => answer.unavailable(&text),
        // The same text to the same number within a minute.
        231 => answer.throttled(&text),
        // 500 is an error of the server; it may have the message.
        500 => answer.ambiguous(&text),
        // A bad number or no route to it (202, 207), a text that is empty, too long or badly encoded
        // (203, 205, 212), the account's stop list (209), only Russia (214), and too many SMS to this
        // number (230, 232, 233), which must not stop those to others.
        _ => answer.unroutable(&text),
    }
}

/// Returns the final state that a code stands for.
fn state(code: u64) -> Option<Receipt> {
    match code {
        103 | 110 => Some(Receipt::Delivered),
        104..=108 | 150 => Some(Receipt::Undelivered),
        _ => None,
    }
}

fn code_of(value: &Value) -> Option<u64> {
    scalar(&value["status_code"])?.parse().ok()
}

/// Returns the entry of the only recipient or message.
fn first_of(table: &Value) -> Option<&Value> {
    table.as_object()?.values().next()
}

/// Returns the records in the order of their numbers, which is the order of the hash.
fn records(pairs: &[(String, String)]) -> Vec<&str> {
    let mut records: Vec<(u64, &str)> = pairs
        .iter()
        .filter_map(|(name, record)| {
            let number = name.strip_prefix("data[")?.strip_suffix(']')?;
            Some((if number.is_empty() { 0 } else { number.parse().ok()? }, record.as_str()))
        })
        .collect();
    // A stable sort: without numbers, the order is that of the post.
    records.sort_by_key(|(number, _)| *number);
    records.into_iter().map(|(_, record)| record).collect()
}

/// Reads a record: `sms_status`, the id, the state and the time, each on a line.
fn receipt_of(record: &str) -> Option<GatewayReceipt> {
    let mut lines = record.lines();
    if lines.next()? != "sms_status" {
        return None;
    }
    let of = Reported::Reference(lines.next()?.to_owned());
    Some(GatewayReceipt { of, receipt: state(lines.next()?.parse().ok()?)? })
}
