use std::{
    fmt,
    path::PathBuf,
    str::FromStr,
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use application::ports::StoreError;
use sea_orm::{
    ConnectionTrait, DatabaseConnection, DbBackend, DbErr, QueryResult, RuntimeErr,
    SqlxPostgresConnector, Statement, Value,
    sqlx::{
        Connection as _,
        postgres::{PgConnectOptions, PgPoolOptions, PgSslMode},
    },
};

use tokio::time::{Instant, sleep, timeout};
use uuid::Uuid;

use crate::storage::Evidence;

mod session;
mod sqlite;
mod tls;
mod transaction;

#[cfg(test)]
pub(crate) use self::session::distrust_servers;
pub use self::tls::{SslMode, SslRootCert};
pub(crate) use self::transaction::{Transaction, begin, clock};
use self::{
    session::{IN_USE, Purpose, Sessions, Unusable},
    tls::{Relay, Route},
};

#[derive(Debug, Clone)]
pub enum DatabaseSettings {
    Postgres(PostgresSettings),
    /// The file is made when it is not there.
    Sqlite(PathBuf),
}

#[derive(Clone)]
pub struct PostgresSettings {
    pub host: String,
    pub port: u16,
    pub database: String,
    pub user: String,
    pub password: Option<String>,
    pub ssl_mode: SslMode,
    /// The authorities that sign the server's certificate.
    pub ssl_root_cert: Option<SslRootCert>,
}

/// A pool of connections to the one database.
///
/// A server that falls silent without closing its connections (a pulled cable, a firewall that
/// forgot) does not hold a caller for longer than 13 seconds; after that the pool is a new one.
#[derive(Clone)]
pub struct Database {
    shared: Arc<Shared>,
    evidence: Evidence,
}

struct Shared {
    settings: DatabaseSettings,
    name: String,
    connections: u32,
    purpose: Purpose,
    /// What connections with TLS go through.
    relay: Option<Arc<Relay>>,
    pool: RwLock<Pool>,
    /// Whether a session was opened, and nothing was wrong with it.
    admitted: AtomicBool,
    /// Whether the connection to an SQLite file is to be opened anew.
    doubted: Arc<AtomicBool>,
}

#[derive(Clone)]
struct Pool {
    generation: u64,
    connection: DatabaseConnection,
}

/// One step, as each database says it. Parameters are `$1`, `$2`, … in both.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sql {
    pub(crate) postgres: &'static str,
    pub(crate) sqlite: &'static str,
}

/// How long a caller waits for a connection, and so how soon it hears that there is none.
pub(crate) const ACQUIRE: Duration = Duration::from_secs(2);

/// How long a connection lives, and how long after another of its pool it ends at the earliest, where
/// there are so few that all get their turn in that time. After a failover, sessions with what was the primary do not stay for long.
const LIFETIME: Duration = Duration::from_secs(60);
const APART: Duration = Duration::from_secs(5);

/// How long a connection may have been idle and is used without asking whether it is still there.
const FRESH: Duration = Duration::from_secs(1);

/// How long PostgreSQL works on one statement.
const STATEMENT: Duration = Duration::from_secs(10);

/// Limit of opening and examining a session outside of the pool: some 30 round trips, also to a
/// server on another continent.
const EXAMINE: Duration = Duration::from_secs(15);

/// The advisory lock of who migrates: "messager", as eight bytes.
const MIGRATION: i64 = 0x6d65_7373_6167_6572;

/// Why a database cannot be used now, or ever.
#[derive(Debug, thiserror::Error)]
pub enum AdmitError {
    /// The operator must change something: trying again will not help.
    #[error("{0}")]
    Refused(String),
    #[error(transparent)]
    Unavailable(DbErr),
}

#[derive(Debug, thiserror::Error)]
pub enum MigrationLockError {
    #[error(
        "another migration has held the lock for {} s: {holder}. Wait for it, or end it with \
         pg_terminate_backend, and try again", patience.as_secs()
    )]
    Held { holder: String, patience: Duration },
    #[error(transparent)]
    Unavailable(#[from] DbErr),
}

/// How long one step may take, from asking for a connection to the answer: whatever takes longer
/// than the server allows itself will not be answered any more. It may still be done, and late.
pub(crate) const LIMIT: Duration =
    STATEMENT.saturating_add(ACQUIRE).saturating_add(Duration::from_secs(1));

impl Database {
    /// A pool that connects when it is first used, and again whenever that is needed.
    ///
    /// `connections` is ignored for SQLite: it has one writer, and so one connection.
    pub fn connect_lazily(settings: &DatabaseSettings, name: &str, connections: u32) -> Self {
        Self::connect(settings, name, connections, Purpose::Durable)
    }

    /// The same, for steps that may be taken again: the server answers before a step is durable
    /// (`synchronous_commit = off`). A crash of the server takes the latest commits back, in their
    /// order; so never one that a durable step came after.
    pub fn connect_lazily_to_repeat(
        settings: &DatabaseSettings,
        name: &str,
        connections: u32,
    ) -> Self {
        Self::connect(settings, name, connections, Purpose::Repeatable)
    }

    /// One session for changes of the schema. It stays the same until the end.
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
        let connection = settings.pool(name, connections, purpose, relay.as_ref(), &doubted);
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
        }
    }

    /// The same pool, which notes here what its steps tell about the database.
    #[must_use]
    pub fn with_evidence(self, evidence: Evidence) -> Self {
        Self { evidence, ..self }
    }

    pub(crate) fn evidence(&self) -> &Evidence {
        &self.evidence
    }

    /// The pool of this moment, for work that is not limited in time.
    pub fn connection(&self) -> DatabaseConnection {
        self.pool().connection
    }

    fn pool(&self) -> Pool {
        self.shared.pool.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Does one step on the database, in at most [`LIMIT`].
    ///
    /// After that it is not known whether the step was taken.
    pub(crate) async fn step<T>(
        &self,
        step: impl AsyncFnOnce(DatabaseConnection) -> Result<T, DbErr>,
    ) -> Result<T, DbErr> {
        if self.is_postgres() {
            self.step_within(LIMIT, step).await
        } else {
            // A file does not fall silent.
            self.noted(step(self.connection()).await)
        }
    }

    fn noted<T>(&self, result: Result<T, DbErr>) -> Result<T, DbErr> {
        if let Err(error) = &result
            && self.evidence.note(error)
        {
            self.shared.doubted.store(true, Ordering::Release);
        }
        result
    }

    /// As [`Self::step`], with a limit of the caller's.
    pub(crate) async fn step_within<T>(
        &self,
        limit: Duration,
        step: impl AsyncFnOnce(DatabaseConnection) -> Result<T, DbErr>,
    ) -> Result<T, DbErr> {
        let Pool { generation, connection } = self.pool();
        if let Ok(result) = timeout(limit, step(connection)).await {
            return self.noted(result);
        }
        self.renew(generation);
        Err(DbErr::Custom("no answer in time".to_owned()))
    }

    /// Replaces the pool of this generation, unless somebody did already.
    ///
    /// A connection that was left in the middle of a statement has to hear the end of it before
    /// it is of use again, and its place in the pool is taken until then: with a silent server,
    /// until the kernel gives up, which takes a quarter of an hour.
    fn renew(&self, generation: u64) {
        let Shared { settings, name, connections, purpose, relay, pool, doubted, .. } =
            &*self.shared;
        if !self.is_postgres() {
            return;
        }
        let mut pool = pool.write().unwrap_or_else(PoisonError::into_inner);
        if pool.generation == generation {
            tracing::warn!(pool = name, "the database is silent: connecting anew");
            let connection = settings.pool(name, *connections, *purpose, relay.as_ref(), doubted);
            *pool = Pool { generation: generation + 1, connection };
        }
    }

    /// Whether the database answers.
    pub async fn ping(&self) -> Result<(), DbErr> {
        match self.step(async |connection| connection.ping().await).await {
            Ok(()) => Ok(()),
            Err(error) => Err(self.reason(error).await),
        }
    }

    /// What is behind an error: a pool that gets no connection tries again until the time is up, and
    /// keeps to itself why.
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
    /// The sessions of the pool are examined as well, but a pool tells only that it got none.
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
        let opened = timeout(EXAMINE, sessions.open()).await;
        let unavailable = |why: String| DbErr::Conn(RuntimeErr::Internal(why));
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

    /// Waits until no other session holds the lock of migrations, and holds it until
    /// [`Self::unlock_after_migration`]. `waiting` is told once of whom it waits for.
    ///
    /// PostgreSQL only. The pool must be one of [`Self::connect_to_migrate`].
    pub async fn lock_for_migration(
        &self,
        patience: Duration,
        waiting: impl FnOnce(&str),
    ) -> Result<(), MigrationLockError> {
        const PAUSE: Duration = Duration::from_millis(200);
        let begun = Instant::now();
        let mut waiting = Some(waiting);
        while !self.advisory("pg_try_advisory_lock", MIGRATION).await? {
            let holder = self.holders(MIGRATION, true).await?.join("; ");
            if let Some(waiting) = waiting.take() {
                waiting(&holder);
            }
            if begun.elapsed() >= patience {
                return Err(MigrationLockError::Held { holder, patience });
            }
            sleep(PAUSE).await;
        }
        Ok(())
    }

    /// Lets others migrate: a pooler may keep the session.
    pub async fn unlock_after_migration(&self) -> Result<(), DbErr> {
        self.advisory("pg_advisory_unlock", MIGRATION).await.map(|_| ())
    }

    /// Keeps processes from using the database until this session ends, or says which do.
    ///
    /// PostgreSQL only. The pool must be one of [`Self::connect_to_migrate`].
    pub(crate) async fn lock_out_processes(&self) -> Result<Vec<String>, DbErr> {
        /// Longer than a process that does nothing goes without a session: its sessions end after a
        /// minute, and it looks after the database every two seconds.
        const LOOKING: Duration = Duration::from_secs(3);
        const PAUSE: Duration = Duration::from_millis(200);

        // Those of versions that hold no lock.
        let found = self.sessions_by_name().await?;
        if !found.is_empty() {
            return Ok(found);
        }
        if !self.advisory("pg_try_advisory_lock", IN_USE).await? {
            return self.holders(IN_USE, true).await;
        }
        let begun = Instant::now();
        while begun.elapsed() < LOOKING {
            let waiting = self.holders(IN_USE, false).await?;
            if !waiting.is_empty() {
                self.advisory("pg_advisory_unlock", IN_USE).await?;
                return Ok(waiting);
            }
            sleep(PAUSE).await;
        }
        Ok(Vec::new())
    }

    async fn sessions_by_name(&self) -> Result<Vec<String>, DbErr> {
        const SQL: &str = "SELECT format('process %s, %s, from %s', pid, application_name,
                coalesce(host(client_addr), 'a local socket')) AS holder
            FROM pg_stat_activity
            WHERE datname = current_database() AND pid <> pg_backend_pid()
                AND application_name LIKE 'messager %' AND application_name <> 'messager migrate'
            ORDER BY pid";
        let rows = self.connection().query_all_raw(self.as_written(SQL, vec![])).await?;
        rows.iter().map(|row| row.try_get("", "holder")).collect()
    }

    async fn advisory(&self, function: &str, key: i64) -> Result<bool, DbErr> {
        let statement = self.as_written(&format!("SELECT {function}({key}) AS done"), vec![]);
        let row = self.connection().query_one_raw(statement).await?;
        row.ok_or_else(|| DbErr::RecordNotFound(function.to_owned()))?.try_get("", "done")
    }

    /// The sessions of others that hold an advisory lock, or wait for it, for people.
    async fn holders(&self, key: i64, granted: bool) -> Result<Vec<String>, DbErr> {
        let (high, low) = (key >> 32, key & 0xffff_ffff);
        let sql = format!(
            "SELECT format('process %s, %s, from %s, connected since %s', locks.pid,
                coalesce(nullif(application_name, ''), 'of another role'),
                coalesce(host(client_addr), 'a local socket'),
                coalesce(to_char(backend_start, 'YYYY-MM-DD HH24:MI:SS TZ'), 'an unknown time')
            ) AS holder
            FROM pg_locks AS locks LEFT JOIN pg_stat_activity AS activity USING (pid)
            WHERE locktype = 'advisory' AND granted = {granted} AND objsubid = 1
                AND classid::bigint = {high} AND objid::bigint = {low}
                AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
                AND locks.pid <> pg_backend_pid()
            ORDER BY 1"
        );
        let rows = self.connection().query_all_raw(self.as_written(&sql, vec![])).await?;
        rows.iter().map(|row| row.try_get("", "holder")).collect()
    }

    /// Ends all connections; what is still running ends first.
    pub async fn close(self) -> Result<(), DbErr> {
        self.connection().close().await
    }

    #[cfg(test)]
    pub(crate) fn settings(&self) -> &DatabaseSettings {
        &self.shared.settings
    }

    pub(crate) fn is_postgres(&self) -> bool {
        matches!(self.shared.settings, DatabaseSettings::Postgres(_))
    }

    pub(crate) fn statement(&self, sql: Sql, values: Vec<Value>) -> Statement {
        self.as_written(if self.is_postgres() { sql.postgres } else { sql.sqlite }, values)
    }

    /// A statement for the one database that it is written for.
    pub(crate) fn as_written(&self, sql: &str, values: Vec<Value>) -> Statement {
        let backend = if self.is_postgres() { DbBackend::Postgres } else { DbBackend::Sqlite };
        Statement::from_sql_and_values(backend, sql, values)
    }

    /// An id as a parameter.
    pub(crate) fn id(&self, id: Uuid) -> Value {
        if self.is_postgres() { id.into() } else { id.to_string().into() }
    }

    pub(crate) async fn execute(&self, sql: Sql, values: Vec<Value>) -> Result<u64, DbErr> {
        let statement = self.statement(sql, values);
        self.step(async |it| Ok(it.execute_raw(statement).await?.rows_affected())).await
    }

    pub(crate) async fn rows(
        &self,
        sql: Sql,
        values: Vec<Value>,
    ) -> Result<Vec<QueryResult>, DbErr> {
        let statement = self.statement(sql, values);
        self.step(async |it| it.query_all_raw(statement).await).await
    }
}

impl DatabaseSettings {
    /// How many descriptors a pool of so many connections may have open. A connection through the
    /// relay for TLS has both ends of the relay's socket and the one to the server, and the pool has
    /// the socket that the relay listens on. One session more is opened to examine the server.
    pub fn descriptors(&self, connections: u32) -> u64 {
        match self {
            Self::Postgres(_) => {
                let sessions = u64::from(connections) + 1;
                if self.has_relay() { 3 * sessions + 1 } else { sessions }
            }
            // The file, its log and its index, while they are opened anew.
            Self::Sqlite(_) => 8,
        }
    }

    /// As with libpq, a local socket has no TLS, whatever the mode.
    fn has_relay(&self) -> bool {
        match self {
            Self::Postgres(postgres) => {
                postgres.ssl_mode != SslMode::Disable && !postgres.host.starts_with('/')
            }
            Self::Sqlite(_) => false,
        }
    }

    /// None: connections have no TLS, and need none.
    fn relay(&self) -> Option<Arc<Relay>> {
        match self {
            Self::Postgres(postgres) if self.has_relay() => Some(Arc::new(Relay::to(Route {
                host: postgres.host.clone(),
                port: postgres.port,
                mode: postgres.ssl_mode,
                roots: postgres.ssl_root_cert.clone(),
            }))),
            Self::Postgres(_) | Self::Sqlite(_) => None,
        }
    }

    fn pool(
        &self,
        name: &str,
        connections: u32,
        purpose: Purpose,
        relay: Option<&Arc<Relay>>,
        doubted: &Arc<AtomicBool>,
    ) -> DatabaseConnection {
        match self {
            Self::Postgres(postgres) => {
                let turnover = Turnover::of(connections);
                let sessions = Arc::new(postgres.sessions(name, purpose, relay));
                let options = sessions.options().clone();
                // Its lock is the session's.
                let stays = purpose == Purpose::Migration;
                SqlxPostgresConnector::from_sqlx_postgres_pool(
                    PgPoolOptions::new()
                        .max_connections(connections)
                        .acquire_timeout(ACQUIRE)
                        .max_lifetime(None)
                        .idle_timeout((!stays).then_some(LIFETIME))
                        .after_connect(move |session, _| {
                            let sessions = Arc::clone(&sessions);
                            Box::pin(async move { Ok(sessions.admit(session, ACQUIRE).await?) })
                        })
                        .after_release(move |connection, it| {
                            // A transaction that did not end takes its connection with it.
                            let ends = connection.is_in_transaction()
                                || (!stays && turnover.retires(it.age));
                            Box::pin(async move { Ok(!ends) })
                        })
                        // It was asked when it was released.
                        .test_before_acquire(false)
                        .before_acquire(|connection, it| {
                            Box::pin(async move {
                                if it.idle_for > FRESH {
                                    connection.ping().await?;
                                }
                                Ok(true)
                            })
                        })
                        .connect_lazy_with(options),
                )
            }
            Self::Sqlite(path) => sqlite::pool(path, Arc::clone(doubted)),
        }
    }
}

/// Retires the connections of a pool, one after the other: those that were opened together would
/// have to be opened anew together, while the work waits.
#[derive(Debug)]
struct Turnover {
    apart: Duration,
    latest: Mutex<Option<Instant>>,
}

impl Turnover {
    fn of(connections: u32) -> Self {
        let apart = APART.min(LIFETIME / connections.max(1));
        Self { apart, latest: Mutex::default() }
    }

    /// Whether a connection of this age, which was just released, is the next to go.
    fn retires(&self, age: Duration) -> bool {
        if age < LIFETIME {
            return false;
        }
        let mut latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        let retires = latest.is_none_or(|latest| latest.elapsed() > self.apart);
        if retires {
            *latest = Some(Instant::now());
        }
        retires
    }
}

impl PostgresSettings {
    fn sessions(&self, name: &str, purpose: Purpose, relay: Option<&Arc<Relay>>) -> Sessions {
        Sessions::new(self.connect_options(name, relay), purpose, relay.cloned())
    }

    fn connect_options(&self, name: &str, relay: Option<&Arc<Relay>>) -> PgConnectOptions {
        let mut options = PgConnectOptions::new_without_pgpass()
            .host(&self.host)
            .port(self.port)
            .database(&self.database)
            .username(&self.user)
            // The relay has it.
            .ssl_mode(PgSslMode::Disable)
            .application_name(name)
            // PgBouncer refuses it in the startup packet; no number of ours is a fraction.
            .extra_float_digits(None);
        if let Some(password) = &self.password {
            options = options.password(password);
        }
        if let Some(relay) = relay {
            options = options.socket(relay.folder());
        }
        options
    }
}

/// Where the database is, for people.
impl fmt::Display for DatabaseSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Postgres(PostgresSettings { host, port, database, .. }) => {
                write!(f, "PostgreSQL at {host}:{port}, database {database}")
            }
            Self::Sqlite(path) => write!(f, "SQLite file {}", path.display()),
        }
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

/// Leaves the password out.
impl fmt::Debug for PostgresSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresSettings")
            .field("host", &self.host)
            .field("port", &self.port)
            .field("database", &self.database)
            .field("user", &self.user)
            .field("ssl_mode", &self.ssl_mode)
            .finish_non_exhaustive()
    }
}

/// Whole milliseconds; a duration too long for that is not one of ours.
pub(crate) fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

/// A time of the database, which says it in milliseconds since 1970.
pub(crate) fn time(millis: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_millis(millis.unsigned_abs())
}

/// A time as the database is told it. One before 1970 is none of ours.
pub(crate) fn since_1970(time: SystemTime) -> i64 {
    time.duration_since(UNIX_EPOCH).map_or(0, millis)
}

/// Bytes as both databases read them from a text.
pub(crate) fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |half: u8| char::from(DIGITS[usize::from(half)]);
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}

/// An error of the database as a cause. Its text tells its own causes, so it has none to show.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Told(pub(crate) DbErr);

impl From<Told> for StoreError {
    fn from(told: Told) -> Self {
        Self::Unavailable(told.into())
    }
}

/// What a row says that is no text of ours to us.
pub(crate) fn parsed<T: FromStr>(text: &str, what: &'static str) -> Result<T, DbErr> {
    text.parse().map_err(|_| DbErr::Type(format!("not {what}")))
}

/// Bytes of a known number.
pub(crate) fn bytes<const N: usize>(
    row: &QueryResult,
    column: &'static str,
) -> Result<[u8; N], DbErr> {
    let bytes: Vec<u8> = row.try_get("", column)?;
    bytes.try_into().map_err(|_| DbErr::Type(format!("not {N} bytes of {column}")))
}

/// How long, in milliseconds; what is over takes no time.
pub(crate) fn lasting(millis: i64) -> Duration {
    Duration::from_millis(u64::try_from(millis).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn many_connections_all_get_their_turn_in_a_lifetime() {
        const MANY: u32 = 30;
        let turnover = Turnover::of(MANY);

        for _ in 0..MANY {
            assert!(turnover.retires(LIFETIME));
            advance(LIFETIME / MANY + Duration::from_millis(1)).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn connections_that_were_opened_together_end_one_by_one() {
        let turnover = Turnover::of(3);
        let retired = |age| (0..3).filter(|_| turnover.retires(age)).count();

        assert_eq!(retired(APART), 0, "young");
        assert_eq!(retired(LIFETIME), 1);
        advance(APART).await;
        assert_eq!(retired(LIFETIME + APART), 0);
        advance(Duration::from_millis(1)).await;
        assert_eq!(retired(LIFETIME + APART), 1);
    }
}
