//! The row of `relay`: who relays the outbox, until when, and how far it got.

use std::time::Duration;

use application::ports::{Reached, Tenure};
use sea_orm::FromQueryResult;

use crate::database::{Database, DatabaseError, Fragment, Parameters, Sql, millis};

pub(super) async fn acquire(
    database: &Database,
    owner: &str,
    lease: Duration,
) -> Result<Option<Tenure>, DatabaseError> {
    let tenure = try_acquire(database, owner, lease).await?;
    if tenure.is_none() && restore(database).await? {
        return try_acquire(database, owner, lease).await;
    }
    Ok(tenure)
}

/// Inserts the row of `relay` if it is missing, and returns whether it was. Without it no process
/// would ever relay.
async fn restore(database: &Database) -> Result<bool, DatabaseError> {
    if database.finds(&ROW, database.parameters()).await?
        || database.execute(&RESTORE, database.parameters()).await? == 0
    {
        return Ok(false);
    }
    tracing::error!(
        "the row of the table relay was missing and is restored; all messages in the outbox are published again, and \
         consumers ignore the duplicates"
    );
    Ok(true)
}

async fn try_acquire(
    database: &Database,
    owner: &str,
    lease: Duration,
) -> Result<Option<Tenure>, DatabaseError> {
    #[derive(FromQueryResult)]
    struct Row {
        epoch: i64,
        server: i64,
        published: i64,
    }

    let parameters = database.parameters().with("owner", owner).with("lease", millis(lease));
    let row: Option<Row> = database.row(&ACQUIRE, parameters).await?;
    Ok(row.map(|Row { epoch, server, published }| Tenure { epoch, server, published }))
}

/// Returns whether the tenure goes on.
pub(super) async fn renew(
    database: &Database,
    owner: &str,
    tenure: &Tenure,
    reached: Reached,
    lease: Duration,
) -> Result<bool, DatabaseError> {
    let parameters = progress(database, owner, tenure, reached).with("lease", millis(lease));
    Ok(database.execute(&RENEW, parameters).await? > 0)
}

pub(super) async fn release(
    database: &Database,
    owner: &str,
    tenure: &Tenure,
    reached: Reached,
) -> Result<(), DatabaseError> {
    database.execute(&RELEASE, progress(database, owner, tenure, reached)).await?;
    Ok(())
}

/// Looks up the lowest number of the outbox.
pub(super) async fn note_oldest(
    database: &Database,
    owner: &str,
    tenure: &Tenure,
) -> Result<(), DatabaseError> {
    database.execute(&NOTE_OLDEST, fence(database, owner, tenure)).await?;
    Ok(())
}

fn fence(database: &Database, owner: &str, tenure: &Tenure) -> Parameters {
    database.parameters().with("owner", owner).with("epoch", tenure.epoch)
}

fn progress(database: &Database, owner: &str, tenure: &Tenure, reached: Reached) -> Parameters {
    fence(database, owner, tenure)
        .with("server", tenure.server)
        .with("published", reached.published)
        .with("read_up_to", reached.read)
}

/// The instance of the server. After a failover another one answers, which may have lost the latest
/// commits and give their numbers to other messages.
pub(super) const SERVER: Fragment =
    Fragment::pair("server", "{millis(pg_postmaster_start_time())}", "0");

/// The number above which no message was published. A relay that was killed may have published any
/// number that was drawn so far. SQLite has no use for it (ADR 73).
const READ_BY_OTHERS: Fragment = Fragment::pair(
    "read_by_others",
    "CASE
        WHEN owner IS NULL THEN read_up_to
        ELSE greatest(read_up_to, pg_sequence_last_value('outbox_sequence_seq'))
    END",
    "read_up_to",
);

const READ: Fragment =
    Fragment::pair("read", "greatest(read_up_to, :read_up_to)", "max(read_up_to, :read_up_to)");

// The owner may ask again: it did not hear the answer.
const ACQUIRE_TEXT: &str = "
UPDATE relay
SET owner = :owner, epoch = epoch + 1, expires_at = {now} + {duration(:lease)},
    read_up_to = {read_by_others}
WHERE owner IS NULL OR owner = :owner OR expires_at <= {now}
RETURNING epoch, published, {server} AS server";

static ACQUIRE: Sql = Sql::with(&[SERVER, READ_BY_OTHERS], ACQUIRE_TEXT, ACQUIRE_TEXT);

static ROW: Sql = Sql::new("SELECT 1 FROM relay");

// The relay begins at the first message. Any number that was drawn may have been published.
static RESTORE: Sql = Sql::pair(
    "
INSERT INTO relay (read_up_to)
VALUES (coalesce(pg_sequence_last_value('outbox_sequence_seq'), 0))
ON CONFLICT DO NOTHING",
    "INSERT INTO relay (read_up_to) VALUES (0) ON CONFLICT DO NOTHING",
);

const RENEW_TEXT: &str = "
UPDATE relay
SET expires_at = {now} + {duration(:lease)}, published = :published, read_up_to = {read}
WHERE owner = :owner AND epoch = :epoch AND {server} = :server";

static RENEW: Sql = Sql::with(&[SERVER, READ], RENEW_TEXT, RENEW_TEXT);

const RELEASE_TEXT: &str = "
UPDATE relay
SET owner = NULL, expires_at = {now}, published = :published, read_up_to = {read}
WHERE owner = :owner AND epoch = :epoch AND {server} = :server";

static RELEASE: Sql = Sql::with(&[SERVER, READ], RELEASE_TEXT, RELEASE_TEXT);

// It searches from the beginning of the outbox: a message with a lower number may have become
// visible.
static NOTE_OLDEST: Sql = Sql::pair(
    "
UPDATE relay
SET oldest = least(published + 1, (SELECT min(sequence) FROM outbox))
WHERE owner = :owner AND epoch = :epoch",
    "
UPDATE relay
SET oldest = coalesce(min(published + 1, (SELECT min(sequence) FROM outbox)), published + 1)
WHERE owner = :owner AND epoch = :epoch",
);
