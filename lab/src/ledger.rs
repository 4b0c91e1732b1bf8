//! What the service's tables say.

use std::{path::Path, time::Duration};

use sqlx::{
    Connection, FromRow, PgPool, SqliteConnection,
    sqlite::{SqliteConnectOptions, SqliteJournalMode},
};

use crate::clock::Moment;

/// A row of `delivery`. Times are in milliseconds since 1970.
#[derive(Debug, Clone, FromRow)]
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

/// A write that no owner of a partition or of a call may make, caught by a trigger in the act.
#[derive(Debug, Clone, FromRow)]
pub struct Offence {
    pub at: Moment,
    /// `offset` or `epoch`.
    pub kind: String,
    pub subject: String,
    pub detail: String,
}

/// What is not done yet.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromRow)]
pub struct Backlog {
    pub outbox: i64,
    pub in_transit: i64,
    pub open: i64,
}

/// All that the tables say of a run so far.
#[derive(Debug, Default, Clone)]
pub struct Ledger {
    pub entries: Vec<Entry>,
    pub offences: Vec<Offence>,
}

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

// The triggers see every write, those between two looks of ours too, and cost nothing where all is
// well: their conditions are checked without a call.
const WATCH: &str = "
CREATE TABLE lab_pulse (beats bigint NOT NULL);
INSERT INTO lab_pulse VALUES (0);

CREATE TABLE lab_offence (
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    kind text NOT NULL,
    subject text NOT NULL,
    detail text NOT NULL
);

CREATE FUNCTION lab_lease_offence() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO lab_offence (kind, subject, detail) VALUES (
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
    -- a lease taken from somebody who still had it
    OR (NEW.epoch > OLD.epoch AND OLD.owner IS NOT NULL AND OLD.expires_at > now())
) EXECUTE FUNCTION lab_lease_offence();

CREATE FUNCTION lab_delivery_offence() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO lab_offence (kind, subject, detail) VALUES ('epoch', NEW.message_id::text,
        format('%s (attempt %s, due %s) -> %s (attempt %s)',
            OLD.state, OLD.attempt, OLD.due_at, NEW.state, NEW.attempt));
    RETURN NEW;
END $$;

CREATE TRIGGER lab_delivery AFTER UPDATE ON delivery FOR EACH ROW WHEN (
    OLD.state NOT IN ('pending', 'calling')
    OR (OLD.state = 'pending' AND NEW.state NOT IN ('calling', 'expired'))
    -- a call begun while another one may still last; under one lease it is one that was not made
    -- (read as JSON: the schema of 0.1.0 has no such column)
    OR (OLD.state = 'calling' AND NEW.state = 'calling' AND OLD.due_at > now()
        AND to_jsonb(NEW) -> 'epoch' IS DISTINCT FROM to_jsonb(OLD) -> 'epoch')
    OR (NEW.state = 'calling' AND NEW.attempt <> OLD.attempt + 1)
) EXECUTE FUNCTION lab_delivery_offence();
";

/// Puts the triggers on the tables.
pub async fn watch(database: &PgPool) -> sqlx::Result<()> {
    sqlx::raw_sql(WATCH).execute(database).await.map(|_| ())
}

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
    let offences = sqlx::query_as(
        "SELECT (extract(epoch FROM at) * 1000)::bigint AS at, kind, subject, detail
        FROM lab_offence",
    );
    Ok(Ledger {
        entries: entries.fetch_all(database).await?,
        offences: offences.fetch_all(database).await?,
    })
}

const BACKLOG: &str = "
SELECT (SELECT count(*) FROM outbox) AS outbox,
    (SELECT count(*) FROM in_transit) AS in_transit,
    (SELECT count(*) FROM delivery WHERE state IN ('pending', 'calling')) AS open";

pub async fn backlog(database: &PgPool) -> sqlx::Result<Backlog> {
    sqlx::query_as(BACKLOG).fetch_one(database).await
}

/// A connection of our own to the file of the embedded default, as another program has one.
pub async fn open_file(file: &Path) -> sqlx::Result<SqliteConnection> {
    let options = SqliteConnectOptions::new()
        .filename(file)
        .journal_mode(SqliteJournalMode::Wal)
        .busy_timeout(Duration::from_secs(5));
    SqliteConnection::connect_with(&options).await
}

/// What the embedded default's tables say. No trigger watches them.
pub async fn read_file(file: &Path) -> sqlx::Result<Ledger> {
    let mut connection = open_file(file).await?;
    let entries = sqlx::query_as(
        "SELECT message_id AS id, group_id, phone, state, attempt, accepted_at, expires_at,
            called_at, ended_at, detail
        FROM delivery",
    );
    let entries = entries.fetch_all(&mut connection).await?;
    connection.close().await?;
    Ok(Ledger { entries, offences: Vec::new() })
}

pub async fn backlog_of_file(file: &Path) -> sqlx::Result<Backlog> {
    let mut connection = open_file(file).await?;
    let backlog = sqlx::query_as(BACKLOG).fetch_one(&mut connection).await?;
    connection.close().await?;
    Ok(backlog)
}

/// A commit, which takes as long as those of the service.
pub async fn beat(database: &PgPool) -> sqlx::Result<()> {
    sqlx::query("UPDATE lab_pulse SET beats = beats + 1").execute(database).await.map(|_| ())
}

/// How many sessions the service has.
pub async fn sessions(database: &PgPool) -> sqlx::Result<i64> {
    let sql = "SELECT count(*) FROM pg_stat_activity
        WHERE datname = current_database() AND application_name LIKE 'messager%'";
    sqlx::query_scalar(sql).fetch_one(database).await
}

/// How many partitions have an owner who knows where to begin.
pub async fn partitions_read(database: &PgPool) -> sqlx::Result<i64> {
    let sql = "SELECT count(*) FROM partition_lease
        WHERE owner IS NOT NULL AND next_offset IS NOT NULL AND expires_at > now()";
    sqlx::query_scalar(sql).fetch_one(database).await
}
