//! From the topic to the gateway: lease, admit, start, call, finish.
//!
//! This is one file, because it is one model with one state.

use stateright::{Model, Property};

use super::{assert_holds, assert_refuted};

const MESSAGES: usize = 2;
const CONSUMERS: usize = 2;
/// Three faults give 389 thousand states if the gateway deduplicates, and 324 thousand if not.
const FAULTS: u8 = 3;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flaw {
    AdmitUnfenced,
    StartUnfenced,
    FinishWithoutAttempt,
    OffsetBeforeWork,
    CallWithoutIntent,
    CallAfterItsTime,
    TimeOutIsFailure,
    KeyPerAttempt,
    InterruptedIsRepeated,
    OwnIntentIsInterrupted,
    RefusalIsAmbiguous,
}

#[derive(Debug, Clone, Copy)]
struct Delivering {
    deduplicates: bool,
    /// The maximum number of faults in a run.
    faults: u8,
    flaw: Option<Flaw>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct State {
    /// The records. Relays may have published a message more than once.
    topic: &'static [usize],
    lease: Lease,
    ledger: [Option<Entry>; MESSAGES],
    consumers: [Consumer; CONSUMERS],
    /// The number of faults so far.
    faults: u8,
    /// The keys under which the gateway has accepted a message.
    paid: [Vec<u8>; MESSAGES],
    /// Facts for the properties, which no process knows.
    excused: [bool; MESSAGES],
    stale_write: bool,
    call_out_of_turn: bool,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
struct Lease {
    /// The consumer that knows the epoch holds the lease.
    is_held: bool,
    epoch: u8,
    offset: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Entry {
    stage: Stage,
    attempt: u8,
    /// The epoch under which the last call began.
    epoch: u8,
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
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Consumer {
    /// The epoch of the lease that it believes to hold, and the offset that it reads.
    believes: Option<(u8, usize)>,
    /// With the flaw, the offset is stored and the entry is not.
    owes_entry: bool,
    calls: [Option<Call>; MESSAGES],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Call {
    attempt: u8,
    /// `None` until the call has ended.
    verdict: Option<Verdict>,
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
    Admit(usize),
    /// `heard`, here and below: the answer to the commit arrives.
    Start {
        consumer: usize,
        message: usize,
        heard: bool,
    },
    GiveUp {
        consumer: usize,
        message: usize,
    },
    Call {
        consumer: usize,
        message: usize,
        answer: Answer,
    },
    Finish {
        consumer: usize,
        message: usize,
        heard: bool,
    },
    CallIsOver(usize),
    Crash(usize),
    LeaseEnds,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    Accepted,
    AcceptedUnheard,
    NotAcceptedUnheard,
    Rejected,
    Busy,
}

const NOTHING_LOST: &str = "every message in the topic ends";
const PAID_ONCE: &str = "the gateway accepts a message at most once";
const EXCUSED: &str = "a message is unknown only after an ambiguous call, a crash or a pause";
const FENCED: &str = "a fenced owner writes nothing";
const OFFSET: &str = "every record below the offset is in the ledger";
const GRANTED: &str = "no call is made without an intent in the ledger";

impl Delivering {
    fn has(self, flaw: Flaw) -> bool {
        self.flaw == Some(flaw)
    }

    /// The actions without further faults.
    fn progress(self, state: &State, actions: &mut Vec<Action>) {
        for (consumer, it) in state.consumers.iter().enumerate() {
            match it.believes {
                None if !state.lease.is_held => actions.push(Action::Acquire(consumer)),
                Some((_, next)) if next < state.topic.len() || it.owes_entry => {
                    actions.push(Action::Admit(consumer));
                }
                _ => {}
            }
            for message in 0..MESSAGES {
                match it.calls[message] {
                    None if self.may_start(state, it, message) => {
                        actions.push(Action::Start { consumer, message, heard: true });
                    }
                    None => {}
                    Some(Call { verdict: Some(_), .. }) => {
                        actions.push(Action::Finish { consumer, message, heard: true });
                    }
                    Some(call) if self.is_in_time(state, message, call) => {
                        let answer = Answer::Accepted;
                        actions.push(Action::Call { consumer, message, answer });
                    }
                    Some(_) => actions.push(Action::GiveUp { consumer, message }),
                }
            }
        }
        for message in 0..MESSAGES {
            if state.is_calling(message) && !state.has_caller(message) {
                actions.push(Action::CallIsOver(message));
            }
        }
        if state.lease.is_held && !state.has_owner() {
            actions.push(Action::LeaseEnds);
        }
    }

    fn faults(self, state: &State, actions: &mut Vec<Action>) {
        for (consumer, it) in state.consumers.iter().enumerate() {
            if *it != Consumer::default() {
                actions.push(Action::Crash(consumer));
            }
            for message in 0..MESSAGES {
                match it.calls[message] {
                    None if self.may_start(state, it, message) => {
                        actions.push(Action::Start { consumer, message, heard: false });
                    }
                    Some(Call { verdict: Some(_), .. }) => {
                        actions.push(Action::Finish { consumer, message, heard: false });
                    }
                    Some(call) if self.is_in_time(state, message, call) => {
                        for answer in [
                            Answer::AcceptedUnheard,
                            Answer::NotAcceptedUnheard,
                            Answer::Rejected,
                            Answer::Busy,
                        ] {
                            actions.push(Action::Call { consumer, message, answer });
                        }
                    }
                    _ => {}
                }
            }
        }
        for message in 0..MESSAGES {
            // A caller is paused until its call must have ended.
            if state.is_calling(message) && state.has_caller(message) {
                actions.push(Action::CallIsOver(message));
            }
        }
        // The owner is paused until its lease has ended.
        if state.lease.is_held && state.has_owner() {
            actions.push(Action::LeaseEnds);
        }
    }

    fn is_in_time(self, state: &State, message: usize, call: Call) -> bool {
        self.has(Flaw::CallAfterItsTime)
            || self.has(Flaw::CallWithoutIntent)
            || state.is_granted(message, call.attempt)
    }

    /// Whether a consumer without a call for the entry would start one: the entry waits, its call did not
    /// end in time, or it was granted to the same owner and the answer was lost.
    fn may_start(self, state: &State, consumer: &Consumer, message: usize) -> bool {
        let (Some((epoch, _)), Some(entry)) = (consumer.believes, state.ledger[message]) else {
            return false;
        };
        match entry.stage {
            Stage::Pending => true,
            Stage::Calling { late } => late || self.is_own(entry, epoch),
            _ => false,
        }
    }

    fn is_own(self, entry: Entry, epoch: u8) -> bool {
        entry.epoch == epoch && !self.has(Flaw::OwnIntentIsInterrupted)
    }

    fn admit(self, state: &mut State, consumer: usize) {
        let it = &mut state.consumers[consumer];
        let (epoch, next) = it.believes.expect("only an owner admits");
        let is_stale = epoch != state.lease.epoch;
        if is_stale && !self.has(Flaw::AdmitUnfenced) {
            it.believes = None;
            return;
        }
        state.stale_write |= is_stale;
        let (offset, entry) = match (self.has(Flaw::OffsetBeforeWork), it.owes_entry) {
            (false, _) => (next + 1, Some(next)),
            (true, false) => (next + 1, None),
            (true, true) => (next, Some(next - 1)),
        };
        it.owes_entry = entry.is_none();
        it.believes = Some((epoch, offset));
        state.lease.offset = offset;
        if let Some(at) = entry {
            state.ledger[state.topic[at]].get_or_insert(Entry {
                stage: Stage::Pending,
                attempt: 0,
                epoch: 0,
            });
        }
    }

    fn start(self, state: &mut State, consumer: usize, message: usize, heard: bool) {
        let it = &mut state.consumers[consumer];
        let (epoch, _) = it.believes.expect("only an owner starts");
        let entry = state.ledger[message].as_mut().expect("only an entry is started");
        let is_stale = epoch != state.lease.epoch;
        if is_stale && !self.has(Flaw::StartUnfenced) {
            it.believes = None;
            return;
        }
        if entry.stage == (Stage::Calling { late: true })
            && !self.is_own(*entry, epoch)
            && !self.deduplicates
            && !self.has(Flaw::InterruptedIsRepeated)
        {
            let call = Call { attempt: entry.attempt, verdict: Some(Verdict::Unknown) };
            it.calls[message] = Some(call);
            return;
        }
        if self.has(Flaw::CallWithoutIntent) {
            it.calls[message] = Some(Call { attempt: entry.attempt, verdict: None });
            return;
        }
        state.stale_write |= is_stale;
        *entry = Entry { stage: Stage::Calling { late: false }, attempt: entry.attempt + 1, epoch };
        if heard {
            it.calls[message] = Some(Call { attempt: entry.attempt, verdict: None });
        }
    }

    fn call(self, state: &mut State, consumer: usize, message: usize, answer: Answer) {
        let call = state.consumers[consumer].calls[message].as_mut().expect("it has begun");
        let attempt = call.attempt;
        if matches!(answer, Answer::Accepted | Answer::AcceptedUnheard) {
            // A gateway that ignores the key treats every call as a new message.
            let key = match (self.deduplicates, self.has(Flaw::KeyPerAttempt)) {
                (true, false) => 0,
                (true, true) => attempt,
                (false, _) => u8::try_from(state.paid[message].len()).expect("few are paid"),
            };
            if !state.paid[message].contains(&key) {
                state.paid[message].push(key);
            }
        }
        call.verdict = Some(match answer {
            Answer::Accepted => Verdict::Sent,
            Answer::Rejected => Verdict::Failed,
            Answer::Busy if self.has(Flaw::RefusalIsAmbiguous) => Verdict::Unknown,
            Answer::Busy => Verdict::Retry,
            Answer::AcceptedUnheard | Answer::NotAcceptedUnheard => {
                state.excused[message] = true;
                if self.deduplicates || self.has(Flaw::TimeOutIsFailure) {
                    Verdict::Retry
                } else {
                    Verdict::Unknown
                }
            }
        });
        state.call_out_of_turn |= !state.is_granted(message, attempt);
    }

    fn finish(self, state: &mut State, consumer: usize, message: usize, heard: bool) {
        let calls = &mut state.consumers[consumer].calls;
        let Some(Call { attempt, verdict: Some(verdict) }) = calls[message] else {
            unreachable!("only a call that has ended is finished");
        };
        if heard {
            calls[message] = None;
        }
        let entry = state.ledger[message].as_mut().expect("only an entry is called for");
        let is_current = matches!(entry.stage, Stage::Calling { .. }) && entry.attempt == attempt;
        if !is_current
            && !self.has(Flaw::FinishWithoutAttempt)
            && !self.has(Flaw::CallWithoutIntent)
        {
            return;
        }
        state.stale_write |= !is_current;
        entry.stage = match verdict {
            Verdict::Sent => Stage::Sent,
            Verdict::Failed => Stage::Failed,
            Verdict::Unknown => Stage::Unknown,
            Verdict::Retry => Stage::Pending,
        };
    }
}

impl State {
    /// Whether this call is the latest of its entry and in time.
    fn is_granted(&self, message: usize, attempt: u8) -> bool {
        self.is_calling(message) && self.ledger[message].is_some_and(|it| it.attempt == attempt)
    }

    /// The next owner cannot know whether this owner made the calls that were granted to it.
    fn excuse_calls_of(&mut self, epoch: u8) {
        for (entry, excused) in self.ledger.iter().zip(&mut self.excused) {
            let is_its = |it: Entry| matches!(it.stage, Stage::Calling { .. }) && it.epoch == epoch;
            *excused |= entry.is_some_and(is_its);
        }
    }

    fn has_owner(&self) -> bool {
        let epochs = self.consumers.iter().filter_map(|it| it.believes);
        epochs.into_iter().any(|(epoch, _)| epoch == self.lease.epoch)
    }

    fn is_calling(&self, message: usize) -> bool {
        self.ledger[message].is_some_and(|it| it.stage == Stage::Calling { late: false })
    }

    fn has_caller(&self, message: usize) -> bool {
        let attempt = self.ledger[message].map(|entry| entry.attempt);
        self.consumers.iter().any(|it| it.calls[message].map(|call| call.attempt) == attempt)
    }

    fn is_fault(&self, action: Action) -> bool {
        match action {
            Action::Crash(_) => true,
            Action::Start { heard, .. } | Action::Finish { heard, .. } => !heard,
            Action::Call { answer, .. } => answer != Answer::Accepted,
            Action::CallIsOver(message) => self.has_caller(message),
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

impl Model for Delivering {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let topics: [&[usize]; 3] = [&[0, 1], &[0, 0, 1], &[0, 1, 0]];
        topics
            .map(|topic| State {
                topic,
                lease: Lease::default(),
                ledger: [None; MESSAGES],
                consumers: [Consumer::default(), Consumer::default()],
                faults: 0,
                paid: [Vec::new(), Vec::new()],
                excused: [false; MESSAGES],
                stale_write: false,
                call_out_of_turn: false,
            })
            .into()
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        self.progress(state, actions);
        if state.faults < self.faults {
            self.faults(state, actions);
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        state.faults += u8::from(last.is_fault(action));
        match action {
            Action::Acquire(consumer) => {
                state.excuse_calls_of(state.lease.epoch);
                state.lease.is_held = true;
                state.lease.epoch += 1;
                let Lease { epoch, offset, .. } = state.lease;
                state.consumers[consumer].believes = Some((epoch, offset));
            }
            Action::Admit(consumer) => self.admit(&mut state, consumer),
            Action::Start { consumer, message, heard } => {
                self.start(&mut state, consumer, message, heard);
            }
            Action::GiveUp { consumer, message } => {
                let call = state.consumers[consumer].calls[message].as_mut();
                call.expect("it has begun").verdict = Some(Verdict::Retry);
            }
            Action::Call { consumer, message, answer } => {
                self.call(&mut state, consumer, message, answer);
            }
            Action::Finish { consumer, message, heard } => {
                self.finish(&mut state, consumer, message, heard);
            }
            Action::CallIsOver(message) => {
                let is_pause = last.has_caller(message);
                state.excused[message] |= is_pause;
                let entry = state.ledger[message].as_mut().expect("it is called for");
                entry.stage = Stage::Calling { late: true };
            }
            Action::Crash(consumer) => {
                for message in 0..MESSAGES {
                    state.excused[message] |= state.consumers[consumer].calls[message].is_some();
                }
                if let Some((epoch, _)) = state.consumers[consumer].believes {
                    state.excuse_calls_of(epoch);
                }
                state.consumers[consumer] = Consumer::default();
            }
            Action::LeaseEnds => {
                state.lease.is_held = false;
            }
        }
        (state != *last).then_some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(NOTHING_LOST, |model, state: &State| {
                let is_open = |message: &usize| {
                    state.ledger[*message].is_none_or(|entry| {
                        matches!(entry.stage, Stage::Pending | Stage::Calling { .. })
                    })
                };
                if !state.topic.iter().any(is_open) {
                    return true;
                }
                let mut actions = Vec::new();
                model.progress(state, &mut actions);
                actions.iter().any(|action| model.next_state(state, *action).is_some())
            }),
            Property::always(PAID_ONCE, |_, state: &State| {
                state.paid.iter().all(|keys| keys.len() <= 1)
            }),
            Property::always(EXCUSED, |_, state: &State| {
                (0..MESSAGES).all(|message| {
                    let stage = state.ledger[message].map(|entry| entry.stage);
                    stage != Some(Stage::Unknown) || state.excused[message]
                })
            }),
            Property::always(FENCED, |_, state: &State| !state.stale_write),
            Property::always(OFFSET, |_, state: &State| {
                state.topic[..state.lease.offset].iter().all(|it| state.ledger[*it].is_some())
            }),
            Property::always(GRANTED, |_, state: &State| !state.call_out_of_turn),
        ]
    }
}

#[test]
fn every_message_ends_and_is_paid_once_if_the_gateway_deduplicates() {
    let model = Delivering { deduplicates: true, faults: FAULTS, flaw: None };

    assert_holds("delivering", model, State::representative);
}

#[test]
fn every_message_ends_and_is_paid_once_if_the_gateway_does_not_deduplicate() {
    let model = Delivering { deduplicates: false, faults: FAULTS, flaw: None };

    assert_holds("delivering without keys", model, State::representative);
}

#[track_caller]
fn check(flaw: Flaw, deduplicates: bool, property: &'static str) {
    let model = Delivering { deduplicates, faults: FAULTS, flaw: Some(flaw) };
    assert_refuted(&format!("{flaw:?}"), model, property);
}

#[test]
fn an_admission_without_the_fence_lets_a_late_owner_write() {
    check(Flaw::AdmitUnfenced, true, FENCED);
}

#[test]
fn a_start_without_the_fence_lets_a_late_owner_write() {
    check(Flaw::StartUnfenced, true, FENCED);
}

#[test]
fn an_outcome_without_the_attempt_ends_another_call() {
    check(Flaw::FinishWithoutAttempt, true, FENCED);
}

#[test]
fn an_offset_that_moves_before_the_work_loses_messages() {
    check(Flaw::OffsetBeforeWork, true, OFFSET);
    check(Flaw::OffsetBeforeWork, true, NOTHING_LOST);
}

#[test]
fn a_call_without_an_intent_is_made_twice() {
    check(Flaw::CallWithoutIntent, false, GRANTED);
    check(Flaw::CallWithoutIntent, false, PAID_ONCE);
}

#[test]
fn a_call_after_its_deadline_has_no_grant() {
    check(Flaw::CallAfterItsTime, false, GRANTED);
}

#[test]
fn a_timeout_that_counts_as_a_failure_is_paid_for_twice() {
    check(Flaw::TimeOutIsFailure, false, PAID_ONCE);
}

#[test]
fn a_key_for_each_attempt_is_paid_for_twice() {
    check(Flaw::KeyPerAttempt, true, PAID_ONCE);
}

#[test]
fn an_interrupted_call_that_is_repeated_is_paid_for_twice() {
    check(Flaw::InterruptedIsRepeated, false, PAID_ONCE);
}

#[test]
fn an_owner_that_treats_its_own_intent_as_interrupted_leaves_an_unexplained_unknown() {
    check(Flaw::OwnIntentIsInterrupted, false, EXCUSED);
}

#[test]
fn a_refusal_that_counts_as_ambiguous_leaves_an_unexplained_unknown() {
    check(Flaw::RefusalIsAmbiguous, false, EXCUSED);
}
