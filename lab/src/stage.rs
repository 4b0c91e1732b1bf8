//! The service among its neighbours, with a proxy on every connection between two parts.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::Context;
use rand::{RngExt, rngs::StdRng};
use sqlx::PgPool;
use tokio::time::{sleep, timeout};

use crate::{
    gateway::{Answer, Gateway, Memory},
    history::Recorder,
    kafka::{Kafka, Listener, Topic},
    ledger,
    postgres::Postgres,
    process::{Process, Role, Signal, free_ports, run_once},
    proxy::{Effect, Proxy},
};

/// Which parts a connection is between.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LinkKind {
    ClientApi,
    ApiPostgres,
    ProcessorPostgres,
    ConsumerPostgres,
    ProcessorKafka,
    ConsumerKafka,
    ConsumerGateway,
}

/// The connections of one process to one other part; those to Kafka are all processes' of a role.
#[derive(Debug)]
pub struct Link {
    pub kind: LinkKind,
    pub owner: String,
    pub proxy: Proxy,
}

/// How many of each there are.
#[derive(Debug, Clone, Copy)]
pub struct Cast {
    pub apis: usize,
    pub processors: usize,
    pub consumers: usize,
    pub partitions: usize,
}

/// Where and what to play.
#[derive(Debug, Clone)]
pub struct Setup {
    /// Where the service's binaries are.
    pub bins: PathBuf,
    /// For logs.
    pub folder: PathBuf,
    pub cast: Cast,
    /// Settings of all processes.
    pub env: Vec<(String, String)>,
}

#[derive(Debug)]
pub struct Stage {
    pub postgres: Postgres,
    pub database: PgPool,
    pub kafka: Kafka,
    pub topic: Topic,
    pub gateway: Gateway,
    pub processes: Vec<Arc<Process>>,
    pub links: Vec<Link>,
    pub recorder: Recorder,
    /// Of the topic, as far as it was us who set them.
    pub partitions: AtomicUsize,
}

impl LinkKind {
    pub const ALL: [Self; 7] = [
        Self::ClientApi,
        Self::ApiPostgres,
        Self::ProcessorPostgres,
        Self::ConsumerPostgres,
        Self::ProcessorKafka,
        Self::ConsumerKafka,
        Self::ConsumerGateway,
    ];
}

impl fmt::Display for LinkKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ClientApi => "client-api",
            Self::ApiPostgres => "api-postgres",
            Self::ProcessorPostgres => "processor-postgres",
            Self::ConsumerPostgres => "consumer-postgres",
            Self::ProcessorKafka => "processor-kafka",
            Self::ConsumerKafka => "consumer-kafka",
            Self::ConsumerGateway => "consumer-gateway",
        })
    }
}

impl Stage {
    /// Prepares everything but the processes, which [`Self::start`] starts.
    pub async fn prepare(
        setup: &Setup,
        recorder: Recorder,
        rng: &mut StdRng,
    ) -> anyhow::Result<Self> {
        let postgres = Postgres::from_environment()?;
        let kafka = Kafka::from_environment()?;
        let name = format!("lab_{:016x}", rng.random::<u64>());
        let database = postgres.create_database(&name).await.context("create a database")?;
        let migrate = setup.bins.join("messager");
        let log = setup.folder.join("migrate.log");
        let settings = postgres.settings(&name, postgres.port);
        run_once(&migrate, &["migrate", "up"], &settings, &log).await?;
        ledger::watch(&database).await.context("watch the tables")?;

        let [for_processors, for_consumers] = [free_ports(2, rng), free_ports(2, rng)];
        kafka
            .listen(&[
                Listener { name: "LABP", port: for_processors[0], advertised: for_processors[1] },
                Listener { name: "LABC", port: for_consumers[0], advertised: for_consumers[1] },
            ])
            .await?;
        let topic = kafka.topic(name.clone());
        topic.create(setup.cast.partitions).await.context("create a topic")?;
        let gateway = Gateway::start(free_ports(1, rng)[0], recorder.clone()).await?;

        let mut stage = Self {
            postgres,
            database,
            kafka,
            topic,
            gateway,
            processes: Vec::new(),
            links: Vec::new(),
            recorder,
            partitions: AtomicUsize::new(setup.cast.partitions),
        };
        for (kind, ports) in [
            (LinkKind::ProcessorKafka, for_processors.as_slice()),
            (LinkKind::ConsumerKafka, for_consumers.as_slice()),
        ] {
            let proxy = Proxy::start(ports[1], ports[0]).await?;
            stage.links.push(Link { kind, owner: "all".to_owned(), proxy });
        }
        let Cast { apis, processors, consumers, .. } = setup.cast;
        for (role, count) in
            [(Role::Consumer, consumers), (Role::Processor, processors), (Role::Api, apis)]
        {
            for number in 1..=count {
                stage.add(role, number, setup, &name, rng).await?;
            }
        }
        Ok(stage)
    }

    /// Adds a process with the links of its own.
    async fn add(
        &mut self,
        role: Role,
        number: usize,
        setup: &Setup,
        database: &str,
        rng: &mut StdRng,
    ) -> anyhow::Result<()> {
        let owner = format!("{role}-{number}");
        let ports = free_ports(4, rng);
        let [metrics, own, to_postgres, other] = [ports[0], ports[1], ports[2], ports[3]];
        let mut env = self.postgres.settings(database, to_postgres);
        let mut set = |name: &str, value: String| env.push((name.to_owned(), value));
        set("PROCESSOR_TOPIC", self.topic.name.clone());
        set("CONSUMER_TOPIC", self.topic.name.clone());
        let postgres = self.postgres.port;
        let mut links = Vec::new();
        match role {
            Role::Api => {
                set("APP_PORT", own.to_string());
                links.push((LinkKind::ApiPostgres, to_postgres, postgres));
                links.push((LinkKind::ClientApi, other, own));
            }
            Role::Messager => {}
            Role::Processor => {
                set(
                    "PRODUCER_URL",
                    format!("127.0.0.1:{}", self.port_of(LinkKind::ProcessorKafka)),
                );
                links.push((LinkKind::ProcessorPostgres, to_postgres, postgres));
            }
            Role::Consumer => {
                set("CONSUMER_URL", format!("127.0.0.1:{}", self.port_of(LinkKind::ConsumerKafka)));
                set("GATEWAY", "webhook".to_owned());
                set("GATEWAY_URL", format!("http://127.0.0.1:{other}/send"));
                links.push((LinkKind::ConsumerPostgres, to_postgres, postgres));
                links.push((LinkKind::ConsumerGateway, other, self.gateway.port()));
            }
        }
        env.extend(setup.env.iter().cloned());
        for (kind, port, target) in links {
            let proxy = Proxy::start(port, target).await?;
            self.links.push(Link { kind, owner: owner.clone(), proxy });
        }
        let process = Process::new(role, number, &setup.bins, &setup.folder, metrics, env);
        self.processes.push(Arc::new(process));
        Ok(())
    }

    /// Starts all processes and waits until messages can pass from end to end.
    pub async fn start(&self) -> anyhow::Result<()> {
        const PATIENCE: Duration = Duration::from_secs(60);
        for process in &self.processes {
            process.start()?;
        }
        for process in &self.processes {
            process.ready(PATIENCE).await?;
        }
        let partitions = i64::try_from(self.partitions.load(Ordering::Relaxed))?;
        let read = async {
            while ledger::partitions_read(&self.database).await? < partitions {
                sleep(Duration::from_millis(100)).await;
            }
            anyhow::Ok(())
        };
        timeout(PATIENCE, read).await.context("the consumers did not share the partitions")??;
        Ok(())
    }

    /// Takes all faults away.
    pub async fn heal(&self) -> anyhow::Result<()> {
        for link in &self.links {
            link.proxy.put(Effect::Pass);
        }
        self.gateway.answer(Answer::Accept);
        self.kafka.start().await?;
        for process in &self.processes {
            process.signal(Signal::CONT);
            process.start()?;
        }
        Ok(())
    }

    /// Changes the gateway, and starts the consumers again with the setting that suits it.
    pub async fn use_gateway(&self, memory: Memory) -> anyhow::Result<()> {
        let deduplicates = (memory == Memory::Idempotent).to_string();
        for consumer in self.of_role(Role::Consumer) {
            consumer.terminate(Duration::from_secs(30)).await;
            consumer.set("GATEWAY_DEDUPLICATES", &deduplicates);
        }
        self.gateway.remember(memory);
        self.start().await
    }

    /// Ends all processes, as an operator would.
    pub async fn stop(&self) {
        for process in &self.processes {
            process.terminate(Duration::from_secs(30)).await;
        }
    }

    pub fn of_role(&self, role: Role) -> impl Iterator<Item = &Arc<Process>> {
        self.processes.iter().filter(move |process| process.role == role)
    }

    /// Where clients reach the API.
    pub fn api_ports(&self) -> Vec<u16> {
        self.links_of(LinkKind::ClientApi).map(|link| link.proxy.port()).collect()
    }

    pub fn links_of(&self, kind: LinkKind) -> impl Iterator<Item = &Link> {
        self.links.iter().filter(move |link| link.kind == kind)
    }

    pub fn logs(&self) -> impl Iterator<Item = (&str, &Path)> {
        self.processes.iter().map(|process| (&*process.name, process.log()))
    }

    fn port_of(&self, kind: LinkKind) -> u16 {
        self.links_of(kind).next().map_or(0, |link| link.proxy.port())
    }
}
