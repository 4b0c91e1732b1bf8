use std::{sync::Arc, time::Duration};

use application::ports::{Enqueued, NewSend, NewVerification, Outbox, Verification, Verifications};
use domain::{Metadata, VerificationStatus};
use tokio::{sync::Barrier, task::JoinSet};

use super::{
    on_both_databases,
    support::{accepted, count, counters, enqueue, id_of, new_message, one_writer, phone, start},
};
use crate::{CoalescingOutbox, Database, SqlVerifications};

on_both_databases!(
    start_stores_the_whole_verification,
    two_concurrent_starts_create_one_verification,
    starts_in_one_batch_create_one_verification,
    sends_of_api_and_v1_do_not_block_each_other,
    ended_verification_makes_room,
    refused_row_loses_only_its_own_verification,
    duplicate_id_fails_only_its_own_caller,
);

fn pending(answer: Enqueued) -> Verification {
    match answer {
        Enqueued::Pending(verification) => *verification,
        answer => panic!("{answer:?}"),
    }
}

async fn start_stores_the_whole_verification(database: Database) {
    let send = start(&phone(1));
    let new = NewVerification {
        region: "RU".parse().ok(),
        template: "login/de".parse().ok(),
        metadata: Some(Metadata::new(r#"{"user":"42"}"#.to_owned())),
        api_key: "00112233445566778899aabbccddeeff".parse().ok(),
        ..send.verification
    };
    let send = NewSend { verification: new, ..send };

    let Enqueued::Accepted { at } = enqueue(&database, &send).await else { panic!("not accepted") };

    let stored = SqlVerifications::new(database.clone()).find(id_of(&send)).await.unwrap().unwrap();
    let Verification { read_at, .. } = stored;
    assert_eq!(stored, Verification { read_at, ..send.accepted(at) });
    assert!(read_at >= at);
    let key = if database.is_postgres() { "api_key::text" } else { "api_key" };
    let linked = format!(
        "verification JOIN outbox USING (sequence)
         WHERE {key} = '00112233-4455-6677-8899-aabbccddeeff'"
    );
    assert_eq!(count(&database, &linked).await, 1);
}

async fn two_concurrent_starts_create_one_verification(database: Database) {
    const STARTS: usize = 24;
    let at_once = Arc::new(Barrier::new(STARTS));
    let mut starts = JoinSet::new();
    for _ in 0..STARTS {
        // Each outbox has writers of its own.
        let (outbox, writers) = CoalescingOutbox::start(&database, one_writer());
        let (at_once, send) = (Arc::clone(&at_once), start(&phone(1)));
        starts.spawn(async move {
            at_once.wait().await;
            let answer = outbox.enqueue(send.clone()).await.unwrap();
            drop(writers);
            (id_of(&send), answer)
        });
    }
    one_is_accepted(starts.join_all().await);

    assert_eq!(count(&database, "verification").await, 1);
    assert_eq!(count(&database, "outbox").await, 1);
}

async fn starts_in_one_batch_create_one_verification(database: Database) {
    let (outbox, _writers) = CoalescingOutbox::start(&database, one_writer());
    let mut starts = JoinSet::new();
    for number in 0..40 {
        let (outbox, mut send) = (outbox.clone(), start(&phone(1)));
        if number % 2 == 0 {
            send.extra = counters("ip", "10/1h", "192.0.2.1");
        }
        starts.spawn(async move {
            let answer = outbox.enqueue(send.clone()).await.unwrap();
            (id_of(&send), answer)
        });
    }
    one_is_accepted(starts.join_all().await);

    assert_eq!(count(&database, "outbox").await, 1);
}

#[track_caller]
fn one_is_accepted(answers: Vec<(domain::VerificationId, Enqueued)>) {
    let (accepted, others): (Vec<_>, Vec<_>) =
        answers.into_iter().partition(|(_, answer)| matches!(answer, Enqueued::Accepted { .. }));
    let [(id, _)] = accepted[..] else { panic!("{} accepted", accepted.len()) };
    for (_, answer) in others {
        let verification = pending(answer);
        assert_eq!(verification.id, id);
        assert_eq!(verification.status, VerificationStatus::Pending);
        assert!(verification.secret.is_some(), "its code is derived again");
    }
}

async fn sends_of_api_and_v1_do_not_block_each_other(database: Database) {
    let (of_v1, of_api) = (start(&phone(1)), new_message(&phone(1)));
    accepted(&enqueue(&database, &of_v1).await);

    accepted(&enqueue(&database, &of_api).await);

    let verification = pending(enqueue(&database, &start(&phone(1))).await);
    assert_eq!(verification.id, id_of(&of_v1));
    assert_eq!(count(&database, "verification").await, 2);
    accepted(&enqueue(&database, &new_message(&phone(2))).await);
    accepted(&enqueue(&database, &start(&phone(2))).await);
}

async fn ended_verification_makes_room(database: Database) {
    let over = NewSend { ttl: Duration::ZERO, ..start(&phone(1)) };
    accepted(&enqueue(&database, &over).await);

    accepted(&enqueue(&database, &start(&phone(1))).await);
}

async fn refused_row_loses_only_its_own_verification(database: Database) {
    let refused = start(&phone(1));
    let refuse = if database.is_postgres() {
        "ALTER TABLE verification ADD CHECK (phone <> '79990000001')"
    } else {
        "CREATE TRIGGER refuse BEFORE INSERT ON verification WHEN new.phone = '79990000001'
         BEGIN SELECT RAISE(ABORT, 'refused'); END"
    };
    sea_orm::ConnectionTrait::execute_unprepared(&database.connection(), refuse).await.unwrap();
    let (outbox, _writers) = CoalescingOutbox::start(&database, one_writer());

    let mut requests = JoinSet::new();
    for send in (2..10).map(|number| start(&phone(number))).chain([refused.clone()]) {
        let outbox = outbox.clone();
        requests.spawn(async move { (id_of(&send), outbox.enqueue(send).await) });
    }
    for (id, answer) in requests.join_all().await {
        assert_eq!(answer.is_err(), id == id_of(&refused), "{answer:?}");
    }

    assert_eq!(count(&database, "outbox").await, 8);
    assert_eq!(count(&database, "phone WHERE phone = '79990000001'").await, 0);
}

async fn duplicate_id_fails_only_its_own_caller(database: Database) {
    let first = start(&phone(1));
    let mut twin = start(&phone(2));
    twin.message.id = first.message.id;
    accepted(&enqueue(&database, &first).await);
    let (outbox, _writers) = CoalescingOutbox::start(&database, one_writer());

    let mut requests = JoinSet::new();
    for send in [start(&phone(3)), twin, start(&phone(4))] {
        let outbox = outbox.clone();
        requests.spawn(async move { outbox.enqueue(send).await });
    }
    let answers = requests.join_all().await;

    assert_eq!(answers.iter().filter(|answer| answer.is_err()).count(), 1);
    assert_eq!(count(&database, "verification").await, 3);
    assert_eq!(count(&database, "outbox").await, 3);
}
