//! What the ports promise, held against Kafka, SQLite and PostgreSQL.

use std::{
    collections::{HashMap, HashSet},
    num::NonZeroU16,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use application::{
    Vault,
    ports::{
        BrokerError, Claimed, Fetched, Incoming, MessageBroker, MessageStream, StartFrom,
        StreamError,
    },
};
use migration::{Migrator, MigratorTrait};
use sea_orm::{ConnectOptions, ConnectionTrait, Database, DatabaseConnection};

use crate::{
    Broker, EmbeddedQueue, EmbeddedQueueSettings, KafkaBroker, KafkaPublisherSettings,
    KafkaSettings, KafkaStream, KafkaStreamSettings, Stream,
    testing::{
        TTL, in_time, message_to, messages, read_all, read_from, service, unique_name, vault,
    },
};

/// A topic of its own, which does not exist yet.
struct Rig {
    broker: Broker,
    /// Reads in the process of `broker`, so to speak.
    stream: Stream,
    /// In another process, so to speak.
    other_broker: Broker,
    /// Reads in a process that has no keys yet.
    closed: Stream,
    _file: Option<DatabaseFile>,
}

/// Deleted when dropped.
struct DatabaseFile(PathBuf);

impl Drop for DatabaseFile {
    fn drop(&mut self) {
        for suffix in ["", "-wal", "-shm"] {
            let mut file = self.0.clone().into_os_string();
            file.push(suffix);
            let _ = std::fs::remove_file(file);
        }
    }
}

impl Rig {
    #[expect(clippy::unused_async, reason = "called as the other two are")]
    async fn kafka() -> Option<Self> {
        let kafka = KafkaSettings {
            bootstrap_servers: vec![service("TEST_KAFKA")?],
            topic: unique_name(),
            client_id: "messager-test".to_owned(),
            request_timeout: Duration::from_secs(10),
        };
        let publisher = KafkaPublisherSettings {
            kafka: kafka.clone(),
            partitions: NonZeroU16::new(4).unwrap(),
            replication_factor: NonZeroU16::MIN,
        };
        Some(Self {
            broker: Broker::Kafka(KafkaBroker::new(publisher.clone())),
            stream: Stream::Kafka(KafkaStream::new(
                KafkaStreamSettings {
                    kafka: kafka.clone(),
                    default_ttl: TTL,
                    require_sealed: false,
                },
                vault(),
            )),
            closed: Stream::Kafka(KafkaStream::new(
                KafkaStreamSettings { kafka, default_ttl: TTL, require_sealed: false },
                Vault::default(),
            )),
            other_broker: Broker::Kafka(KafkaBroker::new(publisher)),
            _file: None,
        })
    }

    async fn sqlite() -> Option<Self> {
        let (db, file) = sqlite().await;
        Some(Self::embedded(db, Some(file)))
    }

    async fn postgres() -> Option<Self> {
        postgres().await.map(|db| Self::embedded(db, None))
    }

    fn embedded(db: DatabaseConnection, file: Option<DatabaseFile>) -> Self {
        let queue = embedded(db.clone());
        Self {
            broker: Broker::Embedded(queue.clone()),
            stream: Stream::Embedded(queue),
            other_broker: Broker::Embedded(embedded(db.clone())),
            closed: Stream::Embedded(EmbeddedQueue::new(db, settings(), Vault::default())),
            _file: file,
        }
    }

    async fn publish(&self, messages: &[Claimed]) {
        publish(&self.broker, messages).await;
    }
}

fn embedded(db: DatabaseConnection) -> EmbeddedQueue {
    EmbeddedQueue::new(db, settings(), vault())
}

fn settings() -> EmbeddedQueueSettings {
    EmbeddedQueueSettings { topic: "message".to_owned(), default_ttl: TTL, require_sealed: false }
}

async fn sqlite() -> (DatabaseConnection, DatabaseFile) {
    let path = std::env::temp_dir().join(unique_name()).with_extension("db");
    let db = Database::connect(format!("sqlite://{}?mode=rwc", path.display())).await.unwrap();
    db.execute_unprepared("PRAGMA journal_mode = WAL").await.unwrap();
    Migrator::up(&db, None).await.unwrap();
    (db, DatabaseFile(path))
}

async fn postgres() -> Option<DatabaseConnection> {
    let url = service("TEST_POSTGRES_URL")?;
    let schema = unique_name();
    let db = Database::connect(&url).await.unwrap();
    db.execute_unprepared(&format!("CREATE SCHEMA {schema}")).await.unwrap();
    db.close().await.unwrap();
    let mut options = ConnectOptions::new(url);
    options.max_connections(5).set_schema_search_path(schema);
    let db = Database::connect(options).await.unwrap();
    Migrator::up(&db, None).await.unwrap();
    Some(db)
}

async fn publish(broker: &Broker, messages: &[Claimed]) {
    in_time(broker.ready()).await.unwrap();
    let answers = in_time(broker.publish(messages)).await;
    assert_eq!(answers.len(), messages.len());
    answers.into_iter().for_each(Result::unwrap);
}

/// The message as it should come out.
fn expected(claimed: &Claimed) -> Incoming {
    Incoming {
        message: claimed.message.clone(),
        validity: Some(claimed.validity),
        trace: Some(claimed.trace.clone()),
        sequence: Some(claimed.claim.sequence),
    }
}

async fn published_messages_come_back_whole_and_in_order_for_each_phone(rig: Rig) {
    let sent = messages(1_000, 0..50);

    for batch in sent.chunks(300) {
        rig.publish(batch).await;
    }

    let mut partition_of = HashMap::new();
    let mut received: HashMap<_, Vec<Incoming>> = HashMap::new();
    for (partition, records) in read_all(&rig.stream).await.into_iter().enumerate() {
        for (offset, record) in (0..).zip(records) {
            assert_eq!(record.offset, offset, "offsets are dense");
            let incoming = record.content.unwrap();
            let phone = incoming.message.phone.clone();
            let seen_in = *partition_of.entry(phone.clone()).or_insert(partition);
            assert_eq!(seen_in, partition, "a phone has one partition");
            received.entry(phone).or_default().push(incoming);
        }
    }
    let mut wanted: HashMap<_, Vec<Incoming>> = HashMap::new();
    for claimed in &sent {
        wanted.entry(claimed.message.phone.clone()).or_default().push(expected(claimed));
    }
    assert_eq!(received, wanted);
}

async fn partitions_share_the_phones(rig: Rig) {
    rig.publish(&messages(400, 0..400)).await;

    let counts: Vec<usize> = read_all(&rig.stream).await.iter().map(Vec::len).collect();

    assert_eq!(counts.len(), 4);
    assert!(counts.iter().all(|count| (60..=140).contains(count)), "{counts:?}");
}

async fn a_topic_that_is_not_there_has_no_partitions(rig: Rig) {
    assert_eq!(in_time(rig.stream.partitions()).await.unwrap(), Vec::<i32>::new());
    let fetched = in_time(rig.stream.fetch(0, 0)).await;
    assert!(matches!(fetched, Err(StreamError::Unavailable(_))), "{fetched:?}");

    // Both find that there is none.
    let ready = in_time(async { tokio::join!(rig.broker.ready(), rig.other_broker.ready()) }).await;
    assert!(matches!(ready, (Ok(()), Ok(()))), "{ready:?}");

    in_time(async { while rig.stream.partitions().await.unwrap() != [0, 1, 2, 3] {} }).await;
}

async fn a_partition_begins_and_ends_where_its_records_do(rig: Rig) {
    use StartFrom::{Earliest, Latest};
    rig.publish(&messages(3, 7..8)).await;

    let mut ends = Vec::new();
    for partition in rig.stream.partitions().await.unwrap() {
        assert_eq!(rig.stream.first_offset(partition, Earliest).await.unwrap(), 0);
        ends.push(rig.stream.first_offset(partition, Latest).await.unwrap());
    }

    ends.sort_unstable();
    assert_eq!(ends, [0, 0, 0, 3]);
}

async fn publishing_nothing_or_without_being_ready_is_fine(rig: Rig) {
    assert!(rig.broker.publish(&[]).await.is_empty());

    let answers = in_time(rig.broker.publish(&messages(2, 0..2))).await;

    assert!(answers.iter().all(Result::is_ok), "{answers:?}");
}

async fn a_fetch_at_the_end_waits_for_what_is_published(rig: Rig) {
    rig.publish(&[message_to(7)]).await;
    in_time(rig.other_broker.ready()).await.unwrap();
    let (partition, mut offset) = partition_with_records(&rig.stream).await;

    for broker in [&rig.broker, &rig.other_broker] {
        let message = message_to(7);
        let (fetched, ()) = in_time(async {
            tokio::join!(
                fetch_some(&rig.stream, partition, offset),
                publish(broker, std::slice::from_ref(&message))
            )
        })
        .await;

        assert_eq!(fetched.records.len(), 1);
        assert_eq!(fetched.records[0].content, Ok(expected(&message)));
        assert_eq!((fetched.records[0].offset, fetched.next_offset), (offset, offset + 1));
        assert_eq!(fetched.lag, 0);
        offset = fetched.next_offset;
    }
}

async fn a_fetch_at_the_end_gives_up_after_a_while(rig: Rig) {
    rig.publish(&[message_to(7)]).await;
    let (partition, end) = partition_with_records(&rig.stream).await;

    let begun = Instant::now();
    let fetched = in_time(rig.stream.fetch(partition, end)).await.unwrap();

    assert_eq!((fetched.records.len(), fetched.next_offset, fetched.lag), (0, end, 0));
    let took = begun.elapsed();
    assert!((400..5_000).contains(&took.as_millis()), "{took:?}");
}

async fn reading_on_neither_skips_nor_repeats(rig: Rig) {
    for _ in 0..3 {
        rig.publish(&messages(500, 7..8)).await;
    }
    let (partition, end) = partition_with_records(&rig.stream).await;

    for start in [0, 1, 499, 500, 777, 1_499] {
        let (records, next_offset) = read_from(&rig.stream, partition, start).await;

        let offsets: Vec<i64> = records.iter().map(|record| record.offset).collect();
        assert_eq!(offsets, (start..1_500).collect::<Vec<_>>());
        assert_eq!((next_offset, end), (1_500, 1_500));
    }
    let fetched = rig.stream.fetch(partition, 300).await.unwrap();
    assert_eq!(fetched.lag, end - fetched.next_offset);
}

async fn an_offset_that_is_not_there_is_out_of_range(rig: Rig) {
    rig.publish(&[message_to(7)]).await;
    let (partition, end) = partition_with_records(&rig.stream).await;

    let fetched = in_time(rig.stream.fetch(partition, end + 1)).await;

    assert!(
        matches!(fetched, Err(StreamError::OutOfRange { offset }) if offset == end + 1),
        "{fetched:?}"
    );
    assert_eq!(rig.stream.fetch(partition, 0).await.unwrap().records.len(), 1);
}

/// What is sealed would be taken for unreadable.
async fn nothing_is_read_before_the_keys_are_there(rig: Rig) {
    rig.publish(&[message_to(7)]).await;
    let (partition, _) = partition_with_records(&rig.stream).await;

    let fetched = in_time(rig.closed.fetch(partition, 0)).await;

    assert!(matches!(fetched, Err(StreamError::Unavailable(_))), "{fetched:?}");
    assert_eq!(in_time(rig.closed.partitions()).await.unwrap(), [0, 1, 2, 3]);
}

async fn publishers_at_the_same_time_leave_no_gaps(rig: Rig) {
    let rig = Arc::new(rig);
    in_time(rig.broker.ready()).await.unwrap();
    let publishers = [0_u64, 1, 2, 3].map(|publisher| {
        let rig = Arc::clone(&rig);
        tokio::spawn(async move {
            let broker = if publisher < 2 { &rig.broker } else { &rig.other_broker };
            for _ in 0..10 {
                publish(broker, &messages(20, publisher * 100..publisher * 100 + 10)).await;
            }
        })
    });

    for publisher in publishers {
        in_time(publisher).await.unwrap();
    }

    let mut ids = HashSet::new();
    for records in read_all(&rig.stream).await {
        for (offset, record) in (0..).zip(records) {
            assert_eq!(record.offset, offset);
            assert!(ids.insert(record.content.unwrap().message.id), "no record twice");
        }
    }
    assert_eq!(ids.len(), 800);
}

/// A publication that is given up may have happened or not; the next one works in any case.
async fn a_dropped_publication_breaks_nothing(rig: Rig) {
    in_time(rig.broker.ready()).await.unwrap();
    for steps in 0..20 {
        let batch = messages(40, 0..40);
        let mut publication = Box::pin(rig.broker.publish(&batch));
        for _ in 0..steps {
            if futures_util::poll!(&mut publication).is_ready() {
                break;
            }
            tokio::task::yield_now().await;
        }
    }

    let sent = messages(40, 0..40);
    rig.publish(&sent).await;

    let mut received = HashSet::new();
    for records in read_all(&rig.stream).await {
        for (offset, record) in (0..).zip(records) {
            assert_eq!(record.offset, offset);
            received.insert(record.content.unwrap().message.id);
        }
    }
    assert!(sent.iter().all(|claimed| received.contains(&claimed.message.id)));
}

async fn fetch_some(stream: &Stream, partition: i32, offset: i64) -> Fetched {
    loop {
        let fetched = stream.fetch(partition, offset).await.unwrap();
        if !fetched.records.is_empty() {
            return fetched;
        }
        assert_eq!(fetched.next_offset, offset);
    }
}

/// The one partition that has records, and where it ends.
async fn partition_with_records(stream: &Stream) -> (i32, i64) {
    for partition in stream.partitions().await.unwrap() {
        let end = stream.first_offset(partition, StartFrom::Latest).await.unwrap();
        if end > 0 {
            return (partition, end);
        }
    }
    panic!("no partition has records");
}

macro_rules! held_against {
    ($service:ident: $($promise:ident)*) => {
        mod $service {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $promise() {
                    if let Some(rig) = super::Rig::$service().await {
                        super::$promise(rig).await;
                    }
                }
            )*
        }
    };
    ($($promise:ident)*) => {
        held_against!(kafka: $($promise)*);
        held_against!(sqlite: $($promise)*);
        held_against!(postgres: $($promise)*);
    };
}

held_against! {
    published_messages_come_back_whole_and_in_order_for_each_phone
    partitions_share_the_phones
    a_topic_that_is_not_there_has_no_partitions
    a_partition_begins_and_ends_where_its_records_do
    publishing_nothing_or_without_being_ready_is_fine
    a_fetch_at_the_end_waits_for_what_is_published
    a_fetch_at_the_end_gives_up_after_a_while
    reading_on_neither_skips_nor_repeats
    an_offset_that_is_not_there_is_out_of_range
    nothing_is_read_before_the_keys_are_there
    publishers_at_the_same_time_leave_no_gaps
    a_dropped_publication_breaks_nothing
}

mod embedded_only {
    use super::*;

    async fn databases() -> Vec<(DatabaseConnection, Option<DatabaseFile>)> {
        let (db, file) = sqlite().await;
        let mut databases = vec![(db, Some(file))];
        databases.extend(postgres().await.map(|db| (db, None)));
        databases
    }

    #[tokio::test]
    async fn trimming_takes_old_records_and_tells_a_reader_that_had_not_come_so_far() {
        for (db, _file) in databases().await {
            let queue = embedded(db.clone());
            queue.publish(&messages(10, 7..8)).await.into_iter().for_each(Result::unwrap);
            let stream = Stream::Embedded(queue.clone());
            let (partition, _) = partition_with_records(&stream).await;

            assert_eq!(queue.trim(Duration::from_secs(60)).await.unwrap(), 0, "none is so old");

            // Offset 4 is younger than 5 and 6: the clock went back.
            let age = r#"UPDATE queue_record SET written_at = written_at - 100000
                         WHERE "offset" < 7 AND "offset" <> 4"#;
            db.execute_unprepared(age).await.unwrap();
            assert_eq!(queue.trim(Duration::from_secs(60)).await.unwrap(), 4);
            let early = queue.fetch(partition, 3).await;
            assert!(matches!(early, Err(StreamError::OutOfRange { offset: 3 })), "{early:?}");
            let first = queue.first_offset(partition, StartFrom::Earliest).await.unwrap();
            assert_eq!(first, 4);
            assert_eq!(queue.fetch(partition, first).await.unwrap().records.len(), 6);

            db.execute_unprepared("UPDATE queue_record SET written_at = 0").await.unwrap();
            assert_eq!(queue.trim(Duration::from_secs(60)).await.unwrap(), 6);
            let early = queue.fetch(partition, 9).await;
            assert!(matches!(early, Err(StreamError::OutOfRange { offset: 9 })), "{early:?}");
            let first = queue.first_offset(partition, StartFrom::Earliest).await.unwrap();
            assert_eq!(first, 10);
        }
    }

    #[tokio::test]
    async fn trimming_takes_what_all_groups_have_taken_over() {
        for (db, _file) in databases().await {
            let queue = embedded(db.clone());
            queue.publish(&messages(10, 7..8)).await.into_iter().for_each(Result::unwrap);
            let (partition, _) = partition_with_records(&Stream::Embedded(queue.clone())).await;
            let trimmed_when = async |topic: &str, group: &str, next_offset: &str| {
                let sql = format!(
                    r#"INSERT INTO partition_lease
                           (topic, group_id, "partition", next_offset, added_later)
                       VALUES ('{topic}', '{group}', {partition}, {next_offset}, false)
                       ON CONFLICT (group_id, topic, "partition")
                       DO UPDATE SET next_offset = excluded.next_offset"#
                );
                db.execute_unprepared(&sql).await.unwrap();
                queue.trim(Duration::from_secs(60)).await.unwrap()
            };

            assert_eq!(trimmed_when("another", "one", "10").await, 0, "nobody reads this one");
            assert_eq!(trimmed_when("message", "other", "NULL").await, 0, "it has not begun");
            assert_eq!(trimmed_when("message", "one", "6").await, 0, "the other one has not");
            assert_eq!(trimmed_when("message", "other", "4").await, 4);
            let first = queue.first_offset(partition, StartFrom::Earliest).await.unwrap();
            assert_eq!((first, queue.fetch(partition, 4).await.unwrap().records.len()), (4, 6));
            assert_eq!(trimmed_when("message", "other", "10").await, 2);
            assert_eq!(trimmed_when("message", "one", "11").await, 0, "of a queue of before");
            assert_eq!(trimmed_when("message", "one", "10").await, 4);
            assert_eq!(queue.fetch(partition, 10).await.unwrap().next_offset, 10);
        }
    }

    #[tokio::test]
    async fn a_reader_may_begin_at_a_time() {
        for (db, _file) in databases().await {
            let queue = embedded(db.clone());
            queue.publish(&messages(3, 7..8)).await.into_iter().for_each(Result::unwrap);
            let (partition, _) = partition_with_records(&Stream::Embedded(queue.clone())).await;
            let age = r#"UPDATE queue_record SET written_at = 1000 + "offset" WHERE "offset" < 2"#;
            db.execute_unprepared(age).await.unwrap();
            let first = async |milliseconds| {
                let time = SystemTime::UNIX_EPOCH + Duration::from_millis(milliseconds);
                queue.first_offset(partition, StartFrom::Since(time)).await.unwrap()
            };

            assert_eq!([first(1_000).await, first(1_001).await, first(1_002).await], [0, 1, 2]);
            assert_eq!(first(253_402_300_799_000).await, 3, "the end");
        }
    }

    #[tokio::test]
    async fn a_record_that_makes_no_sense_is_unreadable_and_passed() {
        for (db, _file) in databases().await {
            let queue = embedded(db.clone());
            queue.publish(&messages(3, 7..8)).await.into_iter().for_each(Result::unwrap);
            let stream = Stream::Embedded(queue.clone());
            let (partition, _) = partition_with_records(&stream).await;
            for spoil in [
                r#"UPDATE queue_record SET headers = 'what' WHERE "offset" = 0"#,
                r#"UPDATE queue_record SET value = NULL WHERE "offset" = 1"#,
            ] {
                db.execute_unprepared(spoil).await.unwrap();
            }

            let fetched = queue.fetch(partition, 0).await.unwrap();

            let readable: Vec<bool> =
                fetched.records.iter().map(|record| record.content.is_ok()).collect();
            assert_eq!((readable, fetched.next_offset), (vec![false, false, true], 3));
        }
    }

    #[tokio::test]
    async fn a_database_without_the_tables_makes_it_unavailable() {
        for (db, _file) in databases().await {
            let queue = embedded(db.clone());
            queue.ready().await.unwrap();
            db.execute_unprepared("DROP TABLE queue_record").await.unwrap();

            let answers = queue.publish(&messages(2, 0..2)).await;

            assert!(
                answers.iter().all(|answer| matches!(answer, Err(BrokerError::Unavailable(_)))),
                "{answers:?}"
            );
            let fetched = queue.fetch(0, 0).await;
            assert!(matches!(fetched, Err(StreamError::Unavailable(_))), "{fetched:?}");
        }
    }
}
