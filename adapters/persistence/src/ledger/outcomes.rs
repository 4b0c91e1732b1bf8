use application::ports::{CallOutcome, Verdict};

use crate::database::{Events, millis};

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
    pub(super) detail: &'a str,
}

impl<'a> Said<'a> {
    pub(super) fn of(outcome: &'a CallOutcome, manner: Manner) -> Self {
        let (verdict, wait, reference) = match &outcome.verdict {
            _ if manner.unknown => ("unknown", 0, None),
            Verdict::Sent { reference } => ("sent", 0, reference.as_deref()),
            Verdict::Failed => ("failed", 0, None),
            Verdict::Unknown => ("unknown", 0, None),
            Verdict::Retry { after } => ("pending", millis(*after), None),
        };
        let [reference, detail] = [reference.unwrap_or_default(), &*outcome.detail]
            .map(|text| if manner.texts { text } else { "" });
        Self { outcome, verdict, wait, reference, detail }
    }
}
