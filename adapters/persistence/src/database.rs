//! The database: its connections, and the ways to run statements on them.
//!
//! This is one file, because all ways to run a statement record their errors in the same place. The
//! parts are in their own files.

use std::{
    fmt,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use sea_orm::{
    ConnectionTrait, DatabaseConnection, DbErr, FromQueryResult, QueryResult, RuntimeErr,
    Statement, sqlx::Connection as _,
};
use tokio::time::timeout;

mod dialect;
mod error;
mod evidence;
mod locks;
mod parameters;
mod pool;
mod session;
mod settings;
mod sql;
mod sqlite;
mod tls;
mod transaction;
mod values;

#[cfg(test)]
pub(crate) use self::session::distrust_servers;
use self::{
    dialect::Dialect,
    session::{Purpose, Unusable},
    tls::Relay,
};
pub(crate) use self::{
    dialect::Fragment,
    parameters::{Parameters, Rows},
    sql::{EventSql, Sql},
    transaction::{Transaction, begin, clock},
    values::{bytes, hex, lasting, millis, parsed, read_hex, since_1970, time},
};
pub use self::{
    error::DatabaseError,
    evidence::Evidence,
    locks::MigrationLockError,
    settings::{DatabaseSettings, PostgresSettings},
    tls::{CertificateFile, PostgresHost, SslClientCert, SslMode, SslRootCert},
};

/// A pool of connections to the database.
///
/// A server that stops answering without closing its connections (a pulled cable, a firewall that
/// dropped its state) holds a caller for 13 seconds at most. After that, the pool is a new one.
#[derive(Clone)]
pub struct Database {
    shared: Arc<Shared>,
    evidence: Evidence,
    events: Events,
}

/// Whether changes are recorded as events, for the receiver of `EVENTS_URL`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Events {
    Recorded,
    #[default]
    Off,
}

struct Shared {
    settings: DatabaseSettings,
    name: String,
    connections: u32,
    purpose: Purpose,
    /// What connections with TLS go through.
    relay: Option<Arc<Relay>>,
    pool: RwLock<Pool>,
    /// Whether a session was opened and can be used.
    admitted: AtomicBool,
    /// Whether the connection to an SQLite file must be opened anew.
    doubted: Arc<AtomicBool>,
}

#[derive(Clone)]
struct Pool {
    generation: u64,
    connection: DatabaseConnection,
}

/// How long a caller waits for a connection before it gets an error.
pub(crate) const ACQUIRE: Duration = Duration::from_secs(2);

/// How long PostgreSQL works on one statement.
const STATEMENT: Duration = Duration::from_secs(10);

/// Limit of opening and examining a session outside of the pool: some 30 round trips, also to a
/// server on another continent.
const EXAMINE: Duration = Duration::from_secs(15);

/// How long one step may take, from the request for a connection to the answer. The server gives up
/// a statement before that, so no answer comes later. The step may still have been done.
pub(crate) const LIMIT: Duration =
    STATEMENT.saturating_add(ACQUIRE).saturating_add(Duration::from_secs(1));

/// The reason why a database cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AdmitError {
    /// The operator must change something. A retry does not help.
    #[error("{0}")]
    Refused(String),
    #[error(transparent)]
    Unavailable(DbErr),
}

impl Database {
    /// Returns a pool that connects when it is first used, and again whenever it must.
    ///
    /// `connections` is ignored for SQLite, which has one writer and so one connection.
    pub fn connect_lazily(settings: &DatabaseSettings, name: &str, connections: u32) -> Self {
        Self::connect(settings, name, connections, Purpose::Durable)
    }

    /// Returns the same for steps that may be repeated: the server answers before a step is durable
    /// (`synchronous_commit = off`).
    ///
    /// If the server crashes, it loses the latest of these commits, and never one that a durable
    /// commit followed.
    pub fn connect_lazily_to_repeat(
        settings: &DatabaseSettings,
        name: &str,
        connections: u32,
    ) -> Self {
        Self::connect(settings, name, connections, Purpose::Repeatable)
    }

    /// Returns one session for changes of the schema. It stays the same until the end.
    pub fn connect_to_migrate(settings: &DatabaseSettings, name: &str) -> Self {
        Self::connect(settings, name, 1, Purpose::Migration)
    }

    fn connect(
        settings: &DatabaseSettings,
        name: &str,
        connections: u32,
        purpose: Purpose,
    ) -> Self {
        let relay = settings.relay();
        let doubted = Arc::<AtomicBool>::default();
        let connection = pool::open(settings, name, connections, purpose, relay.as_ref(), &doubted);
        let pool = Pool { generation: 0, connection };
        Self {
            shared: Arc::new(Shared {
                settings: settings.clone(),
                name: name.to_owned(),
                connections,
                purpose,
                relay,
                pool: RwLock::new(pool),
                admitted: AtomicBool::new(false),
                doubted,
            }),
            evidence: Evidence::default(),
            events: Events::Off,
        }
    }

    /// Notes in `evidence` which of its steps fail for a reason that concerns the whole database.
    #[must_use]
    pub fn with_evidence(self, evidence: Evidence) -> Self {
        Self { evidence, ..self }
    }

    pub(crate) fn evidence(&self) -> &Evidence {
        &self.evidence
    }

    /// Records events, or not, in the commits of the changes that they report.
    #[must_use]
    pub fn with_events(self, events: Events) -> Self {
        Self { events, ..self }
    }

    pub(crate) fn events(&self) -> Events {
        self.events
    }

    /// Returns the current pool, for work without a time limit.
    pub fn connection(&self) -> DatabaseConnection {
        self.pool().connection
    }

    fn pool(&self) -> Pool {
        self.shared.pool.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn is_postgres(&self) -> bool {
        matches!(self.shared.settings, DatabaseSettings::Postgres(_))
    }

    #[cfg(test)]
    pub(crate) fn settings(&self) -> &DatabaseSettings {
        &self.shared.settings
    }

    /// Returns an empty list of parameters for a statement.
    pub(crate) fn parameters(&self) -> Parameters {
        Parameters::new(if self.is_postgres() { Dialect::Postgres } else { Dialect::Sqlite })
    }

    /// Runs one statement, and returns how many rows it touched.
    pub(crate) async fn execute(
        &self,
        sql: &Sql,
        parameters: Parameters,
    ) -> Result<u64, DatabaseError> {
        let statement = sql.statement(parameters)?;
        self.step(async |it| Ok(it.execute_raw(statement).await?.rows_affected())).await
    }

    /// Runs one statement, and returns its rows.
    pub(crate) async fn rows<R: FromQueryResult>(
        &self,
        sql: &Sql,
        parameters: Parameters,
    ) -> Result<Vec<R>, DatabaseError> {
        read_all(&self.raw_rows(sql, parameters).await?)
    }

    /// Runs one statement, and returns its first row.
    pub(crate) async fn row<R: FromQueryResult>(
        &self,
        sql: &Sql,
        parameters: Parameters,
    ) -> Result<Option<R>, DatabaseError> {
        Ok(self.rows(sql, parameters).await?.into_iter().next())
    }

    /// Runs one statement, and returns whether it has a row.
    pub(crate) async fn finds(
        &self,
        sql: &Sql,
        parameters: Parameters,
    ) -> Result<bool, DatabaseError> {
        Ok(!self.raw_rows(sql, parameters).await?.is_empty())
    }

    /// Runs one statement, and returns what `read` makes of each row that it can read.
    pub(crate) async fn readable_rows<R: FromQueryResult, T>(
        &self,
        sql: &Sql,
        parameters: Parameters,
        read: impl Fn(R) -> Result<T, DatabaseError>,
    ) -> Result<Vec<T>, DatabaseError> {
        Ok(readable(&self.raw_rows(sql, parameters).await?, read))
    }

    /// Runs one statement, and returns its rows as they are.
    pub(crate) async fn raw_rows(
        &self,
        sql: &Sql,
        parameters: Parameters,
    ) -> Result<Vec<QueryResult>, DatabaseError> {
        let statement = sql.statement(parameters)?;
        self.step(async |it| Ok(it.query_all_raw(statement).await?)).await
    }

    /// Does one step on the database, in at most [`LIMIT`].
    ///
    /// After that it is unknown whether the step was done.
    pub(crate) async fn step<T>(
        &self,
        step: impl AsyncFnOnce(DatabaseConnection) -> Result<T, DatabaseError>,
    ) -> Result<T, DatabaseError> {
        if self.is_postgres() {
            self.step_within(LIMIT, step).await
        } else {
            // A file does not stop answering.
            self.noted(step(self.connection()).await)
        }
    }

    /// Does one step in at most `limit`.
    pub(crate) async fn step_within<T>(
        &self,
        limit: Duration,
        step: impl AsyncFnOnce(DatabaseConnection) -> Result<T, DatabaseError>,
    ) -> Result<T, DatabaseError> {
        let Pool { generation, connection } = self.pool();
        if let Ok(result) = timeout(limit, step(connection)).await {
            return self.noted(result);
        }
        self.renew(generation);
        Err(DbErr::Custom("no answer in time".to_owned()).into())
    }

    fn noted<T>(&self, result: Result<T, DatabaseError>) -> Result<T, DatabaseError> {
        if let Err(error) = &result
            && self.evidence.note(error)
        {
            self.shared.doubted.store(true, Ordering::Release);
        }
        result
    }

    /// Replaces the pool, unless another caller has replaced this generation already.
    ///
    /// A connection that was left in the middle of a statement keeps its place in the pool until
    /// the statement ends. If the server is silent, that is when the kernel gives up: after a
    /// quarter of an hour.
    fn renew(&self, generation: u64) {
        let Shared { settings, name, connections, purpose, relay, pool, doubted, .. } =
            &*self.shared;
        if !self.is_postgres() {
            return;
        }
        let mut pool = pool.write().unwrap_or_else(PoisonError::into_inner);
        if pool.generation == generation {
            tracing::warn!(pool = name, "the database does not answer; opening new connections");
            let connection =
                pool::open(settings, name, *connections, *purpose, relay.as_ref(), doubted);
            *pool = Pool { generation: generation + 1, connection };
        }
    }

    /// Checks that the database answers.
    pub async fn ping(&self) -> Result<(), DbErr> {
        match self.step(async |connection| Ok(connection.ping().await?)).await {
            Ok(()) => Ok(()),
            Err(error) => Err(self.reason(error.into()).await),
        }
    }

    /// Returns the reason for an error: a pool that gets no connection retries until its time is
    /// up, and does not say why.
    pub(crate) async fn reason(&self, error: DbErr) -> DbErr {
        if !matches!(error, DbErr::ConnectionAcquire(_)) {
            return error;
        }
        match self.examine().await {
            Err(AdmitError::Refused(why)) => DbErr::Conn(RuntimeErr::Internal(why)),
            Err(AdmitError::Unavailable(why)) => why,
            Ok(()) => error,
        }
    }

    /// Opens a session outside of the pool, once, and refuses a server that cannot be used: one
    /// that is too old, a database that is not UTF-8, a pooler that shares sessions.
    ///
    /// The pool examines its sessions as well, but says only that it got none.
    pub async fn admit(&self) -> Result<(), AdmitError> {
        if !self.shared.admitted.load(Ordering::Relaxed) {
            self.examine().await?;
            self.shared.admitted.store(true, Ordering::Relaxed);
        }
        Ok(())
    }

    async fn examine(&self) -> Result<(), AdmitError> {
        let Shared { settings, name, purpose, relay, .. } = &*self.shared;
        let DatabaseSettings::Postgres(postgres) = settings else { return Ok(()) };
        let sessions = postgres.sessions(name, *purpose, relay.as_ref());
        let unavailable = |why: String| DbErr::Conn(RuntimeErr::Internal(why));
        let opened = timeout(EXAMINE, sessions.open()).await;
        match opened {
            Ok(Ok(session)) => {
                let _ = session.close().await;
                Ok(())
            }
            Ok(Err(Unusable::Refused(why))) => Err(AdmitError::Refused(why)),
            Ok(Err(Unusable::Failed(error))) => {
                let why = error.as_database_error().map(|told| told.message().to_owned());
                let why = why.unwrap_or_else(|| error.to_string());
                Err(AdmitError::Unavailable(unavailable(why)))
            }
            Err(_) => Err(AdmitError::Unavailable(unavailable("no answer in time".to_owned()))),
        }
    }

    /// Closes all connections. Running statements end first.
    pub async fn close(self) -> Result<(), DbErr> {
        self.connection().close().await
    }
}

/// Runs one statement on a connection, and returns its rows.
pub(crate) async fn query<R: FromQueryResult>(
    connection: &DatabaseConnection,
    statement: Statement,
) -> Result<Vec<R>, DatabaseError> {
    read_all(&connection.query_all_raw(statement).await?)
}

/// Returns what `read` makes of each row that it can read. A row that cannot be read was not written
/// by this service; it must not hold up the other rows.
pub(crate) fn readable<R: FromQueryResult, T>(
    rows: &[QueryResult],
    read: impl Fn(R) -> Result<T, DatabaseError>,
) -> Vec<T> {
    let readable = |row: &QueryResult| {
        let read = R::from_query_result(row, "").map_err(DatabaseError::from).and_then(&read);
        read.inspect_err(|error| {
            tracing::error!(%error, "skipping a row that this service did not write");
        })
        .ok()
    };
    rows.iter().filter_map(readable).collect()
}

fn read_all<R: FromQueryResult>(rows: &[QueryResult]) -> Result<Vec<R>, DatabaseError> {
    let rows = rows.iter().map(|row| R::from_query_result(row, ""));
    Ok(rows.collect::<Result<_, _>>()?)
}

impl Events {
    pub(crate) fn are_recorded(self) -> bool {
        self == Self::Recorded
    }
}

impl From<bool> for Events {
    fn from(recorded: bool) -> Self {
        if recorded { Self::Recorded } else { Self::Off }
    }
}

impl fmt::Debug for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Database")
            .field("settings", &self.shared.settings)
            .field("name", &self.shared.name)
            .finish_non_exhaustive()
    }
}
