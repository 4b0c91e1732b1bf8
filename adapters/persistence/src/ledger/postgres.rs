//! Each step in one statement, one round trip and one commit.
//!
//! A fenced statement has done nothing if it returns no row: the lease belongs to another consumer.
//! Otherwise it returns its entries, or one row without an entry.
//!
//! `state || ''` is the state without an index (ADR 26). A plan that was made for an empty table
//! would take any index, and might read all open entries to find a few by their ids.

use std::time::Duration;

use application::ports::CallOutcome;
use sea_orm::FromQueryResult;
use serde_json::json;
use tokio::time::timeout;

use super::{
    entry::{EntryRow, RecordedRow},
    outcomes::{Manner, Said},
    part::Part,
};
use crate::{
    database::{Database, DatabaseError, EventSql, Events, Fragment, Parameters, Sql},
    events::RECORD_ENDED,
};

/// How long work may take that a sweep would do as well.
const TIDYING: Duration = Duration::from_secs(1);

#[derive(FromQueryResult)]
struct Admitted {
    /// Messages that left the outbox or transit.
    moved: i64,
    #[sea_orm(nested)]
    entry: Option<EntryRow>,
}

#[derive(FromQueryResult)]
struct Row {
    #[sea_orm(nested)]
    entry: Option<EntryRow>,
}

/// Takes a part of a batch over.
pub(super) async fn admit(
    database: &Database,
    parameters: Parameters,
    part: Part<'_>,
    events: Events,
) -> Result<Option<Vec<EntryRow>>, DatabaseError> {
    let parameters = part.dead_rows(part.message_rows(parameters));
    let rows: Vec<Admitted> = database.rows(ADMIT.of(events), parameters).await?;
    let Some(first) = rows.first() else { return Ok(None) };
    leave_transit(database, part, first.moved).await;
    Ok(Some(rows.into_iter().filter_map(|row| row.entry).collect()))
}

/// Takes messages out of transit that were settled while they were taken over.
async fn leave_transit(database: &Database, part: Part<'_>, moved: i64) {
    let ours = part.messages().filter_map(|it| Some((it.sequence?, it.message.id)));
    if usize::try_from(moved).is_ok_and(|moved| moved >= ours.clone().count()) {
        return;
    }
    let parameters = database.parameters().rows("taken", ours, |taken| {
        taken.column("sequence", |(sequence, _)| sequence).column("id", |(_, id)| id.as_uuid())
    });
    let step = database.execute(&LEAVE_TRANSIT, parameters);
    // The calls that were just begun wait for this.
    if !matches!(timeout(TIDYING, step).await, Ok(Ok(_))) {
        tracing::debug!("messages that were taken over stay in transit until the next sweep");
    }
}

/// Begins calls.
pub(super) async fn start(
    database: &Database,
    parameters: Parameters,
    events: Events,
) -> Result<Option<Vec<EntryRow>>, DatabaseError> {
    Ok(fenced(database.rows(START.of(events), parameters).await?))
}

/// Ends an entry that cannot go on.
pub(super) async fn give_up(
    database: &Database,
    parameters: Parameters,
    events: Events,
) -> Result<Option<Vec<EntryRow>>, DatabaseError> {
    Ok(fenced(database.rows(GIVE_UP.of(events), parameters).await?))
}

fn fenced(rows: Vec<Row>) -> Option<Vec<EntryRow>> {
    if rows.is_empty() {
        return None;
    }
    Some(rows.into_iter().filter_map(|row| row.entry).collect())
}

/// Records outcomes.
pub(super) async fn finish(
    database: &Database,
    group: &str,
    outcomes: &[CallOutcome],
    manner: Manner,
) -> Result<Vec<RecordedRow>, DatabaseError> {
    let said = outcomes.iter().map(|outcome| {
        let said = Said::of(outcome, manner);
        let call = format!("{} {}", outcome.id.as_uuid(), outcome.attempt);
        let outcome = json!({
            "verdict": said.verdict,
            "wait": said.wait,
            "reference": said.reference,
            "detail": said.detail,
            "class": outcome.class.as_str(),
        });
        (call, outcome)
    });
    let said: serde_json::Map<_, _> = said.collect();
    let parameters = database
        .parameters()
        .with("group", group)
        .list("ids", outcomes.iter().map(|outcome| outcome.id.as_uuid()))
        .with("said", serde_json::Value::from(said));
    let sql = match manner.events {
        Events::Recorded => &FINISH_AND_RECORD,
        Events::Off => &FINISH,
    };
    database.rows(sql, parameters).await
}

// The rows of `delivery` are new, so they may come before the locks on `outbox` and `in_transit`: no
// other transaction sees them, and consumers of one group that insert the same message lock the
// tables in the same order.
static ADMIT: EventSql = EventSql::postgres(
    "
WITH lease AS (
    UPDATE partition_lease
    SET next_offset = :next_offset
    WHERE group_id = :group AND topic = :topic AND partition = :partition AND owner = :owner
      AND epoch = :epoch
    RETURNING 1
), incoming AS (
    -- The times of a record are bounded: an entry must expire, and leave the ledger, one day.
    SELECT new.id, new.phone, new.code, nullif(new.trace, '') AS trace, new.sequence, new.place,
        new.call,
        CASE WHEN new.accepted_at < 0 THEN now()
             ELSE least(to_timestamp(new.accepted_at / 1000.0), now()) END AS accepted_at,
        CASE WHEN new.expires_at < 0 THEN now() + {duration(:default_ttl)}
             ELSE least(to_timestamp(new.expires_at / 1000.0), now() + interval '1 day')
             END AS expires_at
    FROM lease, :new#place
), judged AS (
    SELECT *, CASE WHEN expires_at <= now() THEN 'expired' WHEN call THEN 'calling' ELSE 'pending'
        END AS state
    FROM incoming
), taken AS (
    INSERT INTO delivery
        (group_id, topic, partition, message_id, phone, code, trace, state, accepted_at,
         expires_at, ended_at, attempt, epoch, turn, due_at, called_at)
    SELECT :group, :topic, :partition, id, phone,
        CASE WHEN state <> 'expired' THEN code END,
        trace, state, accepted_at, expires_at,
        CASE WHEN state = 'expired' THEN now() END,
        CASE WHEN state = 'calling' THEN 1 ELSE 0 END,
        CASE WHEN state = 'calling' THEN :epoch END,
        CASE WHEN state = 'calling' THEN :turn ELSE 0 END,
        CASE WHEN state = 'calling' THEN now() + {duration(:call_limit)} ELSE now() END,
        CASE WHEN state = 'calling' THEN now() END
    FROM judged
    ORDER BY place
    ON CONFLICT DO NOTHING
    RETURNING message_id, state, attempt, expires_at, accepted_at
), waiting AS (
    -- After all rows of `delivery`, and in the order of their sequence, as the statements of the
    -- backlog lock them: two statements that lock the same rows in different orders wait for each
    -- other.
    SELECT own.sequence
    FROM (
            SELECT sequence, id
            FROM incoming
            WHERE (SELECT count(*) FROM taken) >= 0
            ORDER BY sequence
        ) AS named
        CROSS JOIN LATERAL (
            SELECT sequence FROM outbox WHERE sequence = named.sequence AND id = named.id FOR UPDATE
        ) AS own
), left_outbox AS (
    DELETE FROM outbox WHERE sequence = ANY (ARRAY(SELECT sequence FROM waiting))
), transit AS (
    SELECT own.sequence
    FROM (
            SELECT sequence, id
            FROM incoming
            WHERE (SELECT count(*) FROM taken) >= 0
            ORDER BY sequence
        ) AS named
        CROSS JOIN LATERAL (
            SELECT sequence
            FROM in_transit
            WHERE sequence = named.sequence AND id = named.id
            FOR UPDATE
        ) AS own
), left_transit AS (
    DELETE FROM in_transit WHERE sequence = ANY (ARRAY(SELECT sequence FROM transit))
), buried AS (
    INSERT INTO dead_letter (group_id, topic, partition, record_offset, reason)
    SELECT :group, :topic, :partition, dead.record_offset, dead.reason
    FROM lease, :dead
    -- this may be a retry of a commit whose answer was lost
    WHERE NOT EXISTS (
        SELECT 1
        FROM dead_letter AS known
        WHERE known.group_id = :group AND known.topic = :topic AND known.partition = :partition
          AND known.record_offset = dead.record_offset
    )
){events}
SELECT message_id::text AS id, state, attempt, {millis(expires_at)} AS expires_at,
    {millis(expires_at - now())} AS good_for, {millis(now() - accepted_at)} AS age,
    (SELECT count(*) FROM waiting) + (SELECT count(*) FROM transit) AS moved
FROM lease LEFT JOIN taken ON true",
    &[
        Fragment::new(
            "events",
            ", ended AS (SELECT message_id AS id, state FROM taken WHERE state = 'expired'){record_ended}",
        ),
        RECORD_ENDED,
    ],
    &[Fragment::NO_EVENTS],
);

// A message that was settled while `ADMIT` waited for its row in the outbox is in transit in a
// snapshot that `ADMIT` did not see.
static LEAVE_TRANSIT: Sql = Sql::new(
    "
DELETE FROM in_transit
WHERE sequence = ANY (ARRAY(
    SELECT own.sequence
    FROM (SELECT * FROM :taken ORDER BY 1) AS taken
        CROSS JOIN LATERAL (
            SELECT sequence
            FROM in_transit
            WHERE sequence = taken.sequence AND id = taken.id
            FOR UPDATE SKIP LOCKED
        ) AS own
))",
);

static START: EventSql = EventSql::postgres(
    "
WITH lease AS (
    SELECT 1
    FROM partition_lease
    WHERE group_id = :group AND topic = :topic AND partition = :partition AND owner = :owner
      AND epoch = :epoch
    FOR SHARE
), begun AS (
    UPDATE delivery
    SET state = CASE WHEN expires_at > now() THEN 'calling' ELSE 'expired' END,
        code = CASE WHEN expires_at > now() THEN code END,
        attempt = attempt + CASE WHEN expires_at > now() THEN 1 ELSE 0 END,
        epoch = :epoch,
        turn = :turn,
        due_at = now() + {duration(:call_limit)},
        called_at = CASE WHEN expires_at > now() THEN now() ELSE called_at END,
        ended_at = CASE WHEN expires_at > now() THEN NULL ELSE now() END,
        attempts = CASE
            WHEN state = 'pending' OR epoch = :epoch THEN attempts
            -- interrupted by the end of its consumer: the call may have been made
            ELSE attempts || jsonb_build_object('attempt', attempt, 'outcome', 'ambiguous',
                'detail', 'interrupted', 'called_at', called_at, 'ended_at', now())
        END
    FROM lease
    WHERE group_id = :group AND message_id = ANY (:ids::uuid[])
      -- A statement that we gave up may be done late, after later ones. It does nothing then.
      AND (epoch IS DISTINCT FROM :epoch OR turn < :turn)
      AND (state || '' = 'pending'
          -- a call that was begun under this lease was not made: see `DeliveryLedger::start`
          OR (state || '' = 'calling' AND (due_at <= now() OR epoch = :epoch)))
    RETURNING message_id, state, attempt, expires_at, accepted_at
){events}
SELECT message_id::text AS id, state, attempt, {millis(expires_at)} AS expires_at,
    {millis(expires_at - now())} AS good_for, {millis(now() - accepted_at)} AS age
FROM lease LEFT JOIN begun ON true",
    &[
        Fragment::new(
            "events",
            ", ended AS (SELECT message_id AS id, state FROM begun WHERE state = 'expired'){record_ended}",
        ),
        RECORD_ENDED,
    ],
    &[Fragment::NO_EVENTS],
);

static GIVE_UP: EventSql = EventSql::postgres(
    "
WITH lease AS (
    SELECT 1
    FROM partition_lease
    WHERE group_id = :group AND topic = :topic AND partition = :partition AND owner = :owner
      AND epoch = :epoch
    FOR SHARE
), begun AS (
    UPDATE delivery
    -- unknown if a call was under way, which may have been made
    SET state = CASE state WHEN 'pending' THEN 'failed' ELSE 'unknown' END,
        code = NULL,
        ended_at = now(),
        detail = 'the database refused its next call'
    FROM lease
    WHERE group_id = :group AND message_id = ANY (:ids::uuid[])
      AND (state || '' = 'pending'
          OR (state || '' = 'calling' AND (due_at <= now() OR epoch = :epoch)))
    RETURNING message_id, state, attempt, expires_at, accepted_at
){events}
SELECT message_id::text AS id, state, attempt, {millis(expires_at)} AS expires_at,
    {millis(expires_at - now())} AS good_for, {millis(now() - accepted_at)} AS age
FROM lease LEFT JOIN begun ON true",
    &[
        Fragment::new(
            "events",
            ", ended AS (SELECT message_id AS id, state FROM begun){record_ended}",
        ),
        RECORD_ENDED,
    ],
    &[Fragment::NO_EVENTS],
);

// Not fenced by the lease: an outcome counts even if the partition has gone to another consumer, as
// long as no later call was begun.
//
// The outcomes are one object, by id and attempt, and no table to join: a plan that was made for an
// empty table would compare each with each.
const FINISHED: Fragment = Fragment::new(
    "finished",
    "
UPDATE delivery
SET (state, code, due_at, ended_at, reference, detail, attempts) = (
    SELECT outcome.state,
        CASE WHEN outcome.state = 'pending' THEN delivery.code END,
        outcome.due_at,
        CASE WHEN outcome.state = 'pending' THEN NULL ELSE now() END,
        nullif(said.reference, ''),
        concat_ws(': ', said.class, nullif(said.detail, '')),
        -- of very many attempts the first and the latest are kept
        CASE WHEN jsonb_array_length(delivery.attempts) < 100 THEN delivery.attempts
             ELSE delivery.attempts - 1 END
            || jsonb_build_object('attempt', delivery.attempt, 'outcome', said.class,
                'detail', said.detail, 'called_at', delivery.called_at, 'ended_at', now())
    FROM jsonb_to_record(:said -> (delivery.message_id || ' ' || delivery.attempt))
            AS said (verdict text, wait bigint, reference text, detail text, class text)
        CROSS JOIN LATERAL (
            SELECT due_at,
                -- a retry that would come too late ends the entry
                CASE WHEN said.verdict = 'pending' AND due_at >= delivery.expires_at
                     THEN 'expired' ELSE said.verdict END AS state
            FROM (SELECT now() + {duration(said.wait)} AS due_at) AS next
        ) AS outcome
)
WHERE group_id = :group AND message_id = ANY (:ids)
  AND state || '' = 'calling' AND :said ? (message_id || ' ' || attempt)
RETURNING message_id::text AS id, state, {millis(now() - accepted_at)} AS age",
);

static FINISH: Sql = Sql::with(&[FINISHED], "{finished}", "");

static FINISH_AND_RECORD: Sql = Sql::with(
    &[FINISHED, RECORD_ENDED],
    "
WITH finished AS ({finished}
), ended AS (
    SELECT id::uuid AS id, state FROM finished WHERE state <> 'pending'
){record_ended}
SELECT * FROM finished",
    "",
);
