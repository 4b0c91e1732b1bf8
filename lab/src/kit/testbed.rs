//! The service under test with its PostgreSQL, its Kafka and its gateway.

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
use ports::free_port;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use sqlx::PgPool;
use tokio::time::{Instant, sleep, timeout};

use super::{
    clients::{Clients, Habits},
    cluster::Cluster,
    gateway::{Character, Gateway},
    gateways_file::GatewaysFile,
    kafka::{Kafka, Listener, Topic},
    postgres::Postgres,
    process::{Process, Role, Signal, run_once},
    proxy::{Effect, Proxy},
    recorder::{Answer, GatewayKind, Recorder},
    tables,
};

/// The parts of a testbed and their settings.
#[derive(Debug)]
pub struct Plan {
    /// Folders of binaries: one for each version that is mixed. The first brings the schema.
    pub bins: Vec<PathBuf>,
    /// For logs.
    pub folder: PathBuf,
    pub apis: usize,
    pub processors: usize,
    pub consumers: usize,
    /// Settings of all processes.
    pub env: Vec<(&'static str, String)>,
    /// Settings of one process, by role and number.
    pub env_of: fn(Role, usize, &Plan) -> Vec<(String, String)>,
    /// Whether triggers watch the tables for writes that must not be.
    pub is_watched: bool,
    /// Whether a proxy is on every connection between two parts. Measurements do without.
    pub has_proxies: bool,
    pub gateway: Character,
    /// Gateways besides the first. With any, a file names the gateways of the consumers; write it
    /// with [`Testbed::write_gateways`] before they start.
    pub further: Vec<Character>,
    /// A library that `env_of` preloads.
    pub library: Option<PathBuf>,
    /// Brokers that are used instead of the one of `scripts/services`.
    pub cluster: Option<Arc<Cluster>>,
}

/// A connection between two parts.
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

/// The proxied connections of one process to one other part. All processes of a role share one to
/// Kafka.
#[derive(Debug)]
pub struct Link {
    pub kind: LinkKind,
    pub owner: String,
    pub proxy: Proxy,
}

#[derive(Debug)]
pub struct Testbed<R> {
    pub postgres: Postgres,
    /// The name of the database and of the topic.
    pub name: String,
    pub database: PgPool,
    pub kafka: Kafka,
    pub topic: Topic,
    pub gateway: Gateway,
    /// The gateways besides the first.
    pub further: Vec<Gateway>,
    pub recorder: R,
    pub processes: Vec<Arc<Process>>,
    pub links: Vec<Link>,
    /// The ports at which clients reach the APIs.
    pub api_ports: Vec<u16>,
    /// How many partitions the lab has given to the topic.
    pub partitions: AtomicUsize,
    folder: PathBuf,
    database_settings: Vec<(String, String)>,
}

/// The partitions of a new topic.
pub const PARTITIONS: usize = 4;

/// How long a process may take to start.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long a process may take to end.
const END_PATIENCE: Duration = Duration::from_secs(30);

impl Plan {
    /// Two APIs, two processors, three consumers, and a gateway that accepts everything.
    pub fn usual(bins: &Path, folder: &Path) -> Self {
        Self {
            bins: vec![bins.to_owned()],
            folder: folder.to_owned(),
            apis: 2,
            processors: 2,
            consumers: 3,
            env: Vec::new(),
            env_of: |_, _, _| Vec::new(),
            is_watched: true,
            has_proxies: false,
            gateway: Character::PLAIN,
            further: Vec::new(),
            library: None,
            cluster: None,
        }
    }
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

impl<R: Recorder> Testbed<R> {
    /// Prepares everything but the processes, which [`Self::start`] starts.
    pub async fn prepare(plan: &Plan, recorder: R) -> anyhow::Result<Self> {
        // Not from the seed of a run: two runs with one seed can follow each other.
        let mut rng = StdRng::try_from_rng(&mut rand::rngs::SysRng).context("draw a name")?;
        let postgres = Postgres::from_environment()?;
        let kafka = Kafka::from_environment()?;
        let name = format!("lab_{:016x}", rng.random::<u64>());
        let database = postgres.create_database(&name).await.context("create a database")?;
        let mut further = Vec::new();
        for (place, character) in (1..).zip(&plan.further) {
            let gateway = Gateway::start_on(free_port(), place, *character, recorder.clone());
            further.push(gateway.await?);
        }
        let mut testbed = Self {
            database_settings: postgres.settings(&name, postgres.port),
            postgres,
            database,
            topic: kafka.topic(name.clone()),
            kafka,
            name,
            gateway: Gateway::start_on(free_port(), 0, plan.gateway, recorder.clone()).await?,
            further,
            recorder,
            processes: Vec::new(),
            links: Vec::new(),
            api_ports: Vec::new(),
            partitions: AtomicUsize::new(PARTITIONS),
            folder: plan.folder.clone(),
        };
        testbed.migrate(plan.bins.first().context("no binaries")?).await?;
        if plan.is_watched {
            tables::watch(&testbed.database).await.context("watch the tables")?;
        }
        if plan.has_proxies {
            testbed.proxy_kafka().await?;
        }
        match &plan.cluster {
            Some(cluster) => testbed.topic = cluster.create(&testbed.name, PARTITIONS).await?,
            None => testbed.topic.create(PARTITIONS).await.context("create a topic")?,
        }
        for (role, count) in [
            (Role::Consumer, plan.consumers),
            (Role::Processor, plan.processors),
            (Role::Api, plan.apis),
        ] {
            for number in 1..=count {
                testbed.add(role, number, plan).await?;
            }
        }
        Ok(testbed)
    }

    /// Brings the schema to what a version needs.
    pub async fn migrate(&self, bins: &Path) -> anyhow::Result<()> {
        let log = self.folder.join("migrate.log");
        run_once(&bins.join("messager"), &["migrate", "up"], &self.database_settings, &log).await
    }

    /// Puts a proxy before Kafka, one for each role.
    async fn proxy_kafka(&mut self) -> anyhow::Result<()> {
        let for_processors = [free_port(), free_port()];
        let for_consumers = [free_port(), free_port()];
        self.kafka
            .listen(&[
                Listener { name: "LABP", port: for_processors[0], advertised: for_processors[1] },
                Listener { name: "LABC", port: for_consumers[0], advertised: for_consumers[1] },
            ])
            .await?;
        for (kind, ports) in
            [(LinkKind::ProcessorKafka, for_processors), (LinkKind::ConsumerKafka, for_consumers)]
        {
            let proxy = Proxy::start(ports[1], ports[0]).await?;
            self.links.push(Link { kind, owner: "all".to_owned(), proxy });
        }
        Ok(())
    }

    /// Adds a process, with proxies on its connections if there are any.
    async fn add(&mut self, role: Role, number: usize, plan: &Plan) -> anyhow::Result<()> {
        let owner = format!("{role}-{number}");
        let (metrics, own) = (free_port(), free_port());
        let mut env = Vec::new();
        let mut set = |name: &str, value: String| env.push((name.to_owned(), value));
        set("PROCESSOR_TOPIC", self.topic.name.clone());
        set("CONSUMER_TOPIC", self.topic.name.clone());
        set("TOPIC_PARTITIONS", PARTITIONS.to_string());
        let to_postgres = match role {
            Role::Api => {
                set("APP_PORT", own.to_string());
                let port = self.link(plan, LinkKind::ClientApi, &owner, own).await?;
                self.api_ports.push(port);
                LinkKind::ApiPostgres
            }
            Role::Processor => {
                set("PRODUCER_URL", self.kafka_address(plan, LinkKind::ProcessorKafka));
                LinkKind::ProcessorPostgres
            }
            Role::Consumer | Role::Messager => {
                set("CONSUMER_URL", self.kafka_address(plan, LinkKind::ConsumerKafka));
                let (kind, port) = (LinkKind::ConsumerGateway, self.gateway.port());
                let port = self.link(plan, kind, &owner, port).await?;
                if self.further.is_empty() {
                    set("GATEWAY", "webhook".to_owned());
                    set("GATEWAY_URL", format!("http://127.0.0.1:{port}/send"));
                } else {
                    set("GATEWAYS_FILE", self.gateways_file().display().to_string());
                }
                LinkKind::ConsumerPostgres
            }
        };
        let port = self.link(plan, to_postgres, &owner, self.postgres.port).await?;
        env.extend(self.postgres.settings(&self.name, port));
        env.extend(plan.env.iter().map(|(name, value)| ((*name).to_owned(), value.clone())));
        env.extend((plan.env_of)(role, number, plan));
        let process = Process::new(role, number, &plan.bins, &plan.folder, metrics, env);
        self.processes.push(Arc::new(process));
        Ok(())
    }

    /// Returns the port that leads to `target`, through a proxy if the plan has them.
    async fn link(
        &mut self,
        plan: &Plan,
        kind: LinkKind,
        owner: &str,
        target: u16,
    ) -> anyhow::Result<u16> {
        if !plan.has_proxies {
            return Ok(target);
        }
        let port = free_port();
        let proxy = Proxy::start(port, target).await?;
        self.links.push(Link { kind, owner: owner.to_owned(), proxy });
        Ok(port)
    }

    fn kafka_address(&self, plan: &Plan, kind: LinkKind) -> String {
        if let Some(cluster) = &plan.cluster {
            return cluster.addresses();
        }
        let proxied = self.links_of(kind).next().map(|link| link.proxy.port());
        proxied.map_or_else(|| self.kafka.address().to_owned(), |port| format!("127.0.0.1:{port}"))
    }

    /// Returns the settings that lead a process to the database.
    pub fn database_settings(&self) -> &[(String, String)] {
        &self.database_settings
    }

    /// Starts the processes of these roles, and waits until they are ready. If there are consumers
    /// among them, waits until messages can pass from end to end.
    pub async fn start(&self, roles: &[Role]) -> anyhow::Result<()> {
        let processes = || self.processes.iter().filter(|process| roles.contains(&process.role));
        for process in processes() {
            process.start()?;
        }
        for process in processes() {
            process.ready(PATIENCE).await?;
        }
        if roles.contains(&Role::Consumer) {
            let partitions = i64::try_from(self.partitions.load(Ordering::Relaxed))?;
            let read = async {
                while tables::partitions_read(&self.database).await? < partitions {
                    sleep(Duration::from_millis(50)).await;
                }
                anyhow::Ok(())
            };
            let read = timeout(PATIENCE, read).await;
            read.context("the consumers did not share the partitions")??;
        }
        Ok(())
    }

    /// Takes all faults away.
    pub async fn heal(&self) -> anyhow::Result<()> {
        for link in &self.links {
            link.proxy.put(Effect::Pass);
        }
        self.gateways().for_each(|gateway| gateway.answer(Answer::Accept));
        self.kafka.start().await?;
        for process in &self.processes {
            process.signal(Signal::CONT);
            process.start()?;
        }
        Ok(())
    }

    /// Changes the gateway, and restarts the consumers with the setting that suits it.
    pub async fn use_gateway(&self, kind: GatewayKind) -> anyhow::Result<()> {
        let deduplicates = (kind == GatewayKind::Idempotent).to_string();
        for consumer in self.of_role(Role::Consumer) {
            consumer.terminate(END_PATIENCE).await;
            consumer.set("GATEWAY_DEDUPLICATES", &deduplicates);
        }
        self.gateway.become_kind(kind);
        self.start(&Role::ALL).await
    }

    /// Changes all gateways and what follows an ambiguous call, and restarts the consumers.
    pub async fn use_gateways(
        &self,
        kind: GatewayKind,
        setup: &GatewaysFile<'_>,
    ) -> anyhow::Result<()> {
        for consumer in self.of_role(Role::Consumer) {
            consumer.terminate(END_PATIENCE).await;
        }
        self.gateways().for_each(|gateway| gateway.become_kind(kind));
        self.write_gateways(kind, setup)?;
        self.start(&Role::ALL).await
    }

    /// Writes the file that names the gateways of the consumers.
    pub fn write_gateways(
        &self,
        kind: GatewayKind,
        setup: &GatewaysFile<'_>,
    ) -> anyhow::Result<()> {
        let ports = self.gateways().map(Gateway::port);
        let text = setup.text(kind, ports);
        std::fs::write(self.gateways_file(), text).context("write the file of gateways")
    }

    fn gateways_file(&self) -> PathBuf {
        self.folder.join("gateways.toml")
    }

    /// Returns the first gateway and the further ones.
    pub fn gateways(&self) -> impl Iterator<Item = &Gateway> {
        std::iter::once(&self.gateway).chain(&self.further)
    }

    /// Returns clients of all APIs. One request in `fresh_every` uses a new connection.
    pub fn clients(&self, fresh_every: usize) -> Clients<R> {
        let habits = Habits { fresh_every, tries_next: true };
        Clients::new(self.api_ports.clone(), habits, self.recorder.clone())
    }

    /// Waits until no message waits. Returns how long that took, or `None` if it took too long.
    pub async fn wait_until_done(&self, patience: Duration) -> Option<Duration> {
        let begun = Instant::now();
        let done = async {
            while !tables::is_done(&self.database).await.unwrap_or(false) {
                sleep(Duration::from_millis(100)).await;
            }
        };
        timeout(patience, done).await.ok().map(|()| begun.elapsed())
    }

    /// Returns the processes that ended by themselves.
    pub fn crashed(&self) -> Vec<String> {
        let ended =
            |process: &Arc<Process>| Some(format!("{} ({})", process.name, process.crash()?));
        self.processes.iter().filter_map(ended).collect()
    }

    /// Ends all processes. Returns the processes that did not end with success.
    pub async fn stop(&self) -> Vec<String> {
        let mut bad = self.crashed();
        for process in &self.processes {
            let status = process.terminate(END_PATIENCE).await;
            if !status.is_some_and(|status| status.success()) {
                bad.push(format!("{} ({status:?})", process.name));
            }
        }
        bad
    }

    /// Removes the database. The testbed cannot be used after that.
    pub async fn drop_database(&self) -> anyhow::Result<()> {
        self.database.close().await;
        self.postgres.drop_database(&self.name).await
    }

    pub fn of_role(&self, role: Role) -> impl Iterator<Item = &Arc<Process>> {
        self.processes.iter().filter(move |process| process.role == role)
    }

    pub fn links_of(&self, kind: LinkKind) -> impl Iterator<Item = &Link> {
        self.links.iter().filter(move |link| link.kind == kind)
    }
}
