use application::{
    Chain,
    ports::{AwaitedReceipt, CallOutcome, Verdict},
};

use domain::GatewayName;

use super::entry::RecordedRow;
use crate::{
    database::{Database, Events, millis},
    receipts::references::{Kept, is_storable},
};

/// How outcomes are recorded.
#[derive(Debug, Clone, Copy)]
pub(super) struct Manner {
    pub(super) texts: bool,
    pub(super) events: Events,
    /// Records every outcome as unknown.
    pub(super) unknown: bool,
}

/// An outcome as it is stored.
#[derive(Debug, Clone, Copy)]
pub(super) struct Said<'a> {
    pub(super) outcome: &'a CallOutcome,
    pub(super) verdict: &'static str,
    /// Until the next call, in milliseconds.
    pub(super) wait: i64,
    /// Empty if there is none.
    pub(super) reference: &'a str,
    /// The reference by which receipts find the message. Empty if they need none.
    pub(super) receipts_of: &'a str,
    pub(super) detail: &'a str,
    /// The receipt without which the code is sent again.
    pub(super) awaited: Option<&'a AwaitedReceipt>,
}

/// The changes that one commit recorded.
#[derive(Debug)]
pub(super) struct Finished {
    pub(super) recorded: Vec<RecordedRow>,
    /// Receipts that came before their outcome.
    pub(super) early: Vec<Kept>,
}

impl Finished {
    /// Stores the receipts that came early. If that fails, the housekeeping does it.
    pub(super) async fn settle(self, database: &Database) -> Vec<RecordedRow> {
        for receipt in &self.early {
            if let Err(error) = receipt.settle(database).await {
                tracing::debug!(error = %Chain(&error), "an early receipt is stored later");
            }
        }
        self.recorded
    }
}

impl<'a> Said<'a> {
    pub(super) fn of(outcome: &'a CallOutcome, manner: Manner) -> Self {
        let (verdict, wait, reference, is_named) = match &outcome.verdict {
            _ if manner.unknown => ("unknown", 0, None, false),
            Verdict::Sent { reference, receipts_by_reference, .. } => {
                ("sent", 0, reference.as_deref(), *receipts_by_reference)
            }
            Verdict::Failed => ("failed", 0, None, false),
            Verdict::Unknown => ("unknown", 0, None, false),
            Verdict::Retry { after } => ("pending", millis(*after), None, false),
        };
        let [reference, detail] = [reference.unwrap_or_default(), &*outcome.detail]
            .map(|text| if manner.texts { text } else { "" });
        let receipts_of = if is_named && is_storable(reference) { reference } else { "" };
        let awaited = match &outcome.verdict {
            Verdict::Sent { awaited, .. } if manner.texts => awaited.as_ref(),
            _ => None,
        };
        Self { outcome, verdict, wait, reference, receipts_of, detail, awaited }
    }

    /// Whether the outcome adds rows to other tables.
    pub(super) fn has_more(&self) -> bool {
        !self.receipts_of.is_empty() || self.awaited.is_some()
    }
}

/// The gateways that the next message must not go through, as they are stored.
pub(super) fn passed_over(awaited: &AwaitedReceipt) -> String {
    let names: Vec<&str> = awaited.passed_over.iter().map(GatewayName::as_str).collect();
    names.join(" ")
}
