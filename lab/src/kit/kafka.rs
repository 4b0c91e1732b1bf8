//! The Kafka broker of `scripts/services`, and a topic on it.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context, bail};
use rskafka::{
    BackoffConfig,
    chrono::DateTime,
    client::{
        Client, ClientBuilder,
        partition::{Compression, OffsetAt, UnknownTopicHandling},
    },
    record::Record,
};
use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    process::Command,
    time::{Instant, sleep, timeout},
};

use super::environment::variable;

#[derive(Debug)]
pub struct Kafka {
    /// The address at which the lab itself reaches it, past the proxies.
    address: String,
    java: String,
    libs: String,
    /// The broker's last argument, by which `scripts/services` finds its process.
    config: PathBuf,
}

/// A listener that sends its clients to another port.
#[derive(Debug, Clone, Copy)]
pub struct Listener {
    pub name: &'static str,
    pub port: u16,
    /// The port that the broker announces to these clients.
    pub advertised: u16,
}

#[derive(Debug, Clone)]
pub struct Topic {
    pub name: String,
    /// The address of one broker, or those of several, separated by commas.
    address: String,
}

/// How many copies of each message the topic has. Counted while reading on.
#[derive(Debug, Default)]
pub struct Records {
    next: BTreeMap<i32, i64>,
    copies: BTreeMap<String, u32>,
}

/// How long a broker may take to start or to end. A busy machine takes half a minute.
const PATIENCE: Duration = Duration::from_secs(120);

impl Kafka {
    /// Describes the broker that the environment names.
    pub fn from_environment() -> anyhow::Result<Self> {
        Ok(Self {
            address: variable("TEST_KAFKA")?,
            java: variable("TEST_JAVA")?,
            libs: variable("TEST_KAFKA_LIBS")?,
            config: variable("TEST_KAFKA_CONFIG")?.into(),
        })
    }

    pub fn address(&self) -> &str {
        &self.address
    }

    pub fn topic(&self, name: String) -> Topic {
        Topic::new(name, self.address.clone())
    }

    /// Restarts it with further listeners, which replace those of an earlier run.
    ///
    /// The configuration stays in its place, so that `scripts/services` finds and stops the broker
    /// even if this program is killed.
    pub async fn listen(&self, listeners: &[Listener]) -> anyhow::Result<()> {
        let original = self.config.with_extension("before-lab");
        if !original.exists() {
            std::fs::copy(&self.config, &original).context("keep Kafka's configuration")?;
        }
        let text = std::fs::read_to_string(&original)?;
        std::fs::write(&self.config, with_listeners(&text, listeners))?;
        self.stop(Signal::TERM).await?;
        self.start().await
    }

    /// Ends the broker with this signal, and waits until it is gone.
    pub async fn stop(&self, signal: Signal) -> anyhow::Result<()> {
        let Some(pid) = self.pid() else { return Ok(()) };
        kill_process(pid, signal).context("signal Kafka")?;
        let gone = async {
            while self.pid() == Some(pid) {
                sleep(Duration::from_millis(20)).await;
            }
        };
        if timeout(PATIENCE, gone).await.is_err() {
            kill_process(pid, Signal::KILL).context("kill Kafka")?;
        }
        Ok(())
    }

    /// Starts the broker on its data, unless it runs, and waits until it answers.
    pub async fn start(&self) -> anyhow::Result<()> {
        let log = self.config.with_file_name("lab.out");
        let answers = async {
            loop {
                if self.pid().is_none() {
                    self.spawn(&log)?;
                }
                let asked = async { client(&self.address).await?.list_topics().await };
                if let Ok(Ok(_)) = timeout(Duration::from_secs(2), asked).await {
                    return anyhow::Ok(());
                }
                sleep(Duration::from_millis(100)).await;
            }
        };
        timeout(PATIENCE, answers).await.unwrap_or_else(|_| {
            let told = std::fs::read_to_string(&log).unwrap_or_default();
            let end: Vec<&str> = told.lines().rev().take(10).collect();
            let end: Vec<&str> = end.into_iter().rev().collect();
            bail!("Kafka did not answer after its start:\n{}", end.join("\n"))
        })
    }

    fn spawn(&self, log: &Path) -> anyhow::Result<()> {
        let log = std::fs::File::create(log)?;
        let mut broker = Command::new(&self.java)
            .args(["-Xmx512m", "-XX:+UseSerialGC", "-XX:-UsePerfData"])
            .args(["-cp", &format!("{}/*", self.libs), "kafka.Kafka"])
            .arg(&self.config)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("start Kafka")?;
        // It is ended by its command line. The wait only keeps it from staying as a zombie.
        tokio::spawn(async move { broker.wait().await });
        Ok(())
    }

    /// Sets how many partitions a topic has. Kafka can only add some.
    pub async fn set_partitions(&self, topic: &Topic, count: usize) -> anyhow::Result<()> {
        let alter = ["--alter", "--topic", &topic.name, "--partitions", &count.to_string()];
        topic_command(&self.java, &self.libs, &self.address, &alter).await.map(|_| ())
    }

    /// Finds the broker that runs with this configuration.
    fn pid(&self) -> Option<Pid> {
        let config = self.config.to_str()?;
        std::fs::read_dir("/proc").ok()?.flatten().find_map(|entry| {
            let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
            let line = std::fs::read(entry.path().join("cmdline")).ok()?;
            let mut words = line.rsplit(|byte| *byte == 0).skip(1);
            let is_ours = words.next()? == config.as_bytes() && words.next()? == b"kafka.Kafka";
            is_ours.then(|| Pid::from_raw(pid)).flatten()
        })
    }
}

impl Topic {
    pub(super) fn new(name: String, address: String) -> Self {
        Self { name, address }
    }

    pub async fn create(&self, partitions: usize) -> anyhow::Result<()> {
        let client = client(&self.address).await?;
        let partitions = i32::try_from(partitions)?;
        client.controller_client()?.create_topic(&self.name, partitions, 1, 5_000).await?;
        Ok(())
    }

    /// Deletes it with all records, and creates it again.
    ///
    /// A processor may create it first, with the number of partitions from its own settings.
    pub async fn wipe(&self, partitions: usize) -> anyhow::Result<()> {
        let client = client(&self.address).await?;
        client.controller_client()?.delete_topic(&self.name, 5_000).await?;
        let made = async {
            while self.partitions().await.map_or(0, |found| found.len()) == 0 {
                let _ = self.create(partitions).await;
                sleep(Duration::from_millis(100)).await;
            }
        };
        timeout(PATIENCE, made).await.context("the topic did not come back")
    }

    /// Creates another topic on the same broker, to measure the broker alone.
    pub async fn beside(&self) -> anyhow::Result<Self> {
        let beside = Self { name: format!("{}_beside", self.name), address: self.address.clone() };
        beside.create(1).await?;
        Ok(beside)
    }

    /// Publishes small records, one after the other, and reads each. Returns the median time of a
    /// produce request until its acknowledgement, and of the fetch after it.
    pub async fn probe(&self, records: usize) -> anyhow::Result<(Duration, Duration)> {
        let client = client(&self.address).await?;
        let partition = client.partition_client(&self.name, 0, UnknownTopicHandling::Retry).await?;
        let (mut produced, mut fetched) = (Vec::new(), Vec::new());
        for _ in 0..records {
            let record = Record {
                key: Some(b"79001234567".to_vec()),
                value: Some(vec![b'0'; 100]),
                headers: BTreeMap::new(),
                timestamp: DateTime::UNIX_EPOCH,
            };
            let begun = Instant::now();
            let offsets = partition.produce(vec![record], Compression::NoCompression).await?;
            produced.push(begun.elapsed());
            let offset = offsets.first().copied().context("no offset")?;
            let begun = Instant::now();
            partition.fetch_records(offset, 1..100_000, 1_000).await?;
            fetched.push(begun.elapsed());
        }
        produced.sort_unstable();
        fetched.sort_unstable();
        Ok((produced[records / 2], fetched[records / 2]))
    }

    /// Counts the records that were published to it.
    pub async fn length(&self) -> anyhow::Result<usize> {
        let client = client(&self.address).await?;
        let mut length = 0;
        for partition in self.partitions().await? {
            let reader =
                client.partition_client(&self.name, partition, UnknownTopicHandling::Error).await?;
            length += reader.get_offset(OffsetAt::Latest).await?;
        }
        Ok(usize::try_from(length)?)
    }

    pub async fn partitions(&self) -> anyhow::Result<Vec<i32>> {
        let topics = client(&self.address).await?.list_topics().await?;
        let found = topics.into_iter().find(|topic| topic.name == self.name);
        Ok(found.map(|topic| topic.partitions.into_iter().collect()).unwrap_or_default())
    }

    /// Reads on to the end of every partition, and counts the copies.
    pub async fn read(&self, records: &mut Records) -> anyhow::Result<()> {
        let client = client(&self.address).await?;
        for partition in self.partitions().await? {
            let reader =
                client.partition_client(&self.name, partition, UnknownTopicHandling::Error).await?;
            let end = reader.get_offset(OffsetAt::Latest).await?;
            let mut next = records.next.get(&partition).copied().unwrap_or(0);
            while next < end {
                let (found, _) = reader.fetch_records(next, 1..4_000_000, 500).await?;
                next = found.last().map_or(end, |last| last.offset + 1);
                for found in found {
                    if let Some(id) = found.record.headers.get("ce_id") {
                        let id = String::from_utf8_lossy(id).into_owned();
                        *records.copies.entry(id).or_default() += 1;
                    }
                }
            }
            records.next.insert(partition, next);
        }
        Ok(())
    }
}

impl Records {
    /// Goes back to the beginning of the topic, after it was wiped.
    pub fn rewind(&mut self) {
        self.next.clear();
    }

    /// Returns how many copies of each message there are.
    pub fn copies(&self) -> &BTreeMap<String, u32> {
        &self.copies
    }

    /// Counts the copies beyond one of each message.
    pub fn repeats(&self) -> u64 {
        self.copies.values().map(|copies| u64::from(copies.saturating_sub(1))).sum()
    }
}

/// Runs Kafka's tool for topics, and returns what it prints.
pub(super) async fn topic_command(
    java: &str,
    libs: &str,
    addresses: &str,
    args: &[&str],
) -> anyhow::Result<String> {
    let output = Command::new(java)
        .args(["-Xmx128m", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC"])
        .args(["-cp", &format!("{libs}/*"), "org.apache.kafka.tools.TopicCommand"])
        .args(["--bootstrap-server", addresses])
        .args(args)
        .stdin(Stdio::null())
        .output()
        .await
        .context("run Kafka's TopicCommand")?;
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    anyhow::ensure!(output.status.success(), "TopicCommand {args:?}: {}", told.trim());
    Ok(told)
}

async fn client(address: &str) -> Result<Client, rskafka::client::error::Error> {
    let backoff =
        BackoffConfig { deadline: Some(Duration::from_secs(5)), ..BackoffConfig::default() };
    let brokers = address.split(',').map(ToOwned::to_owned).collect();
    ClientBuilder::new(brokers).backoff_config(backoff).build().await
}

fn with_listeners(config: &str, listeners: &[Listener]) -> String {
    let add = |line: &str, more: &dyn Fn(&Listener) -> String| {
        let all: Vec<String> =
            std::iter::once(line.to_owned()).chain(listeners.iter().map(more)).collect();
        all.join(",") + "\n"
    };
    let at = |listener: &Listener, port| format!("{}://127.0.0.1:{port}", listener.name);
    config
        .lines()
        .map(|line| match line.split_once('=').map_or(line, |(name, _)| name) {
            "listeners" => add(line, &|listener| at(listener, listener.port)),
            "advertised.listeners" => add(line, &|listener| at(listener, listener.advertised)),
            "listener.security.protocol.map" => {
                add(line, &|listener| format!("{}:PLAINTEXT", listener.name))
            }
            _ => format!("{line}\n"),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listeners_are_added_to_a_configuration() {
        let config = "listeners=PLAINTEXT://127.0.0.1:1\nadvertised.listeners=PLAINTEXT://127.0.0.1:1\n\
            listener.security.protocol.map=PLAINTEXT:PLAINTEXT\nnode.id=1\n";

        let with = with_listeners(config, &[Listener { name: "LAB", port: 2, advertised: 3 }]);

        assert_eq!(
            with,
            "listeners=PLAINTEXT://127.0.0.1:1,LAB://127.0.0.1:2\n\
            advertised.listeners=PLAINTEXT://127.0.0.1:1,LAB://127.0.0.1:3\n\
            listener.security.protocol.map=PLAINTEXT:PLAINTEXT,LAB:PLAINTEXT\nnode.id=1\n"
        );
    }
}
