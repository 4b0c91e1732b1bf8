use std::{collections::HashMap, fmt::Write};

use crate::{
    chaos::history::{Call, History},
    kit::{
        clock::Moment,
        phones::masked,
        tables::{Entry, Ledger},
    },
};

/// The evidence for a violation: rows, calls, and the faults of that time.
pub(super) struct Evidence<'a> {
    text: String,
    history: &'a History,
    calls: &'a HashMap<&'a str, Vec<&'a Call>>,
    /// The time that the violation spans.
    span: Option<(Moment, Moment)>,
}

/// How many faults are listed.
const FAULTS: usize = 40;

impl<'a> Evidence<'a> {
    pub(super) fn new(
        complaint: &str,
        history: &'a History,
        calls: &'a HashMap<&'a str, Vec<&'a Call>>,
    ) -> Self {
        Self { text: complaint.to_owned(), history, calls, span: None }
    }

    pub(super) fn entry(mut self, entry: &Entry) -> Self {
        self.line(format_args!(
            "{} to {}: {} after {} attempts, accepted {}, called {:?}, ended {:?}, {}",
            entry.id,
            masked(&entry.phone),
            entry.state,
            entry.attempt,
            entry.accepted_at,
            entry.called_at,
            entry.ended_at,
            entry.detail.as_deref().unwrap_or("no detail"),
        ));
        self.incidents(entry.accepted_at, entry.ended_at.unwrap_or(entry.accepted_at))
            .calls(&entry.id)
    }

    /// Adds the calls of a message.
    pub(super) fn calls(mut self, id: &str) -> Self {
        for call in self.calls.get(id).into_iter().flatten() {
            self.line(format_args!(
                "call at {}, until {:?}: {} from gateway {}, which is {}, {}, {}",
                call.began_at,
                call.ended_at,
                call.answer,
                call.gateway,
                call.kind,
                if call.paid { "taken" } else { "not taken" },
                if call.whole { "answered" } else { "answer cut off" },
            ));
            self = self.incidents(call.began_at, call.ended_at.unwrap_or(call.began_at));
        }
        self
    }

    /// Adds the requests for a phone, and the messages that came of them.
    pub(super) fn phone(mut self, phone: &str, ledger: &Ledger) -> Self {
        /// How long after a request its message may still be stored.
        const STORED: Moment = 5_000;
        for request in self.history.requests.iter().filter(|request| request.phone == phone) {
            let (from, to) = (request.asked_at, request.ended_at);
            let detail = request.detail.as_deref().unwrap_or_default();
            self.line(format_args!("asked at {from}, until {to}: {:?} {detail}", request.reply));
            self = self.incidents(from, to + STORED);
        }
        for entry in ledger.entries.iter().filter(|entry| entry.phone == phone) {
            self = self.entry(entry);
        }
        self
    }

    /// Adds the faults of that time.
    pub(super) fn incidents(mut self, from: Moment, to: Moment) -> Self {
        let (first, last) = self.span.unwrap_or((from, to));
        self.span = Some((first.min(from), last.max(to)));
        self
    }

    pub(super) fn text(mut self) -> String {
        if let Some((from, to)) = self.span {
            for incident in self.history.incidents_near(from, to).take(FAULTS) {
                self.line(format_args!(
                    "fault {} of {}, {} to {:?}",
                    incident.kind, incident.target, incident.from, incident.to
                ));
            }
        }
        self.text
    }

    fn line(&mut self, line: std::fmt::Arguments<'_>) {
        // Writing to a string cannot fail.
        let _ = write!(self.text, "\n  {line}");
    }
}
