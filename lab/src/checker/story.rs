use std::{collections::HashMap, fmt::Write};

use crate::{
    clock::Moment,
    history::{Call, History},
    ledger::{Entry, Ledger},
    phones::masked,
};

/// What there is to investigate a violation with: the rows, the calls, the faults around.
pub(super) struct Story<'a> {
    text: String,
    history: &'a History,
    calls: &'a HashMap<&'a str, Vec<&'a Call>>,
    /// The time that it is about.
    span: Option<(Moment, Moment)>,
}

/// Faults that are listed.
const FAULTS: usize = 40;

impl<'a> Story<'a> {
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
        self.troubles(entry.accepted_at, entry.ended_at.unwrap_or(entry.accepted_at))
            .calls(&entry.id)
    }

    /// The calls of a message.
    pub(super) fn calls(mut self, id: &str) -> Self {
        for call in self.calls.get(id).into_iter().flatten() {
            self.line(format_args!(
                "call at {}, until {:?}: {} of a gateway that is {}, {}, {}",
                call.began_at,
                call.ended_at,
                call.answer,
                call.memory,
                if call.paid { "taken" } else { "not taken" },
                if call.whole { "answered" } else { "answer broken off" },
            ));
            self = self.troubles(call.began_at, call.ended_at.unwrap_or(call.began_at));
        }
        self
    }

    /// All that was asked for a phone, and what came of it.
    pub(super) fn phone(mut self, phone: &str, ledger: &Ledger) -> Self {
        /// How long after a request its message may still be stored.
        const STORED: Moment = 5_000;
        for request in self.history.requests.iter().filter(|request| request.phone == phone) {
            let (from, to) = (request.asked_at, request.ended_at);
            self.line(format_args!("asked at {from}, until {to}: {:?}", request.reply));
            self = self.troubles(from, to + STORED);
        }
        for entry in ledger.entries.iter().filter(|entry| entry.phone == phone) {
            self = self.entry(entry);
        }
        self
    }

    /// The faults of that time, too.
    pub(super) fn troubles(mut self, from: Moment, to: Moment) -> Self {
        let (first, last) = self.span.unwrap_or((from, to));
        self.span = Some((first.min(from), last.max(to)));
        self
    }

    pub(super) fn told(mut self) -> String {
        if let Some((from, to)) = self.span {
            for trouble in self.history.troubles_near(from, to).take(FAULTS) {
                self.line(format_args!(
                    "fault {} of {}, {} to {:?}",
                    trouble.kind, trouble.target, trouble.from, trouble.to
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
