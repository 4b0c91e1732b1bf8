use std::{collections::HashSet, num::NonZeroU32, time::Duration};

use application::ports::{
    Backlog, BacklogSize, Claim, Claimed, Enqueued, NewSend, Outbox, StoreError, Swept,
};
use sea_orm::ConnectionTrait;
use tokio::task::JoinSet;

use super::{
    on_both_databases,
    support::{count, limited, new_message, phone},
};
use crate::{
    CoalescingOutbox, Database, OutboxSettings, SqlBacklog,
    database::{Sql, begin},
};

on_both_databases!(
    claimed_message_is_the_stored_message,
    oldest_messages_are_claimed_first,
    two_relays_never_claim_the_same_message,
    message_with_an_ended_lease_is_claimed_again,
    extended_lease_keeps_the_message_hidden,
    settled_message_is_in_transit,
    backlog_says_how_old_its_oldest_messages_are,
    message_that_no_consumer_took_over_in_time_waits_again,
    expired_message_is_never_claimed,
    message_that_expires_before_admission_ends_as_expired,
    messages_of_a_phone_keep_their_order_across_relays,
    message_that_returns_below_the_low_watermark_is_claimed,
    refused_row_fails_only_its_own_caller,
    message_to_a_full_queue_is_refused_at_once,
    storing_has_begun_while_a_message_may_be_stored,
    storing_has_not_begun_for_a_message_outside_the_failed_statement,
);

const LONG: Duration = Duration::from_secs(60);
const NONE: Duration = Duration::ZERO;

fn limit(limit: u32) -> NonZeroU32 {
    NonZeroU32::new(limit).unwrap()
}

/// Stores messages one after the other.
async fn store(database: &Database, messages: &[NewSend]) {
    let (outbox, _writers) = CoalescingOutbox::start(database, OutboxSettings::default());
    for message in messages {
        outbox.enqueue(message.clone()).await.unwrap();
    }
}

fn claims(claimed: &[Claimed]) -> Vec<Claim> {
    claimed.iter().map(|claimed| claimed.claim).collect()
}

/// Returns how many messages wait, and how many are in transit.
async fn size(backlog: &SqlBacklog) -> (u64, u64) {
    let BacklogSize { waiting, in_transit, .. } = backlog.size().await.unwrap();
    (waiting, in_transit)
}

async fn claimed_message_is_the_stored_message(database: Database) {
    let stored = new_message(&phone(1));
    store(&database, std::slice::from_ref(&stored)).await;

    let claimed = SqlBacklog::new(database, "message".into()).claim(limit(10), LONG).await.unwrap();

    let [claimed] = &claimed[..] else { panic!("{} claimed", claimed.len()) };
    assert_eq!(claimed.message, stored.message);
    assert_eq!(claimed.trace, stored.trace);
    let validity = claimed.validity;
    assert_eq!(validity.expires_at.duration_since(validity.accepted_at).unwrap(), stored.ttl);
}

async fn oldest_messages_are_claimed_first(database: Database) {
    let stored: Vec<_> = (0..20).map(|number| new_message(&phone(number))).collect();
    store(&database, &stored).await;
    let backlog = SqlBacklog::new(database, "message".into());

    let mut claimed = backlog.claim(limit(15), LONG).await.unwrap();
    claimed.extend(backlog.claim(limit(15), LONG).await.unwrap());

    let expected: Vec<_> = stored.into_iter().map(|stored| stored.message).collect();
    let claimed: Vec<_> = claimed.into_iter().map(|claimed| claimed.message).collect();
    assert_eq!(claimed, expected);
}

async fn two_relays_never_claim_the_same_message(database: Database) {
    const MESSAGES: usize = 200;
    let (outbox, _writers) = CoalescingOutbox::start(&database, OutboxSettings::default());
    let mut requests = JoinSet::new();
    for number in 0..MESSAGES {
        let outbox = outbox.clone();
        requests.spawn(async move { outbox.enqueue(new_message(&phone(number))).await.unwrap() });
    }
    requests.join_all().await;

    let mut claimers = JoinSet::new();
    for _ in 0..6 {
        let backlog = SqlBacklog::new(database.clone(), "message".into());
        claimers.spawn(async move {
            let mut mine = Vec::new();
            loop {
                let claimed = backlog.claim(limit(25), LONG).await.unwrap();
                if claimed.is_empty() {
                    return mine;
                }
                mine.extend(claimed.into_iter().map(|claimed| claimed.message.id));
            }
        });
    }
    let claimed: Vec<_> = claimers.join_all().await.into_iter().flatten().collect();

    assert_eq!(claimed.len(), MESSAGES);
    assert_eq!(claimed.iter().collect::<HashSet<_>>().len(), MESSAGES);
}

async fn message_with_an_ended_lease_is_claimed_again(database: Database) {
    store(&database, &[new_message(&phone(1))]).await;
    let backlog = SqlBacklog::new(database, "message".into());

    let first = backlog.claim(limit(1), NONE).await.unwrap();
    let second = backlog.claim(limit(1), LONG).await.unwrap();
    let third = backlog.claim(limit(1), LONG).await.unwrap();
    assert_eq!(second[0].claim.attempt, first[0].claim.attempt + 1);
    assert_eq!(third, []);

    backlog.settle(&claims(&first), LONG).await.unwrap();
    assert_eq!(size(&backlog).await, (1, 0));
    backlog.settle(&claims(&second), LONG).await.unwrap();
    assert_eq!(size(&backlog).await, (0, 1));
}

async fn extended_lease_keeps_the_message_hidden(database: Database) {
    store(&database, &[new_message(&phone(1)), new_message(&phone(2))]).await;
    let backlog = SqlBacklog::new(database, "message".into());

    let claimed = backlog.claim(limit(2), NONE).await.unwrap();
    let stale = Claim { attempt: claimed[1].claim.attempt - 1, ..claimed[1].claim };
    backlog.extend(&[claimed[0].claim, stale], LONG).await.unwrap();

    let free = backlog.claim(limit(2), LONG).await.unwrap();
    assert_eq!(free.len(), 1);
    assert_eq!(free[0].message, claimed[1].message);
}

async fn settled_message_is_in_transit(database: Database) {
    store(&database, &[new_message(&phone(1)), new_message(&phone(2))]).await;
    let backlog = SqlBacklog::new(database, "message".into());

    let claimed = backlog.claim(limit(1), LONG).await.unwrap();
    backlog.settle(&claims(&claimed), LONG).await.unwrap();
    backlog.settle(&claims(&claimed), LONG).await.unwrap();
    backlog.settle(&[], LONG).await.unwrap();

    assert_eq!(size(&backlog).await, (1, 1));
    assert_eq!(backlog.sweep().await.unwrap(), Swept::default());
}

async fn backlog_says_how_old_its_oldest_messages_are(database: Database) {
    let backlog = SqlBacklog::new(database.clone(), "message".into());
    assert_eq!(backlog.size().await.unwrap(), BacklogSize::default());
    store(&database, &[1, 2, 3].map(|number| new_message(&phone(number)))).await;
    let claimed = backlog.claim(limit(1), LONG).await.unwrap();
    backlog.settle(&claims(&claimed), LONG).await.unwrap();
    let earlier = |seconds: u32| {
        if database.is_postgres() {
            format!("accepted_at = accepted_at - interval '{seconds} seconds'")
        } else {
            format!("accepted_at = accepted_at - {seconds}000")
        }
    };
    for sql in [
        format!("UPDATE in_transit SET {}", earlier(300)),
        format!(
            "UPDATE outbox SET {} WHERE sequence = (SELECT min(sequence) FROM outbox)",
            earlier(100)
        ),
    ] {
        database.connection().execute_unprepared(&sql).await.unwrap();
    }

    let size = backlog.size().await.unwrap();
    let ages: Vec<u64> = backlog
        .claim(limit(9), LONG)
        .await
        .unwrap()
        .iter()
        .map(|claimed| claimed.age.as_secs() / 50)
        .collect();

    assert_eq!((size.waiting, size.in_transit), (2, 1));
    assert_eq!(size.oldest_waiting.as_secs() / 50, 2);
    assert_eq!(size.oldest_in_transit.as_secs() / 50, 6);
    assert_eq!(ages, [2, 0]);
}

async fn message_that_no_consumer_took_over_in_time_waits_again(database: Database) {
    store(&database, &[new_message(&phone(1)), new_message(&phone(2))]).await;
    let backlog = SqlBacklog::new(database, "message".into());
    let claimed = backlog.claim(limit(2), LONG).await.unwrap();
    backlog.settle(&claims(&claimed[..1]), NONE).await.unwrap();
    backlog.settle(&claims(&claimed[1..]), LONG).await.unwrap();

    let swept = backlog.sweep().await.unwrap();

    assert_eq!(swept, Swept { waiting_again: 1, expired: 0 });
    assert_eq!(size(&backlog).await, (1, 1));
    let again = backlog.claim(limit(2), LONG).await.unwrap();
    assert_eq!(again[0].claim.sequence, claimed[0].claim.sequence);
    assert_eq!(again[0].message, claimed[0].message);
    assert_eq!(again[0].validity, claimed[0].validity);

    backlog.settle(&claims(&again), NONE).await.unwrap();
    assert_eq!(backlog.sweep().await.unwrap(), Swept { waiting_again: 1, expired: 0 });
}

async fn expired_message_is_never_claimed(database: Database) {
    let expired = NewSend { ttl: NONE, ..new_message(&phone(1)) };
    store(&database, &[expired, new_message(&phone(2))]).await;
    let backlog = SqlBacklog::new(database, "message".into());

    assert_eq!(backlog.claim(limit(10), LONG).await.unwrap().len(), 1);
    assert_eq!(backlog.sweep().await.unwrap(), Swept { waiting_again: 0, expired: 1 });
    assert_eq!(size(&backlog).await, (1, 0));
}

async fn message_that_expires_before_admission_ends_as_expired(database: Database) {
    let short = Duration::from_millis(300);
    let messages: Vec<_> =
        (1..=3).map(|number| NewSend { ttl: short, ..new_message(&phone(number)) }).collect();
    store(&database, &messages).await;
    let backlog = SqlBacklog::new(database.clone(), "message".into());
    let claimed = backlog.claim(limit(2), NONE).await.unwrap();
    backlog.settle(&claims(&claimed), LONG).await.unwrap();

    // Two are in transit, one waits.
    let mut expired = 0;
    while expired < 3 {
        expired += backlog.sweep().await.unwrap().expired;
    }

    assert_eq!(backlog.size().await.unwrap(), BacklogSize::default());
    let ended = "delivery WHERE state = 'expired' AND group_id = '' AND ended_at IS NOT NULL";
    assert_eq!(count(&database, ended).await, 3);
    assert_eq!(backlog.sweep().await.unwrap(), Swept::default());
}

async fn messages_of_a_phone_keep_their_order_across_relays(database: Database) {
    let stored: Vec<_> = [1, 1, 2, 1].map(|number| new_message(&phone(number))).to_vec();
    store(&database, &stored).await;
    let backlog = SqlBacklog::new(database, "message".into());

    let first = backlog.claim(limit(1), LONG).await.unwrap();
    let meanwhile = backlog.claim(limit(10), LONG).await.unwrap();
    assert_eq!(first[0].message, stored[0].message);
    assert_eq!(meanwhile.len(), 1, "only the other phone's message is free");
    assert_eq!(meanwhile[0].message, stored[2].message);

    backlog.settle(&claims(&first), LONG).await.unwrap();
    let rest = backlog.claim(limit(10), LONG).await.unwrap();
    assert_eq!(rest.len(), 2);
    assert_eq!(rest[0].message, stored[1].message);
    assert_eq!(rest[1].message, stored[3].message);
}

/// Claims begin behind the many relayed messages.
async fn message_that_returns_below_the_low_watermark_is_claimed(database: Database) {
    let backlog = SqlBacklog::new(database.clone(), "message".into()).with_insert_limit(NONE);
    store(&database, &[new_message(&phone(1)), new_message(&phone(2))]).await;
    let [first, second] = &backlog.claim(limit(10), LONG).await.unwrap()[..] else { panic!() };
    backlog.settle(&[first.claim], NONE).await.unwrap();

    backlog.look_again();
    let watermark = if database.is_postgres() { second.claim.sequence } else { 0 };
    assert_eq!(backlog.oldest().await.unwrap(), watermark);
    // A sequence that is drawn and not yet committed may be below the rows that exist.
    let late = SqlBacklog::new(database.clone(), "message".into());
    for _ in 0..2 {
        assert_eq!(late.oldest().await.unwrap(), 0);
        late.look_again();
    }

    assert_eq!(backlog.sweep().await.unwrap(), Swept { waiting_again: 1, expired: 0 });
    let again = backlog.claim(limit(10), LONG).await.unwrap();
    assert_eq!(again.len(), 1);
    assert_eq!(again[0].claim.sequence, first.claim.sequence);
}

async fn refused_row_fails_only_its_own_caller(database: Database) {
    let refuse = if database.is_postgres() {
        "ALTER TABLE outbox ADD CHECK (phone <> '79990000003')"
    } else {
        "CREATE TRIGGER refuse BEFORE INSERT ON outbox WHEN new.phone = '79990000003'
         BEGIN SELECT RAISE(ABORT, 'refused'); END"
    };
    database.connection().execute_unprepared(refuse).await.unwrap();
    // One writer, so that all but the first wait together.
    let settings = OutboxSettings { writers: 1, ..OutboxSettings::default() };
    let (outbox, _writers) = CoalescingOutbox::start(&database, settings);

    let mut requests = JoinSet::new();
    for number in 0..20 {
        let outbox = outbox.clone();
        requests.spawn(async move { (number, outbox.enqueue(new_message(&phone(number))).await) });
    }
    let answers = requests.join_all().await;

    for (number, answer) in answers {
        assert_eq!(answer.is_ok(), number != 3, "request {number}: {answer:?}");
    }
    assert_eq!(SqlBacklog::new(database, "message".into()).size().await.unwrap().waiting, 19);
}

async fn message_to_a_full_queue_is_refused_at_once(database: Database) {
    // Nothing can be stored while this transaction is open.
    let transaction = begin(&database.connection()).await.unwrap();
    if database.is_postgres() {
        static LOCK: Sql = Sql::new("LOCK TABLE outbox");
        transaction.execute(&LOCK, database.parameters()).await.unwrap();
    }
    let settings = OutboxSettings { queue: 1, writers: 1, ..OutboxSettings::default() };
    let (outbox, _writers) = CoalescingOutbox::start(&database, settings);

    let mut requests = JoinSet::new();
    for number in 0..10 {
        let outbox = outbox.clone();
        requests.spawn(async move { outbox.enqueue(new_message(&phone(number))).await });
    }
    // One is in the queue and, depending on the order, one with the writer.
    for _ in 0..8 {
        let answer = requests.join_next().await.unwrap().unwrap();
        assert!(matches!(answer, Err(StoreError::Full)), "{answer:?}");
    }

    transaction.rollback().await.unwrap();
    assert!(requests.join_all().await.iter().any(Result::is_ok));
}

async fn storing_has_begun_while_a_message_may_be_stored(database: Database) {
    let settings = OutboxSettings { patience: NONE, writers: 0, ..OutboxSettings::default() };
    let (outbox, _writers) = CoalescingOutbox::start(&database, settings);
    let waits = new_message(&phone(1));
    assert!(matches!(outbox.enqueue(waits.clone()).await, Err(StoreError::Unavailable(_))));
    assert!(!waits.storing.has_begun(), "no writer took it");

    let (outbox, writers) = CoalescingOutbox::start(&database, OutboxSettings::default());
    let accepted = limited("1/1h", new_message(&phone(2)));
    let refused = limited("1/1h", new_message(&phone(2)));
    outbox.enqueue(accepted.clone()).await.unwrap();
    let answer = outbox.enqueue(refused.clone()).await;
    assert!(matches!(answer, Ok(Enqueued::Limited(_))), "{answer:?}");
    assert!(accepted.storing.has_begun() && !refused.storing.has_begun());

    // Polled once: queued, and on this one thread no writer has run.
    let gone = new_message(&phone(3));
    tokio::select! {
        biased;
        answer = outbox.enqueue(gone.clone()) => panic!("{answer:?}"),
        () = std::future::ready(()) => {}
    }
    let late = new_message(&phone(4));
    let call = outbox.enqueue(late.clone());
    let storing = async {
        while !late.storing.has_begun() {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        biased;
        answer = call => panic!("{answer:?}"),
        () = storing => {}
    }
    // The writers end after what is queued.
    drop(outbox);
    writers.join_all().await;
    let stored = |send: &NewSend| send.storing.has_begun();
    assert_eq!((stored(&gone), stored(&late)), (false, true));
    assert_eq!(count(&database, "outbox").await, 2);
}

async fn storing_has_not_begun_for_a_message_outside_the_failed_statement(database: Database) {
    database.connection().execute_unprepared("ALTER TABLE outbox RENAME TO gone").await.unwrap();
    let settings = OutboxSettings { writers: 1, ..OutboxSettings::default() };
    let (outbox, _writers) = CoalescingOutbox::start(&database, settings);
    let first = limited("1/1h", new_message(&phone(1)));
    let second = limited("1/1h", new_message(&phone(1)));

    // Both are queued before the writer runs, and a statement stores one message of this phone.
    let (one, two) = tokio::join!(outbox.enqueue(first.clone()), outbox.enqueue(second.clone()));

    assert!(matches!(one, Err(StoreError::Unavailable(_))), "{one:?}");
    assert!(matches!(two, Err(StoreError::Unavailable(_))), "{two:?}");
    assert_eq!((first.storing.has_begun(), second.storing.has_begun()), (true, false));
}
