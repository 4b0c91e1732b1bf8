//! Moves rows between the outbox and `in_transit`, in one statement each.

use super::claims::MINE;
use crate::database::{Database, DatabaseError, Parameters, Sql};

/// Moves published messages to `in_transit`.
pub(super) async fn settle(
    database: &Database,
    parameters: Parameters,
) -> Result<(), DatabaseError> {
    static SETTLE: Sql = Sql::with(
        &[MINE],
        "{mine}, published AS (
    DELETE FROM outbox WHERE sequence = ANY (ARRAY(SELECT sequence FROM mine)) RETURNING *
)
INSERT INTO in_transit
    (sequence, id, phone, code, trace, accepted_at, expires_at, attempt, publications, due_at)
SELECT sequence, id, phone, code, trace, accepted_at, expires_at, attempt, publications + 1,
    now() + {duration(:confirm_within)}
FROM published
ON CONFLICT DO NOTHING",
        "",
    );
    database.execute(&SETTLE, parameters).await?;
    Ok(())
}

/// Moves messages back to the outbox. Returns how many.
pub(super) async fn return_to_outbox(
    database: &Database,
    parameters: Parameters,
) -> Result<u64, DatabaseError> {
    static RETURN: Sql = Sql::new(
        "
WITH late AS (
    DELETE FROM in_transit
    WHERE sequence = ANY (ARRAY(
        SELECT sequence
        FROM in_transit
        WHERE sequence = ANY (:sequences)
          AND NOT EXISTS (SELECT 1 FROM delivery WHERE delivery.message_id = in_transit.id)
        ORDER BY sequence
        FOR UPDATE SKIP LOCKED
    ))
    RETURNING *
)
INSERT INTO outbox
    (sequence, id, phone, code, trace, accepted_at, expires_at, attempt, publications)
SELECT sequence, id, phone, code, trace, accepted_at, expires_at, attempt, publications
FROM late
ON CONFLICT DO NOTHING",
    );
    database.execute(&RETURN, parameters).await
}
