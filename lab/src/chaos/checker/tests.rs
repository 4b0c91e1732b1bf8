use super::*;
use crate::{
    chaos::history::{FIRST_GATEWAY, Request, Round},
    kit::tables::IllegalWrite,
};

const PHONE: &str = "79991234567";
const ID: &str = "m1";
const CALL_LIMIT: Moment = 3_000;

/// Returns the history of one message: accepted at 1,000, called for at 2,000 and sent, by a
/// gateway that is plain until 100,000 and idempotent from then on.
fn good() -> (History, Ledger) {
    let history = History {
        requests: vec![request(Reply::Accepted, 1_000)],
        calls: vec![call(Answer::Accept, 2_000)],
        rounds: vec![
            round(0, GatewayKind::Plain, AfterAmbiguous::Same),
            round(100_000, GatewayKind::Idempotent, AfterAmbiguous::Same),
        ],
        ..History::default()
    };
    (history, Ledger { entries: vec![entry("sent", 1_000)], illegal_writes: Vec::new() })
}

fn round(from: Moment, kind: GatewayKind, ambiguous: AfterAmbiguous) -> Round {
    Round { from, kind, ambiguous }
}

fn request(reply: Reply, at: Moment) -> Request {
    Request { phone: PHONE.to_owned(), asked_at: at, ended_at: at + 5, reply, detail: None }
}

fn call(answer: Answer, at: Moment) -> Call {
    Call {
        id: ID.to_owned(),
        phone: PHONE.to_owned(),
        code: "123456".to_owned(),
        gateway: 0,
        kind: GatewayKind::Plain,
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

fn incident(kind: &str, from: Moment, to: Moment) -> Incident {
    Incident { kind: kind.to_owned(), target: String::new(), from, to: Some(to) }
}

/// Checks what is found after the good history was spoilt.
#[track_caller]
fn check_spoilt(spoil: impl FnOnce(&mut History, &mut Ledger), expected: &[Invariant]) {
    let (mut history, mut ledger) = good();
    spoil(&mut history, &mut ledger);

    let judgement = check(&history, &ledger, CALL_LIMIT);

    let found: Vec<Invariant> = judgement.violations.iter().map(|found| found.invariant).collect();
    assert_eq!(found, expected, "{:#?}", judgement.violations);
}

#[test]
fn a_good_history_violates_nothing() {
    check_spoilt(|_, _| {}, &[]);
}

#[test]
fn an_accepted_message_that_is_missing_or_unfinished_is_lost() {
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
fn a_request_without_an_answer_may_have_been_stored_or_not() {
    for reply in [Reply::Lost, Reply::LostOnKept, Reply::Nowhere, Reply::Refused] {
        check_spoilt(|history, _| history.requests[0].reply = reply, &[]);
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
fn a_state_that_the_calls_contradict_is_lost() {
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
fn a_message_cannot_be_sent_to_a_refused_number() {
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
fn a_message_that_the_gateway_took_twice_is_doubled() {
    check_spoilt(
        |history, _| history.calls.push(call(Answer::Accept, 50_000)),
        &[Invariant::Doubled],
    );
}

#[test]
fn a_call_after_an_accepted_one_needs_a_cause_even_if_the_gateway_recognised_it() {
    let again = |history: &mut History| {
        history.calls.push(Call { paid: false, ..call(Answer::Accept, 12_000) });
    };
    check_spoilt(|history, _| again(history), &[Invariant::Doubled]);
    for cause in ["kill-consumer", "postgres-fast", SLOW] {
        check_spoilt(
            |history, _| {
                again(history);
                history.incidents.push(incident(cause, 2_100, 2_200));
            },
            &[],
        );
    }
}

/// A good call of the second gateway.
fn second_call(at: Moment) -> Call {
    Call { gateway: 1, ..call(Answer::Accept, at) }
}

#[test]
fn two_gateways_may_take_a_message_only_with_next_and_after_an_ambiguous_call() {
    let taken_twice = |first: Answer, ambiguous: AfterAmbiguous| {
        move |history: &mut History, _: &mut Ledger| {
            history.rounds = vec![round(0, GatewayKind::Idempotent, ambiguous)];
            history.calls = vec![call(first, 2_000), second_call(2_500)];
        }
    };
    for answer in [Answer::Error, Answer::Reset] {
        check_spoilt(taken_twice(answer, AfterAmbiguous::Next), &[]);
        check_spoilt(taken_twice(answer, AfterAmbiguous::Same), &[Invariant::Doubled]);
    }
    check_spoilt(taken_twice(Answer::Accept, AfterAmbiguous::Next), &[Invariant::Doubled]);
    check_spoilt(
        |history, ledger| {
            taken_twice(Answer::Accept, AfterAmbiguous::Next)(history, ledger);
            history.incidents.push(incident("kill-consumer", 2_000, 2_001));
        },
        &[],
    );
    check_spoilt(
        |history, ledger| {
            taken_twice(Answer::Error, AfterAmbiguous::Next)(history, ledger);
            history.calls.push(call(Answer::Error, 3_000));
        },
        &[Invariant::Doubled],
    );
}

#[test]
fn messages_must_take_the_second_gateway_soon_and_the_first_again_later() {
    let outage = |history: &mut History, second: Moment, first: Moment| {
        let target = FIRST_GATEWAY.to_owned();
        history.incidents.push(Incident { target, ..incident("gateway-503", 500, 9_000) });
        history.calls[0] = second_call(second);
        let again = Call { id: "m2".to_owned(), ..call(Answer::Accept, first) };
        history.calls.push(again);
    };
    let with_a_second_message = |history: &mut History, ledger: &mut Ledger| {
        history.requests.push(request(Reply::Accepted, 1_500));
        ledger.entries.push(Entry { id: "m2".to_owned(), ..entry("sent", 1_500) });
    };
    for (second, first, expected) in [
        (5_500, 69_000, &[][..]),
        (5_501, 69_000, &[Invariant::Failover]),
        (5_500, 69_001, &[Invariant::Failover]),
    ] {
        check_spoilt(
            |history, ledger| {
                with_a_second_message(history, ledger);
                outage(history, second, first);
            },
            expected,
        );
    }
    // A message from before the fault shows nothing.
    check_spoilt(
        |history, ledger| {
            with_a_second_message(history, ledger);
            outage(history, 2_000, 69_000);
            ledger.entries[0].accepted_at = 400;
        },
        &[Invariant::Failover],
    );
}

#[test]
fn a_message_without_a_request_or_an_intent_is_a_phantom() {
    // The ledger and the gateway have another phone than the request.
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
fn two_entries_of_one_message_are_a_violation() {
    check_spoilt(|_, ledger| ledger.entries.push(entry("sent", 1_000)), &[Invariant::Lost]);
}

#[test]
fn an_illegal_write_violates_its_invariant_unless_the_topic_was_wiped() {
    let write = |kind: &str| IllegalWrite {
        at: 5_000,
        kind: kind.to_owned(),
        subject: "partition 0".to_owned(),
        detail: String::new(),
    };
    check_spoilt(|_, ledger| ledger.illegal_writes.push(write("offset")), &[Invariant::Offset]);
    check_spoilt(|_, ledger| ledger.illegal_writes.push(write("epoch")), &[Invariant::Epoch]);
    check_spoilt(
        |history, ledger| {
            ledger.illegal_writes.push(write("offset"));
            history.incidents.push(incident("topic-wipe", 4_000, 6_000));
        },
        &[],
    );
}

#[test]
fn messages_to_one_phone_keep_their_order_unless_a_fault_reorders_them() {
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
            history.incidents.push(incident("partition-add", 1_200, 16_200));
        },
        &[],
    );
}

#[test]
fn an_unknown_outcome_needs_a_cause() {
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
            history.incidents.push(incident("link-cut-consumer-gateway", 1_500, 2_500));
        },
        &[],
    );
    check_spoilt(
        |history, ledger| {
            unknown(ledger);
            history.incidents.push(incident("kill-api", 1_500, 2_500));
        },
        &[Invariant::Unknown],
    );
}

#[test]
fn no_outcome_is_unknown_with_an_idempotent_gateway() {
    check_spoilt(
        |history, ledger| {
            history.rounds.truncate(1);
            history.rounds[0].kind = GatewayKind::Idempotent;
            history.calls[0] = call(Answer::Reset, 2_000);
            ledger.entries[0].state = "unknown".to_owned();
        },
        &[Invariant::Unknown],
    );
}

#[test]
fn a_message_that_one_gateway_refuses_and_another_may_have_is_unknown() {
    const REFUSED: &str = "79991234513";
    let refused = |ambiguous: AfterAmbiguous| {
        move |history: &mut History, ledger: &mut Ledger| {
            history.rounds = vec![round(0, GatewayKind::Idempotent, ambiguous)];
            history.calls = vec![
                Call { paid: false, ..call(Answer::Refuse, 2_000) },
                Call { paid: false, gateway: 1, ..call(Answer::Refuse, 2_500) },
            ];
            history.incidents.push(incident("kill-consumer", 2_000, 2_001));
            ledger.entries[0].state = "unknown".to_owned();
            for phone in [&mut history.requests[0].phone, &mut ledger.entries[0].phone] {
                REFUSED.clone_into(phone);
            }
            history.calls.iter_mut().for_each(|call| REFUSED.clone_into(&mut call.phone));
        }
    };
    check_spoilt(refused(AfterAmbiguous::Next), &[]);
    check_spoilt(refused(AfterAmbiguous::Same), &[Invariant::Unknown]);
}

#[test]
fn an_undocumented_or_missing_answer_is_a_violation() {
    check_spoilt(|history, _| history.requests[0].reply = Reply::Illegal, &[Invariant::Answer]);
    check_spoilt(|history, _| history.requests[0].reply = Reply::Silent, &[Invariant::Answer]);
    check_spoilt(
        |history, _| {
            history.requests[0].reply = Reply::Silent;
            history.incidents.push(incident("link-half-open-client-api", 900, 1_000));
        },
        &[],
    );
}

#[test]
fn a_process_that_ended_by_itself_is_a_crash() {
    check_spoilt(
        |history, _| history.crashes.push(("consumer-1".to_owned(), 3_000)),
        &[Invariant::Crash],
    );
}

#[test]
fn more_than_twenty_copies_need_a_fault() {
    let (mut history, ledger) = good();
    let copies = |count| BTreeMap::from([(ID.to_owned(), count)]);

    assert!(check_repeats(&history, &ledger, &copies(21)).is_none());
    assert!(check_repeats(&history, &ledger, &copies(22)).is_some());
    history.incidents.push(incident("kill-processor", 1_000, 2_000));
    assert!(check_repeats(&history, &ledger, &copies(22)).is_none());
}
