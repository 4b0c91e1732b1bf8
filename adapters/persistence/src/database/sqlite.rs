use std::{
    fs::OpenOptions,
    io,
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use sea_orm::{
    DatabaseConnection, SqlxSqliteConnector,
    sqlx::{
        self, Connection as _, Error,
        sqlite::{
            SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqlitePoolOptions,
            SqliteSynchronous,
        },
    },
};

/// A pool with one connection, which is opened when it is first used.
///
/// The pool closes a connection that is not known to be clean, and opens another. If `doubted` is
/// set, it closes the next one that is released: a connection that was opened while the file
/// system took no writes stays read-only for ever.
pub(super) fn pool(path: &Path, doubted: Arc<AtomicBool>) -> DatabaseConnection {
    create_for_owner(path);
    let opened = Arc::new(OpenedFile { path: path.to_owned(), identity: OnceLock::new() });
    let still = Arc::clone(&opened);
    SqlxSqliteConnector::from_sqlx_sqlite_pool(
        SqlitePoolOptions::new()
            .max_connections(1)
            // One connection for all: wait for it, there is no other.
            .acquire_timeout(Duration::from_secs(30))
            .after_connect(move |_, _| {
                let checked = opened.check();
                Box::pin(async move { checked })
            })
            // The connection was tested when it was released.
            .test_before_acquire(false)
            .before_acquire(move |_, _| {
                let checked = still.check();
                Box::pin(async move { checked.map(|()| true) })
            })
            .after_release(move |connection, _| {
                let doubted = doubted.swap(false, Ordering::AcqRel);
                Box::pin(async move { Ok(!doubted && is_clean(connection).await) })
            })
            .connect_lazy_with(
                SqliteConnectOptions::new()
                    .filename(path)
                    // If it was removed while in use, an empty one would not help.
                    .create_if_missing(false)
                    .journal_mode(SqliteJournalMode::Wal)
                    // A commit survives a power cut, not only a crash of ours.
                    .synchronous(SqliteSynchronous::Full)
                    .busy_timeout(Duration::from_secs(5)),
            ),
    )
}

/// Whether the last transaction of a connection has ended, for SQLite and for the driver.
///
/// They disagree after an error for which SQLite rolls back by itself (a full disk, a failing one,
/// no memory): the driver's own `ROLLBACK` fails then, and it goes on counting that transaction as
/// open. It would take each later transaction for a savepoint of that one, and each later commit
/// would commit nothing.
async fn is_clean(connection: &mut SqliteConnection) -> bool {
    // One command to the driver's thread. SQLite refuses it if it has an open transaction.
    let refused = sqlx::raw_sql("BEGIN; ROLLBACK").execute(&mut *connection).await.err();
    let is_clean = refused.is_none() && !connection.is_in_transaction();
    if !is_clean {
        let error = refused.map(|error| error.to_string());
        tracing::warn!(error, "closing a connection whose transaction did not end");
    }
    is_clean
}

/// The file that the first connection opened.
#[derive(Debug)]
struct OpenedFile {
    path: PathBuf,
    identity: OnceLock<(u64, u64)>,
}

impl OpenedFile {
    /// Refuses to go on if the path names another file by now. SQLite would store everything in
    /// the one it has open, which no other process can find.
    fn check(&self) -> Result<(), Error> {
        let now = identity(&self.path)?;
        if *self.identity.get_or_init(|| now) == now {
            return Ok(());
        }
        Err(io::Error::other("the database file was replaced while in use").into())
    }
}

/// What tells a file from another one at its path.
fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let file = std::fs::metadata(path)?;
    Ok((file.dev(), file.ino()))
}

/// SQLite's own files would be readable by all, and it gives those beside one the mode of that
/// one. What fails here fails again, and is told, when the file is opened.
fn create_for_owner(path: &Path) {
    let _ = OpenOptions::new().create_new(true).write(true).mode(0o600).open(path);
}
