//! What happened in a run, as those who took part saw it.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use serde::Serialize;

use crate::{
    clock::{Moment, now},
    gateway::{Answer, Memory},
};

/// A request to the API, when it has ended.
#[derive(Debug, Clone)]
pub struct Request {
    pub phone: String,
    pub asked_at: Moment,
    pub ended_at: Moment,
    pub reply: Reply,
}

/// How a request ended, by what follows from it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// 200: the message must end.
    Accepted,
    /// A proper 503: the message may have been stored.
    Refused,
    /// No answer: the message may have been stored.
    Lost,
    /// No answer within the limit, on a connection that stayed.
    Silent,
    /// An answer that the API never gives.
    Illegal(String),
}

/// A call of the gateway.
#[derive(Debug, Clone)]
pub struct Call {
    /// The idempotency key.
    pub id: String,
    pub phone: String,
    pub code: String,
    pub memory: Memory,
    pub answer: Answer,
    /// Whether the gateway took the SMS, and would be paid for it.
    pub paid: bool,
    pub began_at: Moment,
    /// None while it lasts.
    pub ended_at: Option<Moment>,
    /// Whether the answer went out to its last byte. That it arrived is another matter.
    pub whole: bool,
}

/// A fault, from its beginning to its end.
#[derive(Debug, Clone, Serialize)]
pub struct Trouble {
    /// The fault's name.
    pub kind: String,
    /// The process or the link that it hit.
    pub target: String,
    pub from: Moment,
    /// None while it lasts.
    pub to: Option<Moment>,
}

/// The kind of a trouble that nobody made.
pub const SLOW: &str = "slow";

/// A stretch of the run with one kind of gateway.
#[derive(Debug, Clone, Copy)]
pub struct Round {
    pub from: Moment,
    pub memory: Memory,
}

/// All that was seen.
#[derive(Debug, Default, Clone)]
pub struct History {
    pub requests: Vec<Request>,
    pub calls: Vec<Call>,
    pub troubles: Vec<Trouble>,
    pub rounds: Vec<Round>,
    /// Phones whose requests were made one after the other, each after the answer 200 to the one
    /// before.
    pub sequences: Vec<String>,
    /// Processes that ended though nobody had asked them to.
    pub crashes: Vec<(String, Moment)>,
}

/// The history while it is made.
#[derive(Debug, Default, Clone)]
pub struct Recorder(Arc<Mutex<History>>);

impl Recorder {
    pub fn history(&self) -> MutexGuard<'_, History> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes the beginning of a fault; the number is for [`Self::healed`].
    pub fn trouble(&self, kind: impl Into<String>, target: impl Into<String>) -> usize {
        let mut history = self.history();
        let trouble = Trouble { kind: kind.into(), target: target.into(), from: now(), to: None };
        history.troubles.push(trouble);
        history.troubles.len() - 1
    }

    pub fn healed(&self, number: usize) {
        self.healed_by(number, now());
    }

    /// For a fault whose effects last longer than it does.
    pub fn healed_by(&self, number: usize, at: Moment) {
        if let Some(trouble) = self.history().troubles.get_mut(number) {
            trouble.to = Some(at);
        }
    }

    /// Notes a time in which the machine had too much else to do.
    pub fn slow(&self, from: Moment) {
        self.history().troubles.push(Trouble {
            kind: SLOW.to_owned(),
            target: "machine".to_owned(),
            from,
            to: Some(now()),
        });
    }

    /// Ends the faults whose effects last until nothing is under way.
    pub fn all_healed(&self) {
        let at = now();
        for trouble in &mut self.history().troubles {
            trouble.to.get_or_insert(at);
        }
    }
}

impl Trouble {
    /// Whether it was there at some time between the two.
    pub fn overlaps(&self, from: Moment, to: Moment) -> bool {
        self.from <= to && self.to.is_none_or(|end| end >= from)
    }
}

impl History {
    /// What the gateway knew of messages at that time.
    pub fn memory_at(&self, at: Moment) -> Option<Memory> {
        self.rounds.iter().rev().find(|round| round.from <= at).map(|round| round.memory)
    }

    /// The faults between the two times, and shortly before and after: clocks are read one after
    /// the other.
    pub fn troubles_near(&self, from: Moment, to: Moment) -> impl Iterator<Item = &Trouble> {
        const MARGIN: Moment = 1_000;
        let (from, to) = (from.saturating_sub(MARGIN), to.saturating_add(MARGIN));
        self.troubles.iter().filter(move |trouble| trouble.overlaps(from, to))
    }

    /// The calls of each message, in the order of their arrival.
    pub fn calls_by_id(&self) -> HashMap<&str, Vec<&Call>> {
        let mut calls: HashMap<&str, Vec<&Call>> = HashMap::new();
        for call in &self.calls {
            calls.entry(&call.id).or_default().push(call);
        }
        calls
    }
}
