//! From the request to the ledger: accept, acquire, look, publish, renew, take over, cancel.
//!
//! This is one file, because it is one model with one state.

use stateright::{Model, Property};

use super::{assert_holds, assert_refuted};

/// Messages to one phone. The number of each is its place.
const MESSAGES: usize = 3;
const RELAYS: usize = 2;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flaw {
    AnswerBeforeCommit,
    AcquireWhileLeased,
    RenewUnfenced,
    ProgressBeforeAck,
    NoGaps,
    GapGivenUpTooEarly,
    GapsAndNewInTwoLooks,
    PublishPastFailure,
    OverdueIsNotRepeated,
    DuplicateIsTakenOver,
    CancelIsNotSeen,
    EndUnderNoGroupIsNotSeen,
    OldestOnlyRises,
}

#[derive(Debug, Clone, Copy)]
struct Publishing {
    /// The number of messages.
    messages: usize,
    /// The maximum number of faults in a run.
    faults: u8,
    flaw: Option<Flaw>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact")]
struct State {
    requests: [Request; MESSAGES],
    outbox: [Row; MESSAGES],
    tenure: Tenure,
    relays: [Relay; RELAYS],
    topic: Vec<usize>,
    /// The offset that the consumer reads next. It survives the deletion of the topic.
    offset: usize,
    ledger: [Entry; MESSAGES],
    /// The number of faults so far.
    faults: u8,
    /// Facts for the properties, which no process knows.
    published: [bool; MESSAGES],
    /// For each message that was not published, the messages that had been answered before its request.
    answered_before: [[bool; MESSAGES]; MESSAGES],
    /// The commit took longer than a relay looks for the number.
    committed_late: [bool; MESSAGES],
    out_of_order: bool,
    stolen: bool,
    stale_write: bool,
    ended_twice: bool,
    canceled_and_sent: bool,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
enum Request {
    #[default]
    New,
    /// It has its number, and is not committed. With the flaw, it is answered.
    Half,
    Answered,
    /// The API crashed before the commit.
    Gone,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
enum Row {
    #[default]
    Absent,
    Waiting,
    /// Its time has ended, or its verification was canceled.
    Expired,
}

/// The row of the table `relay`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
struct Tenure {
    /// The relay that knows the epoch is the owner.
    epoch: u8,
    leased: bool,
    /// All numbers below it are published, or were looked for long enough.
    published: usize,
    /// Looks for overdue and expired messages begin here.
    oldest: usize,
}

/// The memory of a relay. A crash clears it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Relay {
    /// The epoch of the tenure that it believes to hold.
    epoch: Option<u8>,
    cursor: usize,
    /// The numbers below the cursor that are not known to be published.
    gaps: Vec<usize>,
    /// What is left to publish of the last look.
    batch: Vec<usize>,
    /// With the flaw, it has looked at the gaps, and not at what is new.
    looked_at_gaps: bool,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
enum Entry {
    #[default]
    None,
    TakenOver,
    /// It ended as expired, under the group that read it or under none.
    Expired {
        group: bool,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    Accept(usize),
    Commit(usize),
    CrashApi(usize),
    Acquire(usize),
    Look { relay: usize, limit: usize },
    Publish { relay: usize, arrives: bool, answered: bool },
    GiveUpGap { relay: usize, message: usize },
    Overdue { relay: usize, message: usize },
    Renew(usize),
    NoteOldest(usize),
    CrashRelay(usize),
    LeaseEnds,
    Take,
    Cancel(usize),
    EndExpired(usize),
    WipeTopic,
}

const NOTHING_LOST: &str = "every answered message reaches the ledger";
const ONCE: &str = "a message enters the ledger once";
const IN_ORDER: &str = "a phone's messages are first published in their order";
const ONE_OWNER: &str = "no relay takes a lease that another holds";
const FENCED: &str = "a relay whose tenure has ended stores nothing";
const TRUE_PROGRESS: &str = "every message below the stored progress was published";
const CANCELED: &str = "a message that was canceled before it was taken over is not sent";

impl Publishing {
    fn has(self, flaw: Flaw) -> bool {
        self.flaw == Some(flaw)
    }

    /// The actions without further faults.
    fn progress(self, state: &State, actions: &mut Vec<Action>) {
        for message in 0..self.messages {
            let is_next = state.requests[..message].iter().all(|it| *it != Request::New);
            match state.requests[message] {
                Request::New if is_next => actions.push(Action::Accept(message)),
                Request::Half => actions.push(Action::Commit(message)),
                _ => {}
            }
            if state.outbox[message] == Row::Expired && message >= state.tenure.oldest {
                actions.push(Action::EndExpired(message));
            }
        }
        for (relay, it) in state.relays.iter().enumerate() {
            if it.epoch.is_none() {
                if !state.tenure.leased || self.has(Flaw::AcquireWhileLeased) {
                    actions.push(Action::Acquire(relay));
                }
                continue;
            }
            actions.extend([Action::Renew(relay), Action::NoteOldest(relay)]);
            if it.batch.is_empty() || it.looked_at_gaps {
                let limits = 1..=self.visible(state, it).len().max(1);
                actions.extend(limits.map(|limit| Action::Look { relay, limit }));
            } else {
                actions.push(Action::Publish { relay, arrives: true, answered: true });
            }
            for message in 0..self.messages {
                if Self::may_give_up(state, it, message) && !state.may_come_late(message) {
                    actions.push(Action::GiveUpGap { relay, message });
                }
                if state.may_repeat(it, message) && !state.will_be_read(message) {
                    actions.push(Action::Overdue { relay, message });
                }
            }
        }
        if state.tenure.leased && !state.has_owner() {
            actions.push(Action::LeaseEnds);
        }
        if state.offset != state.topic.len() {
            actions.push(Action::Take);
        }
    }

    fn faults(self, state: &State, actions: &mut Vec<Action>) {
        for message in 0..self.messages {
            if state.requests[message] == Request::Half {
                actions.push(Action::CrashApi(message));
            }
            if state.outbox[message] == Row::Waiting {
                actions.push(Action::Cancel(message));
            }
        }
        for (relay, it) in state.relays.iter().enumerate() {
            if it.epoch.is_none() {
                continue;
            }
            actions.push(Action::CrashRelay(relay));
            if !it.batch.is_empty() && !it.looked_at_gaps {
                for arrives in [true, false] {
                    actions.push(Action::Publish { relay, arrives, answered: false });
                }
            }
            for message in 0..self.messages {
                // The commit takes longer than the relay looks for the number.
                if Self::may_give_up(state, it, message) && state.may_come_late(message) {
                    actions.push(Action::GiveUpGap { relay, message });
                }
                // The consumer lags, and the records that it has not read are overdue.
                if state.may_repeat(it, message) && state.will_be_read(message) {
                    actions.push(Action::Overdue { relay, message });
                }
            }
        }
        // The owner is paused until its lease has ended.
        if state.tenure.leased && state.has_owner() {
            actions.push(Action::LeaseEnds);
        }
        if !state.topic.is_empty() {
            actions.push(Action::WipeTopic);
        }
    }

    /// What the next look of a relay finds, in the order of the numbers.
    fn visible(self, state: &State, relay: &Relay) -> Vec<usize> {
        let both = !self.has(Flaw::GapsAndNewInTwoLooks);
        let is_asked_for = |message: &usize| {
            let is_new = *message >= relay.cursor && (both || relay.looked_at_gaps);
            let is_gap = relay.gaps.contains(message) && !relay.looked_at_gaps;
            is_new || is_gap
        };
        let waits = |message: &usize| state.outbox[*message] == Row::Waiting;
        (0..self.messages).filter(is_asked_for).filter(waits).collect()
    }

    fn look(self, state: &State, relay: &mut Relay, limit: usize) {
        let found = self.visible(state, relay);
        let found = &found[..limit.min(found.len())];
        let end = found.last().map_or(relay.cursor, |last| relay.cursor.max(last + 1));
        if self.has(Flaw::NoGaps) {
            relay.gaps.clear();
        } else {
            relay.gaps.extend(relay.cursor..end);
        }
        relay.cursor = end;
        relay.batch.extend(found);
        if self.has(Flaw::GapsAndNewInTwoLooks) {
            relay.looked_at_gaps = !relay.looked_at_gaps;
        }
    }

    fn may_give_up(state: &State, relay: &Relay, message: usize) -> bool {
        relay.gaps.contains(&message) && state.outbox[message] != Row::Waiting
    }

    fn publish(self, state: &mut State, relay: usize, arrives: bool, answered: bool) {
        let message = state.relays[relay].batch.remove(0);
        if arrives {
            state.note_publication(message);
            state.topic.push(message);
        }
        let relay = &mut state.relays[relay];
        if answered {
            relay.gaps.retain(|it| *it != message);
        } else if !self.has(Flaw::PublishPastFailure) {
            // The rest of the partition is held back.
            relay.batch.clear();
        }
    }

    fn renew(self, state: &mut State, relay: usize) {
        let it = &state.relays[relay];
        let is_owner = it.epoch == Some(state.tenure.epoch);
        if !is_owner && !self.has(Flaw::RenewUnfenced) {
            state.relays[relay] = Relay::default();
            return;
        }
        let may_wait = |gap: &&usize| !self.has(Flaw::ProgressBeforeAck) || !it.batch.contains(gap);
        let first_gap = it.gaps.iter().filter(may_wait).min();
        state.tenure.published = first_gap.map_or(it.cursor, |gap| *gap);
        state.tenure.leased = true;
        state.stale_write |= !is_owner;
    }

    /// Begins at the first message, as one may have become visible late.
    fn note_oldest(self, state: &mut State, relay: usize) {
        if state.relays[relay].epoch != Some(state.tenure.epoch) {
            return;
        }
        let begin = if self.has(Flaw::OldestOnlyRises) { state.tenure.oldest } else { 0 };
        let mut visible = (begin..MESSAGES).filter(|it| state.outbox[*it] != Row::Absent);
        let lowest = visible.next().unwrap_or(MESSAGES);
        state.tenure.oldest = lowest.min(state.tenure.published);
    }

    /// The ledger knows messages by their id.
    fn take_over(self, state: &mut State, message: usize) {
        let entry = &mut state.ledger[message];
        let is_ignored = match entry {
            Entry::None => false,
            Entry::Expired { group: false } => !self.has(Flaw::EndUnderNoGroupIsNotSeen),
            _ => !self.has(Flaw::DuplicateIsTakenOver),
        };
        let row = std::mem::take(&mut state.outbox[message]);
        if is_ignored {
            return;
        }
        state.ended_twice |= *entry != Entry::None;
        let is_canceled = row == Row::Expired;
        if is_canceled && !self.has(Flaw::CancelIsNotSeen) {
            *entry = Entry::Expired { group: true };
        } else {
            state.canceled_and_sent |= is_canceled;
            *entry = Entry::TakenOver;
        }
    }
}

impl State {
    fn will_be_read(&self, message: usize) -> bool {
        // The consumer continues from the earliest record if its own was deleted.
        let next = if self.offset > self.topic.len() { 0 } else { self.offset };
        self.topic[next..].contains(&message)
    }

    fn has_owner(&self) -> bool {
        self.relays.iter().any(|relay| relay.epoch == Some(self.tenure.epoch))
    }

    fn may_come_late(&self, message: usize) -> bool {
        self.requests[message] == Request::Half
    }

    /// Whether a relay that holds a message for published would find it again.
    fn may_repeat(&self, relay: &Relay, message: usize) -> bool {
        self.outbox[message] == Row::Waiting
            && (self.tenure.oldest..relay.cursor).contains(&message)
            && !relay.gaps.contains(&message)
    }

    fn note_publication(&mut self, message: usize) {
        if std::mem::replace(&mut self.published[message], true) {
            return;
        }
        let earlier = std::mem::take(&mut self.answered_before[message]);
        self.out_of_order |= (0..MESSAGES).any(|it| {
            let waits = self.outbox[it] == Row::Waiting && !self.published[it];
            earlier[it] && waits && !self.committed_late[it]
        });
    }

    fn is_fault(&self, action: Action) -> bool {
        match action {
            Action::CrashApi(_) | Action::CrashRelay(_) | Action::Cancel(_) | Action::WipeTopic => {
                true
            }
            Action::Publish { answered, .. } => !answered,
            Action::GiveUpGap { message, .. } => self.may_come_late(message),
            Action::Overdue { message, .. } => self.will_be_read(message),
            Action::LeaseEnds => self.has_owner(),
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
            self.faults(state, actions);
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        state.faults += u8::from(last.is_fault(action));
        match action {
            Action::Accept(message) => {
                state.requests[message] = Request::Half;
                state.answered_before[message] =
                    last.requests.map(|request| request == Request::Answered);
            }
            Action::Commit(message) => {
                state.requests[message] = Request::Answered;
                state.outbox[message] = Row::Waiting;
            }
            Action::CrashApi(message) => {
                let answered = self.has(Flaw::AnswerBeforeCommit);
                state.requests[message] = if answered { Request::Answered } else { Request::Gone };
            }
            Action::Acquire(relay) => {
                state.stolen |= last.tenure.leased;
                state.tenure.epoch += 1;
                state.tenure.leased = true;
                let epoch = Some(state.tenure.epoch);
                let cursor = state.tenure.published;
                state.relays[relay] = Relay { epoch, cursor, ..Relay::default() };
            }
            Action::Look { relay, limit } => self.look(last, &mut state.relays[relay], limit),
            Action::Publish { relay, arrives, answered } => {
                self.publish(&mut state, relay, arrives, answered);
            }
            Action::GiveUpGap { relay, message } => {
                state.relays[relay].gaps.retain(|it| *it != message);
                state.committed_late[message] |=
                    last.may_come_late(message) && !self.has(Flaw::GapGivenUpTooEarly);
            }
            Action::Overdue { relay, message } => {
                if self.has(Flaw::OverdueIsNotRepeated) {
                    return None;
                }
                let gaps = &mut state.relays[relay].gaps;
                gaps.push(message);
                gaps.sort_unstable();
            }
            Action::Renew(relay) => self.renew(&mut state, relay),
            Action::NoteOldest(relay) => self.note_oldest(&mut state, relay),
            Action::CrashRelay(relay) => state.relays[relay] = Relay::default(),
            Action::LeaseEnds => state.tenure.leased = false,
            // The records that it had not read were deleted. It continues from the earliest.
            Action::Take if last.offset > last.topic.len() => state.offset = 0,
            Action::Take => {
                state.offset += 1;
                self.take_over(&mut state, last.topic[last.offset]);
            }
            Action::Cancel(message) => state.outbox[message] = Row::Expired,
            Action::EndExpired(message) => {
                state.outbox[message] = Row::Absent;
                if last.ledger[message] == Entry::None {
                    state.ledger[message] = Entry::Expired { group: false };
                }
            }
            Action::WipeTopic => state.topic.clear(),
        }
        (state != *last).then_some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(NOTHING_LOST, |model, state: &State| {
                let lost = |message: usize| {
                    state.requests[message] == Request::Answered
                        && state.ledger[message] == Entry::None
                };
                if !(0..MESSAGES).any(lost) {
                    return true;
                }
                let mut actions = Vec::new();
                model.progress(state, &mut actions);
                actions.iter().any(|action| model.next_state(state, *action).is_some())
            }),
            Property::always(ONCE, |_, state: &State| !state.ended_twice),
            Property::always(IN_ORDER, |_, state: &State| !state.out_of_order),
            Property::always(ONE_OWNER, |_, state: &State| !state.stolen),
            Property::always(FENCED, |_, state: &State| !state.stale_write),
            Property::always(TRUE_PROGRESS, |_, state: &State| {
                (0..state.tenure.published).all(|message| {
                    state.outbox[message] != Row::Waiting
                        || state.published[message]
                        || state.committed_late[message]
                })
            }),
            Property::always(CANCELED, |_, state: &State| !state.canceled_and_sent),
        ]
    }
}

/// 96 thousand states.
const TWO_MESSAGES: Publishing = Publishing { messages: 2, faults: 2, flaw: None };
/// 133 thousand states. A number that becomes visible after a higher one can break the order only with a
/// third message.
const THREE_MESSAGES: Publishing = Publishing { messages: 3, faults: 1, flaw: None };

#[test]
fn every_answered_message_reaches_the_ledger_in_order() {
    assert_holds("publishing, two messages", TWO_MESSAGES, State::representative);
    assert_holds("publishing, three messages", THREE_MESSAGES, State::representative);
}

#[track_caller]
fn check(model: Publishing, flaw: Flaw, property: &'static str) {
    let model = Publishing { flaw: Some(flaw), ..model };
    assert_refuted(&format!("{flaw:?}"), model, property);
}

#[test]
fn an_answer_before_the_commit_loses_messages() {
    check(TWO_MESSAGES, Flaw::AnswerBeforeCommit, NOTHING_LOST);
}

#[test]
fn a_relay_that_does_not_wait_for_the_lease_takes_it_from_its_owner() {
    check(TWO_MESSAGES, Flaw::AcquireWhileLeased, ONE_OWNER);
}

#[test]
fn a_renewal_without_the_fence_lets_a_late_relay_write() {
    check(TWO_MESSAGES, Flaw::RenewUnfenced, FENCED);
}

#[test]
fn progress_before_the_acknowledgement_is_untrue_and_breaks_the_order() {
    check(TWO_MESSAGES, Flaw::ProgressBeforeAck, TRUE_PROGRESS);
    check(TWO_MESSAGES, Flaw::ProgressBeforeAck, IN_ORDER);
}

#[test]
fn a_cursor_without_gaps_passes_messages_and_breaks_the_order() {
    check(TWO_MESSAGES, Flaw::NoGaps, TRUE_PROGRESS);
    check(Publishing { faults: 0, ..THREE_MESSAGES }, Flaw::NoGaps, IN_ORDER);
}

#[test]
fn a_gap_that_is_given_up_before_the_commit_breaks_the_order() {
    check(THREE_MESSAGES, Flaw::GapGivenUpTooEarly, IN_ORDER);
}

#[test]
fn two_statements_for_gaps_and_new_messages_break_the_order() {
    check(THREE_MESSAGES, Flaw::GapsAndNewInTwoLooks, IN_ORDER);
}

#[test]
fn a_publication_past_a_failed_one_breaks_the_order() {
    check(TWO_MESSAGES, Flaw::PublishPastFailure, IN_ORDER);
}

#[test]
fn without_a_second_publication_a_wiped_topic_loses_messages() {
    check(TWO_MESSAGES, Flaw::OverdueIsNotRepeated, NOTHING_LOST);
}

#[test]
fn a_duplicate_that_is_not_ignored_is_taken_over_twice() {
    check(TWO_MESSAGES, Flaw::DuplicateIsTakenOver, ONCE);
}

#[test]
fn a_cancel_that_is_read_from_the_record_alone_is_not_seen() {
    check(TWO_MESSAGES, Flaw::CancelIsNotSeen, CANCELED);
}

#[test]
fn a_message_that_ended_under_no_group_must_not_be_taken_over() {
    check(TWO_MESSAGES, Flaw::EndUnderNoGroupIsNotSeen, ONCE);
}

#[test]
fn looks_that_never_begin_lower_lose_a_message_that_became_visible_late() {
    check(TWO_MESSAGES, Flaw::OldestOnlyRises, NOTHING_LOST);
}
