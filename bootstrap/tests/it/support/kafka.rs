use std::{
    collections::{BTreeMap, HashMap},
    path::PathBuf,
    process::Stdio,
    time::Duration,
};

use rskafka::{
    chrono::DateTime,
    client::{
        Client, ClientBuilder,
        partition::{Compression, OffsetAt, UnknownTopicHandling},
    },
    record::{Record, RecordAndOffset},
};
use tokio::{
    io::AsyncWriteExt,
    process::{Child, Command},
};

use super::{
    eventually, free_port,
    services::{Folder, environment, unique},
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
        Some(Self::on(environment("TEST_KAFKA")?, partitions).await)
    }

    /// Creates a topic on another broker.
    pub(crate) async fn on(server: String, partitions: i32) -> Self {
        let topic = Self { server, name: format!("it_{}", unique()), partitions };
        let controller = topic.client().await.controller_client().unwrap();
        controller.create_topic(&topic.name, partitions, 1, 5_000).await.unwrap();
        topic
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
        let mut producer = java("org.apache.kafka.tools.ConsoleProducer")
            .args(["--bootstrap-server", &self.server, "--topic", &self.name])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        producer.stdin.take().unwrap().write_all(lines.as_bytes()).await.unwrap();
        assert!(producer.wait().await.unwrap().success());
    }
}

/// A broker of a test that stops it.
#[derive(Debug)]
pub(crate) struct Kafka {
    pub(crate) server: String,
    running: Option<Child>,
    folder: Folder,
}

impl Kafka {
    /// Starts a broker with the settings of the shared one.
    pub(crate) async fn start() -> Option<Self> {
        let shared = std::fs::read_to_string(environment("TEST_KAFKA_CONFIG")?).unwrap();
        let (server, controller) =
            (format!("127.0.0.1:{}", free_port()), format!("127.0.0.1:{}", free_port()));
        let folder = Folder::new();
        let own = [
            ("listeners", format!("PLAINTEXT://{server},CONTROLLER://{controller}")),
            ("advertised.listeners", format!("PLAINTEXT://{server}")),
            ("controller.quorum.voters", format!("1@{controller}")),
            ("log.dirs", folder.path().join("data").display().to_string()),
        ];
        let mut config: HashMap<&str, &str> =
            shared.lines().filter_map(|line| line.split_once('=')).collect();
        config.extend(own.iter().map(|(name, value)| (*name, &**value)));
        let lines: Vec<String> =
            config.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let mut kafka = Self { server, running: None, folder };
        std::fs::write(kafka.config(), lines.join("\n")).unwrap();

        let mut format = java("kafka.tools.StorageTool");
        format.args(["format", "-t", "MkU3OEVBNTcwNTJENDM2Qk", "-c"]).arg(kafka.config());
        assert!(format.status().await.unwrap().success());
        kafka.start_again().await;
        Some(kafka)
    }

    fn config(&self) -> PathBuf {
        self.folder.path().join("server.properties")
    }

    /// Stops the broker and waits for it.
    pub(crate) async fn stop(&mut self) {
        let mut running = self.running.take().unwrap();
        let pid = running.id().unwrap().to_string();
        assert!(Command::new("kill").arg(pid).status().await.unwrap().success());
        running.wait().await.unwrap();
    }

    /// Starts the broker on its data.
    pub(crate) async fn start_again(&mut self) {
        self.running = Some(java("kafka.Kafka").arg(self.config()).spawn().unwrap());
        eventually("broker started", Duration::from_secs(60), async || {
            let client = ClientBuilder::new(vec![self.server.clone()]).build();
            let client = tokio::time::timeout(Duration::from_secs(2), client).await.ok()?.ok()?;
            client.list_topics().await.ok().map(|_| ())
        })
        .await;
    }
}

/// Returns a program of Kafka. It runs for a short time, so compiling it well would cost more.
fn java(class: &str) -> Command {
    let libs = environment("TEST_KAFKA_LIBS").unwrap();
    let mut java = Command::new(environment("TEST_JAVA").unwrap());
    java.args(["-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"])
        .args(["-cp", &format!("{libs}/*"), class])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true);
    java
}
