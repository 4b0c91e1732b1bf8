use std::{
    fmt,
    path::PathBuf,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use sea_orm::{
    ConnectionTrait, DatabaseConnection, DatabaseTransaction, DbBackend, DbErr, QueryResult,
    SqliteTransactionMode, SqlxPostgresConnector, SqlxSqliteConnector, Statement,
    TransactionOptions, TransactionTrait, Value,
    sqlx::{
        postgres::{PgConnectOptions, PgPoolOptions},
        sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
    },
};

pub use sea_orm::sqlx::postgres::PgSslMode as SslMode;

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
    /// The certificates that sign the server's, for `verify-ca` and `verify-full`.
    pub ssl_root_cert: Option<PathBuf>,
}

/// A pool of connections to the one database.
#[derive(Debug, Clone)]
pub struct Database {
    connection: DatabaseConnection,
}

/// One step, as each database says it. Parameters are `$1`, `$2`, … in both.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sql {
    pub(crate) postgres: &'static str,
    pub(crate) sqlite: &'static str,
}

/// How long a caller waits for a connection, and so how soon it hears that there is none.
const ACQUIRE: Duration = Duration::from_secs(2);

impl Database {
    /// A pool that connects when it is first used, and again whenever that is needed.
    ///
    /// `connections` is ignored for SQLite: it has one writer, and so one connection.
    pub fn connect_lazily(settings: &DatabaseSettings, name: &str, connections: u32) -> Self {
        let connection = match settings {
            DatabaseSettings::Postgres(postgres) => SqlxPostgresConnector::from_sqlx_postgres_pool(
                PgPoolOptions::new()
                    .max_connections(connections)
                    .acquire_timeout(ACQUIRE)
                    // After a failover, sessions with what was the primary do not stay for long.
                    .max_lifetime(Duration::from_secs(60))
                    .connect_lazy_with(postgres.connect_options(name)),
            ),
            DatabaseSettings::Sqlite(path) => SqlxSqliteConnector::from_sqlx_sqlite_pool(
                SqlitePoolOptions::new()
                    .max_connections(1)
                    // One connection for all: wait for it, there is no other.
                    .acquire_timeout(Duration::from_secs(30))
                    .connect_lazy_with(
                        SqliteConnectOptions::new()
                            .filename(path)
                            .create_if_missing(true)
                            .journal_mode(SqliteJournalMode::Wal)
                            // A commit survives a power cut, not only a crash of ours.
                            .synchronous(SqliteSynchronous::Full)
                            .busy_timeout(Duration::from_secs(5)),
                    ),
            ),
        };
        Self { connection }
    }

    pub fn connection(&self) -> &DatabaseConnection {
        &self.connection
    }

    /// Whether the database answers.
    pub async fn ping(&self) -> Result<(), DbErr> {
        self.connection.ping().await
    }

    /// Waits until no other session holds this lock, and holds it until the session ends.
    ///
    /// PostgreSQL only. The pool must have one connection.
    pub async fn lock_for_migration(&self) -> Result<(), DbErr> {
        /// "messager", as eight bytes.
        const KEY: i64 = 0x6d65_7373_6167_6572;
        let sql = format!(
            "SET lock_timeout = 0; SET statement_timeout = 0; SELECT pg_advisory_lock({KEY})"
        );
        self.connection.execute_unprepared(&sql).await.map(|_| ())
    }

    /// Ends all connections; what is still running ends first.
    pub async fn close(self) -> Result<(), DbErr> {
        self.connection.close().await
    }

    pub(crate) fn is_postgres(&self) -> bool {
        self.connection.get_database_backend() == DbBackend::Postgres
    }

    pub(crate) fn statement(&self, sql: Sql, values: Vec<Value>) -> Statement {
        self.as_written(if self.is_postgres() { sql.postgres } else { sql.sqlite }, values)
    }

    /// A statement for the one database that it is written for.
    pub(crate) fn as_written(&self, sql: &str, values: Vec<Value>) -> Statement {
        Statement::from_sql_and_values(self.connection.get_database_backend(), sql, values)
    }

    pub(crate) async fn execute(&self, sql: Sql, values: Vec<Value>) -> Result<u64, DbErr> {
        Ok(self.connection.execute_raw(self.statement(sql, values)).await?.rows_affected())
    }

    pub(crate) async fn rows(
        &self,
        sql: Sql,
        values: Vec<Value>,
    ) -> Result<Vec<QueryResult>, DbErr> {
        self.connection.query_all_raw(self.statement(sql, values)).await
    }

    /// A transaction that holds SQLite's write lock from its start, so that it cannot fail
    /// half-way for want of it.
    pub(crate) async fn begin(&self) -> Result<DatabaseTransaction, DbErr> {
        self.connection
            .begin_with_options(TransactionOptions {
                sqlite_transaction_mode: Some(SqliteTransactionMode::Immediate),
                ..TransactionOptions::default()
            })
            .await
    }
}

impl PostgresSettings {
    fn connect_options(&self, name: &str) -> PgConnectOptions {
        let mut options = PgConnectOptions::new_without_pgpass()
            .host(&self.host)
            .port(self.port)
            .database(&self.database)
            .username(&self.user)
            .ssl_mode(self.ssl_mode)
            .application_name(name)
            // No statement of ours is slow; one that hangs, or a transaction that was left open
            // by a lost client, must not hold its locks.
            .options([
                ("statement_timeout", "10s"),
                ("idle_in_transaction_session_timeout", "10s"),
                ("lock_timeout", "5s"),
            ]);
        if let Some(password) = &self.password {
            options = options.password(password);
        }
        if let Some(certificate) = &self.ssl_root_cert {
            options = options.ssl_root_cert(certificate);
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

/// An error of the database as a cause. Its text tells its own causes, so it has none to show.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Told(pub(crate) DbErr);
