use super::*;
use crate::{
    history::{Request, Round},
    ledger::Offence,
};

const PHONE: &str = "79991234567";
const ID: &str = "m1";
const CALL_LIMIT: Moment = 3_000;

/// One message that was accepted at 1,000, called for at 2,000 and sent, at a gateway that is plain
/// until 100,000 and then knows messages again.
fn good() -> (History, Ledger) {
    let history = History {
        requests: vec![request(Reply::Accepted, 1_000)],
        calls: vec![call(Answer::Accept, 2_000)],
        rounds: vec![
            Round { from: 0, memory: Memory::Plain },
            Round { from: 100_000, memory: Memory::Idempotent },
        ],
        ..History::default()
    };
    (history, Ledger { entries: vec![entry("sent", 1_000)], offences: Vec::new() })
}

fn request(reply: Reply, at: Moment) -> Request {
    Request { phone: PHONE.to_owned(), asked_at: at, ended_at: at + 5, reply }
}

fn call(answer: Answer, at: Moment) -> Call {
    Call {
        id: ID.to_owned(),
        phone: PHONE.to_owned(),
        code: "123456".to_owned(),
        memory: Memory::Plain,
        answer,
        paid: answer != Answer::Throttle,
        began_at: at,
        ended_at: Some(at + 1),
        whole: answer != Answer::Reset,
    }
}

fn entry(state: &str, accepted_at: Moment) -> Entry {
    Entry {
        id: ID.to_owned(),
        group_id: "1".to_owned(),
        phone: PHONE.to_owned(),
        state: state.to_owned(),
        attempt: 1,
        accepted_at,
        expires_at: accepted_at + 600_000,
        called_at: Some(accepted_at + 900),
        ended_at: Some(accepted_at + 1_100),
        detail: None,
    }
}

fn trouble(kind: &str, from: Moment, to: Moment) -> Trouble {
    Trouble { kind: kind.to_owned(), target: String::new(), from, to: Some(to) }
}

/// What is found when the good history is spoilt so.
#[track_caller]
fn check_spoilt(spoil: impl FnOnce(&mut History, &mut Ledger), expected: &[Invariant]) {
    let (mut history, mut ledger) = good();
    spoil(&mut history, &mut ledger);

    let judgement = check(&history, &ledger, CALL_LIMIT);

    let found: Vec<Invariant> = judgement.violations.iter().map(|found| found.invariant).collect();
    assert_eq!(found, expected, "{:#?}", judgement.violations);
}

#[test]
fn finds_nothing_where_all_is_well() {
    check_spoilt(|_, _| {}, &[]);
}

#[test]
fn finds_what_was_accepted_and_is_not_there() {
    check_spoilt(
        |history, ledger| {
            ledger.entries.clear();
            history.calls.clear();
        },
        &[Invariant::Lost],
    );
    check_spoilt(
        |history, ledger| {
            ledger.entries[0].state = "pending".to_owned();
            history.calls.clear();
        },
        &[Invariant::Lost],
    );
}

#[test]
fn takes_no_answer_for_either() {
    for reply in [Reply::Lost, Reply::Refused] {
        check_spoilt(|history, _| history.requests[0].reply = reply.clone(), &[]);
        check_spoilt(
            |history, ledger| {
                history.requests[0].reply = reply;
                history.calls.clear();
                ledger.entries.clear();
            },
            &[],
        );
    }
}

#[test]
fn finds_states_that_are_not_true() {
    check_spoilt(|history, _| history.calls.clear(), &[Invariant::Lost]);
    check_spoilt(|_, ledger| ledger.entries[0].state = "failed".to_owned(), &[Invariant::Lost]);
    check_spoilt(
        |history, ledger| {
            ledger.entries[0].state = "expired".to_owned();
            history.calls.clear();
        },
        &[Invariant::Lost],
    );
    check_spoilt(
        |history, ledger| {
            ledger.entries[0].state = "expired".to_owned();
            ledger.entries[0].ended_at = Some(601_000);
            history.calls.clear();
        },
        &[],
    );
}

#[test]
fn finds_what_was_sent_to_a_number_that_is_refused() {
    const REFUSED: &str = "79991234513";
    check_spoilt(
        |history, ledger| {
            for phone in [&mut history.requests[0].phone, &mut history.calls[0].phone] {
                REFUSED.clone_into(phone);
            }
            REFUSED.clone_into(&mut ledger.entries[0].phone);
        },
        &[Invariant::Lost],
    );
}

#[test]
fn finds_what_was_taken_twice() {
    check_spoilt(
        |history, _| history.calls.push(call(Answer::Accept, 50_000)),
        &[Invariant::Doubled],
    );
}

#[test]
fn finds_a_needless_repeat_though_the_gateway_knew_it_again() {
    let again = |history: &mut History| {
        history.calls.push(Call { paid: false, ..call(Answer::Accept, 12_000) });
    };
    check_spoilt(|history, _| again(history), &[Invariant::Doubled]);
    for cause in ["kill-consumer", "postgres-fast", SLOW] {
        check_spoilt(
            |history, _| {
                again(history);
                history.troubles.push(trouble(cause, 2_100, 2_200));
            },
            &[],
        );
    }
}

#[test]
fn finds_what_nobody_asked_for() {
    // Another phone in the ledger and at the gateway; what was asked for is not there.
    check_spoilt(
        |history, _| history.requests[0].phone = "79997654321".to_owned(),
        &[Invariant::Phantom, Invariant::Lost, Invariant::Phantom],
    );
    // More messages than requests.
    check_spoilt(
        |_, ledger| ledger.entries.push(Entry { id: "m2".to_owned(), ..entry("unknown", 2_000) }),
        &[Invariant::Phantom, Invariant::Unknown],
    );
    // A call without an intent.
    check_spoilt(
        |history, ledger| {
            history.requests[0].reply = Reply::Lost;
            ledger.entries.clear();
        },
        &[Invariant::Phantom],
    );
}

#[test]
fn finds_one_message_with_two_entries() {
    check_spoilt(|_, ledger| ledger.entries.push(entry("sent", 1_000)), &[Invariant::Lost]);
}

#[test]
fn finds_what_the_triggers_caught() {
    let offence = |kind: &str| Offence {
        at: 5_000,
        kind: kind.to_owned(),
        subject: "partition 0".to_owned(),
        detail: String::new(),
    };
    check_spoilt(|_, ledger| ledger.offences.push(offence("offset")), &[Invariant::Offset]);
    check_spoilt(|_, ledger| ledger.offences.push(offence("epoch")), &[Invariant::Epoch]);
    check_spoilt(
        |history, ledger| {
            ledger.offences.push(offence("offset"));
            history.troubles.push(trouble("topic-wipe", 4_000, 6_000));
        },
        &[],
    );
}

#[test]
fn finds_messages_that_changed_places() {
    let second = |history: &mut History, ledger: &mut Ledger| {
        history.sequences.push(PHONE.to_owned());
        history.requests.push(request(Reply::Accepted, 1_500));
        history.calls.insert(0, Call { id: "m2".to_owned(), ..call(Answer::Accept, 1_900) });
        ledger.entries.push(Entry { id: "m2".to_owned(), ..entry("sent", 1_500) });
    };
    check_spoilt(second, &[Invariant::Order]);
    check_spoilt(
        |history, ledger| {
            second(history, ledger);
            history.sequences.clear();
        },
        &[],
    );
    check_spoilt(
        |history, ledger| {
            second(history, ledger);
            history.troubles.push(trouble("partition-add", 1_200, 16_200));
        },
        &[],
    );
}

#[test]
fn wants_a_cause_for_what_is_unknown() {
    let unknown = |ledger: &mut Ledger| ledger.entries[0].state = "unknown".to_owned();
    check_spoilt(|_, ledger| unknown(ledger), &[Invariant::Unknown]);
    for answer in [Answer::Reset, Answer::Error, Answer::Noise, Answer::Drip] {
        check_spoilt(
            |history, ledger| {
                unknown(ledger);
                history.calls[0] = call(answer, 2_000);
            },
            &[],
        );
    }
    check_spoilt(
        |history, ledger| {
            unknown(ledger);
            history.troubles.push(trouble("link-cut-consumer-gateway", 1_500, 2_500));
        },
        &[],
    );
    check_spoilt(
        |history, ledger| {
            unknown(ledger);
            history.troubles.push(trouble("kill-api", 1_500, 2_500));
        },
        &[Invariant::Unknown],
    );
}

#[test]
fn wants_no_unknown_of_a_gateway_that_knows_messages_again() {
    check_spoilt(
        |history, ledger| {
            history.rounds.truncate(1);
            history.rounds[0].memory = Memory::Idempotent;
            history.calls[0] = call(Answer::Reset, 2_000);
            ledger.entries[0].state = "unknown".to_owned();
        },
        &[Invariant::Unknown],
    );
}

#[test]
fn finds_answers_that_the_api_never_gives() {
    check_spoilt(
        |history, _| history.requests[0].reply = Reply::Illegal("500".to_owned()),
        &[Invariant::Answer],
    );
    check_spoilt(|history, _| history.requests[0].reply = Reply::Silent, &[Invariant::Answer]);
    check_spoilt(
        |history, _| {
            history.requests[0].reply = Reply::Silent;
            history.troubles.push(trouble("link-half-open-client-api", 900, 1_000));
        },
        &[],
    );
}

#[test]
fn finds_processes_that_ended_by_themselves() {
    check_spoilt(
        |history, _| history.crashes.push(("consumer-1".to_owned(), 3_000)),
        &[Invariant::Crash],
    );
}

#[test]
fn counts_copies_that_no_fault_explains() {
    let (mut history, ledger) = good();
    let copies = |count| BTreeMap::from([(ID.to_owned(), count)]);

    assert!(check_repeats(&history, &ledger, &copies(21)).is_none());
    assert!(check_repeats(&history, &ledger, &copies(22)).is_some());
    history.troubles.push(trouble("kill-processor", 1_000, 2_000));
    assert!(check_repeats(&history, &ledger, &copies(22)).is_none());
}
