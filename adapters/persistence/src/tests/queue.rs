//! The promises of a broker on both databases, and what only the embedded queue does.

use std::time::{Duration, SystemTime};

use adapters_wire::{
    broker_conformance,
    conformance::{Rig, TTL, messages, partition_with_records, vault},
};
use application::{
    Vault,
    ports::{BrokerError, MessageBroker, MessageStream, StartFrom, StreamError},
};
use sea_orm::ConnectionTrait;

use super::{on_both_databases, refusals::refuse, support};
use crate::{Database, EmbeddedQueue, EmbeddedQueueSettings, Evidence};

mod conformance_on_postgres {
    use super::*;

    broker_conformance!(new_rig);

    async fn new_rig() -> Option<(Rig<EmbeddedQueue, EmbeddedQueue>, ())> {
        Some((rig(&support::postgres().await?), ()))
    }
}

mod conformance_on_sqlite {
    use super::*;

    broker_conformance!(new_rig);

    async fn new_rig() -> Option<(Rig<EmbeddedQueue, EmbeddedQueue>, support::Folder)> {
        let (database, folder) = support::sqlite().await;
        Some((rig(&database), folder))
    }
}

fn rig(database: &Database) -> Rig<EmbeddedQueue, EmbeddedQueue> {
    let broker = queue(database);
    Rig {
        stream: broker.clone(),
        broker,
        other_broker: queue(database),
        locked_stream: EmbeddedQueue::new(database.clone(), settings(), Vault::default()),
    }
}

fn queue(database: &Database) -> EmbeddedQueue {
    EmbeddedQueue::new(database.clone(), settings(), vault())
}

fn settings() -> EmbeddedQueueSettings {
    EmbeddedQueueSettings { topic: "message".to_owned(), default_ttl: TTL, require_sealed: false }
}

async fn run(database: &Database, sql: &str) {
    database.connection().execute_unprepared(sql).await.unwrap();
}

/// Publishes `count` messages to one phone, and returns the queue and their partition.
async fn queue_with(database: &Database, count: usize) -> (EmbeddedQueue, i32) {
    let queue = queue(database);
    queue.publish(&messages(count, 7..8)).await.into_iter().for_each(Result::unwrap);
    let (partition, _) = partition_with_records(&queue).await;
    (queue, partition)
}

on_both_databases! {
    trim_deletes_old_records_and_their_offsets_are_out_of_range,
    trim_deletes_records_that_all_groups_have_passed,
    reader_may_begin_at_a_time,
    record_with_invalid_columns_is_unreadable_and_passed,
    queue_without_its_tables_is_unavailable,
    refused_record_holds_up_its_phone_only,
}

async fn trim_deletes_old_records_and_their_offsets_are_out_of_range(database: Database) {
    let (queue, partition) = queue_with(&database, 10).await;

    assert_eq!(queue.trim(Duration::from_secs(60)).await.unwrap(), 0, "none is that old");

    // Offset 4 has a later time than 5 and 6, because the clock went back.
    let age = r#"UPDATE queue_record SET written_at = written_at - 100000
                 WHERE "offset" < 7 AND "offset" <> 4"#;
    run(&database, age).await;
    assert_eq!(queue.trim(Duration::from_secs(60)).await.unwrap(), 4);
    let early = queue.fetch(partition, 3).await;
    assert!(matches!(early, Err(StreamError::OutOfRange { offset: 3 })), "{early:?}");
    let first = queue.first_offset(partition, StartFrom::Earliest).await.unwrap();
    assert_eq!(first, 4);
    assert_eq!(queue.fetch(partition, first).await.unwrap().records.len(), 6);

    run(&database, "UPDATE queue_record SET written_at = 0").await;
    assert_eq!(queue.trim(Duration::from_secs(60)).await.unwrap(), 6);
    let early = queue.fetch(partition, 9).await;
    assert!(matches!(early, Err(StreamError::OutOfRange { offset: 9 })), "{early:?}");
    let first = queue.first_offset(partition, StartFrom::Earliest).await.unwrap();
    assert_eq!(first, 10);
}

async fn trim_deletes_records_that_all_groups_have_passed(database: Database) {
    let (queue, partition) = queue_with(&database, 10).await;
    let trimmed_when = async |topic: &str, group: &str, next_offset: &str| {
        let sql = format!(
            r#"INSERT INTO partition_lease
                   (topic, group_id, "partition", next_offset, added_later)
               VALUES ('{topic}', '{group}', {partition}, {next_offset}, false)
               ON CONFLICT (group_id, topic, "partition")
               DO UPDATE SET next_offset = excluded.next_offset"#
        );
        run(&database, &sql).await;
        queue.trim(Duration::from_secs(60)).await.unwrap()
    };

    assert_eq!(trimmed_when("another", "one", "10").await, 0, "another topic");
    assert_eq!(trimmed_when("message", "other", "NULL").await, 0, "this group has not begun");
    assert_eq!(trimmed_when("message", "one", "6").await, 0, "the other group has not begun");
    assert_eq!(trimmed_when("message", "other", "4").await, 4);
    let first = queue.first_offset(partition, StartFrom::Earliest).await.unwrap();
    assert_eq!((first, queue.fetch(partition, 4).await.unwrap().records.len()), (4, 6));
    assert_eq!(trimmed_when("message", "other", "10").await, 2);
    assert_eq!(
        trimmed_when("message", "one", "11").await,
        0,
        "beyond the end: of an earlier queue"
    );
    assert_eq!(trimmed_when("message", "one", "10").await, 4);
    assert_eq!(queue.fetch(partition, 10).await.unwrap().next_offset, 10);
}

async fn reader_may_begin_at_a_time(database: Database) {
    let (queue, partition) = queue_with(&database, 3).await;
    let age = r#"UPDATE queue_record SET written_at = 1000 + "offset" WHERE "offset" < 2"#;
    run(&database, age).await;
    let first = async |milliseconds| {
        let time = SystemTime::UNIX_EPOCH + Duration::from_millis(milliseconds);
        queue.first_offset(partition, StartFrom::Since(time)).await.unwrap()
    };

    assert_eq!([first(1_000).await, first(1_001).await, first(1_002).await], [0, 1, 2]);
    assert_eq!(first(253_402_300_799_000).await, 3, "the end");
}

async fn record_with_invalid_columns_is_unreadable_and_passed(database: Database) {
    let (queue, partition) = queue_with(&database, 3).await;
    for spoil in [
        r#"UPDATE queue_record SET headers = 'what' WHERE "offset" = 0"#,
        r#"UPDATE queue_record SET value = NULL WHERE "offset" = 1"#,
    ] {
        run(&database, spoil).await;
    }

    let fetched = queue.fetch(partition, 0).await.unwrap();

    let readable: Vec<bool> = fetched.records.iter().map(|record| record.content.is_ok()).collect();
    assert_eq!((readable, fetched.next_offset), (vec![false, false, true], 3));
}

async fn queue_without_its_tables_is_unavailable(database: Database) {
    let queue = queue(&database);
    queue.ready().await.unwrap();
    run(&database, "DROP TABLE queue_record").await;

    let answers = queue.publish(&messages(2, 0..2)).await;

    assert!(
        answers.iter().all(|answer| matches!(answer, Err(BrokerError::Unavailable(_)))),
        "{answers:?}"
    );
    let fetched = queue.fetch(0, 0).await;
    assert!(matches!(fetched, Err(StreamError::Unavailable(_))), "{fetched:?}");
}

async fn refused_record_holds_up_its_phone_only(database: Database) {
    let queue = queue(&database);
    queue.ready().await.unwrap();
    // Phones 1 and 2 in turn. The second message to phone 1 is refused.
    let sent = messages(8, 1..3);
    let refused = format!("NEW.headers LIKE '%{}%'", sent[2].message.id);
    refuse(&database, "queue_record", &refused).await;

    let answers = queue.publish(&sent).await;

    let stored: Vec<bool> = answers.iter().map(Result::is_ok).collect();
    assert_eq!(stored, [true, true, false, true, false, true, false, true]);
    assert!(matches!(answers[2], Err(BrokerError::Unavailable(_))), "{:?}", answers[2]);
    assert!(matches!(answers[4], Err(BrokerError::Held)), "{:?}", answers[4]);
    assert_eq!(support::count(&database, "queue_record").await, 5);
}

/// `/readyz` learns from the evidence that nothing can be published.
#[tokio::test]
async fn failed_publication_is_evidence_about_the_database() {
    let Some(database) = support::postgres().await else { return };
    let evidence = Evidence::default();
    let database = database.with_evidence(evidence.clone());
    run(&database, "DROP TABLE queue_record").await;

    let answers = queue(&database).publish(&messages(1, 0..1)).await;

    assert!(answers[0].is_err());
    assert!(evidence.recent().is_some_and(|reason| reason.contains("queue_record")));
}
