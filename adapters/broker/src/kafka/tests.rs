//! Features of Kafka alone: its tools, its transactions, and a broker that falls silent.
//!
//! This is one file, because all tests use the same topic and tools. Other subjects are in their
//! own files.

mod fake;
mod producer;
mod proxy;
mod secured;

use std::{
    num::NonZeroU16,
    process::Stdio,
    time::{Duration, Instant},
};

use adapters_wire::conformance::{TTL, in_time, message_to, messages, read_all, read_from, vault};
use application::ports::{
    BrokerError, MessageBroker, MessageStream, StartFrom, StreamError, Unreadable,
};
use fake::Fake;
use producer::Producer;
use proxy::Proxy;
use rskafka::client::partition::UnknownTopicHandling;
use tokio::{io::AsyncWriteExt, net::TcpListener, process::Command};

use super::{
    batches::{CODECS, Codec, TestBatch, TestRecord},
    cluster::{Cluster, Right},
    connection::Fetch,
    *,
};
use crate::testing::{service, unique_name};

struct Rig {
    settings: KafkaSettings,
    broker: KafkaBroker,
    stream: KafkaStream,
}

impl Rig {
    fn real() -> Option<Self> {
        Some(Self::at(service("TEST_KAFKA")?, Duration::from_secs(10)))
    }

    fn at(server: String, request_timeout: Duration) -> Self {
        let settings = KafkaSettings {
            bootstrap_servers: vec![server],
            topic: unique_name(),
            client_id: "messager-test".to_owned(),
            request_timeout,
            security: KafkaSecurity::default(),
        };
        Self {
            broker: KafkaBroker::new(KafkaPublisherSettings {
                kafka: settings.clone(),
                partitions: NonZeroU16::new(4).unwrap(),
                replication_factor: NonZeroU16::MIN,
            }),
            stream: stream_of(settings.clone()),
            settings,
        }
    }

    async fn publish_all(&self, phones: u64) {
        in_time(async {
            while let Err(error) = self.broker.ready().await {
                println!("not ready: {error:?}");
            }
        })
        .await;
        let sent = messages(usize::try_from(phones).unwrap(), 0..phones);
        let answers = in_time(self.broker.publish(&sent)).await;
        answers.into_iter().for_each(Result::unwrap);
    }

    /// Runs one of Kafka's tools with this standard input.
    async fn tool(&self, class: &str, arguments: &[&str], input: &str) -> Option<()> {
        let (java, libraries) = (service("TEST_JAVA")?, service("TEST_KAFKA_LIBS")?);
        let mut tool = Command::new(java)
            .args(["-cp", &format!("{libraries}/*"), class, "--topic", &self.settings.topic])
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        tool.stdin.take().unwrap().write_all(input.as_bytes()).await.unwrap();
        let status = in_time(tool.wait()).await.unwrap();
        assert!(status.success(), "{class}: {status}");
        Some(())
    }

    async fn console_producer(&self, properties: &[&str], input: &str) -> Option<()> {
        let mut arguments = vec!["--bootstrap-server", &self.settings.bootstrap_servers[0]];
        for property in properties {
            arguments.extend(["--property", property]);
        }
        self.tool("org.apache.kafka.tools.ConsoleProducer", &arguments, input).await
    }
}

const GOOD: &str = r#"{"phone":"79991234567","code":"1234"}"#;

fn stream_of(kafka: KafkaSettings) -> KafkaStream {
    let settings = KafkaStreamSettings { kafka, default_ttl: TTL, require_sealed: false };
    KafkaStream::new(settings, vault())
}

#[tokio::test]
async fn record_of_a_console_producer_is_read() {
    let Some(rig) = Rig::real() else { return };
    in_time(rig.broker.ready()).await.unwrap();
    let input = "{\"phone\":\"79991234567\",\"code\":\"1234\"}\nhello\n";
    let Some(()) = rig.console_producer(&[], input).await else { return };

    let records = read_all(&rig.stream).await.concat();

    assert_eq!(records.len(), 2);
    let incoming = records[0].content.as_ref().unwrap();
    assert_eq!(incoming.message.phone.as_str(), "79991234567");
    assert_eq!(incoming.message.code.as_text(), "1234");
    let validity = incoming.validity.unwrap();
    assert_eq!(validity.expires_at.duration_since(validity.accepted_at).unwrap(), TTL);
    assert_eq!((incoming.sequence, &incoming.trace), (None, &None));
    assert_eq!(records[1].content, Err(Unreadable("the value is not JSON")));
}

#[tokio::test]
async fn key_has_the_partition_that_kafkas_producer_gives_it() {
    let Some(rig) = Rig::real() else { return };
    rig.publish_all(20).await;
    let ours = read_all(&rig.stream).await;
    let mut input = String::new();
    for record in ours.concat() {
        let phone = record.content.unwrap().message.phone;
        let key = adapters_wire::key_of(&phone);
        let value = format!(r#"{{"phone":"{}","code":"1234"}}"#, phone.as_str());
        input += &[&key, "\t", &value, "\n"].concat();
    }

    let Some(()) = rig.console_producer(&["parse.key=true"], &input).await else { return };

    for (ours, all) in ours.iter().zip(read_all(&rig.stream).await) {
        let theirs = all[ours.len()..].iter().map(|record| &record.content);
        let phones = theirs.map(|content| content.as_ref().unwrap().message.phone.clone());
        let expected = ours.iter().map(|record| record.content.as_ref().unwrap());
        assert!(phones.eq(expected.map(|incoming| incoming.message.phone.clone())));
    }
}

#[tokio::test]
async fn header_without_a_value_does_not_harm_other_records() {
    let Some(rig) = Rig::real() else { return };
    let mut producer = Producer::new(&rig.settings).await;
    producer.create_topic().await;
    let mut records: Vec<_> = (0..10).map(|delta| TestRecord::of(delta, GOOD)).collect();
    records[3].headers = vec![("note", None)];
    for codec in CODECS {
        producer.send(&TestBatch::of(0, &records).compressed(codec)).await;
    }

    let (records, end) = read_from(&rig.stream, 0, 0).await;

    assert_eq!(end, 60);
    assert_eq!(records.iter().filter(|record| record.content.is_ok()).count(), 60);
    // `dead-letters retry` reads one record like this.
    let one = rig.stream.fetch(0, 27).await.unwrap();
    assert_eq!(one.records[0].offset, 27);
}

#[tokio::test]
async fn aborted_records_are_skipped_and_open_transactions_are_waited_for() {
    let Some(rig) = Rig::real() else { return };
    let mut producer = Producer::new(&rig.settings).await;
    producer.create_topic().await;
    let two = TestBatch::of(0, &[TestRecord::of(0, GOOD), TestRecord::of(1, GOOD)]);
    let id = &rig.settings.topic;
    let [mut back, mut forth, mut open] = [
        producer.begin(&format!("{id}-1")).await,
        producer.begin(&format!("{id}-2")).await,
        producer.begin(&format!("{id}-3")).await,
    ];
    producer.send_in(&mut back, &two).await;
    producer.send_in(&mut forth, &two.clone().compressed(Codec::Zstd)).await;
    producer.send(&two).await;
    producer.send_in(&mut back, &two.clone().compressed(Codec::Gzip)).await;
    producer.end(back, false).await;
    producer.end(forth, true).await;
    let begun = producer.send_in(&mut open, &two).await;
    producer.send(&two).await;

    let (records, end) = in_time(async {
        let mut all = (Vec::new(), 0);
        while all.1 < begun {
            let fetched = rig.stream.fetch(0, all.1).await.unwrap();
            all.0.extend(fetched.records);
            all.1 = fetched.next_offset;
        }
        all
    })
    .await;

    let offsets: Vec<i64> = records.iter().map(|record| record.offset).collect();
    assert_eq!(offsets, [2, 3, 4, 5]);
    assert!(records.iter().all(|record| record.content.is_ok()));
    let held_back = rig.stream.fetch(0, end).await.unwrap();
    assert_eq!((held_back.records.len(), held_back.next_offset), (0, begun));
    assert_eq!(held_back.lag, 14 - begun, "twelve records and two markers");
    assert_eq!(rig.stream.first_offset(0, StartFrom::Latest).await.unwrap(), begun);

    producer.end(open, true).await;
    let (records, _) = in_time(async {
        loop {
            let all = read_from(&rig.stream, 0, begun).await;
            if all.0.len() == 4 {
                break all;
            }
        }
    })
    .await;
    assert!(records.iter().all(|record| record.content.is_ok()));
}

/// The answer is larger than what is held of it, and far larger when it is decompressed.
#[tokio::test]
async fn record_of_any_size_is_unreadable_alone() {
    let Some(rig) = Rig::real() else { return };
    let mut producer = Producer::new(&rig.settings).await;
    producer.create_topic().await;
    let large = TestRecord::of(1, vec![b' '; 24 * 1024 * 1024]);
    let batch = TestBatch::of(0, &[TestRecord::of(0, GOOD), large, TestRecord::of(2, GOOD)]);
    let codecs = [Codec::Plain, Codec::Gzip, Codec::Snappy, Codec::Lz4, Codec::Zstd];
    for codec in codecs {
        producer.send(&batch.clone().compressed(codec)).await;
    }

    let (records, end) = read_from(&rig.stream, 0, 0).await;

    assert_eq!(end, 15);
    let expected = Unreadable("the value is too large");
    for (record, place) in records.iter().zip(0..15) {
        assert_eq!(record.offset, place);
        let is_large = record.content.as_ref().is_err_and(|reason| *reason == expected);
        assert_eq!((record.content.is_ok(), is_large), (place % 3 != 1, place % 3 == 1));
    }
}

#[tokio::test]
async fn leader_that_moved_is_found() {
    let topic = unique_name();
    let records = TestBatch::of(0, &[TestRecord::of(0, GOOD)]).bytes();
    let fake = Fake::start(&topic, records).await;
    let mut settings = Rig::at(String::new(), Duration::from_secs(10)).settings;
    (settings.topic, settings.bootstrap_servers) = (topic, fake.servers.clone());
    let stream = stream_of(settings);
    assert_eq!(in_time(stream.fetch(0, 0)).await.unwrap().records.len(), 1);
    let begun = Instant::now();

    fake.move_leader();
    let fetched = in_time(stream.fetch(0, 0)).await.unwrap();

    assert_eq!((fetched.records.len(), fetched.next_offset), (1, 1));
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    let other = in_time(stream.fetch(1, 0)).await;
    assert!(matches!(other, Err(StreamError::Unavailable(_))), "{other:?}");
}

#[tokio::test]
async fn batch_that_is_never_complete_makes_the_stream_unavailable() {
    let topic = unique_name();
    let mut records = TestBatch::of(0, &[TestRecord::of(0, GOOD)]).bytes();
    records.pop();
    let fake = Fake::start(&topic, records).await;
    let mut settings = Rig::at(String::new(), Duration::from_secs(10)).settings;
    (settings.topic, settings.bootstrap_servers) = (topic, fake.servers.clone());

    let fetched = in_time(stream_of(settings).fetch(0, 0)).await;

    assert!(matches!(fetched, Err(StreamError::Unavailable(_))), "{fetched:?}");
}

#[tokio::test]
async fn connection_of_a_partition_that_is_no_longer_read_is_closed() {
    let topic = unique_name();
    let fake = Fake::start(&topic, TestBatch::of(0, &[TestRecord::of(0, GOOD)]).bytes()).await;
    let mut settings = Rig::at(String::new(), Duration::from_secs(10)).settings;
    (settings.topic, settings.bootstrap_servers) = (topic.clone(), fake.servers.clone());
    let cluster = Cluster::new(settings, Right::Read);
    let wait = Duration::ZERO;
    let question = Fetch { topic: &topic, partition: 0, offset: 0, bytes: 1024, wait };
    let begun = tokio::time::Instant::now();
    let (_, connection) = in_time(cluster.ask_leader(0, wait, &question)).await.unwrap();
    cluster.give_back(0, connection);

    cluster.close_idle(begun + Duration::from_secs(59));
    assert_eq!(cluster.idle(), [0]);
    cluster.close_idle(tokio::time::Instant::now() + Duration::from_secs(61));
    assert!(cluster.idle().is_empty());
}

/// A transaction ends with a marker, which has an offset and is never delivered.
#[tokio::test]
async fn end_of_a_transaction_does_not_stop_a_reader() {
    let Some(rig) = Rig::real() else { return };
    in_time(rig.broker.ready()).await.unwrap();
    let server = format!("bootstrap.servers={}", rig.settings.bootstrap_servers[0]);
    let arguments = [
        "--num-records=40",
        "--record-size=10",
        "--throughput=-1",
        "--transaction-duration-ms=1000",
        &format!("--transactional-id={}", rig.settings.topic),
        "--producer-props",
        &server,
    ];
    let class = "org.apache.kafka.tools.ProducerPerformance";
    let Some(()) = rig.tool(class, &arguments, "").await else { return };

    let records = read_all(&rig.stream).await.concat();
    assert_eq!(records.len(), 40);
    for partition in rig.stream.partitions().await.unwrap() {
        let end = rig.stream.first_offset(partition, StartFrom::Latest).await.unwrap();
        let (_, next_offset) = read_from(&rig.stream, partition, 0).await;
        assert_eq!(next_offset, end);
        assert_eq!(rig.stream.fetch(partition, end).await.unwrap().lag, 0);
    }
}

#[tokio::test]
async fn report_describes_the_topic_and_does_not_create_it() {
    let Some(rig) = Rig::real() else { return };
    for _ in 0..2 {
        assert_eq!(in_time(rig.stream.report()).await.unwrap(), None);
        assert_eq!(in_time(rig.broker.report()).await.unwrap(), None);
    }
    rig.publish_all(4).await;

    let report = in_time(rig.broker.report()).await.unwrap().unwrap();

    assert_eq!((report.partitions, report.replicas, report.in_sync), (4, 1, 1));
    assert_eq!((report.without_leader.len(), report.min_in_sync), (0, Some(1)));
    assert_eq!(in_time(rig.stream.report()).await.unwrap(), Some(report));
}

#[tokio::test]
async fn partitions_added_while_running_are_used() {
    let Some(rig) = Rig::real() else { return };
    rig.publish_all(40).await;
    let arguments =
        ["--bootstrap-server", &rig.settings.bootstrap_servers[0], "--alter", "--partitions", "6"];
    let class = "org.apache.kafka.tools.TopicCommand";
    let Some(()) = rig.tool(class, &arguments, "").await else { return };

    in_time(async { while rig.stream.partitions().await.unwrap() != [0, 1, 2, 3, 4, 5] {} }).await;
    in_time(async {
        while rig.stream.first_offset(5, StartFrom::Latest).await.unwrap() == 0 {
            rig.publish_all(40).await;
        }
    })
    .await;
    assert!(!read_from(&rig.stream, 5, 0).await.0.is_empty());
}

#[tokio::test]
async fn offset_of_a_deleted_record_is_out_of_range() {
    let Some(rig) = Rig::real() else { return };
    rig.publish_all(40).await;
    let partition = in_time(rig.settings.connect())
        .await
        .unwrap()
        .partition_client(&rig.settings.topic, 0, UnknownTopicHandling::Error)
        .await
        .unwrap();
    in_time(partition.delete_records(3, 5_000)).await.unwrap();

    let early = in_time(rig.stream.fetch(0, 2)).await;

    assert!(matches!(early, Err(StreamError::OutOfRange { offset: 2 })), "{early:?}");
    assert_eq!(rig.stream.first_offset(0, StartFrom::Earliest).await.unwrap(), 3);
    assert_eq!(rig.stream.fetch(0, 3).await.unwrap().records[0].offset, 3);
}

#[tokio::test]
async fn deleted_topic_is_created_again() {
    let Some(rig) = Rig::real() else { return };
    rig.publish_all(40).await;
    assert_eq!(read_all(&rig.stream).await.concat().len(), 40);
    let client = in_time(rig.settings.connect()).await.unwrap();
    let controller = client.controller_client().unwrap();
    in_time(controller.delete_topic(&rig.settings.topic, 5_000)).await.unwrap();

    in_time(async { while !rig.stream.partitions().await.unwrap().is_empty() {} }).await;
    let gone = in_time(rig.stream.fetch(0, 0)).await;
    assert!(matches!(gone, Err(StreamError::Unavailable(_))), "{gone:?}");

    in_time(async {
        loop {
            let ready = rig.broker.ready().await.is_ok();
            let answers = rig.broker.publish(&messages(40, 0..40)).await;
            if ready && answers.iter().all(Result::is_ok) {
                break;
            }
        }
    })
    .await;
    assert!(read_all(&rig.stream).await.concat().len() >= 40);
}

#[tokio::test]
async fn server_that_never_answers_is_unavailable() {
    // The kernel accepts connections, but no program answers.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = silent.local_addr().unwrap().to_string();
    let rig = Rig::at(server, Duration::from_millis(200));
    let begun = Instant::now();

    let ready = rig.broker.ready().await;
    let answers = rig.broker.publish(&[message_to(1), message_to(2)]).await;
    let partitions = rig.stream.partitions().await;
    let fetched = rig.stream.fetch(0, 0).await;

    assert!(matches!(ready, Err(BrokerError::Unavailable(_))), "{ready:?}");
    assert!(answers.iter().all(|answer| matches!(answer, Err(BrokerError::Unavailable(_)))));
    assert_eq!(answers.len(), 2);
    assert!(matches!(partitions, Err(StreamError::Unavailable(_))), "{partitions:?}");
    assert!(matches!(fetched, Err(StreamError::Unavailable(_))), "{fetched:?}");
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn silent_broker_that_comes_back_is_connected_to_again() {
    let Some(kafka) = service("TEST_KAFKA") else { return };
    let proxy = Proxy::start(kafka).await;
    let rig = Rig::at(proxy.address().to_string(), Duration::from_secs(2));
    rig.publish_all(40).await;
    assert_eq!(read_all(&rig.stream).await.concat().len(), 40);

    proxy.fall_silent();
    let begun = Instant::now();
    let sent = messages(40, 0..40);
    let (answers, fetched) = tokio::join!(rig.broker.publish(&sent), rig.stream.fetch(0, 0));

    assert!(answers.iter().all(Result::is_err), "{answers:?}");
    assert!(matches!(fetched, Err(StreamError::Unavailable(_))), "{fetched:?}");
    let ready = rig.broker.ready().await;
    assert!(matches!(ready, Err(BrokerError::Unavailable(_))), "{ready:?}");
    assert!(begun.elapsed() < Duration::from_secs(6), "{:?}", begun.elapsed());

    proxy.speak_again();
    let begun = Instant::now();
    rig.publish_all(40).await;
    assert!(begun.elapsed() < Duration::from_secs(6), "{:?}", begun.elapsed());
    // Each connection that has died is found out once.
    for partition in 0..4 {
        in_time(async {
            while let Err(error) = rig.stream.fetch(partition, 0).await {
                println!("partition {partition}: {error:?}");
            }
        })
        .await;
    }
    in_time(async {
        while let Err(error) = rig.stream.partitions().await {
            println!("{error:?}");
        }
    })
    .await;
    assert!(read_all(&rig.stream).await.concat().len() >= 80);
}

/// The time of a record is when its message was accepted.
#[tokio::test]
async fn a_reader_may_begin_at_a_time() {
    let Some(rig) = Rig::real() else { return };
    in_time(async { while rig.broker.ready().await.is_err() {} }).await;
    let mut sent = messages(4, 7..8);
    let now = sent[0].validity.accepted_at;
    for (message, age) in sent.iter_mut().zip([7_200, 3_600, 60, 0]) {
        message.validity.accepted_at = now - Duration::from_secs(age);
    }
    in_time(rig.broker.publish(&sent)).await.into_iter().for_each(Result::unwrap);
    let mut partition = 0;
    while rig.stream.first_offset(partition, StartFrom::Latest).await.unwrap() == 0 {
        partition += 1;
    }
    let first = async |from| in_time(rig.stream.first_offset(partition, from)).await.unwrap();
    let ago = |seconds| StartFrom::Since(now - Duration::from_secs(seconds));

    assert_eq!([first(ago(90_000)).await, first(ago(3_600)).await], [0, 1]);
    assert_eq!([first(ago(3_599)).await, first(ago(60)).await], [2, 2]);
    let later = StartFrom::Since(now + Duration::from_secs(1));
    assert_eq!(first(later).await, 4, "the end");
}
