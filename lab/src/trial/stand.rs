//! The service with nothing between its parts: trials measure it, and a proxy would be measured
//! with it.

use std::{
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use anyhow::Context;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use sqlx::PgPool;
use tokio::time::{Instant, sleep, timeout};

use super::{desk::Desk, http::Clients, tape::Tape};
use crate::{
    environment::variable,
    kafka::{Kafka, Topic},
    ledger,
    postgres::Postgres,
    process::{Process, Role, free_ports, run_once},
};

/// What to put up.
#[derive(Debug)]
pub struct Plan {
    /// Where the binaries are; more than one version where they are to be mixed. The first brings
    /// the schema.
    pub bins: Vec<PathBuf>,
    pub folder: PathBuf,
    pub apis: usize,
    pub processors: usize,
    pub consumers: usize,
    pub env: Vec<(&'static str, String)>,
    /// Settings of single processes, by role and number.
    pub more: fn(Role, usize, &Plan) -> Vec<(String, String)>,
    /// Whether triggers watch the tables for writes that may not be.
    pub is_watched: bool,
    /// How long the gateway takes for a slow phone.
    pub slowness: Duration,
    /// Whatever else `more` needs.
    pub library: Option<PathBuf>,
}

/// A place for one process, which may be of one version or of another.
#[derive(Debug)]
pub struct Slot {
    versions: Vec<Process>,
    current: AtomicUsize,
}

#[derive(Debug)]
pub struct Stand {
    pub postgres: Postgres,
    /// Of the database and of the topic.
    pub name: String,
    pub database: PgPool,
    pub topic: Topic,
    pub kafka_address: String,
    pub desk: Desk,
    pub tape: Tape,
    pub slots: Vec<Slot>,
    pub api_ports: Vec<u16>,
    folder: PathBuf,
    database_settings: Vec<(String, String)>,
}

pub const PARTITIONS: usize = 4;

const PATIENCE: Duration = Duration::from_secs(60);

impl Plan {
    /// Two APIs, two processors, three consumers.
    pub fn usual(bins: &Path, folder: &Path) -> Self {
        Self {
            bins: vec![bins.to_owned()],
            folder: folder.to_owned(),
            apis: 2,
            processors: 2,
            consumers: 3,
            env: Vec::new(),
            more: |_, _, _| Vec::new(),
            is_watched: true,
            slowness: Duration::ZERO,
            library: None,
        }
    }
}

impl Slot {
    /// The process, in the version that it has now.
    pub fn process(&self) -> &Process {
        &self.versions[self.current.load(Ordering::Relaxed)]
    }

    /// Which version its next start is of.
    pub fn use_version(&self, version: usize) {
        self.current.store(version % self.versions.len(), Ordering::Relaxed);
    }

    pub fn version(&self) -> usize {
        self.current.load(Ordering::Relaxed)
    }
}

impl Stand {
    pub async fn prepare(plan: &Plan) -> anyhow::Result<Self> {
        let mut rng = StdRng::try_from_rng(&mut rand::rngs::SysRng).context("draw names")?;
        let postgres = Postgres::from_environment()?;
        let name = format!("trial_{:016x}", rng.random::<u64>());
        let database = postgres.create_database(&name).await.context("create a database")?;
        let topic = Kafka::from_environment()?.topic(name.clone());
        topic.create(PARTITIONS).await.context("create a topic")?;
        let tape = Tape::default();
        let desk = Desk::open(tape.clone(), plan.slowness).await?;
        let mut stand = Self {
            database_settings: postgres.settings(&name, postgres.port),
            postgres,
            name,
            database,
            topic,
            kafka_address: variable("TEST_KAFKA")?,
            desk,
            tape,
            slots: Vec::new(),
            api_ports: Vec::new(),
            folder: plan.folder.clone(),
        };
        let bins = plan.bins.first().context("no binaries")?;
        stand.migrate(bins).await?;
        if plan.is_watched {
            ledger::watch(&stand.database).await.context("watch the tables")?;
        }
        for (role, count) in [
            (Role::Consumer, plan.consumers),
            (Role::Processor, plan.processors),
            (Role::Api, plan.apis),
        ] {
            for number in 1..=count {
                stand.add(role, number, plan, &mut rng);
            }
        }
        Ok(stand)
    }

    /// Brings the schema to what a version wants.
    pub async fn migrate(&self, bins: &Path) -> anyhow::Result<()> {
        let log = self.folder.join("migrate.log");
        run_once(&bins.join("messager"), &["migrate", "up"], &self.database_settings, &log).await
    }

    fn add(&mut self, role: Role, number: usize, plan: &Plan, rng: &mut StdRng) {
        let ports = free_ports(2, rng);
        let mut env = self.database_settings.clone();
        let mut set = |name: &str, value: String| env.push((name.to_owned(), value));
        set("PROCESSOR_TOPIC", self.topic.name.clone());
        set("CONSUMER_TOPIC", self.topic.name.clone());
        set("TOPIC_PARTITIONS", PARTITIONS.to_string());
        match role {
            Role::Api => {
                set("APP_PORT", ports[0].to_string());
                self.api_ports.push(ports[0]);
            }
            Role::Messager => {}
            Role::Processor => set("PRODUCER_URL", self.kafka_address.clone()),
            Role::Consumer => {
                set("CONSUMER_URL", self.kafka_address.clone());
                set("GATEWAY", "webhook".to_owned());
                set("GATEWAY_URL", format!("http://127.0.0.1:{}/send", self.desk.port));
            }
        }
        for (name, value) in &plan.env {
            set(name, value.clone());
        }
        env.extend((plan.more)(role, number, plan));
        let versions = plan
            .bins
            .iter()
            .map(|bins| Process::new(role, number, bins, &plan.folder, ports[1], env.clone()));
        self.slots.push(Slot { versions: versions.collect(), current: AtomicUsize::new(0) });
    }

    pub fn processes(&self) -> impl Iterator<Item = &Process> {
        self.slots.iter().map(Slot::process)
    }

    /// The settings that lead a process to the database.
    pub fn database_settings(&self) -> &[(String, String)] {
        &self.database_settings
    }

    /// Removes the database with all that is in it; nothing can be asked of the stand after that.
    pub async fn drop_database(&self) -> anyhow::Result<()> {
        self.database.close().await;
        self.postgres.drop_database(&self.name).await
    }

    /// Starts the processes of these roles, and waits until they are ready.
    pub async fn start(&self, roles: &[Role]) -> anyhow::Result<()> {
        let slots = || self.slots.iter().filter(|slot| roles.contains(&slot.process().role));
        for slot in slots() {
            slot.process().start()?;
        }
        for slot in slots() {
            slot.process().ready(PATIENCE).await?;
        }
        if roles.contains(&Role::Consumer) {
            let read = async {
                while ledger::partitions_read(&self.database).await? < i64::try_from(PARTITIONS)? {
                    sleep(Duration::from_millis(50)).await;
                }
                anyhow::Ok(())
            };
            timeout(PATIENCE, read)
                .await
                .context("the consumers did not share the partitions")??;
        }
        Ok(())
    }

    /// Clients of all APIs; of so many requests one comes on a new connection.
    pub fn clients(&self, fresh_every: usize) -> Clients {
        Clients::new(self.api_ports.clone(), fresh_every, self.tape.clone())
    }

    /// Waits until no message waits; how long it took, or none.
    pub async fn wait_until_done(&self, patience: Duration) -> Option<Duration> {
        let begun = Instant::now();
        let done = async {
            while !self.is_done().await.unwrap_or(false) {
                sleep(Duration::from_millis(100)).await;
            }
        };
        timeout(patience, done).await.ok().map(|()| begun.elapsed())
    }

    async fn is_done(&self) -> sqlx::Result<bool> {
        // Cheap whatever there is, unlike counting. A row that is settled in the moment in which
        // its message is taken over stays in transit until it is due; its message does not wait.
        sqlx::query_scalar(
            "SELECT NOT EXISTS (SELECT FROM outbox)
                AND NOT EXISTS (SELECT FROM delivery WHERE state IN ('pending', 'calling'))
                AND NOT EXISTS (SELECT FROM in_transit
                    WHERE NOT EXISTS (SELECT FROM delivery WHERE message_id = in_transit.id))",
        )
        .fetch_one(&self.database)
        .await
    }

    /// Messages by state, in the order of the states' names.
    pub async fn states(&self) -> sqlx::Result<Vec<(String, i64)>> {
        sqlx::query_as("SELECT state, count(*) FROM delivery GROUP BY state ORDER BY state")
            .fetch_all(&self.database)
            .await
    }

    /// Writes that no owner of a partition or of a call may make.
    pub async fn offences(&self) -> sqlx::Result<Vec<String>> {
        sqlx::query_scalar(
            "SELECT format('%s %s %s: %s', at, kind, subject, detail) FROM lab_offence ORDER BY at",
        )
        .fetch_all(&self.database)
        .await
    }

    /// Rows in transit whose message was taken over; nothing but time takes them away.
    pub async fn left_in_transit(&self) -> sqlx::Result<i64> {
        self.count(
            "SELECT count(*) FROM in_transit
            WHERE EXISTS (SELECT FROM delivery WHERE message_id = in_transit.id)",
        )
        .await
    }

    pub async fn count(&self, sql: &'static str) -> sqlx::Result<i64> {
        sqlx::query_scalar(sql).fetch_one(&self.database).await
    }

    /// Processes that ended though nobody asked them to.
    pub fn crashed(&self) -> Vec<String> {
        let ended = |slot: &Slot| {
            let status = slot.process().has_crashed()?;
            Some(format!("{} ({status})", slot.process().name))
        };
        self.slots.iter().filter_map(ended).collect()
    }

    /// Ends all processes; those that did not end well.
    pub async fn stop(&self) -> Vec<String> {
        let mut bad = self.crashed();
        for slot in &self.slots {
            let process = slot.process();
            let status = process.terminate(Duration::from_secs(30)).await;
            if !status.is_some_and(|status| status.success()) {
                bad.push(format!("{} ({status:?})", process.name));
            }
        }
        bad
    }
}
