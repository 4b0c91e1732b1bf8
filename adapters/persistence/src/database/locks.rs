//! Advisory locks of PostgreSQL. They allow one migration at a time, and prevent a revert while a
//! process uses the database.

use std::time::Duration;

use sea_orm::{DbErr, FromQueryResult};
use tokio::time::{Instant, sleep};

use super::{Database, DatabaseError, Sql, query, session::IN_USE};

/// The lock of a migration: "messager", as eight bytes.
const MIGRATION: i64 = 0x6d65_7373_6167_6572;

const PAUSE: Duration = Duration::from_millis(200);

/// How long [`Database::lock_out_processes`] looks for processes. An idle process is without a
/// session for less time: its sessions end after a minute, and it checks the database every two
/// seconds.
const LOOKING: Duration = Duration::from_secs(3);

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

impl From<DatabaseError> for MigrationLockError {
    fn from(error: DatabaseError) -> Self {
        Self::Unavailable(error.into())
    }
}

#[derive(FromQueryResult)]
struct Done {
    done: bool,
}

#[derive(FromQueryResult)]
struct Holder {
    holder: String,
}

impl Database {
    /// Waits until no other session holds the lock of migrations, and holds it until
    /// [`Self::unlock_after_migration`]. `waiting` is called once with the holder.
    ///
    /// PostgreSQL only. The pool must be one of [`Self::connect_to_migrate`].
    pub async fn lock_for_migration(
        &self,
        patience: Duration,
        waiting: impl FnOnce(&str),
    ) -> Result<(), MigrationLockError> {
        let begun = Instant::now();
        let mut waiting = Some(waiting);
        while !self.advisory(&TRY_LOCK, MIGRATION).await? {
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

    /// Releases the lock of migrations. The end of the connection may not release it, because a
    /// pooler may keep the session.
    pub async fn unlock_after_migration(&self) -> Result<(), DbErr> {
        self.advisory(&UNLOCK, MIGRATION).await?;
        Ok(())
    }

    /// Keeps processes from using the database until this session ends, or returns the processes
    /// that use it.
    ///
    /// PostgreSQL only. The pool must be one of [`Self::connect_to_migrate`].
    pub(crate) async fn lock_out_processes(&self) -> Result<Vec<String>, DatabaseError> {
        // Processes of early versions hold no lock.
        let found = self.list(&SESSIONS_BY_NAME, self.parameters()).await?;
        if !found.is_empty() {
            return Ok(found);
        }
        let begun = Instant::now();
        while !self.advisory(&TRY_LOCK, IN_USE).await? {
            let users = self.holders(IN_USE, true).await?;
            if !users.is_empty() {
                return Ok(users);
            }
            // Their sessions ended in between, and the lock is not held yet.
            if begun.elapsed() >= LOOKING {
                return Ok(vec!["a process whose sessions are short".to_owned()]);
            }
        }
        let begun = Instant::now();
        while begun.elapsed() < LOOKING {
            let waiting = self.holders(IN_USE, false).await?;
            if !waiting.is_empty() {
                self.advisory(&UNLOCK, IN_USE).await?;
                return Ok(waiting);
            }
            sleep(PAUSE).await;
        }
        Ok(Vec::new())
    }

    async fn advisory(&self, sql: &Sql, key: i64) -> Result<bool, DatabaseError> {
        let statement = sql.statement(self.parameters().with("key", key))?;
        let rows: Vec<Done> = query(&self.connection(), statement).await?;
        let row = rows.first().ok_or_else(|| DatabaseError::missing("an advisory lock"))?;
        Ok(row.done)
    }

    /// Returns descriptions of the other sessions that hold an advisory lock, or wait for it.
    async fn holders(&self, key: i64, granted: bool) -> Result<Vec<String>, DatabaseError> {
        let parameters = self
            .parameters()
            .with("high", key >> 32)
            .with("low", key & 0xffff_ffff)
            .with("granted", granted);
        self.list(&HOLDERS, parameters).await
    }

    async fn list(
        &self,
        sql: &Sql,
        parameters: super::Parameters,
    ) -> Result<Vec<String>, DatabaseError> {
        let rows: Vec<Holder> = query(&self.connection(), sql.statement(parameters)?).await?;
        Ok(rows.into_iter().map(|row| row.holder).collect())
    }
}

static TRY_LOCK: Sql = Sql::new("SELECT pg_try_advisory_lock(:key) AS done");

static UNLOCK: Sql = Sql::new("SELECT pg_advisory_unlock(:key) AS done");

static SESSIONS_BY_NAME: Sql = Sql::new(
    "
SELECT format('process %s, %s, from %s', pid, application_name,
    coalesce(host(client_addr), 'a local socket')) AS holder
FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid()
  AND application_name LIKE 'messager %' AND application_name <> 'messager migrate'
ORDER BY pid",
);

static HOLDERS: Sql = Sql::new(
    "
SELECT format('process %s, %s, from %s, connected since %s', locks.pid,
    coalesce(nullif(application_name, ''), 'of another role'),
    coalesce(host(client_addr), 'a local socket'),
    coalesce(to_char(backend_start, 'YYYY-MM-DD HH24:MI:SS TZ'), 'an unknown time')
) AS holder
FROM pg_locks AS locks LEFT JOIN pg_stat_activity AS activity USING (pid)
WHERE locktype = 'advisory' AND granted = :granted AND objsubid = 1
  AND classid::bigint = :high AND objid::bigint = :low
  AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
  AND locks.pid <> pg_backend_pid()
ORDER BY 1",
);
