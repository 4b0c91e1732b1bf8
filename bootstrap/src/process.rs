use std::{
    future::ready,
    io::{IsTerminal, Write, stderr},
    net::SocketAddr,
    os::unix::fs::MetadataExt,
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use adapters_broker::KafkaTls;
use adapters_http::{
    ConnectionMetrics, Exemplars, Hosts, Listeners, Readiness, ServerLimits, metrics_router,
    operator_router, serve,
};
use adapters_persistence::{
    Database, DatabaseSettings, Evidence, Part, SchemaError, check_schema, check_storage,
};
use anyhow::{Context, bail};
use application::Tracer;
use prometheus::{IntCounter, Registry};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
    task::JoinSet,
    time::{Instant, sleep, timeout, timeout_at},
};
use tokio_util::sync::CancellationToken;

use crate::{
    banner::banner,
    config::{Config, GatewaysConfig, LogFormat},
    descriptors::{self, Shares},
    environment::Environment,
    metrics::{CertificateMetrics, ReceiptMetrics, StepMetrics, expired_messages},
    operator,
    periodic::every,
    pools::Pool,
    roles::{clock, gateways},
    spans::{self, SpanExport},
    telemetry::{self, Terminal},
};

/// The common parts of every binary: settings, metrics, health, tasks, and an orderly shutdown.
#[derive(Debug)]
pub struct Process {
    pub config: Config,
    pub registry: Registry,
    pub readiness: Readiness,
    /// Metrics of the servers of this process.
    pub connections: ConnectionMetrics,
    /// The numbers of connections that the servers may have.
    pub shares: Shares,
    /// Counts the messages that this process ended because they expired before a consumer took them
    /// over.
    pub expired: IntCounter,
    /// Metrics of the receipts that come over HTTP, and over connections of gateways.
    pub receipts: ReceiptMetrics,
    /// The time to each step of a message.
    pub steps: StepMetrics,
    pub(crate) certificates: CertificateMetrics,
    /// Records spans, if there is a collector.
    pub tracer: Tracer,
    /// The traces of observations, if there is a collector.
    pub exemplars: Exemplars,
    export: Option<SpanExport>,
    pub stop: CancellationToken,
    /// The gateways in force. `None` until a part asks.
    pub(crate) gateways: Option<watch::Receiver<Arc<GatewaysConfig>>>,
    name: &'static str,
    terminal: Terminal,
    /// Whether the start is shown on a terminal, so that the log need not have it.
    has_banner: bool,
    /// The port that is in use.
    metrics_port: u16,
    keeps_house: bool,
    /// The one connection to an SQLite file, which all parts of a process share.
    sqlite: Option<Database>,
    /// Cancelled when that file can be used. `None` until a part asks.
    sqlite_usable: Option<CancellationToken>,
    evidence: Evidence,
    watched: Watched,
    tasks: JoinSet<anyhow::Result<()>>,
}

/// The latest database check of each part of the process. `None` until the part has checked.
#[derive(Debug, Clone, Default)]
struct Watched(Arc<Mutex<Vec<Option<Said>>>>);

/// The result of a check: the part can store its rows, or the reason why it cannot.
type Said = Result<(), String>;

/// How often an unavailable database is tried again.
const LOOK: Duration = Duration::from_millis(500);

/// How long the database may take to store a row before it counts as down.
const SLOW: Duration = Duration::from_secs(5);

impl Process {
    /// Starts telemetry and the metrics server, on `metrics_port` unless another one is set.
    pub fn start(
        name: &'static str,
        config: Config,
        metrics_port: u16,
        neighbours: &[&'static str],
    ) -> anyhow::Result<Self> {
        let is_terminal = stderr().is_terminal();
        let colours = is_terminal && !Environment::asks_for_no_colours();
        let terminal = Terminal { is_terminal, colours };
        let registry = telemetry::start(name, &config, terminal)?;
        let evidence = Evidence::default();
        for remark in &config.remarks {
            tracing::warn!("{remark}");
        }
        let limit = descriptors::limit();
        let outgoing = descriptors::outgoing(name, &config);
        let shares = Shares::of(limit, outgoing, config.api.max_connections.into());
        let has_banner = name == "messager"
            && is_terminal
            && config.process.log_format(is_terminal) == LogFormat::Text;
        let exemplars =
            if config.traces.is_some() { Exemplars::kept(clock) } else { Exemplars::default() };
        let steps = StepMetrics::register(&registry)?.with_exemplars(exemplars.clone());
        if let Some(warning) = config.warning_of_collector() {
            tracing::warn!("{warning}");
        }
        let started = config.traces.as_ref().map(|it| spans::start(name, it, &registry));
        let (tracer, export) = started.transpose()?.unzip();
        let mut process = Self {
            has_banner,
            terminal,
            metrics_port,
            readiness: Readiness::new(neighbours),
            connections: ConnectionMetrics::register(&registry)?,
            shares,
            expired: expired_messages(&registry)?,
            receipts: ReceiptMetrics::register(&registry, &steps)?,
            steps,
            certificates: CertificateMetrics::register(&registry)?,
            tracer: tracer.unwrap_or_default(),
            exemplars,
            export,
            keeps_house: false,
            stop: CancellationToken::new(),
            gateways: None,
            sqlite: match &config.database {
                settings @ DatabaseSettings::Sqlite(_) => {
                    let database = Database::connect_lazily(settings, name, 1);
                    let events = config.events.is_some().into();
                    Some(database.with_evidence(evidence.clone()).with_events(events))
                }
                DatabaseSettings::Postgres(_) => None,
            },
            sqlite_usable: None,
            evidence,
            watched: Watched::default(),
            tasks: JoinSet::new(),
            name,
            config,
            registry,
        };
        let config = &process.config;
        let port = config.process.metrics_port.unwrap_or(metrics_port);
        let mut listeners = listen_from(&config.process.metrics_hosts, port, config.api.port)
            .context("open the metrics port")?
            .behind(config.api.proxies.clone());
        process.metrics_port = listeners.addresses().first().map_or(port, SocketAddr::port);
        if !has_banner {
            tracing::info!(address = %listeners, "listening for metrics and health checks");
        }
        let token = config.process.metrics_token.clone();
        let exemplars = process.exemplars.clone();
        let (registry, readiness) = (process.registry.clone(), process.readiness.clone());
        let mut router = metrics_router(registry, readiness, token, exemplars);
        if let Some(password) = config.process.operator_password.clone() {
            if let Some(warning) = config.warning_of_page() {
                tracing::warn!("{warning}");
            }
            let readiness = process.readiness.clone();
            router = router.merge(operator_router(process.operator(), readiness, password));
            listeners = listeners.telling_callers();
        }
        let limits = metrics_limits(&process.shares);
        let (connections, stop) = (process.connections.clone(), CancellationToken::new());
        // The metrics server stops last, so that it answers probes during the shutdown.
        process.tasks.spawn(async move {
            serve(listeners, router, limits, connections, stop).await;
            Ok(())
        });
        process.report_client_certificates();
        Ok(process)
    }

    /// Returns the source of the operator's page.
    ///
    /// A failure of its statements does not affect readiness: the role of a part may lack a
    /// privilege that only the page needs.
    fn operator(&mut self) -> operator::Desk {
        let pool = Pool::Operator;
        let database = self.sqlite.clone().unwrap_or_else(|| {
            let name = format!("messager {}", pool.name());
            Database::connect_lazily(&self.config.database, &name, pool.connections())
        });
        operator::Desk::new(self.config.clone(), gateways(self), database)
    }

    /// Reports when the certificates expire that this process shows to PostgreSQL and Kafka.
    fn report_client_certificates(&mut self) {
        const PAUSE: Duration = Duration::from_secs(60);
        let tls = self.config.kafka.tls.as_ref();
        if let Some(expires) = tls.and_then(KafkaTls::client_expires) {
            self.certificates.expires("kafka", expires);
        }
        let DatabaseSettings::Postgres(postgres) = &self.config.database else { return };
        let Some(client) = postgres.ssl_client_cert.clone() else { return };
        let (metrics, stop) = (self.certificates.clone(), self.stop.clone());
        self.spawn(async move {
            every(PAUSE, &stop, || {
                // The files may be replaced while the process runs.
                if let Some(expires) = client.expires() {
                    metrics.expires("database", expires);
                }
                ready(())
            })
            .await;
            Ok(())
        });
    }

    /// Opens a pool of connections for one part of the process. No other part uses it.
    pub fn database(&self, pool: Pool) -> Database {
        self.connect(pool, Database::connect_lazily)
    }

    /// The same, for statements that may be repeated: see [`Database::connect_lazily_to_repeat`].
    pub fn database_to_repeat(&self, pool: Pool) -> Database {
        self.connect(pool, Database::connect_lazily_to_repeat)
    }

    fn connect(
        &self,
        pool: Pool,
        connect: fn(&DatabaseSettings, &str, u32) -> Database,
    ) -> Database {
        self.sqlite.clone().unwrap_or_else(|| {
            let name = format!("messager {}", pool.name());
            connect(&self.config.database, &name, pool.connections())
                .with_evidence(self.evidence.clone())
                .with_events(self.config.events.is_some().into())
        })
    }

    /// Returns whether no part of the process runs the housekeeping yet. If so, the caller must run
    /// it.
    pub(crate) fn needs_housekeeping(&mut self) -> bool {
        !std::mem::replace(&mut self.keeps_house, true)
    }

    /// Returns whether the process calls gateways.
    pub(crate) fn sends(&self) -> bool {
        ["consumer", "messager"].contains(&self.name)
    }

    pub(crate) fn has_banner(&self) -> bool {
        self.has_banner
    }

    /// Writes the banner to a terminal. Does nothing without a terminal.
    pub fn show_banner(&self) {
        if self.has_banner {
            let banner = banner(&self.config, self.metrics_port, self.terminal.colours);
            let _ = stderr().write_all(banner.as_bytes());
        }
    }

    pub fn is_embedded(&self) -> bool {
        self.sqlite.is_some()
    }

    /// Runs a task until [`Self::stop`] is cancelled. A task that ends earlier ends the process.
    pub fn spawn(&mut self, task: impl Future<Output = anyhow::Result<()>> + Send + 'static) {
        self.tasks.spawn(task);
    }

    /// Runs a task when the database can be used, unless `until` is cancelled first. As with
    /// [`Self::spawn`], a task that ends before [`Self::stop`] is cancelled ends the process.
    pub(crate) fn spawn_when(
        &mut self,
        usable: &CancellationToken,
        until: &CancellationToken,
        task: impl Future<Output = ()> + Send + 'static,
    ) {
        let (usable, until) = (usable.clone(), until.clone());
        self.spawn(async move {
            if until.run_until_cancelled(usable.cancelled()).await.is_some() {
                task.await;
            }
            Ok(())
        });
    }

    /// Waits for the database, and ends the process if its schema is outdated.
    ///
    /// Then watches the database: `/readyz` reports it as up while each of `parts` can store its
    /// rows. The returned token is cancelled when the database can be used.
    pub fn watch_database(&mut self, database: Database, parts: &[Part]) -> CancellationToken {
        if let Some(usable) = &self.sqlite_usable {
            return usable.clone();
        }
        let usable = CancellationToken::new();
        if self.is_embedded() {
            self.sqlite_usable = Some(usable.clone());
        }
        let (found, stop) = (usable.clone(), self.stop.clone());
        let (says, evidence) = (self.watched.part(&self.readiness), self.evidence.clone());
        let slow = || "it is slow".to_owned();
        let (settings, parts) = (self.config.database.clone(), parts.to_vec());
        self.spawn(async move {
            let look = async {
                let mut opened = None;
                loop {
                    let file = identity(&settings);
                    if opened.is_some_and(|opened| opened != file) {
                        bail!("the {settings} was removed or replaced while in use");
                    }
                    let mut check = pin!(async {
                        check_schema(&database).await?;
                        opened.get_or_insert(file);
                        found.cancel();
                        Ok::<_, SchemaError>(check_storage(&database, &parts).await)
                    });
                    let checked = loop {
                        match timeout(SLOW, &mut check).await {
                            Ok(checked) => break checked,
                            Err(_) => says(Err(evidence.recent().unwrap_or_else(slow))),
                        }
                    };
                    match checked {
                        Ok(stores) => says(stores.map_err(|error| error.to_string())),
                        Err(error @ (SchemaError::Behind { .. } | SchemaError::Refused(_))) => {
                            return Err(anyhow::Error::from(error).context(settings.to_string()));
                        }
                        Err(SchemaError::Unavailable(error)) => says(Err(error.to_string())),
                    }
                    sleep(if found.is_cancelled() { 4 * LOOK } else { LOOK }).await;
                }
            };
            stop.run_until_cancelled(look).await.unwrap_or(Ok(()))
        });
        usable
    }

    /// Waits for a signal, and then until the tasks have ended, the grace period is over, or a
    /// second signal arrives. A task that ends before the signal is an error.
    pub async fn run(mut self) -> anyhow::Result<()> {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            ended = self.tasks.join_next() => {
                self.stop.cancel();
                let error = match ended {
                    Some(Ok(Ok(()))) | None => anyhow::anyhow!("a task ended although the process was not told to stop"),
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
            bail!(
                "stopped before all work was finished; the rest goes on after the next start. \
                 SHUTDOWN_GRACE can be longer"
            )
        }
    }

    /// Returns whether every task ended in time.
    async fn drain(
        &mut self,
        interrupt: &mut tokio::signal::unix::Signal,
        terminate: &mut tokio::signal::unix::Signal,
    ) -> bool {
        // The metrics server keeps running.
        let all = async {
            while self.tasks.len() > 1 {
                match self.tasks.join_next().await {
                    Some(Ok(Err(error))) => {
                        tracing::warn!(
                            error = format!("{error:#}"),
                            "a task failed while the process was stopping"
                        );
                    }
                    Some(Err(error)) => {
                        tracing::error!(%error, "a task panicked while the process was stopping");
                    }
                    Some(Ok(Ok(()))) | None => {}
                }
            }
        };
        let deadline = Instant::now() + self.config.process.shutdown_grace;
        let clean = tokio::select! {
            ended = timeout_at(deadline, all) => ended.is_ok(),
            _ = interrupt.recv() => false,
            _ = terminate.recv() => false,
        };
        // Spans that are lost do not make a stop unclean.
        if clean && let Some(export) = self.export.take() {
            tokio::select! {
                () = export.finish(deadline) => {}
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
        }
        self.tasks.abort_all();
        clean
    }
}

impl Watched {
    /// Adds a part. The returned function reports what it knows.
    fn part(&self, readiness: &Readiness) -> impl Fn(Said) + Send + use<> {
        let (parts, readiness) = (Arc::clone(&self.0), readiness.clone());
        let mut all = parts.lock().unwrap_or_else(PoisonError::into_inner);
        let own = all.len();
        all.push(None);
        drop(all);
        move |said| {
            let mut all = parts.lock().unwrap_or_else(PoisonError::into_inner);
            all[own] = Some(said);
            if let Some(Err(reason)) = all.iter().flatten().find(|said| said.is_err()) {
                readiness.set_down("database", reason);
            } else if all.iter().all(Option::is_some) {
                readiness.set_up("database");
            }
        }
    }
}

/// Tells an SQLite file from another file at its path.
fn identity(settings: &DatabaseSettings) -> Option<(u64, u64)> {
    let DatabaseSettings::Sqlite(path) = settings else { return None };
    let file = std::fs::metadata(path).ok()?;
    Some((file.dev(), file.ino()))
}

/// A probe sends its request at once and is answered at once. Slower clients are dropped early, so
/// that they do not take the place of probes.
fn metrics_limits(shares: &Shares) -> ServerLimits {
    ServerLimits {
        max_connections: shares.metrics,
        max_turned_away: shares.metrics_turned_away,
        idle_patience: Duration::from_millis(200),
        first_byte_timeout: Duration::from_secs(2),
        head_timeout: Duration::from_secs(2),
        write_timeout: Duration::from_secs(10),
        ..ServerLimits::default()
    }
}

/// Listens on `port`. If it is in use, listens on one of the next eight ports, because the three
/// binaries may share one `.env` with one `PROMETHEUS_SERVER_PORT`. Skips the API's port, because
/// the API may start later.
fn listen_from(hosts: &Hosts, port: u16, api_port: u16) -> std::io::Result<Listeners> {
    const TRIES: u16 = 8;
    let mut last = None;
    for port in (port..=port.saturating_add(TRIES)).filter(|port| *port != api_port) {
        match hosts.listen(port) {
            Ok(listeners) => {
                if last.is_some() {
                    tracing::warn!(
                        port,
                        "the metrics port is in use; listening on this port instead"
                    );
                }
                return Ok(listeners);
            }
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => last = Some(error),
            Err(error) => return Err(error),
        }
    }
    Err(last.unwrap_or_else(|| std::io::ErrorKind::AddrInUse.into()))
}
