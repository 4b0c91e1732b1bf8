//! Receipts of providers that do not document their form: settings name the fields and the states.

use std::collections::BTreeSet;

use application::ports::{GatewayReceipt, Receipt, Reported};
use serde_json::{Map, Value};

use crate::{
    answer::scalar,
    fields::Fields,
    provider::{ReceiptCall, ReceiptRefused},
    spec::{Field, FieldKind},
};

#[cfg(test)]
mod tests;

/// The form of the receipts of one gateway.
///
/// A receipt is an object of JSON, a list of such objects, a form or a query.
#[derive(Debug)]
pub(crate) struct Reports {
    /// The field of the provider's id, with a dot for each level: `data.id`.
    id: String,
    /// The field of the state.
    status: String,
    states: States,
}

/// The states that are final. The case of letters does not matter.
#[derive(Debug)]
pub(crate) struct States {
    delivered: BTreeSet<String>,
    undelivered: BTreeSet<String>,
}

/// The setting `receipt_id`, with this default.
pub(crate) const fn id_field(default: &'static str) -> Field {
    Field::with_default(
        "receipt_id",
        FieldKind::Text,
        default,
        "The field of receipts with the id; a dot for each level",
    )
}

/// The setting `receipt_status`, with this default.
pub(crate) const fn status_field(default: &'static str) -> Field {
    Field::with_default(
        "receipt_status",
        FieldKind::Text,
        default,
        "The field of receipts with the state",
    )
}

/// The setting `delivered`, with this default.
pub(crate) const fn delivered_field(default: &'static str) -> Field {
    Field::with_default("delivered", FieldKind::Text, default, "The states that mean delivered")
}

/// The setting `undelivered`, with this default.
pub(crate) const fn undelivered_field(default: &'static str) -> Field {
    Field::with_default(
        "undelivered",
        FieldKind::Text,
        default,
        "The states that mean undelivered. Other states are not final",
    )
}

impl Reports {
    /// Reads the settings `receipt_id`, `receipt_status`, `delivered` and `undelivered`.
    pub(crate) fn of(fields: &mut Fields<'_>) -> Option<Self> {
        let (id, status) = (fields.text("receipt_id"), fields.text("receipt_status"));
        let known = States::of(fields);
        Some(Self { id: id?, status: status?, states: known? })
    }

    /// Reads a receipt.
    ///
    /// If the provider called the URL of one message, that is the message. Otherwise, it is found by
    /// the provider's id.
    pub(crate) fn receipts(
        &self,
        call: &ReceiptCall<'_>,
    ) -> Result<Vec<GatewayReceipt>, ReceiptRefused> {
        let entries = entries(call);
        let ours = call.id().filter(|_| entries.len() == 1);
        let mut receipts = Vec::new();
        for entry in &entries {
            let status = field(entry, &self.status).ok_or(ReceiptRefused::Unreadable)?;
            let Some(receipt) = self.states.receipt(&status) else { continue };
            let of = ours.map(Reported::Message);
            let of = of.or_else(|| field(entry, &self.id).map(Reported::Reference));
            receipts.push(GatewayReceipt { of: of.ok_or(ReceiptRefused::Unreadable)?, receipt });
        }
        if entries.is_empty() { Err(ReceiptRefused::Unreadable) } else { Ok(receipts) }
    }

    /// Returns the receipt that a state stands for, if it is final.
    pub(crate) fn receipt(&self, state: &str) -> Option<Receipt> {
        self.states.receipt(state)
    }
}

impl States {
    /// Reads the settings `delivered` and `undelivered`.
    pub(crate) fn of(fields: &mut Fields<'_>) -> Option<Self> {
        let (delivered, undelivered) = (words(fields, "delivered"), words(fields, "undelivered"));
        let states = Self { delivered: delivered?, undelivered: undelivered? };
        if states.delivered.is_disjoint(&states.undelivered) {
            Some(states)
        } else {
            fields.problem("undelivered", "has a state that `delivered` has too");
            None
        }
    }

    pub(crate) fn receipt(&self, state: &str) -> Option<Receipt> {
        let state = state.to_lowercase();
        if self.delivered.contains(&state) {
            Some(Receipt::Delivered)
        } else if self.undelivered.contains(&state) {
            Some(Receipt::Undelivered)
        } else {
            None
        }
    }
}

/// Reads a list of words that are separated by commas.
fn words(fields: &mut Fields<'_>, name: &str) -> Option<BTreeSet<String>> {
    let text = fields.text(name)?;
    Some(
        text.split(',')
            .map(|word| word.trim().to_lowercase())
            .filter(|it| !it.is_empty())
            .collect(),
    )
}

/// Returns the receipts of a call, each as a table.
fn entries(call: &ReceiptCall<'_>) -> Vec<Map<String, Value>> {
    match call.json() {
        Some(Value::Object(entry)) => return vec![entry],
        Some(Value::Array(list)) => {
            return list
                .into_iter()
                .filter_map(|it| if let Value::Object(entry) = it { Some(entry) } else { None })
                .collect();
        }
        _ => {}
    }
    let mut entry = Map::new();
    // Our own `id` comes first in the query, and the provider's replaces it.
    for (name, value) in call.query_pairs().into_iter().chain(call.form_pairs()) {
        entry.insert(name, value.into());
    }
    if entry.is_empty() { Vec::new() } else { vec![entry] }
}

/// Returns the value of a field, at a path with dots.
fn field(entry: &Map<String, Value>, path: &str) -> Option<String> {
    let mut names = path.split('.');
    let first = entry.get(names.next()?)?;
    scalar(names.try_fold(first, |value, name| value.get(name))?)
}
