use std::{num::NonZeroU32, time::Duration};

use application::ports::{
    Backlog, BacklogSize, Enqueued, Found, Lease, NewSend, Outbox, PartitionLeases, Reached,
    StoreError,
};
use sea_orm::ConnectionTrait;
use tokio::{task::JoinSet, time::Instant};

use super::{
    on_both_databases,
    support::{backlog, count, ledger, limited, look, new_message, one_writer, phone, reach},
};
use crate::{
    CoalescingOutbox, Database, OutboxSettings, SqlBacklog, SqlPartitionLeases,
    database::{Sql, begin},
};

on_both_databases!(
    message_to_publish_is_the_stored_message,
    look_finds_the_first_messages_in_gaps_and_above_the_cursor,
    unreadable_rows_are_passed,
    one_relay_works_at_a_time,
    released_outbox_is_acquired_at_once,
    missing_row_of_the_relay_is_restored,
    relay_whose_lease_has_ended_stays_until_another_begins,
    refused_message_draws_no_number,
    backlog_says_how_old_its_oldest_messages_are,
    late_message_is_counted_after_the_next_survey,
    survey_says_how_long_ago_a_group_had_read_everything,
    message_that_a_ledger_has_or_that_expired_is_not_untaken,
    expired_message_is_never_published,
    message_that_expires_before_admission_ends_as_expired,
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

/// Stores messages to this many phones, and returns their numbers.
async fn numbers(database: &Database, messages: usize) -> Vec<i64> {
    let messages: Vec<_> = (0..messages).map(|number| new_message(&phone(number))).collect();
    store(database, &messages).await;
    look(database, 0).await.iter().map(|it| it.sequence).collect()
}

fn of(database: &Database, owner: &str) -> SqlBacklog {
    SqlBacklog::new(database.clone(), "message".into(), owner.into())
}

async fn message_to_publish_is_the_stored_message(database: Database) {
    let stored = new_message(&phone(1));
    store(&database, std::slice::from_ref(&stored)).await;

    let found = look(&database, 0).await;

    let [found] = &found[..] else { panic!("{} found", found.len()) };
    assert_eq!(found.message, stored.message);
    assert_eq!(found.trace, stored.trace);
    let validity = found.validity;
    assert_eq!(validity.expires_at.duration_since(validity.accepted_at).unwrap(), stored.ttl);
}

async fn look_finds_the_first_messages_in_gaps_and_above_the_cursor(database: Database) {
    let all = numbers(&database, 8).await;
    let backlog = backlog(&database);
    let tenure = backlog.acquire(LONG).await.unwrap().unwrap();
    let gaps = [all[0]..=all[0], all[2]..=all[3]];
    let look = async |most| {
        let found = backlog.look(&tenure, &gaps, all[4], limit(most)).await.unwrap();
        found.messages.iter().map(|it| it.sequence).collect::<Vec<_>>()
    };

    assert_eq!(look(9).await, [all[0], all[2], all[3], all[5], all[6], all[7]]);
    assert_eq!(look(4).await, [all[0], all[2], all[3], all[5]]);
    assert_eq!(look(2).await, [all[0], all[2]]);
}

async fn unreadable_rows_are_passed(database: Database) {
    let all = numbers(&database, 4).await;
    for (column, sequence) in [("code", all[0]), ("trace", all[2])] {
        let spoil = format!("UPDATE outbox SET {column} = 'none' WHERE sequence = {sequence}");
        database.connection().execute_unprepared(&spoil).await.unwrap();
    }
    let backlog = backlog(&database);
    let tenure = backlog.acquire(LONG).await.unwrap().unwrap();

    let found = backlog.look(&tenure, &[], 0, limit(3)).await.unwrap();

    assert_eq!(found.unreadable, [all[0], all[2]]);
    assert_eq!(found.messages.iter().map(|it| it.sequence).collect::<Vec<_>>(), [all[1]]);
}

async fn one_relay_works_at_a_time(database: Database) {
    let (a, b) = (of(&database, "a"), of(&database, "b"));
    let reached = |published| Reached { published, read: 9 };
    let first = a.acquire(LONG).await.unwrap().unwrap();
    assert_eq!(b.acquire(LONG).await.unwrap(), None);
    assert!(a.renew(&first, reached(5), NONE).await.unwrap());

    // The lease has ended.
    let second = b.acquire(LONG).await.unwrap().unwrap();

    assert_eq!((second.epoch, second.published), (first.epoch + 1, 5));
    assert!(!a.renew(&first, reached(7), LONG).await.unwrap());
    a.release(&first, reached(7)).await.unwrap();
    assert!(!a.renew(&second, reached(7), LONG).await.unwrap());
    assert_eq!(a.acquire(LONG).await.unwrap(), None);
    assert!(b.renew(&second, reached(6), LONG).await.unwrap());
    assert_eq!(count(&database, "relay WHERE owner = 'b' AND published = 6").await, 1);
    // It did not hear the answer.
    let third = b.acquire(LONG).await.unwrap().unwrap();
    assert_eq!(third.epoch, second.epoch + 1);
}

async fn released_outbox_is_acquired_at_once(database: Database) {
    let (a, b) = (of(&database, "a"), of(&database, "b"));
    let first = a.acquire(LONG).await.unwrap().unwrap();

    a.release(&first, Reached { published: 3, read: 4 }).await.unwrap();

    assert_eq!(count(&database, "relay WHERE owner IS NULL AND read_up_to = 4").await, 1);
    assert_eq!(b.acquire(LONG).await.unwrap().unwrap().published, 3);
}

async fn missing_row_of_the_relay_is_restored(database: Database) {
    let all = numbers(&database, 3).await;
    reach(&database, all[1]).await;
    database.connection().execute_unprepared("DELETE FROM relay").await.unwrap();
    let (a, b) = (of(&database, "a"), of(&database, "b"));

    let tenure = a.acquire(LONG).await.unwrap().unwrap();

    let again = a.look(&tenure, &[], tenure.published, limit(9)).await.unwrap();
    assert_eq!(again.messages.len(), 3);
    if database.is_postgres() {
        assert_eq!(count(&database, &format!("relay WHERE read_up_to = {}", all[2])).await, 1);
    }
    assert_eq!(b.acquire(LONG).await.unwrap(), None);
    assert_eq!(count(&database, "relay").await, 1);
}

async fn relay_whose_lease_has_ended_stays_until_another_begins(database: Database) {
    let a = of(&database, "a");
    let tenure = a.acquire(NONE).await.unwrap().unwrap();

    assert!(a.renew(&tenure, Reached::default(), LONG).await.unwrap());
    assert_eq!(of(&database, "b").acquire(LONG).await.unwrap(), None);
}

/// After a failover, numbers may be given again. A relay that remembers them must begin anew.
#[tokio::test]
async fn relay_reads_nothing_from_another_server() {
    let Some(database) = super::support::postgres().await else { return };
    assert_eq!(numbers(&database, 1).await.len(), 1);
    let backlog = backlog(&database);
    let tenure = backlog.acquire(LONG).await.unwrap().unwrap();
    let before = application::ports::Tenure { server: tenure.server - 1, ..tenure };

    assert_eq!(backlog.look(&before, &[], 0, limit(9)).await.unwrap(), Found::default());
    assert!(!backlog.renew(&before, Reached::default(), LONG).await.unwrap());
    assert_eq!(backlog.look(&tenure, &[], 0, limit(9)).await.unwrap().messages.len(), 1);
}

/// A relay waits for a number that it does not see.
async fn refused_message_draws_no_number(database: Database) {
    let again = |number| limited("1/1h", new_message(&phone(number)));
    store(&database, &[again(1)]).await;
    store(&database, &[again(1), again(1), again(2)]).await;

    let numbers: Vec<i64> = look(&database, 0).await.iter().map(|it| it.sequence).collect();

    assert_eq!(numbers, [1, 2]);
}

async fn backlog_says_how_old_its_oldest_messages_are(database: Database) {
    let backlog = backlog(&database);
    assert_eq!(backlog.size().await.unwrap(), BacklogSize::default());
    let all = numbers(&database, 3).await;
    reach(&database, all[0]).await;
    for (sequence, seconds) in [(all[0], 300), (all[1], 100)] {
        let earlier = if database.is_postgres() {
            format!("accepted_at - interval '{seconds} seconds'")
        } else {
            format!("accepted_at - {seconds}000")
        };
        let sql = format!("UPDATE outbox SET accepted_at = {earlier} WHERE sequence = {sequence}");
        database.connection().execute_unprepared(&sql).await.unwrap();
    }

    let size = backlog.size().await.unwrap();
    let ages: Vec<u64> =
        look(&database, all[0]).await.iter().map(|it| it.age.as_secs() / 50).collect();

    assert_eq!((size.waiting, size.in_transit), (2, 1));
    assert_eq!(size.oldest_waiting.as_secs() / 50, 2);
    assert_eq!(size.oldest_in_transit.as_secs() / 50, 6);
    assert_eq!(ages, [2, 0]);
}

/// Reads of the whole outbox begin behind the many messages that were taken over.
async fn late_message_is_counted_after_the_next_survey(database: Database) {
    let all = numbers(&database, 3).await;
    reach(&database, all[2]).await;
    let backlog = backlog(&database);
    let remove = format!("DELETE FROM outbox WHERE sequence < {}", all[2]);
    database.connection().execute_unprepared(&remove).await.unwrap();
    let oldest = async |oldest: i64| {
        let tenure = backlog.acquire(LONG).await.unwrap().unwrap();
        backlog.survey(&tenure).await.unwrap();
        count(&database, &format!("relay WHERE oldest = {oldest}")).await == 1
    };
    assert!(oldest(all[2]).await);

    let late = format!("UPDATE outbox SET sequence = {} WHERE sequence = {}", all[0], all[2]);
    database.connection().execute_unprepared(&late).await.unwrap();

    assert_eq!(backlog.size().await.unwrap().in_transit, 0);
    assert!(oldest(all[0]).await);
    assert_eq!(backlog.size().await.unwrap().in_transit, 1);
    database.connection().execute_unprepared("DELETE FROM outbox").await.unwrap();
    assert!(oldest(all[2] + 1).await);
}

async fn survey_says_how_long_ago_a_group_had_read_everything(database: Database) {
    let backlog = backlog(&database);
    let tenure = backlog.acquire(LONG).await.unwrap().unwrap();
    let leases =
        SqlPartitionLeases::new(database.clone(), "1".into(), "message".into(), "m".into());
    leases.register(&[0, 1]).await.unwrap();
    let held = leases.acquire(2, LONG).await.unwrap();
    let read = async |partitions: usize, ago: u64| {
        let seen = Instant::now().checked_sub(Duration::from_secs(ago));
        let read = held.iter().take(partitions).map(|it| Lease { seen, ..it.clone() });
        leases.renew(&read.collect::<Vec<_>>(), LONG).await.unwrap();
        backlog.survey(&tenure).await.unwrap().map(|ago| ago.as_secs())
    };

    assert_eq!(read(2, 50).await.map(|ago| ago / 10), Some(5));
    assert_eq!(read(1, 0).await.map(|ago| ago / 10), Some(5), "the other is behind");
    assert_eq!(read(2, 20).await.map(|ago| ago / 10), Some(2));
    // A partition that nobody has read, and a group that has read none.
    leases.register(&[2]).await.unwrap();
    assert_eq!(backlog.survey(&tenure).await.unwrap(), None);
}

async fn message_that_a_ledger_has_or_that_expired_is_not_untaken(database: Database) {
    use application::ports::{Batch, DeliveryLedger, Incoming};
    let (group, lease) = ledger(&database, "1").await;
    let all = numbers(&database, 5).await;
    let messages = super::support::published(&database).await;
    // Without its sequence, as if it had not been found in the outbox.
    let unseen = Incoming { sequence: None, ..messages[1].clone() };
    let batch = Batch { records: super::support::records(&[unseen]), ..Batch::default() };
    group.admit(&lease, &batch).await.unwrap();
    let expire = format!("UPDATE outbox SET expires_at = accepted_at WHERE sequence = {}", all[2]);
    database.connection().execute_unprepared(&expire).await.unwrap();
    let backlog = backlog(&database);

    assert_eq!(backlog.untaken(0..=all[3], limit(9)).await.unwrap(), [all[0], all[3]]);
    assert_eq!(backlog.untaken(all[1]..=i64::MAX, limit(1)).await.unwrap(), [all[3]]);
}

async fn expired_message_is_never_published(database: Database) {
    let expired = NewSend { ttl: NONE, ..new_message(&phone(1)) };
    store(&database, &[expired, new_message(&phone(2))]).await;
    let backlog = backlog(&database);

    assert_eq!(look(&database, 0).await.len(), 1);
    assert_eq!(backlog.end_expired().await.unwrap(), 1);
    assert_eq!(backlog.size().await.unwrap().waiting, 1);
}

async fn message_that_expires_before_admission_ends_as_expired(database: Database) {
    let short = Duration::from_millis(300);
    let messages: Vec<_> =
        (1..=3).map(|number| NewSend { ttl: short, ..new_message(&phone(number)) }).collect();
    store(&database, &messages).await;
    let backlog = backlog(&database);
    reach(&database, 2).await;

    // Two are in transit, one waits.
    let mut expired = 0;
    while expired < 3 {
        expired += backlog.end_expired().await.unwrap();
    }

    assert_eq!(backlog.size().await.unwrap(), BacklogSize::default());
    let ended = "delivery WHERE state = 'expired' AND group_id = '' AND ended_at IS NOT NULL";
    assert_eq!(count(&database, ended).await, 3);
    assert_eq!(backlog.end_expired().await.unwrap(), 0);
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
    let (outbox, _writers) = CoalescingOutbox::start(&database, one_writer());

    let mut requests = JoinSet::new();
    for number in 0..20 {
        let outbox = outbox.clone();
        requests.spawn(async move { (number, outbox.enqueue(new_message(&phone(number))).await) });
    }
    let answers = requests.join_all().await;

    for (number, answer) in answers {
        assert_eq!(answer.is_ok(), number != 3, "request {number}: {answer:?}");
    }
    assert_eq!(backlog(&database).size().await.unwrap().waiting, 19);
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
        () = storing => {}
        answer = call => panic!("{answer:?}"),
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
    let (outbox, _writers) = CoalescingOutbox::start(&database, one_writer());
    let first = limited("1/1h", new_message(&phone(1)));
    let second = limited("1/1h", new_message(&phone(1)));

    // Both are queued before the writer runs, and a statement stores one message of this phone.
    let (one, two) = tokio::join!(outbox.enqueue(first.clone()), outbox.enqueue(second.clone()));

    assert!(matches!(one, Err(StoreError::Unavailable(_))), "{one:?}");
    assert!(matches!(two, Err(StoreError::Unavailable(_))), "{two:?}");
    assert_eq!((first.storing.has_begun(), second.storing.has_begun()), (true, false));
}
