use std::{net::SocketAddr, os::unix::fs::MetadataExt, time::Duration};

use adapters_http::{Readiness, ServerLimits, connections_refused, metrics_router, serve};
use adapters_persistence::{Database, DatabaseSettings, SchemaError, check_schema};
use anyhow::{Context, bail};
use prometheus::{IntCounter, Registry};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{config::Config, telemetry};

/// What every binary has: settings, metrics, health, tasks, and an orderly end.
#[derive(Debug)]
pub struct Process {
    pub config: Config,
    pub registry: Registry,
    pub readiness: Readiness,
    /// Connections that the servers of this process had no room for.
    pub refused: IntCounter,
    pub stop: CancellationToken,
    name: &'static str,
    /// SQLite has one connection, which all parts of a process share.
    sqlite: Option<Database>,
    tasks: JoinSet<anyhow::Result<()>>,
}

/// How often a database that is not there is looked for.
const LOOK: Duration = Duration::from_millis(500);

impl Process {
    /// Starts telemetry and the metrics server, on `metrics_port` unless another one is set.
    pub async fn start(
        name: &'static str,
        config: Config,
        metrics_port: u16,
        neighbours: &[&'static str],
    ) -> anyhow::Result<Self> {
        let registry = telemetry::start(name, &config)?;
        let mut process = Self {
            readiness: Readiness::new(neighbours),
            refused: connections_refused(&registry)?,
            stop: CancellationToken::new(),
            sqlite: match &config.database {
                settings @ DatabaseSettings::Sqlite(_) => {
                    Some(Database::connect_lazily(settings, name, 1))
                }
                DatabaseSettings::Postgres(_) => None,
            },
            tasks: JoinSet::new(),
            name,
            config,
            registry,
        };
        let port = process.config.metrics_port.unwrap_or(metrics_port);
        let listener =
            listen_from(port, process.config.api_port).await.context("open the metrics port")?;
        tracing::info!(address = %listener.local_addr()?, "metrics and health");
        let router = metrics_router(process.registry.clone(), process.readiness.clone());
        let (refused, stop) = (process.refused.clone(), CancellationToken::new());
        // Stops last: whoever asks how the end goes gets an answer.
        process.tasks.spawn(async move {
            serve(listener, router, ServerLimits::default(), refused, stop).await;
            Ok(())
        });
        Ok(process)
    }

    /// Connections for one part of the process, which no other part can use up.
    pub fn database(&self, part: &str, connections: u32) -> Database {
        self.connect(part, connections, Database::connect_lazily)
    }

    /// The same, for steps that may be taken again: see [`Database::connect_lazily_to_repeat`].
    pub fn database_to_repeat(&self, part: &str, connections: u32) -> Database {
        self.connect(part, connections, Database::connect_lazily_to_repeat)
    }

    fn connect(
        &self,
        part: &str,
        connections: u32,
        connect: fn(&DatabaseSettings, &str, u32) -> Database,
    ) -> Database {
        self.sqlite.clone().unwrap_or_else(|| {
            connect(&self.config.database, &format!("messager {part}"), connections)
        })
    }

    pub fn is_embedded(&self) -> bool {
        self.sqlite.is_some()
    }

    /// Runs a task until [`Self::stop`] is cancelled. One that ends before ends the process.
    pub fn spawn(&mut self, task: impl Future<Output = anyhow::Result<()>> + Send + 'static) {
        self.tasks.spawn(task);
    }

    /// Waits for the database, and refuses one whose schema is behind.
    ///
    /// Keeps looking after it from then on, for `/readyz`.
    pub fn watch_database(&mut self, database: Database) -> CancellationToken {
        let usable = CancellationToken::new();
        let (found, readiness, stop) = (usable.clone(), self.readiness.clone(), self.stop.clone());
        let settings = self.config.database.clone();
        self.spawn(async move {
            let look = async {
                let mut opened = None;
                loop {
                    match check_schema(&database).await {
                        Ok(()) => {
                            let file = identity(&settings);
                            if *opened.get_or_insert(file) != file {
                                // What we accept goes to a file that nobody will open again.
                                bail!("the {settings} was removed or replaced while in use");
                            }
                            readiness.set_up("database");
                            found.cancel();
                        }
                        Err(error @ SchemaError::Behind { .. }) => return Err(error.into()),
                        Err(SchemaError::Unavailable(error)) => {
                            readiness.set_down("database", error);
                        }
                    }
                    sleep(if found.is_cancelled() { 4 * LOOK } else { LOOK }).await;
                }
            };
            stop.run_until_cancelled(look).await.unwrap_or(Ok(()))
        });
        usable
    }

    /// Waits for a signal, then for the tasks to end: within the grace period, or until a second
    /// signal. A task that ends before is an error.
    pub async fn run(mut self) -> anyhow::Result<()> {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            ended = self.tasks.join_next() => {
                self.stop.cancel();
                let error = match ended {
                    Some(Ok(Ok(()))) | None => anyhow::anyhow!("a task ended before its time"),
                    Some(Ok(Err(error))) => error,
                    Some(Err(error)) => error.into(),
                };
                self.drain(&mut interrupt, &mut terminate).await;
                return Err(error);
            }
        }
        tracing::info!(service = self.name, "stopping");
        self.stop.cancel();
        if self.drain(&mut interrupt, &mut terminate).await {
            tracing::info!(service = self.name, "stopped");
            Ok(())
        } else {
            bail!("stopped with work left in hand; it goes on after the next start")
        }
    }

    /// Whether everything ended in time.
    async fn drain(
        &mut self,
        interrupt: &mut tokio::signal::unix::Signal,
        terminate: &mut tokio::signal::unix::Signal,
    ) -> bool {
        // The metrics server is the one that stays.
        let all = async {
            while self.tasks.len() > 1 {
                match self.tasks.join_next().await {
                    Some(Ok(Err(error))) => {
                        tracing::warn!(error = format!("{error:#}"), "while stopping");
                    }
                    Some(Err(error)) => tracing::error!(%error, "a task failed while stopping"),
                    Some(Ok(Ok(()))) | None => {}
                }
            }
        };
        let clean = tokio::select! {
            ended = timeout(self.config.shutdown_grace, all) => ended.is_ok(),
            _ = interrupt.recv() => false,
            _ = terminate.recv() => false,
        };
        self.tasks.abort_all();
        clean
    }
}

/// What tells an SQLite file from another one at its path.
fn identity(settings: &DatabaseSettings) -> Option<(u64, u64)> {
    let DatabaseSettings::Sqlite(path) = settings else { return None };
    let file = std::fs::metadata(path).ok()?;
    Some((file.dev(), file.ino()))
}

/// Listens on `port`, or, where another process of ours has it, on one of the next ones: the
/// three binaries may share one `.env`, and with it one `PROMETHEUS_SERVER_PORT`. Never on the
/// API's, which may come later.
async fn listen_from(port: u16, api_port: u16) -> std::io::Result<TcpListener> {
    const TRIES: u16 = 8;
    let mut last = None;
    for port in (port..=port.saturating_add(TRIES)).filter(|port| *port != api_port) {
        match TcpListener::bind(SocketAddr::from(([0, 0, 0, 0], port))).await {
            Ok(listener) => {
                if last.is_some() {
                    tracing::warn!(port, "the metrics port is in use; this one is used instead");
                }
                return Ok(listener);
            }
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => last = Some(error),
            Err(error) => return Err(error),
        }
    }
    Err(last.unwrap_or_else(|| std::io::ErrorKind::AddrInUse.into()))
}
