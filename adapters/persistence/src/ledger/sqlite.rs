//! Each step in a transaction, as each statement writes to one table. A fenced step returns nothing
//! if the lease belongs to another consumer.

use std::collections::HashSet;

use application::ports::CallOutcome;
use sea_orm::DatabaseConnection;

use super::{
    entry::{ENTRY_COLUMNS, EntryRow, RecordedRow},
    gateways::{CALLED, IN_DOUBT, INTERRUPTED, NAMED, WITH_CALLED},
    outcomes::{Finished, Manner, Said},
    part::Part,
    starts::Step,
};
use crate::{
    database::{
        Database, DatabaseError, Events, Fragment, Parameters, Sql, Transaction, begin, query,
    },
    events::record_ended,
    receipts::references::{KEPT_COLUMNS, Kept, kept},
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
        let take = part.message_rows(parameters.clone());
        let transaction = begin(connection).await?;
        if transaction.execute(&MOVE_ON, parameters).await? == 0 {
            return Ok(None);
        }
        transaction.execute(&BURY, part.dead_rows(self.fence.clone())).await?;
        transaction.execute(&LEAVE_OUTBOX, take.clone()).await?;
        transaction.execute(&LEAVE_TRANSIT, take.clone()).await?;
        let rows: Vec<EntryRow> = transaction.rows(&TAKE, take).await?;
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

/// Records outcomes.
pub(super) async fn finish(
    database: &Database,
    connection: &DatabaseConnection,
    group: &str,
    outcomes: &[CallOutcome],
    manner: Manner,
) -> Result<Finished, DatabaseError> {
    let said = outcomes.iter().map(|outcome| Said::of(outcome, manner));
    let has_names = said.clone().any(|said| !said.receipts_of.is_empty());
    let parameters =
        database.parameters().with("group", group).rows("given", said.clone(), |said| {
            said.column("id", |it| it.outcome.id.as_uuid())
                .column("attempt", |it| it.outcome.attempt.cast_signed())
                .column("verdict", |it| it.verdict.to_owned())
                .column("wait", |it| it.wait)
                .column("reference", |it| it.reference.to_owned())
                .column("detail", |it| it.detail.to_owned())
                .column("class", |it| it.outcome.class.as_str().to_owned())
        });
    if manner.events == Events::Off && !has_names {
        let recorded = query(connection, FINISH.statement(parameters)?).await?;
        return Ok(Finished { recorded, early: Vec::new() });
    }
    let transaction = begin(connection).await?;
    let recorded: Vec<RecordedRow> = transaction.rows(&FINISH, parameters).await?;
    if manner.events == Events::Recorded {
        record(database, &transaction, group, recorded.iter()).await?;
    }
    let early = if has_names {
        name(database, &transaction, group, said, &recorded).await?
    } else {
        Vec::new()
    };
    transaction.commit().await?;
    Ok(Finished { recorded, early })
}

/// Names the messages behind the references of outcomes that were recorded. Returns the receipts that
/// came before.
async fn name<'a>(
    database: &Database,
    transaction: &Transaction,
    group: &str,
    said: impl Iterator<Item = Said<'a>>,
    recorded: &[RecordedRow],
) -> Result<Vec<Kept>, DatabaseError> {
    let sent: HashSet<&str> =
        recorded.iter().filter(|row| row.state == "sent").map(|row| &*row.id).collect();
    let is_named = |said: &Said<'_>| {
        !said.receipts_of.is_empty() && sent.contains(&*said.outcome.id.to_string())
    };
    let named: Vec<Said<'_>> = said.filter(is_named).collect();
    let parameters = database.parameters().with("group", group).rows("named", named.iter(), |it| {
        it.column("id", |it| it.outcome.id.as_uuid())
            .column("receipts_of", |it| it.receipts_of.to_owned())
    });
    kept(transaction.rows(&NAME, parameters).await?)
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

static LEAVE_TRANSIT: Sql =
    Sql::new("DELETE FROM in_transit WHERE (sequence, id) IN (SELECT sequence, id FROM :new)");

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
        SELECT id, phone, code, trace,
            CASE WHEN new.accepted_at < 0 THEN clock.now ELSE min(new.accepted_at, clock.now) END
                AS accepted_at,
            CASE WHEN new.expires_at < 0 THEN clock.now + :default_ttl
                 ELSE min(new.expires_at, clock.now + 86400000) END AS expires_at,
            gateway, clock.now, place
        FROM :new#place, (SELECT {now} AS now) AS clock
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

// If a gateway gives a reference twice, it is that of the latest message.
static NAME: Sql = Sql::with(
    &[CALLED, KEPT_COLUMNS],
    "",
    "
INSERT INTO gateway_receipt (gateway, reference, message_id, expires_at)
SELECT {called}, named.receipts_of, delivery.message_id, {now} + 259200000
FROM :named CROSS JOIN delivery
WHERE delivery.group_id = :group AND delivery.message_id = named.id
ON CONFLICT (gateway, reference) DO UPDATE
SET message_id = excluded.message_id, expires_at = excluded.expires_at
RETURNING {kept_columns}",
);

// As in PostgreSQL, not fenced by the lease.
static FINISH: Sql = Sql::with(
    &[CALLED, WITH_CALLED],
    "",
    "
WITH clock AS MATERIALIZED (
    SELECT {now} AS now
), said AS MATERIALIZED (
    SELECT id, attempt, verdict, clock.now + wait AS due_at, reference, detail, class
    FROM clock CROSS JOIN :given
), outcome AS MATERIALIZED (
    SELECT said.*,
        -- a retry that would come too late ends the entry
        CASE WHEN said.verdict = 'pending' AND said.due_at >= entry.expires_at
             THEN 'expired' ELSE said.verdict END AS state
    FROM said CROSS JOIN delivery AS entry
    WHERE entry.group_id = :group AND entry.message_id = said.id
)
UPDATE delivery
SET state = outcome.state,
    code = CASE WHEN outcome.state = 'pending' THEN code END,
    due_at = outcome.due_at,
    ended_at = CASE WHEN outcome.state = 'pending' THEN NULL ELSE (SELECT now FROM clock) END,
    reference = nullif(outcome.reference, ''),
    detail = outcome.class || iif(outcome.detail = '', '', ': ' || outcome.detail),
    -- a binary of an earlier version would not replace the name when it calls
    gateway = iif(outcome.state = 'pending', NULL, gateway),
    maybe_taken = iif(outcome.class = 'ambiguous', {with_called}, maybe_taken),
    -- of very many attempts the first and the latest are kept
    attempts = json_insert(
        iif(json_array_length(attempts) < 100, attempts, json_remove(attempts, '$[1]')),
        '$[#]', json_object('attempt', outcome.attempt, 'gateway', {called},
            'outcome', outcome.class, 'detail', outcome.detail, 'called_at', called_at,
            'ended_at', (SELECT now FROM clock)))
FROM outcome
WHERE delivery.group_id = :group AND delivery.message_id = outcome.id
  AND delivery.state = 'calling' AND delivery.attempt = outcome.attempt
RETURNING message_id AS id, state, {now} - accepted_at AS age",
);
