//! Reads the tables of the service.

use std::{path::Path, time::Duration};

use sqlx::{
    Connection, PgPool, SqliteConnection,
    sqlite::{SqliteConnectOptions, SqliteJournalMode},
};

use super::clock::Moment;

/// A row of `delivery`. Times are in milliseconds since 1970.
#[derive(Debug, Clone)]
pub struct Entry {
    pub id: String,
    pub group_id: String,
    pub phone: String,
    pub state: String,
    pub attempt: i32,
    pub accepted_at: Moment,
    pub expires_at: Moment,
    pub called_at: Option<Moment>,
    pub ended_at: Option<Moment>,
    pub detail: Option<String>,
}

/// A write that no owner of a partition or of a call may make. A trigger records it.
#[derive(Debug, Clone)]
pub struct IllegalWrite {
    pub at: Moment,
    /// `offset` or `epoch`.
    pub kind: String,
    pub subject: String,
    pub detail: String,
}

/// How many rows are not done yet.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Backlog {
    pub outbox: i64,
    pub open: i64,
}

/// The rows of a run so far.
#[derive(Debug, Default, Clone)]
pub struct Ledger {
    pub entries: Vec<Entry>,
    pub illegal_writes: Vec<IllegalWrite>,
}

/// Reads rows into a type whose fields have the names of the columns. The derive macro of sqlx does the
/// same, but compiles the drivers and SQLite a second time.
macro_rules! read_from_rows {
    ($name:ident: $($field:ident),+) => {
        impl<'row, R> sqlx::FromRow<'row, R> for $name
        where
            R: sqlx::Row,
            for<'name> &'name str: sqlx::ColumnIndex<R>,
            i32: sqlx::Decode<'row, R::Database> + sqlx::Type<R::Database>,
            i64: sqlx::Decode<'row, R::Database> + sqlx::Type<R::Database>,
            String: sqlx::Decode<'row, R::Database> + sqlx::Type<R::Database>,
        {
            fn from_row(row: &'row R) -> sqlx::Result<Self> {
                Ok(Self { $($field: row.try_get(stringify!($field))?),+ })
            }
        }
    };
}
pub(crate) use read_from_rows;

read_from_rows!(
    Entry: id, group_id, phone, state, attempt, accepted_at, expires_at, called_at, ended_at, detail
);
read_from_rows!(IllegalWrite: at, kind, subject, detail);
read_from_rows!(Backlog: outbox, open);

impl Entry {
    pub fn has_ended(&self) -> bool {
        !matches!(&*self.state, "pending" | "calling")
    }
}

impl Backlog {
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

// The triggers see every write, also between two reads of the lab. A legal write costs nearly
// nothing: PostgreSQL checks the conditions without a function call.
const WATCH: &str = "
CREATE TABLE lab_pulse (beats bigint NOT NULL);
INSERT INTO lab_pulse VALUES (0);

CREATE TABLE lab_illegal_write (
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    kind text NOT NULL,
    subject text NOT NULL,
    detail text NOT NULL
);

CREATE FUNCTION lab_illegal_lease() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO lab_illegal_write (kind, subject, detail) VALUES (
        CASE WHEN NEW.epoch = OLD.epoch AND NEW.owner IS NOT DISTINCT FROM OLD.owner
             THEN 'offset' ELSE 'epoch' END,
        'partition ' || NEW.partition,
        format('owner %s -> %s, epoch %s -> %s, offset %s -> %s, lease until %s',
            OLD.owner, NEW.owner, OLD.epoch, NEW.epoch, OLD.next_offset, NEW.next_offset,
            OLD.expires_at));
    RETURN NEW;
END $$;

CREATE TRIGGER lab_lease AFTER UPDATE ON partition_lease FOR EACH ROW WHEN (
    NEW.next_offset < OLD.next_offset
    OR (OLD.next_offset IS NOT NULL AND NEW.next_offset IS NULL)
    -- a new owner without a new epoch
    OR (NEW.epoch = OLD.epoch AND NEW.owner IS DISTINCT FROM OLD.owner AND NEW.owner IS NOT NULL)
    OR NEW.epoch NOT IN (OLD.epoch, OLD.epoch + 1)
    -- a lease taken from an owner that still had it
    OR (NEW.epoch > OLD.epoch AND OLD.owner IS NOT NULL AND OLD.expires_at > now())
) EXECUTE FUNCTION lab_illegal_lease();

CREATE FUNCTION lab_illegal_delivery() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO lab_illegal_write (kind, subject, detail) VALUES ('epoch', NEW.message_id::text,
        format('%s (attempt %s, due %s) -> %s (attempt %s)',
            OLD.state, OLD.attempt, OLD.due_at, NEW.state, NEW.attempt));
    RETURN NEW;
END $$;

CREATE TRIGGER lab_delivery AFTER UPDATE ON delivery FOR EACH ROW WHEN (
    OLD.state NOT IN ('pending', 'calling')
    -- a message for which no gateway can be used stays pending, and only its next call moves
    OR (OLD.state = 'pending' AND NEW.state NOT IN ('calling', 'expired', 'pending'))
    OR (OLD.state = 'pending' AND NEW.state = 'pending' AND NEW.attempt <> OLD.attempt)
    -- a call begun while another may still last. Under the same lease the other was never made.
    -- Read as JSON, because the schema of 0.1.0 has no such column.
    OR (OLD.state = 'calling' AND NEW.state = 'calling' AND OLD.due_at > now()
        AND to_jsonb(NEW) -> 'epoch' IS DISTINCT FROM to_jsonb(OLD) -> 'epoch')
    OR (NEW.state = 'calling' AND NEW.attempt <> OLD.attempt + 1)
) EXECUTE FUNCTION lab_illegal_delivery();
";

/// Puts the triggers on the tables.
pub async fn watch(database: &PgPool) -> sqlx::Result<()> {
    sqlx::raw_sql(WATCH).execute(database).await.map(|_| ())
}

/// Reads the ledger.
pub async fn read(database: &PgPool) -> sqlx::Result<Ledger> {
    let entries = sqlx::query_as(
        "SELECT message_id::text AS id, group_id, phone, state, attempt,
            (extract(epoch FROM accepted_at) * 1000)::bigint AS accepted_at,
            (extract(epoch FROM expires_at) * 1000)::bigint AS expires_at,
            (extract(epoch FROM called_at) * 1000)::bigint AS called_at,
            (extract(epoch FROM ended_at) * 1000)::bigint AS ended_at,
            detail
        FROM delivery",
    );
    let illegal_writes = sqlx::query_as(
        "SELECT (extract(epoch FROM at) * 1000)::bigint AS at, kind, subject, detail
        FROM lab_illegal_write",
    );
    Ok(Ledger {
        entries: entries.fetch_all(database).await?,
        illegal_writes: illegal_writes.fetch_all(database).await?,
    })
}

const BACKLOG: &str = "
SELECT (SELECT count(*) FROM outbox) AS outbox,
    (SELECT count(*) FROM delivery WHERE state IN ('pending', 'calling')) AS open";

/// Counts the rows that are not done yet.
pub async fn backlog(database: &PgPool) -> sqlx::Result<Backlog> {
    sqlx::query_as(BACKLOG).fetch_one(database).await
}

/// Connects to the SQLite file of the embedded default, as another program would.
pub async fn open_file(file: &Path) -> sqlx::Result<SqliteConnection> {
    let options = SqliteConnectOptions::new()
        .filename(file)
        .journal_mode(SqliteJournalMode::Wal)
        .busy_timeout(Duration::from_secs(5));
    SqliteConnection::connect_with(&options).await
}

/// Reads the ledger of the embedded default. No trigger watches it.
pub async fn read_file(file: &Path) -> sqlx::Result<Ledger> {
    let mut connection = open_file(file).await?;
    let entries = sqlx::query_as(
        "SELECT message_id AS id, group_id, phone, state, attempt, accepted_at, expires_at,
            called_at, ended_at, detail
        FROM delivery",
    );
    let entries = entries.fetch_all(&mut connection).await?;
    connection.close().await?;
    Ok(Ledger { entries, illegal_writes: Vec::new() })
}

/// Counts the rows that are not done yet in the embedded default.
pub async fn backlog_of_file(file: &Path) -> sqlx::Result<Backlog> {
    let mut connection = open_file(file).await?;
    let backlog = sqlx::query_as(BACKLOG).fetch_one(&mut connection).await?;
    connection.close().await?;
    Ok(backlog)
}

/// Returns whether no message waits. Cheap at any size, unlike [`backlog`].
///
/// A row that a processor of an earlier version settles just when its message is taken over stays in
/// the outbox until it expires. Its message does not wait, so the row does not count.
pub async fn is_done(database: &PgPool) -> sqlx::Result<bool> {
    let sql = "SELECT NOT EXISTS (SELECT FROM delivery WHERE state IN ('pending', 'calling'))
        AND NOT EXISTS (SELECT FROM outbox
            WHERE NOT EXISTS (SELECT FROM delivery WHERE message_id = outbox.id))";
    sqlx::query_scalar(sql).fetch_one(database).await
}

/// Counts messages by state, in the order of the states' names.
pub async fn states(database: &PgPool) -> sqlx::Result<Vec<(String, i64)>> {
    let sql = "SELECT state, count(*) FROM delivery GROUP BY state ORDER BY state";
    sqlx::query_as(sql).fetch_all(database).await
}

/// Returns the illegal writes as lines of text.
pub async fn illegal_writes(database: &PgPool) -> sqlx::Result<Vec<String>> {
    let sql = "SELECT format('%s %s %s: %s', at, kind, subject, detail)
        FROM lab_illegal_write ORDER BY at";
    sqlx::query_scalar(sql).fetch_all(database).await
}

/// Counts the rows of the outbox whose message was taken over. Only time removes them.
pub async fn left_in_outbox(database: &PgPool) -> sqlx::Result<i64> {
    let sql = "SELECT count(*) FROM outbox
        WHERE EXISTS (SELECT FROM delivery WHERE message_id = outbox.id)";
    count(database, sql).await
}

/// Returns whether the relay has published the whole outbox.
pub async fn is_published(database: &PgPool) -> sqlx::Result<bool> {
    let sql = "SELECT published >= coalesce((SELECT max(sequence) FROM outbox), 0) FROM relay";
    sqlx::query_scalar(sql).fetch_one(database).await
}

/// Returns the one number that a statement yields.
pub async fn count(database: &PgPool, sql: &'static str) -> sqlx::Result<i64> {
    sqlx::query_scalar(sql).fetch_one(database).await
}

/// Makes a commit, which takes as long as those of the service.
pub async fn commit_once(database: &PgPool) -> sqlx::Result<()> {
    sqlx::query("UPDATE lab_pulse SET beats = beats + 1").execute(database).await.map(|_| ())
}

/// Counts the sessions of the service.
pub async fn sessions(database: &PgPool) -> sqlx::Result<i64> {
    let sql = "SELECT count(*) FROM pg_stat_activity
        WHERE datname = current_database() AND application_name LIKE 'messager%'";
    count(database, sql).await
}

/// Counts the partitions whose owner knows where to begin.
pub async fn partitions_read(database: &PgPool) -> sqlx::Result<i64> {
    let sql = "SELECT count(*) FROM partition_lease
        WHERE owner IS NOT NULL AND next_offset IS NOT NULL AND expires_at > now()";
    count(database, sql).await
}
