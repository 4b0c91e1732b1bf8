//! Between two gateways: look, choose, start, call, finish.
//!
//! The model has one message that is in the ledger, and at any time the router may prefer either gateway
//! that it may choose. It chooses by what the consumer read when it looked, which may be out of date. This
//! is one file, because it is one model with one state.

use stateright::{Model, Property};

use super::{assert_holds, assert_refuted};

const CONSUMERS: usize = 2;
const GATEWAYS: usize = 2;
/// Four faults give up to 70 thousand states.
const FAULTS: u8 = 4;

/// A fact about each gateway.
type Each = [bool; GATEWAYS];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum AfterAmbiguous {
    /// Ask the same gateway again if it deduplicates.
    Same,
    /// Ask another gateway.
    Next,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flaw {
    IntentWithoutGateway,
    GrantKeepsItsFirstGateway,
    AmbiguousOutcomeIsForgotten,
    InterruptedCallIsForgotten,
    WaitForgetsTheInterruptedCall,
    RefusalClearsTheGateway,
    AmbiguousMayGoElsewhere,
    MayBeTakenAgain,
    RejectionEndsAsFailed,
    UnknownIgnoresALateOutcome,
}

#[derive(Debug, Clone, Copy)]
struct Failover {
    policy: AfterAmbiguous,
    deduplicates: Each,
    flaw: Option<Flaw>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct State {
    lease: Lease,
    entry: Entry,
    consumers: [Consumer; CONSUMERS],
    /// The number of faults so far.
    faults: u8,
    /// Facts for the properties, which no process knows: how many SMS each gateway has sent, whether a call
    /// had no clear outcome, and whether a gateway rejected the message.
    sent: [u8; GATEWAYS],
    excused: bool,
    rejected: bool,
    call_out_of_turn: bool,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
struct Lease {
    is_held: bool,
    epoch: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Entry {
    stage: Stage,
    attempt: u8,
    /// The epoch under which the last call began.
    epoch: u8,
    gateway: Option<usize>,
    /// The gateways that may have the message.
    maybe: Each,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Stage {
    Pending,
    /// `late` once the call must have ended.
    Calling {
        late: bool,
    },
    Sent,
    Failed,
    Unknown,
}

/// The memory of a consumer. A crash clears it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Consumer {
    /// The epoch of the lease that it believes to hold.
    epoch: Option<u8>,
    /// The gateways that may have the message, as it last read.
    knows: Option<Each>,
    call: Option<Call>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Call {
    attempt: u8,
    gateway: usize,
    maybe: Each,
    /// `None` until the call has ended.
    outcome: Option<Outcome>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Outcome {
    is_ambiguous: bool,
    verdict: Verdict,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Verdict {
    Sent,
    Failed,
    Unknown,
    Retry,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    Acquire(usize),
    Look(usize),
    /// `heard`, here and below: the answer to the commit arrives.
    Start {
        consumer: usize,
        next: Next,
        heard: bool,
    },
    GiveUp(usize),
    Call(usize, Answer),
    Finish {
        consumer: usize,
        heard: bool,
    },
    CallIsOver,
    Crash(usize),
    LeaseEnds,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    Call(usize),
    Wait,
    Unknown,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    Accepted,
    AcceptedUnheard,
    NotAcceptedUnheard,
    /// Not now: another gateway, or this one later.
    Refused,
    /// Never, at any gateway.
    Rejected,
}

const NOTHING_LOST: &str = "the message ends";
const ONE_GATEWAY: &str = "no message is sent by two gateways";
const ONCE_EACH: &str = "no gateway sends a message twice";
const HONEST: &str = "a failed message was not sent, and a sent one was";
const EXCUSED: &str = "a message is unknown only after an ambiguous call, a crash or a pause";
const LAST_RESORT: &str = "a message ends only if it is sent or rejected, or a gateway may have it";
const GRANTED: &str = "a call is made only of the gateway that the intent in the ledger names";

impl Failover {
    fn has(self, flaw: Flaw) -> bool {
        self.flaw == Some(flaw)
    }

    /// The gateways that may be called if those of `maybe` may have the message.
    fn allowed(self, maybe: Each) -> impl Iterator<Item = usize> {
        let is_safe = move |gateway: &usize| {
            let may_have = maybe[*gateway];
            let again = self.deduplicates[*gateway] || self.has(Flaw::MayBeTakenAgain);
            match self.policy {
                _ if !maybe.contains(&true) => true,
                AfterAmbiguous::Same if !self.has(Flaw::AmbiguousMayGoElsewhere) => {
                    may_have && again
                }
                _ => !may_have || again,
            }
        };
        (0..GATEWAYS).filter(is_safe)
    }

    /// The actions without further faults.
    fn progress(self, state: &State, actions: &mut Vec<Action>) {
        for (consumer, it) in state.consumers.iter().enumerate() {
            if it.epoch.is_none() && !state.lease.is_held {
                actions.push(Action::Acquire(consumer));
            }
            match it.call {
                None => self.next(state, consumer, actions),
                Some(Call { outcome: Some(_), .. }) => {
                    actions.push(Action::Finish { consumer, heard: true });
                }
                Some(call) if state.is_granted(call.attempt) => {
                    actions.push(Action::Call(consumer, Answer::Accepted));
                }
                Some(_) => actions.push(Action::GiveUp(consumer)),
            }
        }
        if state.is_calling() && !state.has_caller() {
            actions.push(Action::CallIsOver);
        }
        if state.lease.is_held && !state.has_owner() {
            actions.push(Action::LeaseEnds);
        }
    }

    /// Adds the actions of a consumer without a call.
    fn next(self, state: &State, consumer: usize, actions: &mut Vec<Action>) {
        let it = state.consumers[consumer];
        let Some(epoch) = it.epoch else { return };
        let Some(maybe) = it.knows else {
            if state.entry.may_start(epoch) {
                actions.push(Action::Look(consumer));
            }
            return;
        };
        let start = |next| Action::Start { consumer, next, heard: true };
        let mut calls = self.allowed(maybe).peekable();
        if calls.peek().is_none() {
            actions.push(start(Next::Unknown));
        } else {
            actions.push(start(Next::Wait));
        }
        actions.extend(calls.map(|gateway| start(Next::Call(gateway))));
    }

    fn faults(self, state: &State, actions: &mut Vec<Action>) {
        let mut unheard = Vec::new();
        self.progress(state, &mut unheard);
        for action in unheard {
            match action {
                Action::Start { consumer, next, .. } => {
                    actions.push(Action::Start { consumer, next, heard: false });
                }
                Action::Finish { consumer, .. } => {
                    actions.push(Action::Finish { consumer, heard: false });
                }
                Action::Call(consumer, _) => self.bad_answers(state, consumer, actions),
                _ => {}
            }
        }
        for (consumer, it) in state.consumers.iter().enumerate() {
            if *it != Consumer::default() {
                actions.push(Action::Crash(consumer));
            }
        }
        // A caller is paused until its call must have ended.
        if state.is_calling() && state.has_caller() {
            actions.push(Action::CallIsOver);
        }
        // The owner is paused until its lease has ended.
        if state.lease.is_held && state.has_owner() {
            actions.push(Action::LeaseEnds);
        }
    }

    fn bad_answers(self, state: &State, consumer: usize, actions: &mut Vec<Action>) {
        let Some(Call { gateway, .. }) = state.consumers[consumer].call else { return };
        for answer in
            [Answer::AcceptedUnheard, Answer::NotAcceptedUnheard, Answer::Refused, Answer::Rejected]
        {
            // A gateway that deduplicates says of a message that it knows what it said before.
            let knows_it = self.deduplicates[gateway] && state.sent[gateway] > 0;
            if !(knows_it && answer == Answer::Rejected) {
                actions.push(Action::Call(consumer, answer));
            }
        }
    }

    fn start(self, state: &mut State, consumer: usize, next: Next, heard: bool) {
        let it = &mut state.consumers[consumer];
        let epoch = it.epoch.expect("only an owner starts");
        let maybe = it.knows.take().expect("only what was read is started");
        if epoch != state.lease.epoch {
            it.epoch = None;
            return;
        }
        if !heard {
            it.knows = Some(maybe);
        }
        let entry = &mut state.entry;
        if !entry.may_start(epoch) {
            return;
        }
        if entry.is_interrupted(epoch) {
            let waits = next == Next::Wait && self.has(Flaw::WaitForgetsTheInterruptedCall);
            let is_noted = !waits && !self.has(Flaw::InterruptedCallIsForgotten);
            entry.may_have_taken(is_noted);
        }
        match next {
            Next::Call(gateway) => {
                let is_again = matches!(entry.stage, Stage::Calling { .. }) && entry.epoch == epoch;
                let keeps = is_again && self.has(Flaw::GrantKeepsItsFirstGateway);
                *entry = Entry {
                    stage: Stage::Calling { late: false },
                    attempt: entry.attempt + 1,
                    epoch,
                    gateway: match entry.gateway.filter(|_| keeps) {
                        _ if self.has(Flaw::IntentWithoutGateway) => None,
                        Some(first) => Some(first),
                        None => Some(gateway),
                    },
                    maybe: entry.maybe,
                };
                if heard {
                    it.call = Some(Call { attempt: entry.attempt, gateway, maybe, outcome: None });
                }
            }
            Next::Wait => {
                (entry.stage, entry.epoch, entry.gateway) = (Stage::Pending, epoch, None);
            }
            Next::Unknown => {
                if entry.maybe.contains(&true) || self.has(Flaw::UnknownIgnoresALateOutcome) {
                    entry.stage = Stage::Unknown;
                }
            }
        }
    }

    fn call(self, state: &mut State, consumer: usize, answer: Answer) {
        let call = state.consumers[consumer].call.as_mut().expect("it has begun");
        let Call { attempt, gateway, mut maybe, .. } = *call;
        let sent = &mut state.sent[gateway];
        if matches!(answer, Answer::Accepted | Answer::AcceptedUnheard) {
            *sent = if self.deduplicates[gateway] { 1 } else { *sent + 1 };
        }
        let is_ambiguous = matches!(answer, Answer::AcceptedUnheard | Answer::NotAcceptedUnheard);
        maybe[gateway] |= is_ambiguous;
        let elsewhere = (0..GATEWAYS).any(|other| other != gateway && maybe[other]);
        let verdict = match answer {
            Answer::Accepted => Verdict::Sent,
            Answer::Rejected if elsewhere && !self.has(Flaw::RejectionEndsAsFailed) => {
                Verdict::Unknown
            }
            Answer::Rejected => Verdict::Failed,
            _ if self.allowed(maybe).next().is_none() => Verdict::Unknown,
            _ => Verdict::Retry,
        };
        call.outcome = Some(Outcome { is_ambiguous, verdict });
        state.excused |= is_ambiguous;
        state.rejected |= answer == Answer::Rejected;
        let is_named = state.entry.gateway == Some(gateway) || self.has(Flaw::IntentWithoutGateway);
        state.call_out_of_turn |= !(state.is_granted(attempt) && is_named);
    }

    fn finish(self, state: &mut State, consumer: usize, heard: bool) {
        let call = &mut state.consumers[consumer].call;
        let Some(Call { attempt, outcome: Some(outcome), .. }) = *call else {
            unreachable!("only a call that has ended is finished");
        };
        if heard {
            *call = None;
        }
        let entry = &mut state.entry;
        if !matches!(entry.stage, Stage::Calling { .. }) || entry.attempt != attempt {
            return;
        }
        let is_noted = outcome.is_ambiguous && !self.has(Flaw::AmbiguousOutcomeIsForgotten);
        if let Some(gateway) = entry.gateway
            && !outcome.is_ambiguous
            && self.has(Flaw::RefusalClearsTheGateway)
        {
            entry.maybe[gateway] = false;
        }
        entry.may_have_taken(is_noted);
        entry.stage = match outcome.verdict {
            Verdict::Sent => Stage::Sent,
            Verdict::Failed => Stage::Failed,
            Verdict::Unknown => Stage::Unknown,
            Verdict::Retry => Stage::Pending,
        };
    }
}

impl Entry {
    fn may_start(&self, epoch: u8) -> bool {
        match self.stage {
            Stage::Pending => true,
            Stage::Calling { late } => late || self.epoch == epoch,
            _ => false,
        }
    }

    fn is_interrupted(&self, epoch: u8) -> bool {
        matches!(self.stage, Stage::Calling { .. }) && self.epoch != epoch
    }

    /// Ends the call in progress. If that is noted, its gateway may have the message.
    fn may_have_taken(&mut self, is_noted: bool) {
        if let Some(gateway) = self.gateway.take() {
            self.maybe[gateway] |= is_noted;
        }
    }

    fn is_open(&self) -> bool {
        matches!(self.stage, Stage::Pending | Stage::Calling { .. })
    }
}

impl State {
    /// Whether this call is the latest of its entry and in time.
    fn is_granted(&self, attempt: u8) -> bool {
        self.is_calling() && self.entry.attempt == attempt
    }

    fn is_calling(&self) -> bool {
        self.entry.stage == Stage::Calling { late: false }
    }

    fn has_owner(&self) -> bool {
        self.consumers.iter().any(|it| it.epoch == Some(self.lease.epoch))
    }

    fn has_caller(&self) -> bool {
        let attempts = self.consumers.iter().filter_map(|it| it.call.map(|call| call.attempt));
        attempts.into_iter().any(|attempt| attempt == self.entry.attempt)
    }

    /// The next owner cannot know whether this owner made the call that was granted to it.
    fn excuse_call_of(&mut self, epoch: u8) {
        let is_calling = matches!(self.entry.stage, Stage::Calling { .. });
        self.excused |= is_calling && self.entry.epoch == epoch;
    }

    fn is_fault(&self, action: Action) -> bool {
        match action {
            Action::Crash(_) => true,
            Action::Start { heard, .. } | Action::Finish { heard, .. } => !heard,
            Action::Call(_, answer) => answer != Answer::Accepted,
            Action::CallIsOver => self.has_caller(),
            Action::LeaseEnds => self.has_owner(),
            _ => false,
        }
    }

    /// Consumers are interchangeable.
    fn representative(&self) -> Self {
        let mut state = self.clone();
        state.consumers.sort_unstable();
        state
    }
}

impl Model for Failover {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let entry = Entry {
            stage: Stage::Pending,
            attempt: 0,
            epoch: 0,
            gateway: None,
            maybe: [false; GATEWAYS],
        };
        vec![State {
            lease: Lease::default(),
            entry,
            consumers: [Consumer::default(); CONSUMERS],
            faults: 0,
            sent: [0; GATEWAYS],
            excused: false,
            rejected: false,
            call_out_of_turn: false,
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        self.progress(state, actions);
        if state.faults < FAULTS {
            self.faults(state, actions);
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        state.faults += u8::from(last.is_fault(action));
        match action {
            Action::Acquire(consumer) => {
                state.excuse_call_of(state.lease.epoch);
                state.lease = Lease { is_held: true, epoch: state.lease.epoch + 1 };
                let epoch = Some(state.lease.epoch);
                state.consumers[consumer] =
                    Consumer { epoch, knows: None, ..state.consumers[consumer] };
            }
            Action::Look(consumer) => {
                let it = &mut state.consumers[consumer];
                let epoch = it.epoch.expect("only an owner looks");
                if epoch == state.lease.epoch {
                    let mut read = state.entry;
                    if read.is_interrupted(epoch) {
                        read.may_have_taken(!self.has(Flaw::InterruptedCallIsForgotten));
                    }
                    it.knows = Some(read.maybe);
                } else {
                    it.epoch = None;
                }
            }
            Action::Start { consumer, next, heard } => {
                self.start(&mut state, consumer, next, heard);
            }
            Action::GiveUp(consumer) => {
                let call = state.consumers[consumer].call.as_mut().expect("it has begun");
                call.outcome = Some(Outcome { is_ambiguous: false, verdict: Verdict::Retry });
            }
            Action::Call(consumer, answer) => self.call(&mut state, consumer, answer),
            Action::Finish { consumer, heard } => self.finish(&mut state, consumer, heard),
            Action::CallIsOver => {
                state.excused |= last.has_caller();
                state.entry.stage = Stage::Calling { late: true };
            }
            Action::Crash(consumer) => {
                let it = std::mem::take(&mut state.consumers[consumer]);
                state.excused |= it.call.is_some();
                if let Some(epoch) = it.epoch {
                    state.excuse_call_of(epoch);
                }
            }
            Action::LeaseEnds => state.lease.is_held = false,
        }
        (state != *last).then_some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(NOTHING_LOST, |model, state: &State| {
                let mut actions = Vec::new();
                model.progress(state, &mut actions);
                let goes_on = |action: &Action| model.next_state(state, *action).is_some();
                !state.entry.is_open() || actions.iter().any(goes_on)
            }),
            Property::always(ONE_GATEWAY, |model: &Self, state: &State| {
                model.policy == AfterAmbiguous::Next
                    || state.sent.iter().filter(|sent| **sent > 0).count() <= 1
            }),
            Property::always(ONCE_EACH, |_, state: &State| {
                state.sent.iter().all(|sent| *sent <= 1)
            }),
            Property::always(HONEST, |_, state: &State| match state.entry.stage {
                Stage::Failed => state.sent == [0; GATEWAYS],
                Stage::Sent => state.sent != [0; GATEWAYS],
                _ => true,
            }),
            Property::always(EXCUSED, |_, state: &State| {
                state.entry.stage != Stage::Unknown || state.excused
            }),
            // The state that the consumer read may be out of date: another gateway may be free of doubt since.
            Property::always(LAST_RESORT, |_, state: &State| match state.entry.stage {
                Stage::Failed => state.rejected,
                Stage::Unknown => state.rejected || state.entry.maybe.contains(&true),
                _ => true,
            }),
            Property::always(GRANTED, |_, state: &State| !state.call_out_of_turn),
        ]
    }
}

/// With both gateways alike, and with one of each kind.
const KINDS: [Each; 3] = [[true, true], [true, false], [false, false]];

#[test]
fn no_message_is_sent_by_two_gateways_if_ambiguous_calls_stay_where_they_are() {
    for deduplicates in KINDS {
        let model = Failover { policy: AfterAmbiguous::Same, deduplicates, flaw: None };
        assert_holds(&format!("same {deduplicates:?}"), model, State::representative);
    }
}

#[test]
fn no_gateway_sends_a_message_twice_if_ambiguous_calls_go_to_the_next_one() {
    for deduplicates in KINDS {
        let model = Failover { policy: AfterAmbiguous::Next, deduplicates, flaw: None };
        assert_holds(&format!("next {deduplicates:?}"), model, State::representative);
    }
}

/// Expects the flaw to violate a property, for gateways that all deduplicate or all do not.
#[track_caller]
fn check(flaw: Flaw, policy: AfterAmbiguous, deduplicates: bool, property: &'static str) {
    let deduplicates = [deduplicates; GATEWAYS];
    let model = Failover { policy, deduplicates, flaw: Some(flaw) };
    assert_refuted(&format!("{flaw:?}"), model, property);
}

#[test]
fn an_intent_without_the_gateway_sends_by_two_gateways() {
    check(Flaw::IntentWithoutGateway, AfterAmbiguous::Same, true, ONE_GATEWAY);
    check(Flaw::IntentWithoutGateway, AfterAmbiguous::Next, false, ONCE_EACH);
}

#[test]
fn a_second_grant_under_the_first_gateway_sends_by_two_gateways() {
    check(Flaw::GrantKeepsItsFirstGateway, AfterAmbiguous::Same, true, ONE_GATEWAY);
    check(Flaw::GrantKeepsItsFirstGateway, AfterAmbiguous::Next, false, GRANTED);
}

#[test]
fn an_ambiguous_outcome_that_is_forgotten_is_sent_by_two_gateways() {
    check(Flaw::AmbiguousOutcomeIsForgotten, AfterAmbiguous::Same, true, ONE_GATEWAY);
    check(Flaw::AmbiguousOutcomeIsForgotten, AfterAmbiguous::Next, false, ONCE_EACH);
}

#[test]
fn an_interrupted_call_that_is_forgotten_is_sent_by_two_gateways() {
    check(Flaw::InterruptedCallIsForgotten, AfterAmbiguous::Same, true, ONE_GATEWAY);
    check(Flaw::InterruptedCallIsForgotten, AfterAmbiguous::Next, false, ONCE_EACH);
}

#[test]
fn a_wait_that_forgets_an_interrupted_call_sends_by_two_gateways() {
    check(Flaw::WaitForgetsTheInterruptedCall, AfterAmbiguous::Same, true, ONE_GATEWAY);
    check(Flaw::WaitForgetsTheInterruptedCall, AfterAmbiguous::Next, true, HONEST);
}

#[test]
fn an_end_without_regard_to_a_late_refusal_gives_a_message_up() {
    check(Flaw::UnknownIgnoresALateOutcome, AfterAmbiguous::Same, false, LAST_RESORT);
}

/// The refusal says nothing of the call before.
#[test]
fn a_later_refusal_does_not_take_an_ambiguous_call_back() {
    check(Flaw::RefusalClearsTheGateway, AfterAmbiguous::Same, true, ONE_GATEWAY);
}

#[test]
fn an_ambiguous_call_that_goes_elsewhere_sends_by_two_gateways() {
    check(Flaw::AmbiguousMayGoElsewhere, AfterAmbiguous::Same, true, ONE_GATEWAY);
    check(Flaw::AmbiguousMayGoElsewhere, AfterAmbiguous::Same, false, ONE_GATEWAY);
}

#[test]
fn a_gateway_that_does_not_deduplicate_and_is_called_again_sends_twice() {
    check(Flaw::MayBeTakenAgain, AfterAmbiguous::Same, false, ONCE_EACH);
    check(Flaw::MayBeTakenAgain, AfterAmbiguous::Next, false, ONCE_EACH);
}

#[test]
fn a_rejection_does_not_speak_for_another_gateway() {
    check(Flaw::RejectionEndsAsFailed, AfterAmbiguous::Next, false, HONEST);
}
