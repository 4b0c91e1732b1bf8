use std::time::{Duration, UNIX_EPOCH};

use application::ports::{
    Backlog, CallOutcome, CheckOutcome, DeliveryLedger, DueEvent, EventKind, EventOutbox,
    EventReason, FailureReason, GuardCounts, GuardDecision, Housekeeping, Incoming, NewSend,
    NewTest, NewVerification, Next, Outbox, OutcomeClass, Start, Verdict, Verifications,
};
use domain::{GuardMode, GuardRule, GuardScope, Metadata, Origin, Validity, VerificationId};
use sea_orm::ConnectionTrait;

use super::{
    on_both_databases,
    support::{
        LONG, accepted, approve, backlog, batch, calls, count, enqueue, id_of, in_time, incoming,
        ledger, new_id, one_writer, phone, published, reach, right, start, try_by_id,
    },
};
use crate::{CoalescingOutbox, Database, Events, SqlEventOutbox, SqlGuard, SqlVerifications};

on_both_databases!(
    event_is_stored_in_the_commit_that_it_reports,
    outcomes_of_calls_are_recorded_as_events,
    message_that_no_gateway_takes_has_a_reason,
    expired_message_has_one_event,
    message_that_one_group_sent_has_not_failed,
    event_of_a_blocked_send_has_no_verification,
    no_event_is_stored_if_events_are_off,
    unsettled_event_is_claimed_again,
    lost_claim_of_an_event_changes_nothing,
    event_outlives_its_verification,
);

const NONE: Duration = Duration::ZERO;

/// Stores a send alone, with its event.
async fn tell_start(database: &Database, send: &NewSend) {
    let database = database.clone().with_events(Events::Recorded);
    let (outbox, _writers) = CoalescingOutbox::start(&database, one_writer());
    accepted(&outbox.enqueue(send.clone()).await.unwrap());
}

/// Claims all due events.
async fn told(events: &SqlEventOutbox) -> Vec<DueEvent> {
    events.claim(100, LONG).await.unwrap()
}

fn kinds(told: &[DueEvent]) -> Vec<(EventKind, Option<VerificationId>)> {
    told.iter().map(|event| (event.kind, event.verification)).collect()
}

async fn event_is_stored_in_the_commit_that_it_reports(database: Database) {
    let verifications = SqlVerifications::new(database.clone().with_events(Events::Recorded));
    let events = SqlEventOutbox::new(database.clone());
    let mut send = start(&phone(1));
    send.verification.metadata = Some(Metadata::new(r#"{"user":"42"}"#.to_owned()));
    let id = id_of(&send);

    tell_start(&database, &send).await;
    let created = told(&events).await;
    assert_eq!(kinds(&created), [(EventKind::Created, Some(id))]);
    let DueEvent { id: name, phone: masked, metadata, test, delivery, claim, .. } = &created[0];
    assert!(name.len() == 32 && name.bytes().all(|byte| byte.is_ascii_hexdigit()), "{name}");
    assert_eq!(masked.as_deref(), Some("+7999*****01"));
    assert_eq!((metadata, test, delivery), (&send.verification.metadata, &false, &None));
    assert_eq!(claim.attempt, 1);
    let found = verifications.find(id).await.unwrap().unwrap();
    assert_eq!(created[0].at, found.created_at);

    approve(&verifications, id).await;
    let again = try_by_id(&verifications, id, right(), &[]).await;
    assert!(matches!(again, CheckOutcome::Approved), "{again:?}");
    verifications.cancel(id).await.unwrap().unwrap();
    assert_eq!(kinds(&told(&events).await), [(EventKind::Approved, Some(id))]);

    let canceled = start(&phone(2));
    accepted(&enqueue(&database, &canceled).await);
    for _ in 0..2 {
        verifications.cancel(id_of(&canceled)).await.unwrap().unwrap();
    }
    assert_eq!(kinds(&told(&events).await), [(EventKind::Canceled, Some(id_of(&canceled)))]);

    let over = NewSend { ttl: NONE, ..start(&phone(3)) };
    accepted(&enqueue(&database, &over).await);
    assert_eq!(verifications.expire().await.unwrap(), 1);
    assert_eq!(verifications.expire().await.unwrap(), 0);
    assert_eq!(kinds(&told(&events).await), [(EventKind::Expired, Some(id_of(&over)))]);

    let verification = NewVerification { origin: Origin::Test, ..send.verification };
    let id = new_id();
    let phone = phone(4).parse().unwrap();
    verifications.start_test(NewTest { id, phone, ttl: LONG, verification }).await.unwrap();
    let of_a_test = told(&events).await;
    assert_eq!(kinds(&of_a_test), [(EventKind::Created, Some(id))]);
    assert!(of_a_test[0].test);

    // A refused change has no event, and a change whose event is refused does not happen.
    let refuse = if database.is_postgres() {
        "ALTER TABLE event ADD CHECK (kind <> 'created') NOT VALID"
    } else {
        "CREATE TRIGGER refuse BEFORE INSERT ON event WHEN new.kind = 'created'
         BEGIN SELECT RAISE(ABORT, 'refused'); END"
    };
    database.connection().execute_unprepared(refuse).await.unwrap();
    let before = count(&database, "outbox").await;
    let recording = database.clone().with_events(Events::Recorded);
    let (outbox, _writers) = CoalescingOutbox::start(&recording, one_writer());
    outbox.enqueue(start(&super::support::phone(5))).await.unwrap_err();
    assert_eq!(count(&database, "outbox").await, before);
    assert_eq!(kinds(&told(&events).await), []);
}

async fn outcomes_of_calls_are_recorded_as_events(database: Database) {
    let sends = [1, 2, 3].map(|number| start(&phone(number)));
    for send in &sends {
        accepted(&enqueue(&database, send).await);
    }
    let ours = published(&database).await.into_iter();
    // And a message without a verification.
    let messages: Vec<Incoming> = ours.chain([incoming(&phone(9))]).collect();
    let ids: Vec<_> = messages.iter().map(|incoming| incoming.message.id).collect();
    let (ledger, lease) = ledger(&database, "group").await;
    ledger.admit(&lease, &batch(&messages)).await.unwrap();
    ledger.start(&lease, &calls(&ids), LONG).await.unwrap();

    let verdicts = [
        Verdict::Sent { reference: None, receipts_by_reference: false, awaited: None },
        Verdict::Unknown,
        Verdict::Retry { after: NONE },
        Verdict::Sent { reference: None, receipts_by_reference: false, awaited: None },
    ];
    let outcomes: Vec<CallOutcome> = ids
        .iter()
        .zip(verdicts)
        .map(|(id, verdict)| CallOutcome {
            id: *id,
            attempt: 1,
            class: OutcomeClass::Ambiguous,
            verdict,
            detail: String::new(),
        })
        .collect();
    let recorded = ledger.finish(&outcomes).await.unwrap();
    let again = ledger.finish(&outcomes).await.unwrap();

    assert_eq!((recorded.len(), again.len()), (4, 0));
    let told = told(&SqlEventOutbox::new(database)).await;
    let mut told: Vec<_> = told
        .iter()
        .map(|event| (event.verification.unwrap(), event.kind, event.delivery.as_deref()))
        .collect();
    told.sort_unstable();
    let mut expected = [
        (id_of(&sends[0]), EventKind::Sent, Some("sent")),
        (id_of(&sends[1]), EventKind::Failed, Some("unknown")),
    ];
    expected.sort_unstable();
    assert_eq!(told, expected);
}

async fn message_that_no_gateway_takes_has_a_reason(database: Database) {
    let sends = [1, 2, 3].map(|number| start(&phone(number)));
    for send in &sends {
        accepted(&enqueue(&database, send).await);
    }
    let ours = published(&database).await.into_iter();
    let messages: Vec<Incoming> = ours.collect();
    let ids: Vec<_> = messages.iter().map(|incoming| incoming.message.id).collect();
    let (ledger, lease) = ledger(&database, "group").await;
    ledger.admit(&lease, &batch(&messages)).await.unwrap();
    // The first gateway of the third message may have it.
    let call = ledger.start(&lease, &calls(&ids[2..]), LONG).await.unwrap().calls[0];
    let unclear = CallOutcome {
        id: call.id,
        attempt: call.attempt,
        class: OutcomeClass::Ambiguous,
        verdict: Verdict::Retry { after: NONE },
        detail: String::new(),
    };
    ledger.finish(&[unclear]).await.unwrap();

    let (no_route, no_budget) = (FailureReason::NoRoute, FailureReason::BudgetExhausted);
    let starts = [(0, no_route), (1, no_budget), (2, no_budget)]
        .map(|(place, reason): (usize, _)| Start { id: ids[place], next: Next::Fail(reason) });
    assert_eq!(ledger.start(&lease, &starts, LONG).await.unwrap().ended.len(), 3);

    let told = told(&SqlEventOutbox::new(database.clone())).await;
    let reasons = [Some("no-route"), Some("budget-exhausted"), None];
    let verifications = SqlVerifications::new(database);
    for (send, reason) in sends.iter().zip(reasons) {
        let id = id_of(send);
        let event = told.iter().find(|event| event.verification == Some(id)).unwrap();
        assert_eq!((event.kind, event.reason.as_deref()), (EventKind::Failed, reason));
        let history = verifications.history(id).await.unwrap().unwrap();
        let failed = history.events.iter().find(|event| event.kind == EventKind::Failed);
        assert_eq!(failed.unwrap().reason.map(EventReason::as_str), reason);
    }
}

async fn expired_message_has_one_event(database: Database) {
    let sends = [1, 2, 3, 4, 5].map(|number| start(&phone(number)));
    for send in &sends {
        accepted(&enqueue(&database, send).await);
    }
    let mut messages = published(&database).await;
    messages.push(incoming(&phone(9)));
    reach(&database, messages[3].sequence.unwrap()).await;
    let backlog = backlog(&database.clone().with_events(Events::Recorded));
    let long_ago = Some(Validity::starting_at(UNIX_EPOCH + LONG, LONG));
    let (ledger, lease) = ledger(&database, "group").await;
    let expire = async |table: &str| {
        let sql = format!("UPDATE {table} SET expires_at = accepted_at");
        database.connection().execute_unprepared(&sql).await.unwrap();
    };

    // The first expires while its retry waits, the second before its call, the third and a message
    // without a verification before they were read, the fourth in transit, the fifth in the outbox.
    let ids: Vec<_> = messages.iter().map(|incoming| incoming.message.id).collect();
    ledger.admit(&lease, &batch(&messages[..2])).await.unwrap();
    let call = ledger.start(&lease, &calls(&ids[..1]), LONG).await.unwrap().calls[0];
    let too_late = CallOutcome {
        id: call.id,
        attempt: call.attempt,
        class: OutcomeClass::Throttled,
        verdict: Verdict::Retry { after: 20 * LONG },
        detail: String::new(),
    };
    ledger.finish(&[too_late]).await.unwrap();
    expire("delivery").await;
    assert_eq!(ledger.start(&lease, &calls(&ids[1..2]), LONG).await.unwrap().ended.len(), 1);
    for place in [2, 5] {
        messages[place].validity = long_ago;
        let late = batch(std::slice::from_ref(&messages[place]));
        assert_eq!(ledger.admit(&lease, &late).await.unwrap().expired.len(), 1);
    }
    expire("outbox").await;
    assert_eq!(backlog.end_expired().await.unwrap(), 2);

    let told_of = told(&SqlEventOutbox::new(database.clone())).await;
    let mut told_of: Vec<_> = told_of
        .into_iter()
        .map(|event| (event.verification.unwrap(), event.kind, event.delivery.unwrap(), event.id))
        .collect();
    told_of.sort_unstable();
    let mut expected = sends.each_ref().map(|send| {
        let id = send.message.id.as_uuid().simple().to_string();
        (id_of(send), EventKind::Failed, "expired".to_owned(), id)
    });
    expected.sort_unstable();
    assert_eq!(told_of, expected);

    // All are read again, by this group and by another. Two have ended under no group.
    for message in &mut messages {
        message.validity = long_ago;
    }
    let (other, other_lease) = super::support::ledger(&database, "other").await;
    let ours = ledger.admit(&lease, &batch(&messages)).await.unwrap();
    let late = other.admit(&other_lease, &batch(&messages)).await.unwrap();
    assert_eq!((ours.expired.len(), late.expired.len()), (0, 4));
    assert_eq!(backlog.end_expired().await.unwrap(), 0);
    assert_eq!(count(&database, "event").await, 5);
}

async fn message_that_one_group_sent_has_not_failed(database: Database) {
    accepted(&enqueue(&database, &start(&phone(1))).await);
    let message = published(&database).await.remove(0);
    let id = message.message.id;
    for (group, verdict) in [
        ("a", Verdict::Sent { reference: None, receipts_by_reference: false, awaited: None }),
        ("b", Verdict::Failed),
    ] {
        let (ledger, lease) = ledger(&database, group).await;
        ledger.admit(&lease, &batch(std::slice::from_ref(&message))).await.unwrap();
        ledger.start(&lease, &calls(&[id]), LONG).await.unwrap();
        let (class, detail) = (OutcomeClass::Rejected, String::new());
        ledger.finish(&[CallOutcome { id, attempt: 1, class, verdict, detail }]).await.unwrap();
    }

    let told = told(&SqlEventOutbox::new(database)).await;
    assert_eq!(kinds(&told), [(EventKind::Sent, Some(VerificationId::of(id)))]);
}

async fn event_of_a_blocked_send_has_no_verification(database: Database) {
    let guard = SqlGuard::new(database.clone().with_events(Events::Recorded));
    let rule = |mode| GuardRule::parse("prefix:50:10", mode).unwrap();
    let decision = |mode| GuardDecision {
        rule: rule(mode),
        scope: GuardScope::Prefix,
        key: "7999123".to_owned(),
        sends: 60,
        approvals: 1,
        verification: None,
        phone: "+7999*****67".to_owned(),
    };

    let decisions = [decision(GuardMode::Shadow), decision(GuardMode::Enforce)];
    guard.add(&[], &decisions, LONG).await.unwrap();

    let told = told(&SqlEventOutbox::new(database)).await;
    assert_eq!(kinds(&told), [(EventKind::Blocked, None)]);
    assert_eq!(told[0].phone.as_deref(), Some("+7999*****67"));
}

async fn no_event_is_stored_if_events_are_off(database: Database) {
    let verifications = SqlVerifications::new(database.clone());
    for number in 1..=2 {
        accepted(&enqueue(&database, &start(&phone(number))).await);
    }
    let send = start(&phone(3));
    accepted(&enqueue(&database, &send).await);
    approve(&verifications, id_of(&send)).await;
    let over = NewSend { ttl: NONE, ..start(&phone(4)) };
    accepted(&enqueue(&database, &over).await);
    verifications.expire().await.unwrap();
    let backlog = backlog(&database);
    assert_eq!(backlog.end_expired().await.unwrap(), 1);

    assert_eq!(count(&database, "event").await, 0);
}

async fn unsettled_event_is_claimed_again(database: Database) {
    let events = SqlEventOutbox::new(database.clone());
    for number in 1..=3 {
        tell_start(&database, &start(&phone(number))).await;
    }

    let first = events.claim(2, NONE).await.unwrap();
    let second = events.claim(1, LONG).await.unwrap();
    assert_eq!(first.len(), 2);
    assert!(first[0].claim.sequence < first[1].claim.sequence);
    assert!(!first.iter().any(|event| event.id == second[0].id), "the third has waited longest");
    let mut again = told(&events).await;
    again.sort_unstable_by_key(|event| event.claim.sequence);
    let tries = |told: &[DueEvent]| -> Vec<_> {
        told.iter().map(|event| (event.id.clone(), event.at, event.claim.attempt)).collect()
    };
    let expected: Vec<_> =
        tries(&first).into_iter().map(|(id, at, attempt)| (id, at, attempt + 1)).collect();
    assert_eq!(tries(&again), expected);
    assert!(told(&events).await.is_empty(), "all are leased");

    events.retry(&again[0].claim, Duration::from_millis(200)).await.unwrap();
    events.settle(&again[1].claim).await.unwrap();
    let third = in_time(async {
        loop {
            let told = told(&events).await;
            if !told.is_empty() {
                return told;
            }
        }
    })
    .await;
    assert_eq!((third.len(), third[0].claim.attempt), (1, 3));
    assert_eq!(third[0].id, again[0].id);
    assert_eq!(count(&database, "event").await, 2);
}

async fn lost_claim_of_an_event_changes_nothing(database: Database) {
    let events = SqlEventOutbox::new(database.clone());
    tell_start(&database, &start(&phone(1))).await;
    let late = events.claim(1, NONE).await.unwrap().remove(0).claim;
    let ours = events.claim(1, LONG).await.unwrap().remove(0).claim;

    events.settle(&late).await.unwrap();
    events.retry(&late, NONE).await.unwrap();

    assert_eq!(count(&database, "event").await, 1);
    assert!(told(&events).await.is_empty());
    events.settle(&ours).await.unwrap();
    assert_eq!(count(&database, "event").await, 0);
}

async fn event_outlives_its_verification(database: Database) {
    let events = SqlEventOutbox::new(database.clone());
    let send = start(&phone(1));
    tell_start(&database, &send).await;
    database.connection().execute_unprepared("DELETE FROM verification").await.unwrap();

    let told = told(&events).await;

    assert_eq!(kinds(&told), [(EventKind::Created, Some(id_of(&send)))]);
    assert_eq!((&told[0].phone, &told[0].metadata), (&None, &None));
}
