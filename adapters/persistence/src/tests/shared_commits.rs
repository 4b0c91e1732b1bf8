//! Partitions of a process that write to the ledger at the same time (ADR 84).

use std::time::Duration;

use application::ports::{
    Admitted, Batch, CallOutcome, DeliveryLedger, DeliveryState, Incoming, Lease, LedgerError,
    OutcomeClass, PartitionLeases, Recorded, Verdict,
};

use super::{
    on_both_databases,
    refusals::refuse,
    support::{
        LONG, accepted, batch, call_now, calls, count, enqueue, incoming, new_message, phone,
        published,
    },
};
use crate::{
    Database, SqlDeliveryLedger, SqlPartitionLeases,
    database::{Sql, begin},
};

on_both_databases!(
    partitions_that_ask_together_get_their_own_answers,
    lost_lease_of_one_partition_does_not_stop_another,
    earlier_and_present_epoch_of_a_partition_get_their_own_answers,
    message_in_two_partitions_is_taken_over_once,
    refused_message_of_one_partition_does_not_stop_another,
    outcomes_of_two_attempts_get_their_own_answers,
);

/// The ledger of a consumer, and its leases of partitions 0 and 1.
async fn two_partitions(database: &Database, member: &str) -> (SqlDeliveryLedger, [Lease; 2]) {
    let leases =
        SqlPartitionLeases::new(database.clone(), "1".into(), "message".into(), member.into());
    leases.register(&[0, 1]).await.unwrap();
    let mut held = leases.acquire(2, Duration::ZERO).await.unwrap();
    held.sort_unstable_by_key(|lease| lease.partition);
    let ledger =
        SqlDeliveryLedger::new(database.clone(), "1".into(), "message".into(), member.into());
    (ledger, held.try_into().unwrap())
}

fn calling(message: &Incoming) -> Batch {
    let call_now = call_now([message.message.id]);
    Batch { call_now, call_limit: LONG, ..batch(std::slice::from_ref(message)) }
}

/// Takes a message of each partition over at the same time.
async fn admit(
    ledger: &SqlDeliveryLedger,
    leases: &[Lease; 2],
    messages: [&Incoming; 2],
) -> (Result<Admitted, LedgerError>, Result<Admitted, LedgerError>) {
    let [first, second] = messages.map(calling);
    tokio::join!(ledger.admit(&leases[0], &first), ledger.admit(&leases[1], &second))
}

/// Records that the first call of a message was accepted.
async fn finish(ledger: &SqlDeliveryLedger, message: &Incoming) -> Vec<Recorded> {
    let sent = Verdict::Sent { reference: None, receipts_by_reference: false, awaited: None };
    finish_attempt(ledger, message, 1, sent).await
}

async fn finish_attempt(
    ledger: &SqlDeliveryLedger,
    message: &Incoming,
    attempt: u32,
    verdict: Verdict,
) -> Vec<Recorded> {
    let (id, class, detail) = (message.message.id, OutcomeClass::Accepted, String::new());
    ledger.finish(&[CallOutcome { id, attempt, class, verdict, detail }]).await.unwrap()
}

fn called(admitted: Result<Admitted, LedgerError>) -> Vec<domain::MessageId> {
    admitted.unwrap().calls.iter().map(|call| call.id).collect()
}

async fn partitions_that_ask_together_get_their_own_answers(database: Database) {
    let (ledger, leases) = two_partitions(&database, "a").await;
    let [one, two] = [1, 2].map(|number| incoming(&phone(number)));
    let [one_id, two_id] = [one.message.id, two.message.id];

    let (first, second) = admit(&ledger, &leases, [&one, &two]).await;
    assert_eq!((called(first), called(second)), (vec![one_id], vec![two_id]));
    for partition in [0, 1] {
        assert_eq!(count(&database, &format!("delivery WHERE partition = {partition}")).await, 1);
    }

    let (first, second) = tokio::join!(finish(&ledger, &one), finish(&ledger, &two));
    assert_eq!((first.len(), first[0].id), (1, one_id));
    assert_eq!((second.len(), second[0].id), (1, two_id));
}

#[tokio::test]
async fn partitions_that_ask_together_share_a_commit() {
    let Some(database) = super::support::postgres().await else { return };
    let (ledger, leases) = two_partitions(&database, "a").await;
    let [one, two] = [1, 2].map(|number| incoming(&phone(number)));

    // All times of a transaction are the time of its beginning.
    let distinct = async |time: &str| {
        let times = "SELECT DISTINCT {time} FROM delivery WHERE {time} IS NOT NULL";
        count(&database, &format!("({}) AS times", times.replace("{time}", time))).await
    };

    let (first, second) = admit(&ledger, &leases, [&one, &two]).await;
    assert_eq!((called(first), called(second)), (vec![one.message.id], vec![two.message.id]));
    assert_eq!(distinct("called_at").await, 1);

    let (first, second) = tokio::join!(finish(&ledger, &one), finish(&ledger, &two));
    assert_eq!((first.len(), second.len()), (1, 1));
    assert_eq!(distinct("ended_at").await, 1);
}

/// The limit is zero if no gateway has room.
#[tokio::test]
async fn partitions_with_different_limits_of_calls_share_a_commit() {
    let Some(database) = super::support::postgres().await else { return };
    let (ledger, leases) = two_partitions(&database, "a").await;
    let [one, two] = [1, 2].map(|number| incoming(&phone(number)));
    let (calling, waiting) = (calling(&one), batch(std::slice::from_ref(&two)));

    let (first, second) =
        tokio::join!(ledger.admit(&leases[0], &calling), ledger.admit(&leases[1], &waiting));

    assert_eq!(called(first), [one.message.id]);
    assert_eq!(second.unwrap().fresh, [two.message.id]);
    let times = "(SELECT DISTINCT coalesce(called_at, due_at) FROM delivery) AS times";
    assert_eq!(count(&database, times).await, 1);
    let limits = "delivery WHERE due_at = called_at + interval '60 seconds'";
    assert_eq!(count(&database, limits).await, 1);
}

#[tokio::test]
async fn partition_that_waits_for_a_lock_does_not_fail_another() {
    static LOCK: Sql = Sql::new("SELECT 1 FROM outbox WHERE sequence = :sequence FOR UPDATE");

    let Some(database) = super::support::postgres().await else { return };
    let (ledger, leases) = two_partitions(&database, "a").await;
    accepted(&enqueue(&database, &new_message(&phone(1))).await);
    let locked = published(&database).await.remove(0);
    let free = incoming(&phone(2));
    let other = begin(&database.connection()).await.unwrap();
    let sequence = database.parameters().with("sequence", locked.sequence.unwrap());
    assert!(other.finds(&LOCK, sequence).await.unwrap());

    // PostgreSQL refuses the statement of both for the lock.
    let (_, second) = admit(&ledger, &leases, [&locked, &free]).await;

    assert_eq!(called(second), [free.message.id]);
}

async fn lost_lease_of_one_partition_does_not_stop_another(database: Database) {
    let (ledger, leases) = two_partitions(&database, "a").await;
    let other = SqlPartitionLeases::new(database.clone(), "1".into(), "message".into(), "b".into());
    assert_eq!(other.acquire(1, LONG).await.unwrap()[0].partition, 0);
    let [one, two] = [1, 2].map(|number| incoming(&phone(number)));

    let (first, second) = admit(&ledger, &leases, [&one, &two]).await;

    assert!(matches!(first, Err(LedgerError::Fenced { partition: 0 })), "{first:?}");
    assert_eq!(called(second), [two.message.id]);
    assert_eq!(count(&database, "delivery").await, 1);
    assert_eq!(count(&database, "partition_lease WHERE next_offset IS NOT NULL").await, 1);
}

async fn earlier_and_present_epoch_of_a_partition_get_their_own_answers(database: Database) {
    let (ledger, [earlier, _]) = two_partitions(&database, "a").await;
    let (_, [present, _]) = two_partitions(&database, "a").await;
    let [one, two] = [1, 2].map(|number| incoming(&phone(number)));

    let (first, second) = admit(&ledger, &[earlier, present], [&one, &two]).await;

    assert!(matches!(first, Err(LedgerError::Fenced { partition: 0 })), "{first:?}");
    assert_eq!(called(second), [two.message.id]);
}

async fn message_in_two_partitions_is_taken_over_once(database: Database) {
    let (ledger, leases) = two_partitions(&database, "a").await;
    let one = incoming(&phone(1));

    let (first, second) = admit(&ledger, &leases, [&one, &one]).await;

    assert_eq!(called(first).len() + called(second).len(), 1);
    assert_eq!(count(&database, "delivery").await, 1);
}

async fn refused_message_of_one_partition_does_not_stop_another(database: Database) {
    let (ledger, leases) = two_partitions(&database, "a").await;
    let [one, two] = [1, 2].map(|number| incoming(&phone(number)));
    refuse(&database, "delivery", &format!("NEW.phone = '{}'", one.message.phone.as_str())).await;

    let (first, second) = admit(&ledger, &leases, [&one, &two]).await;

    let first = first.unwrap();
    assert_eq!((first.refused, first.calls.len()), (1, 0));
    assert_eq!(called(second), [two.message.id]);
    assert_eq!(count(&database, "dead_letter WHERE partition = 0").await, 1);
    assert_eq!(count(&database, "dead_letter").await, 1);
    assert_eq!(count(&database, "partition_lease WHERE next_offset = 1").await, 2);
}

async fn outcomes_of_two_attempts_get_their_own_answers(database: Database) {
    let (ledger, leases) = two_partitions(&database, "a").await;
    let message = incoming(&phone(1));
    ledger.admit(&leases[0], &calling(&message)).await.unwrap();
    let retry = Verdict::Retry { after: Duration::ZERO };
    finish_attempt(&ledger, &message, 1, retry).await;
    let again = calls(&[message.message.id]);
    assert_eq!(ledger.start(&leases[0], &again, LONG).await.unwrap().calls[0].attempt, 2);

    let (early, present) = tokio::join!(
        finish_attempt(&ledger, &message, 1, Verdict::Failed),
        finish_attempt(&ledger, &message, 2, Verdict::Unknown),
    );

    assert_eq!(early, []);
    assert_eq!(present[0].state, DeliveryState::Unknown);
}
