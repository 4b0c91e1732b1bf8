//! Each step in one statement, one round trip and one commit.
//!
//! A fenced statement has done nothing if it returns no row: the lease belongs to another consumer.
//! Otherwise it returns its entries, or one row without an entry.
//!
//! `state || ''` is the state without an index (ADR 26). A plan that was made for an empty table
//! would take any index, and might read all open entries to find a few by their ids.

mod admit;
mod start;

use application::ports::CallOutcome;
use sea_orm::FromQueryResult;
use serde_json::json;

pub(super) use self::{admit::admit, start::start};
use super::{
    entry::{EntryRow, RecordedRow},
    gateways::{CALLED, WITH_CALLED},
    outcomes::{Manner, Said},
};
use crate::{
    database::{Database, DatabaseError, EventSql, Events, Fragment, Parameters, Sql},
    events::RECORD_ENDED,
};

#[derive(FromQueryResult)]
struct Row {
    #[sea_orm(nested)]
    entry: Option<EntryRow>,
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
        detail = 'the database refused its next call',
        maybe_taken = CASE state WHEN 'pending' THEN maybe_taken ELSE {with_called} END
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
        CALLED,
        WITH_CALLED,
    ],
    &[Fragment::NO_EVENTS, CALLED, WITH_CALLED],
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
SET (state, code, due_at, ended_at, reference, detail, gateway, maybe_taken, attempts) = (
    SELECT outcome.state,
        CASE WHEN outcome.state = 'pending' THEN delivery.code END,
        outcome.due_at,
        CASE WHEN outcome.state = 'pending' THEN NULL ELSE now() END,
        nullif(said.reference, ''),
        concat_ws(': ', said.class, nullif(said.detail, '')),
        -- a binary of an earlier version would not replace the name when it calls
        CASE WHEN outcome.state <> 'pending' THEN gateway END,
        CASE WHEN said.class = 'ambiguous' THEN {with_called} ELSE maybe_taken END,
        -- of very many attempts the first and the latest are kept
        CASE WHEN jsonb_array_length(delivery.attempts) < 100 THEN delivery.attempts
             ELSE delivery.attempts - 1 END
            || jsonb_build_object('attempt', delivery.attempt, 'gateway', {called},
                'outcome', said.class, 'detail', said.detail, 'called_at', delivery.called_at,
                'ended_at', now())
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

static FINISH: Sql = Sql::with(&[FINISHED, CALLED, WITH_CALLED], "{finished}", "");

static FINISH_AND_RECORD: Sql = Sql::with(
    &[FINISHED, CALLED, WITH_CALLED, RECORD_ENDED],
    "
WITH finished AS ({finished}
), ended AS (
    SELECT id::uuid AS id, state FROM finished WHERE state <> 'pending'
){record_ended}
SELECT * FROM finished",
    "",
);
