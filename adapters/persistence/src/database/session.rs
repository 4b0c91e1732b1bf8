//! What every session with PostgreSQL has, and which servers are refused.
//!
//! The settings of a session are set by statements after connecting, not by the startup packet:
//! PgBouncer refuses or drops what it does not know there. They are read back before the session
//! is used.

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

/// What a session is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Steps that are durable when they are answered.
    Durable,
    /// Steps that may be taken again: they are answered when they are done, and durable soon.
    Repeatable,
    /// Changes of the schema, which take as long as they take.
    Migration,
}

/// Makes the sessions of one pool ready.
#[derive(Debug, Clone)]
pub(crate) struct Sessions {
    options: PgConnectOptions,
    /// What the options lead to; it lasts as long as the pool.
    _relay: Option<Arc<Relay>>,
    apply: String,
    check: String,
    settings: Vec<(&'static str, String)>,
}

/// Why a session cannot be used.
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

/// Each session of a running process holds this advisory lock, shared: `migrate down` takes it
/// exclusively, and so learns whether any process uses the database.
pub(super) const IN_USE: i64 = 0x6d65_7373_6167_6501;

/// How long a server that was found to give each client a session of its own is trusted to do so.
const TRUSTED: Duration = Duration::from_secs(60);

/// Limit of a comparison while a new session of the pool waits for it. It must be well below
/// [`ACQUIRE`], in which the pool also connects.
const QUICK: Duration = Duration::from_millis(500);

/// The servers that were found to give each client a session of its own.
static FOUND: LazyLock<Mutex<HashMap<String, Found>>> = LazyLock::new(Mutex::default);

#[derive(Debug, Clone, Copy)]
struct Found {
    /// When the latest comparison ended, or began if it runs in the background.
    at: Instant,
    /// How long that comparison took.
    took: Duration,
}

/// What a comparison of two sessions came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Compared {
    Apart,
    Shared,
    /// The server has no second session to give. No pooler says this.
    Unknown,
}

/// Statements are planned once for each connection, and reach tables through indexes.
///
/// Planning a batch costs more than a small one does. A plan that is kept was made without knowing
/// how large the batches and the tables would be, so what would be right only for small ones is
/// ruled out: a table that is read as a whole for each row, and joins that read all of both sides.
/// Statements must not join two lists of their own, which would compare each with each; they ask
/// whether a value is in one (`(x IN (SELECT …)) IS TRUE`, which is hashed). What has been ruled
/// out and is used all the same counts as very dear, for which the server would compile it.
const PLANS: [(&str, &str); 5] = [
    ("plan_cache_mode", "force_generic_plan"),
    ("enable_seqscan", "off"),
    ("enable_hashjoin", "off"),
    ("enable_mergejoin", "off"),
    ("jit", "off"),
];

impl Purpose {
    /// Settings as the server writes them: they are compared with what it says.
    fn settings(self) -> Vec<(&'static str, String)> {
        let mut settings = vec![("client_encoding", "UTF8".to_owned())];
        if self == Self::Migration {
            settings.extend([
                ("statement_timeout", "0".to_owned()),
                ("idle_in_transaction_session_timeout", "0".to_owned()),
                // A table that is not free by then will not be.
                ("lock_timeout", "1min".to_owned()),
            ]);
            return settings;
        }
        let limit = format!("{}s", STATEMENT.as_secs());
        settings.extend([
            // No statement of ours is slow; one that hangs, or a transaction that was left open
            // by a lost client, must not hold its locks.
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
            // What is acknowledged must be durable, whatever the default of the role or of the
            // session that a pooler hands on; `remote_apply` and its like are the operator's.
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
            _relay: relay,
            apply: format!("SELECT {}", apply.join(", ")),
            check: format!("SELECT {}", check.join(", ")),
            settings,
        }
    }

    pub(super) fn options(&self) -> &PgConnectOptions {
        &self.options
    }

    /// Connects outside of any pool, and says what a new session is refused for.
    pub(super) async fn open(&self) -> Result<PgConnection, Unusable> {
        let mut session = PgConnection::connect_with(&self.options).await?;
        self.admit(&mut session, EXAMINE).await?;
        Ok(session)
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
        // Known without a statement. An older server may not know the settings.
        if let Some(version) = session.server_version_num() {
            refuse_version(version)?;
        }
        // Before a setting of ours could reach the sessions of others.
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
    /// Comparing takes some 20 round trips. A pool has no time for that if the server is far away:
    /// a server that was found good before is then compared again in the background.
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
                // broken off inside of its transaction.
                self.compare_in_background(server, found);
                sqlx::raw_sql("ROLLBACK").execute(&mut *session).await?;
                Ok(())
            }
            Ok(Err(error)) => Err(error.into()),
            Err(_) => Err(sqlx::Error::PoolTimedOut.into()),
        }
    }

    /// Compares sessions of its own, once for all pools of this process. A server that turns out
    /// to share sessions is refused from the next session on.
    fn compare_in_background(&self, server: String, found: Found) {
        lock(&FOUND).insert(server.clone(), Found { at: Instant::now(), ..found });
        let sessions = self.clone();
        tokio::spawn(async move {
            let begun = Instant::now();
            let compared = timeout(EXAMINE, async {
                let mut session = PgConnection::connect_with(&sessions.options).await?;
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
                // Not known now. The next session after TRUSTED asks again.
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
            let mut other = PgConnection::connect_with(&self.options).await?;
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

/// Whether the server takes these two clients' statements to one session, or one client's to
/// several. Neither happens to clients that have a session each.
async fn share_sessions(
    one: &mut PgConnection,
    other: &mut PgConnection,
) -> Result<bool, sqlx::Error> {
    /// Others that use the pooler at the same time may hide it for a moment.
    const ROUNDS: usize = 3;

    let (first, second) = (backend(one).await?, backend(other).await?);
    if first == second {
        return Ok(true);
    }
    for _ in 0..ROUNDS {
        // While a transaction holds its session, others get another one. One round trip for both:
        // the server may be far away.
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

/// Which server process it was. Process ids alone may be the same on two servers.
async fn backend(session: &mut PgConnection) -> Result<String, sqlx::Error> {
    ask(session, BACKEND).await?.try_get(0)
}

/// One row. Nothing is prepared for it.
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

/// Makes each server due for another comparison.
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
