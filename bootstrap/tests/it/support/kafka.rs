use std::{collections::BTreeMap, process::Stdio, time::Duration};

use rskafka::{
    chrono::DateTime,
    client::{
        Client, ClientBuilder,
        partition::{Compression, OffsetAt, UnknownTopicHandling},
    },
    record::{Record, RecordAndOffset},
};
use tokio::{io::AsyncWriteExt, process::Command};

use super::{
    eventually,
    services::{environment, unique},
};

/// A topic on the broker of the tests.
#[derive(Debug)]
pub(crate) struct Topic {
    pub(crate) server: String,
    pub(crate) name: String,
    pub(crate) partitions: i32,
}

impl Topic {
    pub(crate) async fn new(partitions: i32) -> Option<Self> {
        let server = environment("TEST_KAFKA")?;
        let topic = Self { server, name: format!("it_{}", unique()), partitions };
        let controller = topic.client().await.controller_client().unwrap();
        controller.create_topic(&topic.name, partitions, 1, 5_000).await.unwrap();
        Some(topic)
    }

    async fn client(&self) -> Client {
        ClientBuilder::new(vec![self.server.clone()]).build().await.unwrap()
    }

    /// Returns all records, partition by partition.
    pub(crate) async fn records(&self) -> Vec<Vec<RecordAndOffset>> {
        let client = self.client().await;
        let mut all = Vec::new();
        for partition in 0..self.partitions {
            let reader = client
                .partition_client(&self.name, partition, UnknownTopicHandling::Retry)
                .await
                .unwrap();
            let end = reader.get_offset(OffsetAt::Latest).await.unwrap();
            let mut records: Vec<RecordAndOffset> = Vec::new();
            let mut offset = 0;
            while offset < end {
                let (more, _) = reader.fetch_records(offset, 1..10_000_000, 1_000).await.unwrap();
                offset = more.last().map_or(end, |record| record.offset + 1);
                records.extend(more);
            }
            all.push(records);
        }
        all
    }

    /// Writes values as one compressed batch with this time into the first partition.
    pub(crate) async fn produce_compressed(&self, values: Vec<Vec<u8>>, milliseconds: i64) {
        let client = self.client().await;
        let partition =
            client.partition_client(&self.name, 0, UnknownTopicHandling::Retry).await.unwrap();
        let records = values.into_iter().map(|value| Record {
            key: None,
            value: Some(value),
            headers: BTreeMap::new(),
            timestamp: DateTime::from_timestamp_millis(milliseconds).unwrap(),
        });
        partition.produce(records.collect(), Compression::Zstd).await.unwrap();
    }

    /// Writes lines as records without key and headers, with the console producer of Kafka.
    pub(crate) async fn console_produce(&self, lines: &str) {
        let libs = environment("TEST_KAFKA_LIBS").unwrap();
        let mut producer = Command::new(environment("TEST_JAVA").unwrap())
            .args(["-Xmx128m", "-cp", &format!("{libs}/*")])
            .arg("org.apache.kafka.tools.ConsoleProducer")
            .args(["--bootstrap-server", &self.server, "--topic", &self.name])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        producer.stdin.take().unwrap().write_all(lines.as_bytes()).await.unwrap();
        assert!(producer.wait().await.unwrap().success());
    }
}

/// The broker of the tests.
#[derive(Debug)]
pub(crate) struct Kafka {
    server: String,
}

impl Kafka {
    pub(crate) fn new() -> Option<Self> {
        Some(Self { server: environment("TEST_KAFKA")? })
    }

    /// Stops the broker and waits for it.
    pub(crate) async fn stop(&self) {
        let config = environment("TEST_KAFKA_CONFIG").unwrap();
        let running = format!("kafka.Kafka {config}");
        let status = Command::new("pkill").args(["-f", &running]).status().await.unwrap();
        assert!(status.success());
        eventually("broker stopped", Duration::from_secs(30), async || {
            tokio::net::TcpStream::connect(&self.server).await.is_err().then_some(())
        })
        .await;
    }

    /// Starts the broker again on its data.
    pub(crate) async fn start(&self) {
        let libs = environment("TEST_KAFKA_LIBS").unwrap();
        Command::new(environment("TEST_JAVA").unwrap())
            .args(["-Xmx512m", "-cp", &format!("{libs}/*"), "kafka.Kafka"])
            .arg(environment("TEST_KAFKA_CONFIG").unwrap())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        eventually("broker started", Duration::from_secs(60), async || {
            let client = ClientBuilder::new(vec![self.server.clone()]).build();
            let client = tokio::time::timeout(Duration::from_secs(2), client).await.ok()?.ok()?;
            client.list_topics().await.ok().map(|_| ())
        })
        .await;
    }
}
