//! A receipt in one statement.

use super::NotedRow;
use crate::{
    database::{Database, DatabaseError, Parameters, Sql},
    ledger::gateways::{CALLED, HAS_CALLED},
};

pub(super) async fn note(
    database: &Database,
    parameters: Parameters,
) -> Result<Option<NotedRow>, DatabaseError> {
    let parameters = parameters.with("events", database.events().are_recorded());
    database.row(&NOTE, parameters).await
}

// A message is delivered once and fails once: see `events::RECORD_ENDED`.
static NOTE: Sql = Sql::with(
    &[CALLED, HAS_CALLED],
    "
WITH noted AS (
    UPDATE delivery
    SET delivered_at = CASE WHEN :is_delivered THEN now() END,
        undelivered_at = CASE WHEN :is_delivered THEN undelivered_at ELSE now() END
    WHERE message_id = :message AND called_at IS NOT NULL AND delivered_at IS NULL
      AND {has_called}
      AND (:is_delivered OR (
          undelivered_at IS NULL AND (:attempt = 0 OR attempt = :attempt)
          AND (:gateway = '' OR (
              -- Not while it is called or waits: a gateway that refuses a message may report that it
              -- is undelivered, and the message goes on to another gateway.
              {called} = :gateway AND state || '' NOT IN ('pending', 'calling')
          ))
      ))
    RETURNING 1
), told AS (
    INSERT INTO event (id, kind, verification, delivery)
    SELECT CASE WHEN :is_delivered THEN gen_random_uuid() ELSE :message END,
        CASE WHEN :is_delivered THEN 'delivered' ELSE 'failed' END, id, :receipt
    FROM verification
    WHERE :events AND id = :verification AND EXISTS (SELECT 1 FROM noted) AND NOT EXISTS (
        SELECT 1
        FROM delivery
        WHERE message_id = :message AND (delivered_at IS NOT NULL OR NOT :is_delivered AND (
            undelivered_at IS NOT NULL OR state IN ('failed', 'expired', 'unknown')
        ))
    )
)
SELECT count(*) > 0 AS known, (SELECT count(*) FROM noted) > 0 AS is_new,
    max(attempt) FILTER (WHERE state = 'calling' AND {called} = :gateway) AS calling,
    {millis(now() - max(called_at))} AS since_call,
    {millis(now() - min(accepted_at))} AS since_acceptance,
    (SELECT region FROM verification WHERE id = :verification) AS region, max(trace) AS trace
FROM delivery
WHERE message_id = :message AND called_at IS NOT NULL AND {has_called}",
    "",
);
