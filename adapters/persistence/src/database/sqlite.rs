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

/// Returns a pool with one connection, which is opened at its first use.
///
/// The pool closes a connection whose transaction may be open, and opens another. If `doubted` is
/// set, it closes the next connection that is released. The reason: a connection that was opened
/// while the file system was read-only stays read-only.
pub(super) fn pool(path: &Path, doubted: Arc<AtomicBool>) -> DatabaseConnection {
    create_for_owner(path);
    let opened = Arc::new(OpenedFile { path: path.to_owned(), identity: OnceLock::new() });
    let still = Arc::clone(&opened);
    SqlxSqliteConnector::from_sqlx_sqlite_pool(
        SqlitePoolOptions::new()
            .max_connections(1)
            // All callers share one connection, so they wait for it.
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
                    // If the file was removed while in use, an empty one would not help.
                    .create_if_missing(false)
                    .journal_mode(SqliteJournalMode::Wal)
                    // A commit survives a power cut, and not only a crash of this process.
                    .synchronous(SqliteSynchronous::Full)
                    .busy_timeout(Duration::from_secs(5)),
            ),
    )
}

/// Returns whether the last transaction of a connection has ended, for SQLite and for the driver.
///
/// They disagree after an error for which SQLite rolls back by itself (a full or failing disk, no
/// memory). The `ROLLBACK` of the driver fails then, and the driver still counts that transaction
/// as open. It would make each later transaction a savepoint of it, and each later commit would
/// commit nothing.
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
    /// Fails if the path now names another file. SQLite would store everything in the file that it
    /// has open, which no other process can find.
    fn check(&self) -> Result<(), Error> {
        let now = identity(&self.path)?;
        if *self.identity.get_or_init(|| now) == now {
            return Ok(());
        }
        Err(io::Error::other("the database file was replaced while in use").into())
    }
}

/// Returns the identity of a file, which differs from that of another file at the same path.
fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let file = std::fs::metadata(path)?;
    Ok((file.dev(), file.ino()))
}

/// Creates the file for its owner only. SQLite would make it readable for all users. SQLite gives
/// its other files the mode of this one.
///
/// An error is ignored, because opening the file reports it.
fn create_for_owner(path: &Path) {
    let _ = OpenOptions::new().create_new(true).write(true).mode(0o600).open(path);
}
