//! Everything that happened in a run, as clients, gateway and nemesis saw it.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use serde::Serialize;

use crate::kit::{
    clock::{Moment, now},
    progress::{Progress, clock},
    recorder::{self, AfterAmbiguous, Answer, GatewayKind, Recorder, Reply},
};

/// A request to the API that has ended.
#[derive(Debug, Clone)]
pub struct Request {
    pub phone: String,
    pub asked_at: Moment,
    pub ended_at: Moment,
    pub reply: Reply,
    /// The improper answer, or the error.
    pub detail: Option<String>,
}

/// A call of the gateway.
#[derive(Debug, Clone)]
pub struct Call {
    /// The idempotency key. If the body has another id, both, with a slash between them.
    pub id: String,
    pub phone: String,
    pub code: String,
    /// The place of the gateway among those of the testbed.
    pub gateway: usize,
    pub kind: GatewayKind,
    pub answer: Answer,
    /// Whether the gateway took the SMS, and would be paid for it.
    pub paid: bool,
    pub began_at: Moment,
    /// `None` while it lasts.
    pub ended_at: Option<Moment>,
    /// Whether the gateway sent its answer to the last byte. That does not show that it arrived.
    pub whole: bool,
}

/// A fault that was injected, from its beginning to its end.
#[derive(Debug, Clone, Serialize)]
pub struct Incident {
    /// The fault's name.
    pub kind: String,
    /// The process or the link that it hit.
    pub target: String,
    pub from: Moment,
    /// `None` while it lasts.
    pub to: Option<Moment>,
}

/// The kind of an incident that was not injected: the machine was too busy.
pub const SLOW: &str = "slow";

/// The target of the faults of the first of several gateways.
pub const FIRST_GATEWAY: &str = "first gateway";

/// A part of the run with one kind of gateway.
#[derive(Debug, Clone, Copy)]
pub struct Round {
    pub from: Moment,
    pub kind: GatewayKind,
    /// What follows an ambiguous call. Without a second gateway, only [`AfterAmbiguous::Same`] is
    /// possible.
    pub ambiguous: AfterAmbiguous,
}

/// All that was seen.
#[derive(Debug, Default, Clone)]
pub struct History {
    pub requests: Vec<Request>,
    pub calls: Vec<Call>,
    pub incidents: Vec<Incident>,
    pub rounds: Vec<Round>,
    /// Phones with several requests, each made after the answer 200 to the one before.
    pub sequences: Vec<String>,
    /// Processes that ended by themselves.
    pub crashes: Vec<(String, Moment)>,
}

/// The history while it is written.
#[derive(Debug, Default, Clone)]
pub struct SharedHistory(Arc<Mutex<History>>);

impl SharedHistory {
    pub fn lock(&self) -> MutexGuard<'_, History> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records the beginning of a fault. Returns its number for [`Self::fault_ended`].
    pub fn fault_began(&self, kind: impl Into<String>, target: impl Into<String>) -> usize {
        let mut history = self.lock();
        let incident = Incident { kind: kind.into(), target: target.into(), from: now(), to: None };
        history.incidents.push(incident);
        history.incidents.len() - 1
    }

    pub fn fault_ended(&self, number: usize) {
        self.fault_ends_at(number, now());
    }

    /// Records the end of a fault whose effects last longer than the fault itself.
    pub fn fault_ends_at(&self, number: usize, at: Moment) {
        if let Some(incident) = self.lock().incidents.get_mut(number) {
            incident.to = Some(at);
        }
    }

    /// Records a time in which the machine was too busy.
    pub fn slow(&self, from: Moment) {
        self.lock().incidents.push(Incident {
            kind: SLOW.to_owned(),
            target: "machine".to_owned(),
            from,
            to: Some(now()),
        });
    }

    /// Ends the faults whose effects last until nothing is in flight.
    pub fn all_faults_ended(&self) {
        let at = now();
        for incident in &mut self.lock().incidents {
            incident.to.get_or_insert(at);
        }
    }

    /// Shows how far a run of this length has come.
    pub fn show_progress(&self, length: Duration) -> Progress {
        let history = self.clone();
        Progress::show(move |lasted| {
            let history = history.lock();
            let (requests, faults) = (history.requests.len(), history.incidents.len());
            let (lasted, length) = (clock(lasted), clock(length));
            format!("chaos: {lasted} of {length}, {requests} requests, {faults} faults")
        })
    }

    pub fn crashed(&self, process: String) {
        self.lock().crashes.push((process, now()));
    }
}

impl Recorder for SharedHistory {
    fn answered(&self, request: &recorder::Request<'_>) {
        let &recorder::Request { phone, asked_at, ended_at, reply, detail } = request;
        let (phone, detail) = (phone.to_owned(), detail.map(ToOwned::to_owned));
        self.lock().requests.push(Request { phone, asked_at, ended_at, reply, detail });
    }

    fn called(&self, call: &recorder::Call<'_>) -> usize {
        let &recorder::Call { key, id, phone, code, gateway, kind, answer, paid } = call;
        let mut history = self.lock();
        history.calls.push(Call {
            // A key that is not the message's id is not a key of that message.
            id: if key == id { id.to_owned() } else { format!("{key}/{id}") },
            phone: phone.to_owned(),
            code: code.to_owned(),
            gateway,
            kind,
            answer,
            paid,
            began_at: now(),
            ended_at: None,
            whole: false,
        });
        history.calls.len() - 1
    }

    fn call_ended(&self, number: usize, is_whole: bool) {
        if let Some(call) = self.lock().calls.get_mut(number) {
            call.ended_at = Some(now());
            call.whole = is_whole;
        }
    }
}

impl Round {
    /// Begins a round with one gateway.
    pub fn new(kind: GatewayKind) -> Self {
        Self { from: now(), kind, ambiguous: AfterAmbiguous::Same }
    }
}

impl Incident {
    /// Whether it lasted at some time between the two.
    pub fn overlaps(&self, from: Moment, to: Moment) -> bool {
        self.from <= to && self.to.is_none_or(|end| end >= from)
    }
}

impl History {
    /// Returns the round of that time.
    pub fn round_at(&self, at: Moment) -> Option<&Round> {
        self.rounds.iter().rev().find(|round| round.from <= at)
    }

    /// Returns the faults of the first of several gateways.
    pub fn outages(&self) -> impl Iterator<Item = &Incident> {
        self.incidents.iter().filter(|incident| incident.target == FIRST_GATEWAY)
    }

    /// Returns the calls of a gateway that it took and answered well, from a time on.
    pub fn taken_by(&self, gateway: usize, from: Moment) -> impl Iterator<Item = &Call> {
        self.calls.iter().filter(move |call| {
            let is_good = call.paid && call.whole && call.answer == Answer::Accept;
            call.gateway == gateway && call.began_at >= from && is_good
        })
    }

    /// Returns the incidents between the two times, and up to a second before and after: an
    /// incident and its effect are recorded one after the other.
    pub fn incidents_near(&self, from: Moment, to: Moment) -> impl Iterator<Item = &Incident> {
        const MARGIN: Moment = 1_000;
        let (from, to) = (from.saturating_sub(MARGIN), to.saturating_add(MARGIN));
        self.incidents.iter().filter(move |incident| incident.overlaps(from, to))
    }

    /// Returns the calls of each message, in the order in which they arrived.
    pub fn calls_by_id(&self) -> HashMap<&str, Vec<&Call>> {
        let mut calls: HashMap<&str, Vec<&Call>> = HashMap::new();
        for call in &self.calls {
            calls.entry(&call.id).or_default().push(call);
        }
        calls
    }
}
