//! From the request to the ledger: accept, claim, publish, settle, sweep.
//!
//! This is one file, because it is one model with one state.

use stateright::{Model, Property};

use super::{assert_holds, assert_refuted};

/// Two messages to one phone.
const MESSAGES: usize = 2;
const RELAYS: usize = 2;
/// Two faults give 148 thousand states.
const FAULTS: u8 = 2;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flaw {
    AnswerBeforeCommit,
    ClaimWithoutSkippingTheLeased,
    ClaimPastAnOlderMessage,
    SettleWithoutAttempt,
    SettleBeforeAck,
    NoClosedLoop,
}

#[derive(Debug, Clone, Copy)]
struct Publishing {
    /// The maximum number of faults in a run.
    faults: u8,
    flaw: Option<Flaw>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
struct State {
    requests: [Request; MESSAGES],
    rows: [Row; MESSAGES],
    relays: [Relay; RELAYS],
    topic: Vec<usize>,
    /// The offset that the consumer reads next. It survives the deletion of the topic.
    offset: usize,
    ledger: [bool; MESSAGES],
    /// The number of faults so far.
    faults: u8,
    /// Facts for the properties, which no process knows.
    first_published: Vec<usize>,
    claimed_twice: bool,
    stale_write: bool,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
enum Request {
    #[default]
    New,
    /// Stored but not answered. With the flaw, answered but not stored.
    Half,
    Answered,
    /// The API crashed while it handled the request.
    Gone,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
struct Row {
    place: Place,
    attempt: u8,
    leased: bool,
    publications: u8,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
enum Place {
    #[default]
    Nowhere,
    Outbox,
    InTransit,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Relay {
    /// Message and attempt of each message to publish.
    claims: Vec<(usize, u8)>,
    /// Message and attempt of each published message to settle.
    published: Vec<(usize, u8)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    Accept(usize),
    Answer(usize),
    CrashApi(usize),
    Claim { relay: usize, limit: usize },
    Publish { relay: usize, arrives: bool, answered: bool },
    Settle(usize),
    CrashRelay(usize),
    LeaseEnds(usize),
    Take,
    Sweep(usize),
    WipeTopic,
}

const NOTHING_LOST: &str = "every answered message reaches the ledger";
const IN_ORDER: &str = "a phone's messages are first published in their order";
const ONE_CLAIM: &str = "no other relay claims a leased message";
const FENCED: &str = "a claim that is no longer the latest settles nothing";
const IN_TRANSIT: &str = "every message in transit was published";

impl Publishing {
    fn has(self, flaw: Flaw) -> bool {
        self.flaw == Some(flaw)
    }

    /// The actions without further faults.
    fn progress(self, state: &State, actions: &mut Vec<Action>) {
        for message in 0..MESSAGES {
            let is_next = state.requests[..message].iter().all(|it| *it != Request::New);
            match state.requests[message] {
                Request::New if is_next => actions.push(Action::Accept(message)),
                Request::Half => actions.push(Action::Answer(message)),
                _ => {}
            }
            let row = state.rows[message];
            if row.leased && !state.is_held(message) {
                actions.push(Action::LeaseEnds(message));
            }
            if row.place == Place::InTransit && !state.will_be_read(message) {
                actions.push(Action::Sweep(message));
            }
        }
        for (relay, it) in state.relays.iter().enumerate() {
            if self.may_settle(it) {
                actions.push(Action::Settle(relay));
            }
            if it.claims.is_empty() {
                for limit in 1..=MESSAGES {
                    let claims = self.claimable(state, limit).len();
                    // Otherwise this equals a claim with a lower limit.
                    if claims == limit {
                        actions.push(Action::Claim { relay, limit });
                    }
                }
            } else if !(self.has(Flaw::SettleBeforeAck) && self.may_settle(it)) {
                actions.push(Action::Publish { relay, arrives: true, answered: true });
            }
        }
        if state.offset != state.topic.len() {
            actions.push(Action::Take);
        }
    }

    fn faults(state: &State, actions: &mut Vec<Action>) {
        let half = |message: &usize| state.requests[*message] == Request::Half;
        actions.extend((0..MESSAGES).filter(half).map(Action::CrashApi));
        for relay in 0..RELAYS {
            if state.relays[relay] != Relay::default() {
                actions.push(Action::CrashRelay(relay));
            }
            if !state.relays[relay].claims.is_empty() {
                for arrives in [true, false] {
                    actions.push(Action::Publish { relay, arrives, answered: false });
                }
            }
        }
        for message in 0..MESSAGES {
            // A relay is paused until its lease has ended.
            if state.rows[message].leased && state.is_held(message) {
                actions.push(Action::LeaseEnds(message));
            }
            // The consumer lags, and the records that it has not read are overdue.
            if state.rows[message].place == Place::InTransit && state.will_be_read(message) {
                actions.push(Action::Sweep(message));
            }
        }
        if !state.topic.is_empty() {
            actions.push(Action::WipeTopic);
        }
    }

    /// Between two batches.
    fn may_settle(self, relay: &Relay) -> bool {
        !relay.published.is_empty() && (relay.claims.is_empty() || self.has(Flaw::SettleBeforeAck))
    }

    fn claimable(self, state: &State, limit: usize) -> Vec<usize> {
        let waits = |message: &usize| state.rows[*message].place == Place::Outbox;
        let free = |message: &usize| {
            self.has(Flaw::ClaimWithoutSkippingTheLeased) || !state.rows[*message].leased
        };
        let mut claims: Vec<usize> = (0..MESSAGES).filter(waits).filter(free).take(limit).collect();
        if !self.has(Flaw::ClaimPastAnOlderMessage) {
            let candidates = claims.clone();
            let elsewhere = |older: &usize| {
                waits(older) && state.rows[*older].publications == 0 && !candidates.contains(older)
            };
            claims.retain(|message| !(0..*message).any(|older| elsewhere(&older)));
        }
        claims
    }

    fn settle(self, state: &mut State, (message, attempt): (usize, u8)) {
        let row = &mut state.rows[message];
        let is_ours = row.attempt == attempt;
        if row.place != Place::Outbox || (!is_ours && !self.has(Flaw::SettleWithoutAttempt)) {
            return;
        }
        state.stale_write |= !is_ours;
        row.place = Place::InTransit;
        row.leased = false;
        row.publications += 1;
    }
}

impl Relay {
    fn holds(&self, message: usize, attempt: u8) -> bool {
        self.claims.iter().chain(&self.published).any(|claim| *claim == (message, attempt))
    }
}

impl State {
    fn will_be_read(&self, message: usize) -> bool {
        self.topic.iter().skip(self.offset).any(|it| *it == message)
    }

    /// Whether a relay holds the latest claim of a message.
    fn is_held(&self, message: usize) -> bool {
        let attempt = self.rows[message].attempt;
        self.relays.iter().any(|relay| relay.holds(message, attempt))
    }

    fn is_fault(&self, action: Action) -> bool {
        match action {
            Action::CrashApi(_) | Action::CrashRelay(_) | Action::WipeTopic => true,
            Action::Publish { answered, .. } => !answered,
            Action::LeaseEnds(message) => self.is_held(message),
            Action::Sweep(message) => self.will_be_read(message),
            _ => false,
        }
    }

    /// Relays are interchangeable.
    fn representative(&self) -> Self {
        let mut state = self.clone();
        state.relays.sort_unstable();
        state
    }
}

impl Model for Publishing {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State::default()]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        self.progress(state, actions);
        if state.faults < self.faults {
            Self::faults(state, actions);
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        state.faults += u8::from(last.is_fault(action));
        match action {
            Action::Accept(message) => {
                state.requests[message] = Request::Half;
                if !self.has(Flaw::AnswerBeforeCommit) {
                    state.rows[message].place = Place::Outbox;
                }
            }
            Action::Answer(message) => {
                state.requests[message] = Request::Answered;
                if self.has(Flaw::AnswerBeforeCommit) {
                    state.rows[message].place = Place::Outbox;
                }
            }
            Action::CrashApi(message) => {
                let answered = self.has(Flaw::AnswerBeforeCommit);
                state.requests[message] = if answered { Request::Answered } else { Request::Gone };
            }
            Action::Claim { relay, limit } => {
                for message in self.claimable(last, limit) {
                    let row = &mut state.rows[message];
                    state.claimed_twice |= row.leased && last.is_held(message);
                    row.leased = true;
                    row.attempt += 1;
                    state.relays[relay].claims.push((message, row.attempt));
                }
                if self.has(Flaw::SettleBeforeAck) {
                    let relay = &mut state.relays[relay];
                    relay.published.extend(&relay.claims);
                }
            }
            Action::Publish { relay, arrives, answered } => {
                let relay = &mut state.relays[relay];
                let claim = relay.claims.remove(0);
                if arrives {
                    state.topic.push(claim.0);
                    if !state.first_published.contains(&claim.0) {
                        state.first_published.push(claim.0);
                    }
                }
                if !answered {
                    // The rest of the partition is held back.
                    relay.claims.clear();
                } else if !self.has(Flaw::SettleBeforeAck) {
                    relay.published.push(claim);
                }
            }
            Action::Settle(relay) => {
                // The oldest may be settled without later ones.
                let claim = state.relays[relay].published.remove(0);
                self.settle(&mut state, claim);
            }
            Action::CrashRelay(relay) => {
                state.relays[relay] = Relay::default();
            }
            Action::LeaseEnds(message) => state.rows[message].leased = false,
            // The records that it had not read were deleted. It continues from the earliest.
            Action::Take if last.offset > last.topic.len() => state.offset = 0,
            Action::Take => {
                let message = last.topic[last.offset];
                state.offset += 1;
                state.ledger[message] = true;
                state.rows[message] = Row { place: Place::Nowhere, ..state.rows[message] };
            }
            Action::Sweep(message) => {
                if self.has(Flaw::NoClosedLoop) {
                    return None;
                }
                state.rows[message].place = Place::Outbox;
            }
            Action::WipeTopic => {
                state.topic.clear();
            }
        }
        (state != *last).then_some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(NOTHING_LOST, |model, state: &State| {
                let lost = |message: usize| {
                    state.requests[message] == Request::Answered && !state.ledger[message]
                };
                if !(0..MESSAGES).any(lost) {
                    return true;
                }
                let mut actions = Vec::new();
                model.progress(state, &mut actions);
                actions.iter().any(|action| model.next_state(state, *action).is_some())
            }),
            Property::always(IN_ORDER, |_, state: &State| state.first_published.is_sorted()),
            Property::always(ONE_CLAIM, |_, state: &State| !state.claimed_twice),
            Property::always(FENCED, |_, state: &State| !state.stale_write),
            Property::always(IN_TRANSIT, |_, state: &State| {
                (0..MESSAGES).all(|message| {
                    state.rows[message].place != Place::InTransit
                        || state.first_published.contains(&message)
                })
            }),
        ]
    }
}

#[test]
fn every_answered_message_reaches_the_ledger_in_order() {
    let model = Publishing { faults: FAULTS, flaw: None };

    assert_holds("publishing", model, State::representative);
}

#[track_caller]
fn check(flaw: Flaw, property: &'static str) {
    let model = Publishing { faults: FAULTS, flaw: Some(flaw) };
    assert_refuted(&format!("{flaw:?}"), model, property);
}

#[test]
fn an_answer_before_the_commit_loses_messages() {
    check(Flaw::AnswerBeforeCommit, NOTHING_LOST);
}

#[test]
fn a_claim_that_does_not_skip_leased_rows_takes_them_from_their_relay() {
    check(Flaw::ClaimWithoutSkippingTheLeased, ONE_CLAIM);
}

#[test]
fn a_claim_past_an_older_message_breaks_the_order() {
    check(Flaw::ClaimPastAnOlderMessage, IN_ORDER);
}

#[test]
fn a_settlement_without_the_attempt_lets_a_late_relay_write() {
    check(Flaw::SettleWithoutAttempt, FENCED);
}

#[test]
fn a_settlement_before_the_acknowledgement_is_untrue_and_breaks_the_order() {
    check(Flaw::SettleBeforeAck, IN_TRANSIT);
    check(Flaw::SettleBeforeAck, IN_ORDER);
}

#[test]
fn without_the_closed_loop_a_wiped_topic_loses_messages() {
    check(Flaw::NoClosedLoop, NOTHING_LOST);
}
