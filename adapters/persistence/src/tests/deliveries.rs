//! The delivery ledger: from the admission of a message to its end.
//!
//! This is one file, because all tests drive the same ledger through the helpers below.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use application::ports::{
    Admitted, Backlog, Batch, CallOutcome, DeadLetter, DeadLetters, DeliveryLedger, DeliveryState,
    Incoming, Lease, LedgerError, NewSend, OutcomeClass, PartitionLeases, Record, Resent, Revived,
    Started, Unreadable, Verdict, Verifications,
};
use domain::{MessageId, Validity};
use sea_orm::ConnectionTrait;

use super::{
    on_both_databases,
    resends::again,
    support::{
        accepted, backlog, call_now, calls, count, enqueue, id_of, in_time, incoming, new_message,
        phone, published, records, start, statement,
    },
};
use crate::{
    Database, SqlDeadLetters, SqlDeliveryLedger, SqlPartitionLeases, SqlVerifications,
    database::{Sql, begin},
};

on_both_databases!(
    message_is_admitted_once,
    offset_moves_in_the_commit_of_the_messages,
    admission_removes_the_message_from_the_outbox,
    message_that_ended_under_no_group_is_never_taken_over,
    concurrent_admissions_and_expiry_do_not_deadlock,
    each_group_has_its_own_ledger,
    fenced_owner_writes_nothing,
    call_is_begun_once,
    call_may_begin_with_the_admission,
    lost_grant_of_an_admission_is_granted_again,
    lost_grant_of_a_call_is_granted_again,
    late_start_does_nothing,
    every_attempt_is_kept_with_its_outcome_class,
    first_and_latest_of_very_many_attempts_are_kept,
    finished_message_has_no_code,
    outcome_of_an_earlier_call_is_ignored,
    outcome_counts_after_the_partition_was_lost,
    retry_waits_for_its_time,
    retry_after_the_expiry_expires_the_message,
    expired_message_is_never_called,
    waiting_message_of_a_canceled_verification_is_never_called,
    record_without_times_gets_the_default_time_to_live,
    times_of_a_record_are_bounded,
    unreadable_record_becomes_a_dead_letter_with_its_place,
    dead_letter_is_retried_or_discarded,
    dead_letter_of_a_canceled_message_is_not_retried,
    oldest_message_of_each_phone_is_due,
    interrupted_call_is_due_when_its_time_is_over,
    untried_and_expired_messages_are_due_first,
);

const LONG: Duration = Duration::from_secs(60);
const NONE: Duration = Duration::ZERO;

struct Consumer {
    ledger: SqlDeliveryLedger,
    leases: SqlPartitionLeases,
    lease: Lease,
}

/// Returns a consumer that holds partition 0.
async fn consumer(database: &Database, group: &str, member: &str, ttl: Duration) -> Consumer {
    let leases =
        SqlPartitionLeases::new(database.clone(), group.into(), "message".into(), member.into());
    leases.register(&[0]).await.unwrap();
    let lease = leases.acquire(1, ttl).await.unwrap().remove(0);
    let ledger =
        SqlDeliveryLedger::new(database.clone(), group.into(), "message".into(), member.into());
    Consumer { ledger, leases, lease }
}

impl Consumer {
    async fn admit(&self, messages: &[Incoming]) -> Vec<MessageId> {
        self.ledger.admit(&self.lease, &batch(messages, 1)).await.unwrap().fresh
    }

    async fn start(&self, id: MessageId, limit: Duration) -> Started {
        self.ledger.start(&self.lease, &calls(&[id]), limit).await.unwrap()
    }

    /// Begins a call and returns its attempt.
    async fn call(&self, id: MessageId, limit: Duration) -> u32 {
        self.start(id, limit).await.calls[0].attempt
    }

    async fn finish(&self, id: MessageId, attempt: u32, verdict: Verdict) -> Option<DeliveryState> {
        let class = OutcomeClass::Throttled;
        let outcome = CallOutcome { id, attempt, class, verdict, detail: "said".into() };
        let recorded = self.ledger.finish(&[outcome]).await.unwrap();
        recorded.first().map(|recorded| recorded.state)
    }

    async fn due(&self) -> Vec<MessageId> {
        let due = self.ledger.due(&self.lease, 100).await.unwrap();
        due.into_iter().map(|due| due.message.id).collect()
    }
}

fn batch(messages: &[Incoming], next_offset: i64) -> Batch {
    Batch {
        records: records(messages),
        next_offset,
        default_ttl: Duration::from_secs(600),
        ..Batch::default()
    }
}

/// Stores two messages, and returns them as the API and as a consumer has them.
async fn two_published(database: &Database) -> ([NewSend; 2], Vec<Incoming>) {
    let sends = [1, 2].map(|number| start(&phone(number)));
    for send in &sends {
        accepted(&enqueue(database, send).await);
    }
    let records = published(database).await;
    (sends, records)
}

fn unreadable(offset: i64, reason: &'static str) -> Record {
    Record { offset, content: Err(Unreadable(reason)) }
}

async fn attempts(database: &Database, id: MessageId) -> Vec<serde_json::Value> {
    let columns = if database.is_postgres() { "attempts::text" } else { "attempts" };
    let sql = format!("SELECT {columns} AS attempts FROM delivery WHERE message_id = '{id}'");
    let statement = statement(database, sql, vec![]);
    let row = database.connection().query_one_raw(statement).await.unwrap().unwrap();
    serde_json::from_str(&row.try_get::<String>("", "attempts").unwrap()).unwrap()
}

fn sent() -> Verdict {
    Verdict::Sent { reference: Some("gw-1".into()), receipts_by_reference: false, awaited: None }
}

async fn message_is_admitted_once(database: Database) {
    let consumer = consumer(&database, "1", "a", LONG).await;
    let (one, two) = (incoming(&phone(1)), incoming(&phone(2)));

    let first = consumer.admit(&[one.clone(), one.clone()]).await;
    let second = consumer.admit(&[one.clone(), two.clone()]).await;

    assert_eq!(first, [one.message.id]);
    assert_eq!(second, [two.message.id]);
    assert_eq!(count(&database, "delivery").await, 2);
}

async fn offset_moves_in_the_commit_of_the_messages(database: Database) {
    let consumer = consumer(&database, "1", "a", LONG).await;
    assert_eq!(consumer.lease.next_offset, None);

    consumer.ledger.admit(&consumer.lease, &batch(&[incoming(&phone(1))], 41)).await.unwrap();
    consumer.ledger.admit(&consumer.lease, &batch(&[], 42)).await.unwrap();

    consumer.leases.release(&consumer.lease).await.unwrap();
    let again = consumer.leases.acquire(1, LONG).await.unwrap();
    assert_eq!(again[0].next_offset, Some(42));
}

async fn admission_removes_the_message_from_the_outbox(database: Database) {
    for number in 0..3 {
        accepted(&enqueue(&database, &new_message(&phone(number))).await);
    }
    let records = published(&database).await;
    let consumer = consumer(&database, "1", "a", LONG).await;

    // The third has the sequence of another message.
    let foreign = Incoming { sequence: records[2].sequence, ..incoming(&phone(7)) };
    consumer.admit(&[records[0].clone(), records[1].clone(), foreign]).await;

    let left = published(&database).await;
    assert_eq!(left, records[2..]);
}

async fn message_that_ended_under_no_group_is_never_taken_over(database: Database) {
    let verifications = SqlVerifications::new(database.clone());
    let (sends, records) = two_published(&database).await;
    let consumer = consumer(&database, "1", "a", LONG).await;

    verifications.cancel(id_of(&sends[0])).await.unwrap().unwrap();
    assert_eq!(backlog(&database).end_expired().await.unwrap(), 1);
    let admitted = consumer.ledger.admit(&consumer.lease, &batch(&records, 2)).await.unwrap();

    assert_eq!((admitted.fresh, admitted.expired), (vec![records[1].message.id], vec![]));
    assert_eq!(count(&database, "delivery WHERE state = 'expired'").await, 1);
}

/// The end of a message is in no snapshot of a statement that waited for it.
#[tokio::test]
async fn message_that_ends_while_an_admission_waits_for_it_is_not_taken_over() {
    static END: Sql = Sql::new("DELETE FROM outbox WHERE sequence = :sequence");
    static NOTE: Sql = Sql::new(
        "
INSERT INTO delivery
    (group_id, topic, partition, message_id, phone, state, accepted_at, expires_at, ended_at)
VALUES ('', '', -1, :id, '0', 'expired', now(), now(), now())",
    );

    let Some(database) = super::support::postgres().await else { return };
    let (_, records) = two_published(&database).await;
    let consumer = consumer(&database, "1", "a", LONG).await;
    let other = begin(&database.connection()).await.unwrap();
    let first = database.parameters().with("sequence", records[0].sequence.unwrap());
    other.execute(&END, first).await.unwrap();

    let admission = async {
        let batch = batch(&records, 2);
        consumer.ledger.admit(&consumer.lease, &batch).await.unwrap()
    };
    let ending = async {
        in_time(async {
            while count(
                &database,
                "pg_stat_activity WHERE wait_event_type = 'Lock'
                AND datname = current_database()",
            )
            .await
                == 0
            {}
        })
        .await;
        let id = records[0].message.id.as_uuid();
        other.execute(&NOTE, database.parameters().id("id", id)).await.unwrap();
        other.commit().await.unwrap();
    };
    let (admitted, ()) = tokio::join!(admission, ending);

    assert_eq!(admitted.fresh, [records[1].message.id]);
    assert_eq!(count(&database, "delivery").await, 2);
    assert_eq!(count(&database, "outbox").await, 0);
    assert_eq!(count(&database, "partition_lease WHERE next_offset = 2").await, 1);
}

async fn concurrent_admissions_and_expiry_do_not_deadlock(database: Database) {
    const MESSAGES: usize = 9;
    let one = consumer(&database, "1", "a", LONG).await;
    let two = consumer(&database, "2", "a", LONG).await;
    for _ in 0..20 {
        for number in 0..MESSAGES {
            accepted(&enqueue(&database, &new_message(&phone(number))).await);
        }
        let mut records = published(&database).await;
        let forwards = batch(&records, 1);
        records.reverse();
        let backwards = batch(&records, 1);
        let expiring = backlog(&database);

        let (first, second, ended) = tokio::join!(
            one.ledger.admit(&one.lease, &backwards),
            two.ledger.admit(&two.lease, &forwards),
            expiring.end_expired(),
        );

        assert_eq!(first.unwrap().fresh.len(), MESSAGES);
        assert_eq!(second.unwrap().fresh.len(), MESSAGES);
        assert_eq!(ended.unwrap(), 0);
    }
}

async fn each_group_has_its_own_ledger(database: Database) {
    let one = consumer(&database, "1", "a", LONG).await;
    let two = consumer(&database, "2", "a", LONG).await;
    let message = incoming(&phone(1));
    let id = message.message.id;

    assert_eq!(one.admit(std::slice::from_ref(&message)).await, [id]);
    let attempt = one.call(id, LONG).await;
    one.finish(id, attempt, sent()).await;

    assert_eq!(two.admit(&[message]).await, [id]);
    assert_eq!(two.start(id, LONG).await.calls.len(), 1);
}

async fn fenced_owner_writes_nothing(database: Database) {
    let old = consumer(&database, "1", "a", NONE).await;
    let known = incoming(&phone(1));
    old.admit(std::slice::from_ref(&known)).await;
    let new = consumer(&database, "1", "b", LONG).await;

    let admitted = old.ledger.admit(&old.lease, &batch(&[incoming(&phone(2))], 99)).await;
    let started = old.ledger.start(&old.lease, &calls(&[known.message.id]), LONG).await;
    let due = old.ledger.due(&old.lease, 10).await;

    assert!(matches!(admitted, Err(LedgerError::Fenced { partition: 0 })), "{admitted:?}");
    assert!(matches!(started, Err(LedgerError::Fenced { partition: 0 })), "{started:?}");
    assert!(matches!(due, Err(LedgerError::Fenced { partition: 0 })), "{due:?}");
    assert_eq!(count(&database, "delivery").await, 1);
    assert_eq!(count(&database, "partition_lease WHERE next_offset = 99").await, 0);
    assert_eq!(new.start(known.message.id, LONG).await.calls.len(), 1);
}

async fn call_is_begun_once(database: Database) {
    let old = consumer(&database, "1", "a", NONE).await;
    let message = incoming(&phone(1));
    let id = message.message.id;
    old.admit(&[message]).await;
    assert_eq!(old.start(id, LONG).await.calls.len(), 1);
    let new = consumer(&database, "1", "b", LONG).await;

    assert_eq!(new.start(id, LONG).await, Started::default());
    assert_eq!(new.due().await, []);
}

async fn call_may_begin_with_the_admission(database: Database) {
    let consumer = consumer(&database, "1", "a", LONG).await;
    let messages = [incoming(&phone(1)), incoming(&phone(2)), incoming(&phone(3))];
    let [now, later, late] = [0, 1, 2].map(|place: usize| messages[place].message.id);
    let long_ago = Validity::starting_at(UNIX_EPOCH + LONG, LONG);
    let over = Incoming { validity: Some(long_ago), ..messages[2].clone() };
    let batch = Batch {
        call_now: call_now([now, late]),
        call_limit: LONG,
        ..batch(&[messages[0].clone(), messages[1].clone(), over], 1)
    };

    let admitted = consumer.ledger.admit(&consumer.lease, &batch).await.unwrap();
    let again = consumer.ledger.admit(&consumer.lease, &batch).await.unwrap();

    let call = admitted.calls[0];
    assert_eq!((admitted.calls.len(), call.id, call.attempt), (1, now, 1));
    assert!(call.good_for > LONG && call.good_for <= 10 * LONG, "{call:?}");
    assert_eq!(admitted.fresh, [later]);
    assert_eq!(admitted.expired[0].id, late);
    assert_eq!(again, Admitted::default());
    assert_eq!(consumer.finish(now, 1, sent()).await, Some(DeliveryState::Sent));
    assert_eq!(consumer.due().await, [later]);
}

async fn lost_grant_of_an_admission_is_granted_again(database: Database) {
    let old = consumer(&database, "1", "a", NONE).await;
    let message = incoming(&phone(1));
    let id = message.message.id;
    let call_now = call_now([id]);
    let batch = Batch { call_now, call_limit: LONG, ..batch(&[message], 1) };
    old.ledger.admit(&old.lease, &batch).await.unwrap();

    let due = old.due().await;
    let granted = old.call(id, LONG).await;
    let new = consumer(&database, "1", "b", LONG).await;

    assert_eq!(due, [id], "to the consumer that missed the first answer");
    assert_eq!(granted, 2);
    assert_eq!(new.due().await, []);
    assert_eq!(new.start(id, LONG).await, Started::default(), "to no other consumer");
}

async fn lost_grant_of_a_call_is_granted_again(database: Database) {
    let consumer = consumer(&database, "1", "a", LONG).await;
    let message = incoming(&phone(1));
    let id = message.message.id;
    consumer.admit(&[message]).await;

    let unheard = consumer.call(id, LONG).await;
    let granted = consumer.call(id, LONG).await;

    assert!(granted > unheard);
    assert_eq!(consumer.finish(id, unheard, Verdict::Failed).await, None);
    assert_eq!(consumer.finish(id, granted, sent()).await, Some(DeliveryState::Sent));
    assert_eq!(attempts(&database, id).await.len(), 1, "no call was made on the first grant");
}

async fn late_start_does_nothing(database: Database) {
    let consumer = consumer(&database, "1", "a", LONG).await;
    let message = incoming(&phone(1));
    let id = message.message.id;
    consumer.admit(&[message]).await;
    // Its turn is lower than the turn of the next statement.
    let early = SqlDeliveryLedger::new(database.clone(), "1".into(), "message".into(), "a".into());
    for _ in 0..2 {
        consumer.ledger.start(&consumer.lease, &[], LONG).await.unwrap();
    }
    let granted = consumer.call(id, LONG).await;

    let late = early.start(&consumer.lease, &calls(&[id]), LONG).await.unwrap();

    assert_eq!(late, Started::default());
    assert_eq!(consumer.finish(id, granted, sent()).await, Some(DeliveryState::Sent));
}

async fn every_attempt_is_kept_with_its_outcome_class(database: Database) {
    let old = consumer(&database, "1", "a", NONE).await;
    let message = incoming(&phone(1));
    let id = message.message.id;
    old.admit(&[message]).await;
    let first = old.call(id, LONG).await;
    old.finish(id, first, Verdict::Retry { after: NONE }).await;
    old.call(id, NONE).await;
    let new = consumer(&database, "1", "b", LONG).await;
    let third = new.call(id, LONG).await;
    new.finish(id, third, sent()).await;

    let attempts = attempts(&database, id).await;

    let told: Vec<_> =
        attempts.iter().map(|it| (it["attempt"].as_u64(), it["outcome"].as_str())).collect();
    let expected =
        [(1, "throttled"), (2, "ambiguous"), (3, "throttled")].map(|(n, o)| (Some(n), Some(o)));
    assert_eq!(told, expected);
    assert_eq!(attempts[1]["detail"], "interrupted");
    assert!(attempts.iter().all(|it| !it["called_at"].is_null() && !it["ended_at"].is_null()));
}

async fn first_and_latest_of_very_many_attempts_are_kept(database: Database) {
    let consumer = consumer(&database, "1", "a", LONG).await;
    let message = incoming(&phone(1));
    let id = message.message.id;
    consumer.admit(&[message]).await;
    for _ in 0..105 {
        let attempt = consumer.call(id, LONG).await;
        consumer.finish(id, attempt, Verdict::Retry { after: NONE }).await;
    }

    let attempts = attempts(&database, id).await;

    let numbers: Vec<_> = attempts.iter().filter_map(|it| it["attempt"].as_u64()).collect();
    assert_eq!(numbers.len(), 100);
    assert_eq!((numbers[0], numbers[1], numbers[99]), (1, 7, 105));
}

async fn finished_message_has_no_code(database: Database) {
    let consumer = consumer(&database, "1", "a", LONG).await;
    for verdict in [sent(), Verdict::Failed, Verdict::Unknown] {
        let message = incoming(&phone(1));
        let id = message.message.id;
        consumer.admit(&[message]).await;
        let attempt = consumer.call(id, LONG).await;

        let state = consumer.finish(id, attempt, verdict).await;

        assert!(state.is_some());
        assert_eq!(consumer.finish(id, attempt, Verdict::Failed).await, None, "ended twice");
    }
    assert_eq!(count(&database, "delivery WHERE code IS NOT NULL OR ended_at IS NULL").await, 0);
    assert_eq!(count(&database, "delivery WHERE reference = 'gw-1' AND state = 'sent'").await, 1);
}

async fn outcome_of_an_earlier_call_is_ignored(database: Database) {
    let consumer = consumer(&database, "1", "a", LONG).await;
    let message = incoming(&phone(1));
    let id = message.message.id;
    consumer.admit(&[message]).await;
    let first = consumer.call(id, NONE).await;
    let second = consumer.call(id, LONG).await;

    assert_eq!(consumer.finish(id, first, Verdict::Failed).await, None);
    assert_eq!(consumer.finish(id, second, sent()).await, Some(DeliveryState::Sent));
}

async fn outcome_counts_after_the_partition_was_lost(database: Database) {
    let old = consumer(&database, "1", "a", NONE).await;
    let message = incoming(&phone(1));
    let id = message.message.id;
    old.admit(&[message]).await;
    let attempt = old.call(id, LONG).await;
    let new = consumer(&database, "1", "b", LONG).await;

    assert_eq!(new.start(id, LONG).await, Started::default(), "its call is still in flight");
    assert_eq!(old.finish(id, attempt, sent()).await, Some(DeliveryState::Sent));
}

async fn retry_waits_for_its_time(database: Database) {
    let consumer = consumer(&database, "1", "a", LONG).await;
    let (soon, later) = (incoming(&phone(1)), incoming(&phone(2)));
    consumer.admit(&[soon.clone(), later.clone()]).await;
    for (message, after) in [(&soon, NONE), (&later, LONG)] {
        let attempt = consumer.call(message.message.id, LONG).await;
        let state = consumer.finish(message.message.id, attempt, Verdict::Retry { after }).await;
        assert_eq!(state, Some(DeliveryState::Pending));
    }

    assert_eq!(consumer.due().await, [soon.message.id]);
    assert_eq!(consumer.call(soon.message.id, LONG).await, 2);
}

async fn retry_after_the_expiry_expires_the_message(database: Database) {
    let consumer = consumer(&database, "1", "a", LONG).await;
    let message = incoming(&phone(1));
    let id = message.message.id;
    consumer.admit(&[message]).await;
    let attempt = consumer.call(id, LONG).await;

    let after = Duration::from_secs(601);
    let state = consumer.finish(id, attempt, Verdict::Retry { after }).await;

    assert_eq!(state, Some(DeliveryState::Expired));
    assert_eq!(count(&database, "delivery WHERE code IS NOT NULL").await, 0);
}

async fn expired_message_is_never_called(database: Database) {
    let consumer = consumer(&database, "1", "a", LONG).await;
    let long_ago = Validity::starting_at(UNIX_EPOCH + LONG, LONG);
    let old = Incoming { validity: Some(long_ago), ..incoming(&phone(1)) };
    let ageing = incoming(&phone(2));

    let admitted = consumer.ledger.admit(&consumer.lease, &batch(&[old], 1)).await.unwrap();
    assert_eq!(admitted.fresh, []);
    assert_eq!(admitted.expired[0].state, DeliveryState::Expired);
    assert_eq!(count(&database, "delivery WHERE state = 'expired' AND code IS NULL").await, 1);

    let soon_over =
        Batch { default_ttl: Duration::from_millis(30), ..batch(std::slice::from_ref(&ageing), 2) };
    consumer.ledger.admit(&consumer.lease, &soon_over).await.unwrap();
    let over = "delivery WHERE expires_at > now()";
    let over = if database.is_postgres() {
        over.to_owned()
    } else {
        over.replace("now()", "CAST(round(unixepoch('subsec') * 1000) AS INTEGER)")
    };
    in_time(async { while count(&database, &over).await > 0 {} }).await;
    let started = consumer.start(ageing.message.id, LONG).await;
    assert_eq!(started.calls, []);
    assert_eq!(started.ended[0].state, DeliveryState::Expired);
    assert_eq!(count(&database, "delivery WHERE state = 'expired' AND code IS NULL").await, 2);
}

/// This holds in the outbox, also if it was published, before another call and during a call.
async fn waiting_message_of_a_canceled_verification_is_never_called(database: Database) {
    let verifications = SqlVerifications::new(database.clone());
    let consumer = consumer(&database, "1", "a", LONG).await;
    let sends = [1, 2, 3].map(|number| start(&phone(number)));
    for send in &sends {
        accepted(&enqueue(&database, send).await);
    }
    sent_again(&verifications, &sends[0]).await;
    let records = published(&database).await;
    let [first, called, relayed, second] = &records[..] else { panic!("{records:?}") };
    assert_eq!(first.message.phone, second.message.phone);
    consumer.admit(&[first.clone(), second.clone(), called.clone()]).await;
    let parked = Verdict::Retry { after: LONG };
    for id in [first.message.id, second.message.id] {
        consumer.finish(id, consumer.call(id, LONG).await, parked.clone()).await;
    }
    assert!(!consumer.due().await.contains(&first.message.id));
    let attempt = consumer.call(called.message.id, LONG).await;
    let waiting = start(&phone(4));
    accepted(&enqueue(&database, &waiting).await);

    for send in sends.iter().chain([&waiting]) {
        verifications.cancel(id_of(send)).await.unwrap().unwrap();
    }

    // It ends at once, because the next message to the phone waits for it.
    assert!(consumer.due().await.contains(&first.message.id));
    for id in [first.message.id, second.message.id] {
        let started = consumer.start(id, LONG).await;
        assert_eq!((started.calls.len(), started.ended[0].id), (0, id));
    }
    let state = consumer.finish(called.message.id, attempt, parked).await;
    assert_eq!(state, Some(DeliveryState::Expired));
    assert_eq!(published(&database).await, []);
    let late = batch(std::slice::from_ref(relayed), 9);
    let admitted = consumer.ledger.admit(&consumer.lease, &late).await.unwrap();
    assert_eq!((admitted.fresh.len(), admitted.expired[0].id), (0, relayed.message.id));
    assert_eq!(backlog(&database).end_expired().await.unwrap(), 1);
}

async fn sent_again(verifications: &SqlVerifications, first: &NewSend) {
    let resent = verifications.resend(again(first, 1)).await.unwrap();
    assert!(matches!(resent, Resent::Sent(_)), "{resent:?}");
}

async fn record_without_times_gets_the_default_time_to_live(database: Database) {
    let consumer = consumer(&database, "1", "a", LONG).await;
    let message = incoming(&phone(1));
    consumer.admit(std::slice::from_ref(&message)).await;

    let started = consumer.start(message.message.id, LONG).await;

    // The test and the database have the same clock.
    #[expect(clippy::disallowed_methods, reason = "compared with the database's clock")]
    let left = started.calls[0].expires_at.duration_since(SystemTime::now()).unwrap();
    assert!(left > Duration::from_secs(590) && left <= Duration::from_secs(601), "{left:?}");
}

async fn times_of_a_record_are_bounded(database: Database) {
    let consumer = consumer(&database, "1", "a", LONG).await;
    let year_9999 = UNIX_EPOCH + Duration::from_secs(253_402_300_799);
    let validity = Some(Validity { accepted_at: year_9999, expires_at: year_9999 });
    let message = Incoming { validity, ..incoming(&phone(1)) };

    consumer.admit(std::slice::from_ref(&message)).await;

    let call = consumer.start(message.message.id, LONG).await.calls[0];
    assert!(call.good_for <= Duration::from_secs(86_400), "{call:?}");
    let now = if database.is_postgres() { "now()" } else { "unixepoch('subsec') * 1000 + 1" };
    assert_eq!(count(&database, &format!("delivery WHERE accepted_at <= {now}")).await, 1);
}

async fn unreadable_record_becomes_a_dead_letter_with_its_place(database: Database) {
    let consumer = consumer(&database, "1", "a", LONG).await;
    let mut batch = batch(&[incoming(&phone(1))], 12);
    batch.records.extend([unreadable(10, "not JSON"), unreadable(11, "no phone")]);

    consumer.ledger.admit(&consumer.lease, &batch).await.unwrap();

    assert_eq!(count(&database, "dead_letter").await, 2);
    let one = "dead_letter WHERE partition = 0 AND record_offset = 11 AND reason = 'no phone'";
    assert_eq!(count(&database, one).await, 1);
}

async fn dead_letter_is_retried_or_discarded(database: Database) {
    let consumer = consumer(&database, "1", "a", LONG).await;
    let mut batch = batch(&[], 3);
    batch.records = (0..3).map(|offset| unreadable(offset, "not JSON")).collect();
    consumer.ledger.admit(&consumer.lease, &batch).await.unwrap();
    let letters = SqlDeadLetters::new(database.clone());
    let [first, second, third]: [DeadLetter; 3] =
        letters.list(10).await.unwrap().try_into().unwrap();
    assert_eq!(
        (&*first.group, &*first.topic, first.partition, first.offset),
        ("1", "message", 0, 0)
    );
    assert_eq!(letters.find(second.id).await.unwrap().as_ref(), Some(&second));
    let message = incoming(&phone(1));
    let ttl = Duration::from_secs(600);

    let late = letters.revive(&first, &message, NONE).await.unwrap();
    assert_eq!(late, Revived::Expired);
    assert_eq!(count(&database, "delivery").await, 0);

    assert_eq!(letters.revive(&first, &message, ttl).await.unwrap(), Revived::Pending);
    assert_eq!(consumer.due().await, [message.message.id]);
    assert_eq!(letters.revive(&second, &message, ttl).await.unwrap(), Revived::KnownAlready);

    assert!(letters.discard(third.id).await.unwrap());
    assert!(!letters.discard(third.id).await.unwrap());
    assert_eq!(letters.list(10).await.unwrap(), []);
}

async fn dead_letter_of_a_canceled_message_is_not_retried(database: Database) {
    let verifications = SqlVerifications::new(database.clone());
    let (sends, records) = two_published(&database).await;
    let consumer = consumer(&database, "1", "a", LONG).await;
    let mut batch = batch(&[], 2);
    batch.records = (0..2).map(|offset| unreadable(offset, "the key is missing")).collect();
    consumer.ledger.admit(&consumer.lease, &batch).await.unwrap();
    let letters = SqlDeadLetters::new(database.clone());
    let [first, second]: [DeadLetter; 2] = letters.list(10).await.unwrap().try_into().unwrap();

    verifications.cancel(id_of(&sends[0])).await.unwrap().unwrap();
    let canceled = letters.revive(&first, &records[0], LONG).await.unwrap();
    assert_eq!(backlog(&database).end_expired().await.unwrap(), 1);
    let ended = letters.revive(&first, &records[0], LONG).await.unwrap();
    let other = letters.revive(&second, &records[1], LONG).await.unwrap();

    assert_eq!([canceled, ended, other], [Revived::Expired, Revived::Expired, Revived::Pending]);
    assert_eq!(consumer.due().await, [records[1].message.id]);
    assert_eq!(count(&database, "outbox").await, 0);
}

async fn oldest_message_of_each_phone_is_due(database: Database) {
    let consumer = consumer(&database, "1", "a", LONG).await;
    let messages: Vec<_> = [1, 2, 1, 3].map(|number| incoming(&phone(number))).to_vec();
    let ids: Vec<_> = messages.iter().map(|message| message.message.id).collect();
    consumer.admit(&messages).await;
    let attempt = consumer.call(ids[1], LONG).await;
    consumer.finish(ids[1], attempt, sent()).await;

    assert_eq!(consumer.due().await, [ids[0], ids[3]]);
    let mut open = consumer.ledger.open(&consumer.lease).await.unwrap();
    open.sort();
    assert_eq!(open, [(phone(1).parse().unwrap(), 2), (phone(3).parse().unwrap(), 1)]);
}

async fn interrupted_call_is_due_when_its_time_is_over(database: Database) {
    let old = consumer(&database, "1", "a", NONE).await;
    let messages = [incoming(&phone(1)), incoming(&phone(2))];
    old.admit(&messages).await;
    old.call(messages[0].message.id, NONE).await;
    old.call(messages[1].message.id, LONG).await;
    // Its own consumer has never made the call.
    assert!(!old.ledger.due(&old.lease, 10).await.unwrap()[0].interrupted);
    let new = consumer(&database, "1", "b", LONG).await;

    let due = new.ledger.due(&new.lease, 10).await.unwrap();

    assert_eq!(due.len(), 1);
    assert_eq!(due[0].message, messages[0].message);
    assert!(due[0].interrupted);
    assert_eq!(due[0].past.attempts, 1);
}

async fn untried_and_expired_messages_are_due_first(database: Database) {
    let consumer = consumer(&database, "1", "a", LONG).await;
    let messages: Vec<_> = [1, 2, 3].map(|number| incoming(&phone(number))).to_vec();
    let ids: Vec<_> = messages.iter().map(|message| message.message.id).collect();
    let expires = Duration::from_millis(300);
    consumer.ledger.admit(&consumer.lease, &batch(&messages[..1], 1)).await.unwrap();
    let soon_over = Batch { default_ttl: expires, ..batch(&messages[1..2], 2) };
    consumer.ledger.admit(&consumer.lease, &soon_over).await.unwrap();
    consumer.admit(&messages[2..]).await;
    for id in &ids[..2] {
        let attempt = consumer.call(*id, LONG).await;
        let state = consumer.finish(*id, attempt, Verdict::Retry { after: NONE }).await;
        assert_eq!(state, Some(DeliveryState::Pending));
    }
    let due = async || consumer.ledger.due(&consumer.lease, 100).await.unwrap();
    in_time(async { while !due().await.iter().any(|due| due.expired) {} }).await;

    let due = due().await;

    let order: Vec<_> =
        due.iter().map(|due| (due.message.id, due.past.attempts, due.expired)).collect();
    assert_eq!(order, [(ids[1], 1, true), (ids[2], 0, false), (ids[0], 1, false)]);
}
