//! Three Kafka brokers that replicate a topic, set up as `docs/operating.md` says.

use std::{
    collections::BTreeMap,
    fs::File,
    path::{Path, PathBuf},
    process::Stdio,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use anyhow::Context;
use ports::free_port;
use tokio::{
    process::{Child, Command},
    time::{sleep, timeout},
};

use super::{
    environment::variable,
    kafka::{Topic, topic_command},
};

/// The brokers. Dropping it kills them.
#[derive(Debug)]
pub struct Cluster {
    java: String,
    libs: String,
    brokers: Vec<Broker>,
}

/// A broker that is also a controller.
#[derive(Debug)]
struct Broker {
    id: usize,
    port: u16,
    controller_port: u16,
    folder: PathBuf,
    child: Mutex<Option<Child>>,
}

/// The state of one partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partition {
    /// The broker that leads it, if any does.
    pub leader: Option<usize>,
    /// How many brokers have all of its records.
    pub in_sync: usize,
}

pub const BROKERS: usize = 3;

/// How long the cluster may take to start, or a broker to come back. Three brokers start slowly on two
/// cores.
const PATIENCE: Duration = Duration::from_secs(180);

impl Cluster {
    /// Starts the brokers with their data below `folder`, and waits until all have joined.
    pub async fn start(folder: &Path) -> anyhow::Result<Self> {
        let brokers = (1..=BROKERS).map(|id| Broker {
            id,
            port: free_port(),
            controller_port: free_port(),
            folder: folder.join(format!("broker-{id}")),
            child: Mutex::default(),
        });
        let cluster = Self {
            java: variable("TEST_JAVA")?,
            libs: variable("TEST_KAFKA_LIBS")?,
            brokers: brokers.collect(),
        };
        for broker in &cluster.brokers {
            std::fs::create_dir_all(&broker.folder)?;
            std::fs::write(broker.config(), cluster.config_of(broker))?;
            cluster.format(broker).await?;
            cluster.spawn(broker)?;
        }
        Ok(cluster)
    }

    /// Returns the addresses of all brokers, separated by commas.
    pub fn addresses(&self) -> String {
        let addresses = self.brokers.iter().map(|broker| format!("127.0.0.1:{}", broker.port));
        addresses.collect::<Vec<_>>().join(",")
    }

    /// Creates a topic that is replicated to every broker and acknowledges a record once two have
    /// it. Waits until all brokers have joined and are in sync.
    pub async fn create(&self, name: &str, partitions: usize) -> anyhow::Result<Topic> {
        let (partitions, brokers) = (partitions.to_string(), BROKERS.to_string());
        let mut words = vec!["--create", "--if-not-exists", "--topic", name];
        words.extend(["--partitions", &partitions, "--replication-factor", &brokers]);
        words.extend(["--config", "min.insync.replicas=2"]);
        let created = async {
            while self.topics(&words).await.is_err() {
                sleep(Duration::from_millis(500)).await;
            }
        };
        timeout(PATIENCE, created).await.context("the brokers did not come together")?;
        self.wait_until_whole(name).await?;
        Ok(Topic::new(name.to_owned(), self.addresses()))
    }

    /// Returns the state of each partition of a topic.
    pub async fn partitions(&self, topic: &str) -> anyhow::Result<BTreeMap<usize, Partition>> {
        let told = self.topics(&["--describe", "--topic", topic]).await?;
        Ok(told.lines().filter_map(described).collect())
    }

    /// Waits until all brokers are in sync, and each leads a partition of the topic.
    pub async fn wait_until_whole(&self, topic: &str) -> anyhow::Result<()> {
        let whole = async {
            loop {
                let found = self.partitions(topic).await.unwrap_or_default();
                let mut leaders: Vec<_> = found.values().filter_map(|one| one.leader).collect();
                leaders.sort_unstable();
                leaders.dedup();
                let is_whole = found.values().all(|one| one.in_sync == BROKERS);
                if is_whole && leaders.len() == BROKERS.min(found.len()) && !found.is_empty() {
                    return;
                }
                sleep(Duration::from_millis(500)).await;
            }
        };
        timeout(PATIENCE, whole).await.context("the brokers did not come together")
    }

    /// Kills a broker, and waits until it is gone.
    pub async fn kill(&self, id: usize) -> anyhow::Result<()> {
        let broker = self.broker(id)?;
        let child = broker.child.lock().unwrap_or_else(PoisonError::into_inner).take();
        child.context("the broker does not run")?.kill().await.context("kill a broker")
    }

    /// Starts a broker that was killed.
    pub fn restart(&self, id: usize) -> anyhow::Result<()> {
        self.spawn(self.broker(id)?)
    }

    fn broker(&self, id: usize) -> anyhow::Result<&Broker> {
        self.brokers.iter().find(|broker| broker.id == id).context("there is no such broker")
    }

    async fn topics(&self, words: &[&str]) -> anyhow::Result<String> {
        topic_command(&self.java, &self.libs, &self.addresses(), words).await
    }

    async fn format(&self, broker: &Broker) -> anyhow::Result<()> {
        let status = self
            .java_of(broker, "-Xmx128m")?
            .args(["kafka.tools.StorageTool", "format", "-t", "AAAAAAAAQACAAAAAAAAAAQ", "-c"])
            .arg(broker.config())
            .status()
            .await
            .context("format the data of a broker")?;
        anyhow::ensure!(status.success(), "format the data of a broker: {status}");
        Ok(())
    }

    fn spawn(&self, broker: &Broker) -> anyhow::Result<()> {
        let mut java = self.java_of(broker, "-Xmx384m")?;
        let child = java.arg("kafka.Kafka").arg(broker.config()).kill_on_drop(true).spawn();
        let child = child.context("start a broker")?;
        *broker.child.lock().unwrap_or_else(PoisonError::into_inner) = Some(child);
        Ok(())
    }

    fn java_of(&self, broker: &Broker, memory: &str) -> anyhow::Result<Command> {
        let log = File::options().create(true).append(true).open(broker.folder.join("log"))?;
        let mut java = Command::new(&self.java);
        java.args([memory, "-XX:+UseSerialGC", "-XX:-UsePerfData", "-cp"])
            .arg(format!("{}/*", self.libs))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        Ok(java)
    }

    fn config_of(&self, broker: &Broker) -> String {
        let voters = self.brokers.iter();
        let voters = voters.map(|one| format!("{}@127.0.0.1:{}", one.id, one.controller_port));
        let voters: Vec<_> = voters.collect();
        let Broker { id, port, controller_port, .. } = broker;
        format!(
            "process.roles=broker,controller\n\
            node.id={id}\n\
            controller.quorum.voters={voters}\n\
            listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}\n\
            advertised.listeners=PLAINTEXT://127.0.0.1:{port}\n\
            controller.listener.names=CONTROLLER\n\
            inter.broker.listener.name=PLAINTEXT\n\
            listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT\n\
            log.dirs={data}\n\
            auto.create.topics.enable=false\n\
            default.replication.factor=3\n\
            min.insync.replicas=2\n\
            offsets.topic.replication.factor=3\n\
            broker.heartbeat.interval.ms=500\n\
            broker.session.timeout.ms=2000\n\
            leader.imbalance.check.interval.seconds=5\n\
            log.retention.ms=-1\n",
            voters = voters.join(","),
            data = broker.folder.join("data").display(),
        )
    }
}

impl Broker {
    fn config(&self) -> PathBuf {
        self.folder.join("server.properties")
    }
}

/// Reads a line of the tool's description of a topic.
fn described(line: &str) -> Option<(usize, Partition)> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let after = |name: &str| words.iter().skip_while(|word| **word != name).nth(1).copied();
    let number = after("Partition:")?.parse().ok()?;
    let leader = after("Leader:")?.parse().ok();
    let in_sync = after("Isr:").map_or(0, |isr| isr.split(',').filter(|id| !id.is_empty()).count());
    Some((number, Partition { leader, in_sync }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn description_of_a_topic_names_leaders_and_brokers_in_sync() {
        let told = "Topic: lab\tTopicId: x\tPartitionCount: 2\tReplicationFactor: 3\tConfigs: \n\
            \tTopic: lab\tPartition: 0\tLeader: 2\tReplicas: 2,3,1\tIsr: 2,1\tElr: \tLastKnownElr: \n\
            \tTopic: lab\tPartition: 1\tLeader: none\tReplicas: 3,1,2\tIsr: 3\tElr: \tLastKnownElr: \n";

        let found: BTreeMap<_, _> = told.lines().filter_map(described).collect();

        let partition = |leader, in_sync| Partition { leader, in_sync };
        assert_eq!(found, [(0, partition(Some(2), 2)), (1, partition(None, 1))].into());
    }
}
