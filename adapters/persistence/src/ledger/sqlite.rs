//! Each step in a transaction, as each statement writes to one table. A fenced step returns nothing
//! if the lease belongs to another consumer.

mod finish;

use sea_orm::DatabaseConnection;

pub(super) use self::finish::finish;
use super::{
    entry::{ENTRY_COLUMNS, EntryRow, RecordedRow},
    gateways::{CALLED, IN_DOUBT, INTERRUPTED, NAMED, WITH_CALLED},
    part::{Part, dead_rows, message_rows},
    starts::Step,
};
use crate::{
    database::{Database, DatabaseError, Events, Fragment, Parameters, Sql, Transaction, begin},
    events::record_ended,
};

/// The ledger of one group, and the lease that its steps are fenced by.
#[derive(Debug, Clone)]
pub(super) struct Ledger<'a> {
    pub(super) database: &'a Database,
    pub(super) group: &'a str,
    pub(super) fence: Parameters,
    pub(super) events: Events,
}

impl Ledger<'_> {
    /// Takes a part of a batch over.
    pub(super) async fn admit(
        self,
        connection: &DatabaseConnection,
        parameters: Parameters,
        part: Part<'_>,
    ) -> Result<Option<Vec<EntryRow>>, DatabaseError> {
        let take = message_rows(parameters.clone(), &[part]);
        let transaction = begin(connection).await?;
        if transaction.execute(&MOVE_ON, parameters).await? == 0 {
            return Ok(None);
        }
        transaction.execute(&BURY, dead_rows(self.fence.clone(), &[part])).await?;
        let rows: Vec<EntryRow> = transaction.rows(&TAKE, take.clone()).await?;
        transaction.execute(&LEAVE_OUTBOX, take).await?;
        self.record(&transaction, &rows).await?;
        transaction.commit().await?;
        Ok(Some(rows))
    }

    /// Does a step with the entries that `parameters` name.
    pub(super) async fn start(
        self,
        connection: &DatabaseConnection,
        step: Step,
        parameters: Parameters,
    ) -> Result<Option<Vec<EntryRow>>, DatabaseError> {
        let sql = match step {
            Step::Fail | Step::Unknown => &END,
            Step::Wait => &WAIT,
            Step::Buy | Step::Call => &START,
        };
        self.change(connection, sql, parameters).await
    }

    /// Begins calls, within a transaction.
    pub(super) async fn start_within(
        self,
        transaction: &Transaction,
        parameters: Parameters,
    ) -> Result<Option<Vec<EntryRow>>, DatabaseError> {
        self.change_within(transaction, &START, parameters).await
    }

    /// Ends an entry that cannot go on.
    pub(super) async fn give_up(
        self,
        connection: &DatabaseConnection,
        parameters: Parameters,
    ) -> Result<Option<Vec<EntryRow>>, DatabaseError> {
        self.change(connection, &GIVE_UP, parameters).await
    }

    async fn change(
        self,
        connection: &DatabaseConnection,
        sql: &Sql,
        parameters: Parameters,
    ) -> Result<Option<Vec<EntryRow>>, DatabaseError> {
        let transaction = begin(connection).await?;
        let rows = self.change_within(&transaction, sql, parameters).await?;
        transaction.commit().await?;
        Ok(rows)
    }

    async fn change_within(
        self,
        transaction: &Transaction,
        sql: &Sql,
        parameters: Parameters,
    ) -> Result<Option<Vec<EntryRow>>, DatabaseError> {
        if !transaction.finds(&HELD, self.fence.clone()).await? {
            return Ok(None);
        }
        let rows: Vec<EntryRow> = transaction.rows(sql, parameters).await?;
        self.record(transaction, &rows).await?;
        Ok(Some(rows))
    }

    async fn record(
        &self,
        transaction: &Transaction,
        rows: &[EntryRow],
    ) -> Result<(), DatabaseError> {
        match self.events {
            Events::Recorded => {
                let rows = rows.iter().map(|row| &row.recorded);
                record(self.database, transaction, self.group, rows).await
            }
            Events::Off => Ok(()),
        }
    }
}

async fn record<'a>(
    database: &Database,
    transaction: &Transaction,
    group: &str,
    rows: impl Iterator<Item = &'a RecordedRow> + Clone,
) -> Result<(), DatabaseError> {
    let ended = rows.filter(|row| row.has_ended()).map(|row| (&*row.id, &*row.state));
    record_ended(database, transaction, group, ended).await
}

static MOVE_ON: Sql = Sql::new(
    "
UPDATE partition_lease
SET next_offset = :next_offset
WHERE group_id = :group AND topic = :topic AND partition = :partition AND owner = :owner
  AND epoch = :epoch",
);

static HELD: Sql = Sql::new(
    "
SELECT 1
FROM partition_lease
WHERE group_id = :group AND topic = :topic AND partition = :partition AND owner = :owner
  AND epoch = :epoch",
);

static BURY: Sql = Sql::new(
    "
INSERT INTO dead_letter (group_id, topic, partition, record_offset, reason, recorded_at)
SELECT :group, :topic, :partition, dead.record_offset, dead.reason, {now}
FROM :dead
WHERE NOT EXISTS (
    SELECT 1
    FROM dead_letter AS known
    WHERE known.group_id = :group AND known.topic = :topic AND known.partition = :partition
      AND known.record_offset = dead.record_offset
)",
);

static LEAVE_OUTBOX: Sql =
    Sql::new("DELETE FROM outbox WHERE (sequence, id) IN (SELECT sequence, id FROM :new)");

// A message that has ended under no group, because it expired in the outbox or was canceled, is not
// taken over. One that was canceled and is still there expires now.
static TAKE: Sql = Sql::with(
    &[ENTRY_COLUMNS],
    "",
    "
INSERT INTO delivery
    (group_id, topic, partition, message_id, phone, code, trace, state, accepted_at, expires_at,
     admitted_at, ended_at, attempt, epoch, turn, due_at, called_at, gateway)
SELECT :group, :topic, :partition, id, phone,
    CASE WHEN state <> 'expired' THEN code END,
    nullif(trace, ''), state, accepted_at, expires_at, now,
    CASE WHEN state = 'expired' THEN now END,
    state = 'calling',
    CASE WHEN state = 'calling' THEN :epoch END,
    iif(state = 'calling', :turn, 0),
    now + iif(state = 'calling', :call_limit, 0),
    CASE WHEN state = 'calling' THEN now END,
    CASE WHEN state = 'calling' THEN gateway END
FROM (
    SELECT *,
        CASE WHEN expires_at <= now THEN 'expired' WHEN gateway = '' THEN 'pending' ELSE 'calling'
            END AS state
    FROM (
        -- The times of a record are bounded: an entry must expire, and leave the ledger, one day.
        SELECT new.id, new.phone, new.code, new.trace,
            CASE WHEN new.accepted_at < 0 THEN clock.now ELSE min(new.accepted_at, clock.now) END
                AS accepted_at,
            min(
                CASE WHEN new.expires_at < 0 THEN clock.now + :default_ttl
                     ELSE min(new.expires_at, clock.now + 86400000) END,
                coalesce(outbox.expires_at, 9223372036854775807)
            ) AS expires_at,
            gateway, clock.now, place
        FROM (SELECT {now} AS now) AS clock CROSS JOIN :new#place
            LEFT JOIN outbox ON outbox.sequence = new.sequence AND outbox.id = new.id
        WHERE NOT EXISTS (
            SELECT 1 FROM delivery AS ended WHERE ended.message_id = new.id AND ended.group_id = ''
        )
    )
)
WHERE true
ORDER BY place
ON CONFLICT DO NOTHING
RETURNING {entry_columns}",
);

/// Records a call that was interrupted by the end of its consumer: it may have been made.
const NOTE_INTERRUPTED: Fragment = Fragment::new(
    "note_interrupted",
    "attempts = CASE
        WHEN state = 'pending' OR epoch IS :epoch THEN attempts
        ELSE {interrupted}
    END,
    maybe_taken = CASE
        WHEN state = 'pending' OR epoch IS :epoch THEN maybe_taken
        ELSE {with_called}
    END",
);

const BEGIN: &[Fragment] =
    &[ENTRY_COLUMNS, CALLED, INTERRUPTED, WITH_CALLED, IN_DOUBT, NOTE_INTERRUPTED, NAMED];

static START: Sql = Sql::with(
    BEGIN,
    "",
    "
UPDATE delivery
SET state = CASE WHEN expires_at > clock.now THEN 'calling' ELSE 'expired' END,
    code = CASE WHEN expires_at > clock.now THEN code END,
    attempt = attempt + (expires_at > clock.now),
    epoch = :epoch,
    turn = :turn,
    due_at = clock.now + :call_limit,
    called_at = CASE WHEN expires_at > clock.now THEN clock.now ELSE called_at END,
    ended_at = CASE WHEN expires_at > clock.now THEN NULL ELSE clock.now END,
    gateway = iif(expires_at > clock.now, coalesce(:others ->> message_id, :gateway), gateway),
    {note_interrupted}
FROM (SELECT {now} AS now) AS clock
WHERE {named}
RETURNING {entry_columns}",
);

// It takes a turn too, so that no earlier statement begins a call after it.
static WAIT: Sql = Sql::with(
    BEGIN,
    "",
    "
UPDATE delivery
SET state = CASE WHEN expires_at > clock.now THEN 'pending' ELSE 'expired' END,
    code = CASE WHEN expires_at > clock.now THEN code END,
    epoch = :epoch,
    turn = :turn,
    due_at = min(clock.now + (:waits ->> message_id), expires_at),
    ended_at = CASE WHEN expires_at > clock.now THEN NULL ELSE clock.now END,
    gateway = iif(expires_at > clock.now, NULL, gateway),
    {note_interrupted}
FROM (SELECT {now} AS now) AS clock
WHERE {named}
RETURNING {entry_columns}",
);

static END: Sql = Sql::with(
    BEGIN,
    "",
    "
UPDATE delivery
SET state = CASE
        WHEN expires_at <= clock.now THEN 'expired'
        WHEN {in_doubt} THEN 'unknown'
        ELSE 'failed'
    END,
    code = NULL,
    epoch = :epoch,
    turn = :turn,
    ended_at = clock.now,
    detail = iif(expires_at > clock.now, :details ->> message_id, detail),
    {note_interrupted}
FROM (SELECT {now} AS now) AS clock
WHERE {named} AND (NOT :only_in_doubt OR expires_at <= clock.now OR {in_doubt})
RETURNING {entry_columns}",
);

static GIVE_UP: Sql = Sql::with(
    &[ENTRY_COLUMNS, CALLED, WITH_CALLED],
    "",
    "
UPDATE delivery
-- unknown if a call was under way, which may have been made
SET state = iif(state = 'pending', 'failed', 'unknown'),
    code = NULL,
    ended_at = clock.now,
    detail = 'the database refused its next call',
    maybe_taken = iif(state = 'pending', maybe_taken, {with_called})
FROM (SELECT {now} AS now) AS clock
WHERE group_id = :group AND message_id IN (SELECT value FROM json_each(:ids))
  AND (state = 'pending' OR (state = 'calling' AND (due_at <= clock.now OR epoch = :epoch)))
RETURNING {entry_columns}",
);
