//! The admission of batches of several partitions, each under its lease.

use std::collections::HashMap;

use sea_orm::FromQueryResult;

use super::super::{
    entry::EntryRow,
    part::{Part, dead_rows, lease_rows, message_rows},
};
use crate::{
    database::{Database, DatabaseError, EventSql, Events, Fragment, Parameters},
    events::RECORD_ENDED,
};

#[derive(FromQueryResult)]
struct Admitted {
    partition: i32,
    /// Messages that left the outbox while the statement waited for them.
    missed: i64,
    #[sea_orm(nested)]
    entry: Option<EntryRow>,
}

/// Takes parts of batches over, each of a partition of its own. Returns the entries of each partition.
/// A partition whose lease belongs to another consumer has none.
pub(in crate::ledger) async fn admit(
    database: &Database,
    parameters: Parameters,
    parts: &[Part<'_>],
    events: Events,
) -> Result<HashMap<i32, Vec<EntryRow>>, DatabaseError> {
    let parameters = dead_rows(message_rows(lease_rows(parameters, parts), parts), parts);
    loop {
        let rows: Vec<Admitted> = database.rows(ADMIT.of(events), parameters.clone()).await?;
        if rows.first().is_some_and(|row| row.missed > 0) {
            continue;
        }
        let mut admitted: HashMap<i32, Vec<EntryRow>> = HashMap::new();
        for row in rows {
            admitted.entry(row.partition).or_default().extend(row.entry);
        }
        return Ok(admitted);
    }
}

// A message that has ended under no group, because it expired in the outbox or was canceled, must not
// be taken over. It ends in the commit that deletes its row, so a row that is locked here has not
// ended. If a row is deleted while this waits for its lock, the end is in no snapshot that this
// statement sees: then it does nothing, and is repeated.
static ADMIT: EventSql = EventSql::postgres(
    "
WITH lease AS MATERIALIZED (
    -- in the order in which all statements lock these rows
    SELECT held.partition, held.epoch, asked.next_offset, asked.call_limit, asked.default_ttl
    FROM (SELECT * FROM :asked ORDER BY partition) AS asked
        CROSS JOIN LATERAL (
            SELECT partition, epoch
            FROM partition_lease
            WHERE group_id = :group AND topic = :topic AND partition = asked.partition
              AND owner = :owner AND epoch = asked.epoch
            FOR NO KEY UPDATE
        ) AS held
), named AS MATERIALIZED (
    -- in the order in which all statements lock rows of the outbox
    SELECT new.*, stored.sequence AS stored, stored.expires_at AS ends_at
    FROM (
            SELECT new.*, lease.epoch, lease.call_limit, lease.default_ttl
            FROM :new#place JOIN lease USING (partition)
            ORDER BY sequence
        ) AS new
        LEFT JOIN LATERAL (
            SELECT sequence, expires_at
            FROM outbox
            WHERE sequence = new.sequence AND id = new.id
            FOR UPDATE
        ) AS stored ON true
), missed AS (
    SELECT count(*) AS messages
    FROM named
    WHERE stored IS NULL AND EXISTS (
        SELECT 1 FROM outbox WHERE outbox.sequence = named.sequence AND outbox.id = named.id
    )
), moved_on AS (
    UPDATE partition_lease
    SET next_offset = lease.next_offset
    FROM lease
    WHERE group_id = :group AND topic = :topic AND partition_lease.partition = lease.partition
      AND owner = :owner AND partition_lease.epoch = lease.epoch
      AND (SELECT messages FROM missed) = 0
    RETURNING lease.partition
), incoming AS (
    -- The times of a record are bounded: an entry must expire, and leave the ledger, one day.
    SELECT partition, epoch, call_limit, named.id, phone, code, nullif(trace, '') AS trace, place,
        nullif(gateway, '') AS gateway,
        CASE WHEN accepted_at < 0 THEN now()
             ELSE least(to_timestamp(accepted_at / 1000.0), now()) END AS accepted_at,
        CASE WHEN expires_at < 0 THEN least(now() + {duration(default_ttl)}, ends_at)
             ELSE least(to_timestamp(expires_at / 1000.0), now() + interval '1 day', ends_at)
             END AS expires_at
    FROM moved_on JOIN named USING (partition)
    WHERE stored IS NOT NULL OR NOT EXISTS (
        SELECT 1 FROM delivery AS ended WHERE ended.message_id = named.id AND ended.group_id = ''
    )
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
    SELECT :group, :topic, partition, id, phone,
        CASE WHEN state <> 'expired' THEN code END,
        trace, state, accepted_at, expires_at,
        CASE WHEN state = 'expired' THEN now() END,
        CASE WHEN state = 'calling' THEN 1 ELSE 0 END,
        CASE WHEN state = 'calling' THEN epoch END,
        CASE WHEN state = 'calling' THEN :turn ELSE 0 END,
        CASE WHEN state = 'calling' THEN now() + {duration(call_limit)} ELSE now() END,
        CASE WHEN state = 'calling' THEN now() END,
        CASE WHEN state = 'calling' THEN gateway END
    FROM judged
    ORDER BY place
    ON CONFLICT DO NOTHING
    RETURNING partition, message_id, state, attempt, expires_at, accepted_at
), left_outbox AS (
    DELETE FROM outbox
    WHERE sequence = ANY (ARRAY(SELECT stored FROM moved_on JOIN named USING (partition)))
), buried AS (
    INSERT INTO dead_letter (group_id, topic, partition, record_offset, reason)
    SELECT :group, :topic, partition, dead.record_offset, dead.reason
    FROM moved_on JOIN :dead USING (partition)
    -- this may be a retry of a commit whose answer was lost
    WHERE NOT EXISTS (
        SELECT 1
        FROM dead_letter AS known
        WHERE known.group_id = :group AND known.topic = :topic AND known.partition = dead.partition
          AND known.record_offset = dead.record_offset
    )
){events}
SELECT lease.partition, message_id::text AS id, state, attempt,
    {millis(expires_at)} AS expires_at, {millis(expires_at - now())} AS good_for,
    {millis(now() - accepted_at)} AS age, (SELECT messages FROM missed) AS missed
FROM lease LEFT JOIN taken USING (partition)",
    &[
        Fragment::new(
            "events",
            ", ended AS (SELECT message_id AS id, state, NULL::text AS reason FROM taken WHERE state = 'expired'){record_ended}",
        ),
        RECORD_ENDED,
    ],
    &[Fragment::NO_EVENTS],
);
