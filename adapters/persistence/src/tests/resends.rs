use std::time::Duration;

use application::ports::{
    Batch, CallOutcome, CheckOutcome, DeliveryLedger, EventKind, Incoming, NewSecret, NewSend,
    OutcomeClass, PartitionLeases, Resend, Resent, Verdict, Verification, Verifications,
};
use domain::{CodeHash, MessageId, Seed, VerificationId, Windows};
use tokio::task::JoinSet;

use super::{
    on_both_databases,
    support::{
        self, accepted, approve, calls, count, counters, enqueue, id_of, limited, look, names,
        new_message, phone, records, right, start, try_by_id, wrong,
    },
};
use crate::{Database, SqlDeliveryLedger, SqlPartitionLeases, SqlVerifications};

on_both_databases!(
    resend_is_one_more_message_of_the_same_verification,
    resent_verification_is_the_newest_again,
    one_of_two_concurrent_resends_is_stored,
    resend_of_a_changed_verification_changes_nothing,
    limited_resend_moves_no_counter,
    resend_counts_on_its_phone_and_its_counters,
    new_code_replaces_the_old_code,
    events_of_a_message_are_read_from_its_rows,
);

const NONE: Duration = Duration::ZERO;
const LONG: Duration = Duration::from_secs(60);

/// The next message of the verification that `first` began, after `sends` messages.
pub(super) fn again(first: &NewSend, sends: u8) -> Resend {
    let NewSend { message, trace, .. } = new_message(first.message.phone.as_str());
    let id = id_of(first);
    let message = domain::Message { id: id.message(sends + 1), ..message };
    Resend {
        id,
        sends,
        wait: NONE,
        message,
        trace,
        secret: None,
        phone_limits: Windows::OFF,
        extra: Vec::new(),
        claim: None,
    }
}

async fn begin(database: &Database, number: usize) -> NewSend {
    let send = start(&phone(number));
    accepted(&enqueue(database, &send).await);
    send
}

async fn find(verifications: &SqlVerifications, id: VerificationId) -> Verification {
    verifications.find(id).await.unwrap().unwrap()
}

#[track_caller]
fn sent(resent: Resent) -> Verification {
    match resent {
        Resent::Sent(verification) => *verification,
        resent => panic!("{resent:?}"),
    }
}

#[track_caller]
fn refused(resent: &Resent) -> Vec<&str> {
    match resent {
        Resent::Limited(violations) => names(violations),
        resent => panic!("{resent:?}"),
    }
}

async fn resend_is_one_more_message_of_the_same_verification(database: Database) {
    let first = begin(&database, 1).await;
    let verifications = SqlVerifications::new(database.clone());
    let before = find(&verifications, id_of(&first)).await;
    let second = again(&first, 1);

    let after = sent(verifications.resend(second.clone()).await.unwrap());

    let Verification { sent_at, read_at, .. } = after;
    assert_eq!(after, Verification { sends: 2, sent_at, read_at, ..before.clone() });
    assert!(sent_at >= before.sent_at);
    let found = find(&verifications, id_of(&first)).await;
    assert_eq!(found, Verification { read_at: found.read_at, ..after });
    let waiting = look(&database, 0).await;
    assert_eq!(waiting.len(), 2);
    assert_eq!(waiting[1].message, second.message);
    assert_eq!(waiting[1].trace, second.trace);
    assert_eq!(waiting[1].validity.expires_at, before.expires_at);
    let history = verifications.history(id_of(&first)).await.unwrap().unwrap();
    let events: Vec<_> = history.events.iter().map(|event| (event.kind, event.at)).collect();
    let queued = (EventKind::Queued, sent_at);
    let created = [EventKind::Created, EventKind::Queued].map(|kind| (kind, before.created_at));
    assert_eq!(events, [created[0], created[1], queued]);
}

async fn resent_verification_is_the_newest_again(database: Database) {
    let first = begin(&database, 1).await;
    let of_api = new_message(&phone(1));
    accepted(&enqueue(&database, &of_api).await);
    accepted(&enqueue(&database, &new_message(&phone(1))).await);
    let verifications = SqlVerifications::new(database);

    sent(verifications.resend(again(&of_api, 1)).await.unwrap());
    sent(verifications.resend(again(&first, 1)).await.unwrap());

    let newest = verifications.newest(phone(1).parse().unwrap()).await.unwrap();
    assert_eq!((newest.v1, newest.api), (Some(id_of(&first)), Some(id_of(&of_api))));
}

async fn one_of_two_concurrent_resends_is_stored(database: Database) {
    let first = begin(&database, 1).await;
    let verifications = SqlVerifications::new(database.clone());
    let mut resends = JoinSet::new();
    for _ in 0..8 {
        let (verifications, mut again) = (verifications.clone(), again(&first, 1));
        again.extra = counters("ip", "8/1h", "192.0.2.1");
        again.phone_limits = "9/1h".parse().unwrap();
        resends.spawn(async move { verifications.resend(again).await.unwrap() });
    }

    let answers = resends.join_all().await;
    let stored = answers.iter().filter(|answer| matches!(answer, Resent::Sent(_))).count();
    let changed = answers.iter().filter(|answer| matches!(answer, Resent::Changed)).count();

    assert_eq!((stored, changed), (1, 7));
    assert_eq!(count(&database, "outbox").await, 2);
    assert_eq!(count(&database, "limit_counter WHERE used = 1").await, 1);
    assert_eq!(count(&database, "phone WHERE sends_1 <= 2").await, 1);
}

async fn resend_of_a_changed_verification_changes_nothing(database: Database) {
    let verifications = SqlVerifications::new(database.clone());
    let early = begin(&database, 1).await;
    let other = begin(&database, 2).await;
    let canceled = begin(&database, 3).await;
    verifications.cancel(id_of(&canceled)).await.unwrap().unwrap();
    let over = NewSend { ttl: NONE, ..start(&phone(4)) };
    accepted(&enqueue(&database, &over).await);
    let tried = begin(&database, 5).await;
    for _ in 0..5 {
        try_by_id(&verifications, id_of(&tried), wrong(), &[]).await;
    }

    for resend in [
        Resend { wait: LONG, ..again(&early, 1) },
        again(&other, 2),
        again(&canceled, 1),
        again(&over, 1),
        again(&tried, 1),
        again(&start(&phone(6)), 1),
    ] {
        let extra = counters("ip", "8/1h", "192.0.2.1");
        let resent = verifications.resend(Resend { extra, ..resend }).await.unwrap();
        assert_eq!(resent, Resent::Changed);
    }

    assert_eq!(count(&database, "outbox").await, 5);
    assert_eq!(count(&database, "limit_counter").await, 0);
    assert_eq!(count(&database, "verification WHERE sends > 1").await, 0);
}

async fn limited_resend_moves_no_counter(database: Database) {
    let send = limited("1/1h,9/1d", start(&phone(1)));
    accepted(&enqueue(&database, &send).await);
    let verifications = SqlVerifications::new(database.clone());
    let ip = || counters("ip", "1/1h", "192.0.2.1");
    let of_other = NewSend { extra: ip(), ..start(&phone(2)) };
    accepted(&enqueue(&database, &of_other).await);

    let by_phone = Resend {
        phone_limits: "1/1h,9/1d".parse().unwrap(),
        extra: counters("region", "9/1h", "RU"),
        ..again(&send, 1)
    };
    assert_eq!(refused(&verifications.resend(by_phone).await.unwrap()), ["phone-1h"]);
    let by_ip = Resend {
        phone_limits: "9/1h,9/1d".parse().unwrap(),
        extra: [ip(), counters("region", "9/1h", "RU")].concat(),
        ..again(&send, 1)
    };
    assert_eq!(refused(&verifications.resend(by_ip).await.unwrap()), ["ip-1h"]);

    assert_eq!(count(&database, "outbox").await, 2);
    assert_eq!(count(&database, "verification WHERE sends > 1").await, 0);
    assert_eq!(count(&database, "limit_counter").await, 1);
    assert_eq!(count(&database, "limit_counter WHERE used = 1").await, 1);
    assert_eq!(count(&database, "phone WHERE sends_1 = 1 AND sends_2 <= 1").await, 2);
}

async fn resend_counts_on_its_phone_and_its_counters(database: Database) {
    let send = limited("2/1h", start(&phone(1)));
    accepted(&enqueue(&database, &send).await);
    let verifications = SqlVerifications::new(database.clone());
    let of = |sends| Resend {
        phone_limits: "2/1h".parse().unwrap(),
        extra: counters("ip", "5/1h", "192.0.2.1"),
        ..again(&send, sends)
    };

    sent(verifications.resend(of(1)).await.unwrap());

    assert_eq!(refused(&verifications.resend(of(2)).await.unwrap()), ["phone-1h"]);
    assert_eq!(count(&database, "phone WHERE sends_1 = 2").await, 1);
    assert_eq!(count(&database, "limit_counter WHERE used = 1").await, 1);
}

async fn new_code_replaces_the_old_code(database: Database) {
    let first = begin(&database, 1).await;
    let verifications = SqlVerifications::new(database);
    let secret = NewSecret {
        pepper: "p2".parse().unwrap(),
        seed: Seed::from_bytes([1; 16]),
        code_hash: CodeHash::from_bytes([2; 32]),
    };

    let new = Resend { secret: Some(secret.clone()), ..again(&first, 1) };
    let verification = sent(verifications.resend(new).await.unwrap());

    let kept = verification.secret.unwrap();
    assert_eq!((kept.pepper, kept.seed), (secret.pepper.clone(), secret.seed));
    let old = try_by_id(&verifications, id_of(&first), right(), &[]).await;
    assert!(matches!(old, CheckOutcome::Wrong { pepper, .. } if pepper == secret.pepper));
    let new = vec![(secret.pepper, secret.code_hash)];
    let new = try_by_id(&verifications, id_of(&first), new, &[]).await;
    assert!(matches!(new, CheckOutcome::Right(_)), "{new:?}");
}

async fn events_of_a_message_are_read_from_its_rows(database: Database) {
    let first = begin(&database, 1).await;
    let id = id_of(&first);
    let verifications = SqlVerifications::new(database.clone());
    let kinds = async || {
        let history = verifications.history(id).await.unwrap().unwrap();
        let mut times: Vec<_> = history.events.iter().map(|event| event.at).collect();
        assert!(times.is_sorted());
        times.dedup();
        history.events.iter().map(|event| event.kind).collect::<Vec<_>>()
    };
    let [created, queued, published] =
        [EventKind::Created, EventKind::Queued, EventKind::Published];
    assert_eq!(kinds().await, [created, queued]);

    let messages = support::published(&database).await;
    assert_eq!(kinds().await, [created, queued], "no consumer has it");

    let names = ("group".to_owned(), "message".to_owned(), "member".to_owned());
    let leases = SqlPartitionLeases::new(
        database.clone(),
        names.0.clone(),
        names.1.clone(),
        names.2.clone(),
    );
    leases.register(&[0]).await.unwrap();
    let lease = leases.acquire(1, LONG).await.unwrap().remove(0);
    let ledger = SqlDeliveryLedger::new(database.clone(), names.0, names.1, names.2);
    let deliver = async |messages: Vec<Incoming>, verdict| {
        let ids: Vec<MessageId> = messages.iter().map(|incoming| incoming.message.id).collect();
        let batch = Batch { records: records(&messages), next_offset: 1, ..Batch::default() };
        ledger.admit(&lease, &batch).await.unwrap();
        assert_eq!(kinds().await.last(), Some(&published), "it is not sent yet");
        let call = ledger.start(&lease, &calls(&ids), LONG).await.unwrap().calls[0];
        let outcome = CallOutcome {
            id: call.id,
            attempt: call.attempt,
            class: OutcomeClass::Accepted,
            verdict,
            detail: String::new(),
        };
        ledger.finish(&[outcome]).await.unwrap();
    };
    deliver(messages, Verdict::Failed).await;
    assert_eq!(kinds().await, [created, queued, published, EventKind::Failed]);

    sent(verifications.resend(again(&first, 1)).await.unwrap());
    let messages = support::published(&database).await;
    deliver(
        messages,
        Verdict::Sent { reference: None, receipts_by_reference: false, awaited: None },
    )
    .await;
    let all = [
        created,
        queued,
        published,
        EventKind::Failed,
        queued,
        published,
        EventKind::Sent,
        EventKind::Approved,
    ];
    approve(&verifications, id).await;
    assert_eq!(kinds().await, all);
    let history = verifications.history(id).await.unwrap().unwrap();
    let gateways = history.events.iter().map(|event| (event.kind, event.gateway.is_some()));
    let of_calls = |kind| matches!(kind, EventKind::Failed | EventKind::Sent);
    assert!(gateways.into_iter().all(|(kind, has_one)| has_one == of_calls(kind)));
}
