//! The admission of a batch.

use std::time::Duration;

use sea_orm::FromQueryResult;
use tokio::time::timeout;

use super::super::{entry::EntryRow, part::Part};
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

/// Takes a part of a batch over.
pub(in crate::ledger) async fn admit(
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
        nullif(new.gateway, '') AS gateway,
        CASE WHEN new.accepted_at < 0 THEN now()
             ELSE least(to_timestamp(new.accepted_at / 1000.0), now()) END AS accepted_at,
        CASE WHEN new.expires_at < 0 THEN now() + {duration(:default_ttl)}
             ELSE least(to_timestamp(new.expires_at / 1000.0), now() + interval '1 day')
             END AS expires_at
    FROM lease, :new#place
), judged AS (
    SELECT *,
        CASE WHEN expires_at <= now() THEN 'expired'
             WHEN gateway IS NULL THEN 'pending'
             ELSE 'calling' END AS state
    FROM incoming
), taken AS (
    INSERT INTO delivery
        (group_id, topic, partition, message_id, phone, code, trace, state, accepted_at,
         expires_at, ended_at, attempt, epoch, turn, due_at, called_at, gateway)
    SELECT :group, :topic, :partition, id, phone,
        CASE WHEN state <> 'expired' THEN code END,
        trace, state, accepted_at, expires_at,
        CASE WHEN state = 'expired' THEN now() END,
        CASE WHEN state = 'calling' THEN 1 ELSE 0 END,
        CASE WHEN state = 'calling' THEN :epoch END,
        CASE WHEN state = 'calling' THEN :turn ELSE 0 END,
        CASE WHEN state = 'calling' THEN now() + {duration(:call_limit)} ELSE now() END,
        CASE WHEN state = 'calling' THEN now() END,
        CASE WHEN state = 'calling' THEN gateway END
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
            ", ended AS (SELECT message_id AS id, state, NULL::text AS reason FROM taken WHERE state = 'expired'){record_ended}",
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
