//! The settings of each PostgreSQL session, and the checks that refuse an unusable server.
//!
//! Statements set the settings of a session after connecting. The startup packet cannot: PgBouncer
//! refuses or drops parameters that it does not know. The settings are read back before the session
//! is used.
//!
//! This is one file, because a new session passes all of these checks in one order.

use std::{
    collections::HashMap,
    sync::{Arc, LazyLock, Mutex, PoisonError},
    time::Duration,
};

use sea_orm::sqlx::{
    self, AssertSqlSafe, Connection as _, Row as _,
    postgres::{PgConnectOptions, PgConnection, PgRow},
};
use tokio::time::{Instant, timeout};

use super::{EXAMINE, STATEMENT, tls::Relay};

/// The purpose of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Steps that are durable before the caller gets their result.
    Durable,
    /// Idempotent steps: the caller gets their result before they are durable.
    Repeatable,
    /// Changes of the schema. Their statements have no time limit.
    Migration,
}

/// Prepares the sessions of one pool.
#[derive(Debug, Clone)]
pub(crate) struct Sessions {
    options: PgConnectOptions,
    /// The relay that `options` connect to, if there is one. It runs as long as the pool.
    relay: Option<Arc<Relay>>,
    apply: String,
    check: String,
    settings: Vec<(&'static str, String)>,
}

/// The reason why a session cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unusable {
    /// The operator must change something.
    #[error("{0}")]
    Refused(String),
    #[error(transparent)]
    Failed(#[from] sqlx::Error),
}

impl From<Unusable> for sqlx::Error {
    fn from(unusable: Unusable) -> Self {
        match unusable {
            Unusable::Refused(why) => Self::Configuration(why.into()),
            Unusable::Failed(error) => error,
        }
    }
}

/// The oldest major version of PostgreSQL that is supported.
const OLDEST: u32 = 15;

/// The advisory lock that each session of a running process holds as shared. `migrate down` takes
/// it exclusively, and so learns whether a process uses the database.
pub(super) const IN_USE: i64 = 0x6d65_7373_6167_6501;

/// How long the result of a comparison is valid: the server gives each client its own session.
const TRUSTED: Duration = Duration::from_secs(60);

/// Limit of a comparison while a new session of the pool waits for it. It must be well below
/// [`ACQUIRE`], in which the pool also connects.
const QUICK: Duration = Duration::from_millis(500);

/// The servers that gave each client its own session in the latest comparison.
static FOUND: LazyLock<Mutex<HashMap<String, Found>>> = LazyLock::new(Mutex::default);

#[derive(Debug, Clone, Copy)]
struct Found {
    /// When the latest comparison ended, or began if it runs in the background.
    at: Instant,
    /// How long that comparison took.
    took: Duration,
}

/// The result of a comparison of two sessions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Compared {
    Apart,
    Shared,
    /// The server has no free slot for a second session. A pooler does not report this.
    Unknown,
}

/// Settings that plan each statement once for each connection, and read tables through indexes.
///
/// Planning a batch costs more than running a small one. The server makes a generic plan before it
/// knows the size of batches and tables. So the settings exclude plans that are good only for small
/// ones: a sequential scan for each row, and joins that read all rows of both sides.
///
/// Statements must not join two of their own lists, because a nested loop would compare every pair.
/// They ask whether a value is in a list instead (`(x IN (SELECT …)) IS TRUE`, which is hashed). If
/// the server must use an excluded plan, it adds a very high cost, for which it would compile the
/// plan (`jit`).
const PLANS: [(&str, &str); 5] = [
    ("plan_cache_mode", "force_generic_plan"),
    ("enable_seqscan", "off"),
    ("enable_hashjoin", "off"),
    ("enable_mergejoin", "off"),
    ("jit", "off"),
];

impl Purpose {
    /// Returns the settings in the spelling of the server, because they are compared with its
    /// answer.
    fn settings(self) -> Vec<(&'static str, String)> {
        let mut settings = vec![("client_encoding", "UTF8".to_owned())];
        if self == Self::Migration {
            settings.extend([
                ("statement_timeout", "0".to_owned()),
                ("idle_in_transaction_session_timeout", "0".to_owned()),
                // A table that stays locked for longer is unlikely to become free.
                ("lock_timeout", "1min".to_owned()),
            ]);
            return settings;
        }
        let limit = format!("{}s", STATEMENT.as_secs());
        settings.extend([
            // A statement that hangs must not hold its locks, nor a transaction whose client is
            // lost. Our statements are fast.
            ("statement_timeout", limit.clone()),
            ("idle_in_transaction_session_timeout", limit),
            ("lock_timeout", "5s".to_owned()),
        ]);
        settings.extend(PLANS.map(|(name, value)| (name, value.to_owned())));
        if self == Self::Repeatable {
            settings.push(("synchronous_commit", "off".to_owned()));
        }
        settings
    }
}

impl Sessions {
    pub(super) fn new(
        options: PgConnectOptions,
        purpose: Purpose,
        relay: Option<Arc<Relay>>,
    ) -> Self {
        let settings = purpose.settings();
        let set =
            |(name, value): &(&str, String)| format!("set_config('{name}', '{value}', false)");
        let mut apply: Vec<String> = settings.iter().map(set).collect();
        if purpose == Purpose::Durable {
            // An acknowledged step must be durable, whatever the default of the role or of a
            // session that a pooler reuses. The operator may set `remote_apply` and the like.
            apply.push(
                "CASE WHEN current_setting('synchronous_commit') = 'off' \
                 THEN set_config('synchronous_commit', 'on', false) END"
                    .to_owned(),
            );
        }
        let mut check = vec![
            "current_setting('server_version_num')".to_owned(),
            "current_setting('server_encoding')".to_owned(),
            "current_database()::text".to_owned(),
        ];
        check.extend(settings.iter().map(|(name, _)| format!("current_setting('{name}')")));
        if purpose != Purpose::Migration {
            check.push(format!("pg_advisory_lock_shared({IN_USE})::text"));
        }
        Self {
            options,
            relay,
            apply: format!("SELECT {}", apply.join(", ")),
            check: format!("SELECT {}", check.join(", ")),
            settings,
        }
    }

    pub(super) fn options(&self) -> &PgConnectOptions {
        &self.options
    }

    /// Connects outside of any pool. Returns the reason if the new session is refused.
    pub(super) async fn open(&self) -> Result<PgConnection, Unusable> {
        let mut session = self.connect().await?;
        self.admit(&mut session, EXAMINE).await?;
        Ok(session)
    }

    /// Connects outside of any pool. If there are several hosts, the relay refuses one that is
    /// read-only, and then takes the next one. A pool tries again by itself.
    async fn connect(&self) -> Result<PgConnection, sqlx::Error> {
        let others = self.relay.as_ref().map_or(0, |relay| relay.hosts() - 1);
        for _ in 0..others {
            match PgConnection::connect_with(&self.options).await {
                Err(sqlx::Error::Database(error)) if error.is_transient_in_connect_phase() => {}
                connected => return connected,
            }
        }
        PgConnection::connect_with(&self.options).await
    }

    /// Gives a new session its settings, and refuses one that does not keep them, or whose server
    /// cannot be used.
    ///
    /// `patience` is how long it may take to find out whether a pooler shares its sessions.
    pub(super) async fn admit(
        &self,
        session: &mut PgConnection,
        patience: Duration,
    ) -> Result<(), Unusable> {
        // This needs no statement. An older server may not know the settings.
        if let Some(version) = session.server_version_num() {
            refuse_version(version)?;
        }
        // Before a setting of ours could reach a session of another client.
        self.refuse_shared_sessions(session, patience).await?;
        ask(session, &self.apply).await?;
        let row = ask(session, &self.check).await?;
        refuse_version(row.try_get::<String, _>(0)?.parse().unwrap_or(0))?;
        refuse_encoding(&row.try_get::<String, _>(1)?, &row.try_get::<String, _>(2)?)?;
        for (column, (name, value)) in (3..).zip(&self.settings) {
            let found: String = row.try_get(column)?;
            if found != *value {
                return Err(Unusable::Refused(format!(
                    "the session does not keep its settings: {name} is {found}, and must be \
                     {value}; connect to PostgreSQL directly, or through a pooler in session mode"
                )));
            }
        }
        Ok(())
    }

    /// Refuses a pooler that hands one session of the server to several clients in turn, as
    /// PgBouncer does in transaction mode: prepared statements and settings would get mixed up.
    ///
    /// A comparison takes some 20 round trips. A pool has no time for that if the server is far
    /// away. Such a server is compared in the background, if an earlier comparison accepted it.
    async fn refuse_shared_sessions(
        &self,
        session: &mut PgConnection,
        patience: Duration,
    ) -> Result<(), Unusable> {
        let server = self.server();
        let found = lock(&FOUND).get(&server).copied();
        if found.is_some_and(|found| found.at.elapsed() < TRUSTED) {
            return Ok(());
        }
        if let Some(found) = found
            && found.took > QUICK / 2
        {
            self.compare_in_background(server, found);
            return Ok(());
        }
        let patience = if found.is_some() { QUICK } else { patience };
        let begun = Instant::now();
        match timeout(patience, self.compare(session)).await {
            Ok(Ok(Compared::Shared)) => {
                lock(&FOUND).remove(&server);
                Err(Unusable::Refused(SHARED.to_owned()))
            }
            Ok(Ok(Compared::Apart | Compared::Unknown)) => {
                let found = Found { at: Instant::now(), took: begun.elapsed() };
                lock(&FOUND).insert(server, found);
                Ok(())
            }
            Ok(Err(_)) | Err(_) if let Some(found) = found => {
                // A pooler without a free session, or a slow server. The comparison may have
                // stopped inside its transaction.
                self.compare_in_background(server, found);
                sqlx::raw_sql("ROLLBACK").execute(&mut *session).await?;
                Ok(())
            }
            Ok(Err(error)) => Err(error.into()),
            Err(_) => Err(sqlx::Error::PoolTimedOut.into()),
        }
    }

    /// Compares two new sessions, once for all pools of this process. If the server shares
    /// sessions, the next session is refused.
    fn compare_in_background(&self, server: String, found: Found) {
        lock(&FOUND).insert(server.clone(), Found { at: Instant::now(), ..found });
        let sessions = self.clone();
        tokio::spawn(async move {
            let begun = Instant::now();
            let compared = timeout(EXAMINE, async {
                let mut session = sessions.connect().await?;
                sessions.compare(&mut session).await
            });
            match compared.await {
                Ok(Ok(Compared::Shared)) => {
                    lock(&FOUND).remove(&server);
                }
                Ok(Ok(Compared::Apart)) => {
                    let found = Found { at: Instant::now(), took: begun.elapsed() };
                    lock(&FOUND).insert(server, found);
                }
                // There is no result. The next session after `TRUSTED` compares again.
                Ok(Ok(Compared::Unknown) | Err(_)) | Err(_) => {}
            }
        });
    }

    fn server(&self) -> String {
        format!(
            "{}:{} {:?} {}",
            self.options.get_host(),
            self.options.get_port(),
            self.options.get_database(),
            self.options.get_username()
        )
    }

    async fn compare(&self, session: &mut PgConnection) -> Result<Compared, sqlx::Error> {
        let shared = async {
            let mut other = self.connect().await?;
            let shared = share_sessions(session, &mut other).await?;
            let _ = other.close().await;
            Ok::<_, sqlx::Error>(shared)
        };
        match shared.await {
            Ok(true) => Ok(Compared::Shared),
            Ok(false) => Ok(Compared::Apart),
            Err(sqlx::Error::Database(error)) if error.message().contains("statement pooling") => {
                Ok(Compared::Shared)
            }
            Err(sqlx::Error::Database(error)) if error.code().as_deref() == Some("53300") => {
                Ok(Compared::Unknown)
            }
            Err(error) => Err(error),
        }
    }
}

const SHARED: &str = "a pooler between here and PostgreSQL shares sessions among its clients \
    (transaction or statement pooling), and would mix up statements; set pool_mode = session for \
    this database, or connect to PostgreSQL directly";

/// Returns whether the two clients share a session, or one client uses several sessions. Neither
/// happens if each client has its own session.
async fn share_sessions(
    one: &mut PgConnection,
    other: &mut PgConnection,
) -> Result<bool, sqlx::Error> {
    /// Other clients of the pooler may hide the sharing for a moment.
    const ROUNDS: usize = 3;

    let (first, second) = (backend(one).await?, backend(other).await?);
    if first == second {
        return Ok(true);
    }
    for _ in 0..ROUNDS {
        // While a transaction holds its session, another client gets another one. Both statements
        // take one round trip, because the server may be far away.
        let held = ask(one, &format!("BEGIN; {BACKEND}")).await?.try_get(0)?;
        let meanwhile = backend(other).await?;
        sqlx::raw_sql("COMMIT").execute(&mut *one).await?;
        let afterwards = (backend(other).await?, backend(one).await?);
        if (held, meanwhile) != (first.clone(), second.clone())
            || afterwards != (second.clone(), first.clone())
        {
            return Ok(true);
        }
    }
    Ok(false)
}

const BACKEND: &str = "SELECT concat_ws(' ', pid, backend_start, inet_server_addr()) \
    FROM pg_stat_get_activity(pg_backend_pid())";

/// Returns the identity of the server process. Two servers may have the same process id.
async fn backend(session: &mut PgConnection) -> Result<String, sqlx::Error> {
    ask(session, BACKEND).await?.try_get(0)
}

/// Returns one row. The statement is not prepared.
async fn ask(session: &mut PgConnection, sql: &str) -> Result<PgRow, sqlx::Error> {
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).fetch_one(session).await
}

fn refuse_version(version: u32) -> Result<(), Unusable> {
    if version >= OLDEST * 10_000 {
        return Ok(());
    }
    let found = if version < 100_000 {
        format!("{}.{}", version / 10_000, version / 100 % 100)
    } else {
        format!("{}.{}", version / 10_000, version % 10_000)
    };
    Err(Unusable::Refused(format!(
        "the server is PostgreSQL {found}, and must be {OLDEST} or later: upgrade it"
    )))
}

fn refuse_encoding(encoding: &str, database: &str) -> Result<(), Unusable> {
    if encoding == "UTF8" {
        return Ok(());
    }
    Err(Unusable::Refused(format!(
        "the encoding of the database {database} is {encoding}, and must be UTF8: make one with \
         `createdb --encoding=UTF8 --template=template0`, move the data there with pg_dump and \
         psql, and set POSTGRES_DB"
    )))
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Lets the next session of each server compare again.
#[cfg(test)]
pub(crate) fn distrust_servers() {
    for found in lock(&FOUND).values_mut() {
        found.at = found.at.checked_sub(TRUSTED).expect("the machine has run for a minute");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_older_than_15_are_refused_with_their_version() {
        for (version, said) in
            [(140_023, "PostgreSQL 14.23"), (90_624, "PostgreSQL 9.6"), (0, "PostgreSQL 0.0")]
        {
            let refused = refuse_version(version).unwrap_err().to_string();
            assert!(refused.contains(said) && refused.contains("15 or later"), "{refused}");
        }
        refuse_version(150_000).unwrap();
        refuse_version(180_006).unwrap();
    }

    #[test]
    fn encodings_other_than_utf8_are_refused_with_their_name() {
        for encoding in ["LATIN1", "SQL_ASCII", "WIN1251"] {
            let refused = refuse_encoding(encoding, "sms").unwrap_err().to_string();
            assert!(refused.contains(encoding) && refused.contains("must be UTF8"), "{refused}");
        }
        refuse_encoding("UTF8", "sms").unwrap();
    }
}
