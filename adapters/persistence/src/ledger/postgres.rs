//! Each step in one statement, one round trip and one commit.
//!
//! A fenced statement has done nothing if it returns no row: the lease belongs to another consumer.
//! Otherwise it returns its entries, or one row without an entry.
//!
//! `state || ''` is the state without an index (ADR 26). A plan that was made for an empty table
//! would take any index, and might read all open entries to find a few by their ids.

mod admit;
mod finish;
mod start;

use sea_orm::FromQueryResult;

pub(super) use self::{
    admit::admit,
    finish::finish,
    start::{start, start_within},
};
use super::{
    entry::EntryRow,
    gateways::{CALLED, WITH_CALLED},
};
use crate::{
    database::{Database, DatabaseError, EventSql, Events, Fragment, Parameters},
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
            ", ended AS (SELECT message_id AS id, state, NULL::text AS reason FROM begun){record_ended}",
        ),
        RECORD_ENDED,
        CALLED,
        WITH_CALLED,
    ],
    &[Fragment::NO_EVENTS, CALLED, WITH_CALLED],
);
