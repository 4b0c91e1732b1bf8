//! The receipts of a provider, as the settings describe them.

use std::{borrow::Cow, collections::BTreeMap};

use application::ports::{GatewayReceipt, Receipt, Reported};
use http::HeaderMap;
use serde_json::Value;

use super::{
    path::Path,
    rules::pairs_as_json,
    settings::{Table, plain},
    signature::{self, Signature},
    template::Templates,
};
use crate::{
    fields::{Fields, Secret},
    provider::{ReceiptCall, ReceiptRefused, ReceiptReply},
};

#[derive(Debug)]
pub(super) struct Receipts {
    format: Format,
    /// The place of a list of receipts. Without it a call is one receipt.
    list: Option<Path>,
    /// The place of our id. Without it and without `reference`, it is in the URL.
    id: Option<Path>,
    /// The place of the provider's id.
    reference: Option<Path>,
    state: Path,
    delivered: Vec<String>,
    undelivered: Vec<String>,
    signature: Option<Signature>,
    reply: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Json,
    Form,
    Query,
}

const KEYS: &[&str] = &[
    "format",
    "list",
    "id",
    "message_id",
    "state",
    "delivered",
    "undelivered",
    "signature",
    "reply",
];

/// The variables of the template for the signature of a receipt.
const NAMES: &[&str] = &["body", "query", "url", "method", "headers"];

impl Receipts {
    pub(super) fn read(
        fields: &mut Fields<'_>,
        value: &Value,
        templates: &mut Templates,
        key: Option<&Secret>,
    ) -> Option<Self> {
        let signature = value.get("signature").filter(|it| !it.is_null()).map(|signature| {
            let place = "receipts.signature";
            let mut table = Table::of(fields, place, signature, signature::KEYS)?;
            Signature::read(&mut table, templates, NAMES, key, "receipt_secret or secret")
        });
        let mut table = Table::of(fields, "receipts", value, KEYS)?;
        let format = table.word(
            "format",
            &[("json", Format::Json), ("form", Format::Form), ("query", Format::Query)],
        );
        let (list, id, reference) =
            (table.path("list"), table.path("id"), table.path("message_id"));
        if list.is_some() && format != Format::Json {
            table.problem("list", "needs the format json");
        }
        let is_named = table.value("id").is_some() || table.value("message_id").is_some();
        if list.is_some() && !is_named {
            table.problem("id", "is missing: a list needs id or message_id");
        }
        if let Some(Some(signature)) = &signature {
            let signs = |name| templates.uses(&signature.sign, name);
            let in_url = format == Format::Query || !is_named;
            let is_signed = signs("url") || if in_url { signs("query") } else { signs("body") };
            if !is_signed {
                let part = if in_url { "{{ query }} or {{ url }}" } else { "{{ body }}" };
                table.problem(
                    "signature.sign",
                    &format!("must use {part}, which names the message"),
                );
            }
            if format != Format::Query && !signs("body") {
                table.problem("signature.sign", "must use {{ body }}, which has the state");
            }
        }
        if table.value("state").is_none() {
            table.problem("state", "is missing");
        }
        let state = table.path("state");
        let (delivered, undelivered) =
            (words(&mut table, "delivered"), words(&mut table, "undelivered"));
        if delivered.iter().any(|word| is_one_of(&undelivered, word)) {
            table.problem("undelivered", "must have no word of delivered");
        }
        let reply = table.text("reply");
        Some(Self {
            format,
            list,
            id,
            reference,
            state: state?,
            delivered,
            undelivered,
            signature: signature.map_or(Some(None), |it| it.map(Some))?,
            reply,
        })
    }

    /// Whether receipts name the message by the provider's id only.
    pub(super) fn are_by_reference(&self) -> bool {
        self.reference.is_some() && self.id.is_none()
    }

    pub(super) fn are_signed(&self) -> bool {
        self.signature.is_some()
    }

    pub(super) fn reply(&self) -> ReceiptReply {
        self.reply.as_ref().map_or(ReceiptReply::EMPTY, |reply| ReceiptReply {
            body: Cow::Owned(reply.clone()),
            ..ReceiptReply::EMPTY
        })
    }

    pub(super) fn of(
        &self,
        call: &ReceiptCall<'_>,
        templates: &Templates,
    ) -> Result<Vec<GatewayReceipt>, ReceiptRefused> {
        self.verify(call, templates)?;
        let content = match self.format {
            Format::Json => call.json(),
            Format::Form => str::from_utf8(call.body).ok().map(pairs_as_json),
            Format::Query => Some(pairs_as_json(call.query)),
        };
        let content = content.ok_or_else(|| self.format.missing())?;
        let Some(list) = &self.list else {
            return Ok(self.one(&content, call)?.into_iter().collect());
        };
        let items = list.find(&content).and_then(Value::as_array);
        let items = items.ok_or_else(|| lacks("list", list))?;
        // Messages that other senders handed to the provider may be in the same list.
        Ok(items.iter().filter_map(|item| self.one(item, call).ok().flatten()).collect())
    }

    /// Returns one receipt, or none if its state is not final.
    fn one(
        &self,
        item: &Value,
        call: &ReceiptCall<'_>,
    ) -> Result<Option<GatewayReceipt>, ReceiptRefused> {
        let state = self.state.find(item).and_then(plain);
        let state = state.ok_or_else(|| lacks("state", &self.state))?;
        let receipt = if is_one_of(&self.delivered, &state) {
            Receipt::Delivered
        } else if is_one_of(&self.undelivered, &state) {
            Receipt::Undelivered
        } else {
            return Ok(None);
        };
        let of = self.named(item, call).ok_or_else(|| self.unnamed())?;
        Ok(Some(GatewayReceipt { of, receipt }))
    }

    fn named(&self, item: &Value, call: &ReceiptCall<'_>) -> Option<Reported> {
        let ours = self.id.as_ref().and_then(|path| path.text(item)?.parse().ok());
        let theirs = || self.reference.as_ref().and_then(|path| path.text(item));
        if self.id.is_none() && self.reference.is_none() {
            return call.id().map(Reported::Message);
        }
        ours.map(Reported::Message).or_else(|| theirs().map(Reported::Reference))
    }

    /// Says where no id was found.
    fn unnamed(&self) -> ReceiptRefused {
        match (&self.id, &self.reference) {
            (Some(path), None) => lacks("id of a message", path),
            (None, Some(path)) => lacks("message id", path),
            (Some(id), Some(reference)) => ReceiptRefused::Lacks(format!(
                "id of a message at the path {id}, and no message id at the path {reference}"
            )),
            (None, None) => ReceiptRefused::Lacks("id of a message in its URL".to_owned()),
        }
    }

    fn verify(&self, call: &ReceiptCall<'_>, templates: &Templates) -> Result<(), ReceiptRefused> {
        let Some(signature) = &self.signature else { return Ok(()) };
        let value = call.header(signature.header.as_str()).ok_or(ReceiptRefused::Unsigned)?;
        let variables = minijinja::Value::from(BTreeMap::from([
            ("body", minijinja::Value::from(String::from_utf8_lossy(call.body))),
            ("query", call.query.into()),
            ("url", call.url.into()),
            ("method", call.method.as_str().into()),
            ("headers", header_values(call.headers)),
        ]));
        let is_good = signature.is_good(value, templates, &variables);
        is_good.then_some(()).ok_or(ReceiptRefused::BadSignature)
    }
}

impl Format {
    fn missing(self) -> ReceiptRefused {
        ReceiptRefused::Lacks(match self {
            Self::Json => "body in JSON".to_owned(),
            Self::Form | Self::Query => "form in UTF-8".to_owned(),
        })
    }
}

fn lacks(part: &str, path: &Path) -> ReceiptRefused {
    ReceiptRefused::Lacks(format!("{part} at the path {path}"))
}

fn words(table: &mut Table<'_, '_, '_>, key: &str) -> Vec<String> {
    if table.value(key).is_none() {
        table.problem(key, "is missing");
    }
    table.texts(key).unwrap_or_default()
}

fn is_one_of(words: &[String], state: &str) -> bool {
    words.iter().any(|word| word.eq_ignore_ascii_case(state))
}

/// Returns the headers by their lower-case names.
fn header_values(headers: &HeaderMap) -> minijinja::Value {
    let values: BTreeMap<String, String> = headers
        .iter()
        .filter_map(|(name, value)| Some((name.to_string(), value.to_str().ok()?.to_owned())))
        .collect();
    values.into()
}
