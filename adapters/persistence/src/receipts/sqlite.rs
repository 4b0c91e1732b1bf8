//! A receipt in a transaction, as each statement writes to one table.

use sea_orm::DatabaseConnection;

use super::NotedRow;
use crate::{
    database::{Database, DatabaseError, Fragment, Parameters, Sql, begin, clock},
    ledger::gateways::{CALLED, HAS_CALLED},
};

pub(super) async fn note(
    database: &Database,
    connection: &DatabaseConnection,
    parameters: Parameters,
) -> Result<Option<NotedRow>, DatabaseError> {
    let transaction = begin(connection).await?;
    let parameters = parameters.with("now", clock(&transaction).await?);
    if database.events().are_recorded() {
        transaction.execute(&RECORD, parameters.clone()).await?;
    }
    let noted = transaction.execute(&NOTE, parameters.clone()).await?;
    let row = transaction.row(&KNOW, parameters.with("noted", noted > 0)).await?;
    transaction.commit().await?;
    Ok(row)
}

/// The entries on which a receipt tells something new.
const IS_NEW: Fragment = Fragment::new(
    "is_new",
    "message_id = :message AND called_at IS NOT NULL AND delivered_at IS NULL
      AND {has_called}
      AND (:is_delivered OR (
          undelivered_at IS NULL AND (:attempt = 0 OR attempt = :attempt)
          AND (:gateway = '' OR (
              -- As in PostgreSQL, not while it is called or waits.
              {called} = :gateway AND state NOT IN ('pending', 'calling')
          ))
      ))",
);

// Before the receipt is noted.
static RECORD: Sql = Sql::with(
    &[IS_NEW, CALLED, HAS_CALLED],
    "",
    "
INSERT INTO event (id, kind, verification, delivery, at, due_at)
SELECT iif(:is_delivered, lower(hex(randomblob(16))), replace(:message, '-', '')),
    iif(:is_delivered, 'delivered', 'failed'), id, :receipt, {now}, {now}
FROM verification
WHERE id = :verification
  AND EXISTS (SELECT 1 FROM delivery WHERE {is_new})
  AND NOT EXISTS (
    SELECT 1
    FROM delivery
    WHERE message_id = :message AND (delivered_at IS NOT NULL OR NOT :is_delivered AND (
        undelivered_at IS NOT NULL OR state IN ('failed', 'expired', 'unknown')
    ))
)",
);

static NOTE: Sql = Sql::with(
    &[IS_NEW, CALLED, HAS_CALLED],
    "",
    "
UPDATE delivery
SET delivered_at = iif(:is_delivered, {now}, delivered_at),
    undelivered_at = iif(:is_delivered, undelivered_at, {now})
WHERE {is_new}",
);

static KNOW: Sql = Sql::with(
    &[CALLED, HAS_CALLED],
    "",
    "
SELECT count(*) > 0 AS known, :noted AS is_new,
    max(CASE WHEN state = 'calling' AND {called} = :gateway THEN attempt END) AS calling,
    {now} - max(called_at) AS since_call,
    {now} - min(accepted_at) AS since_acceptance,
    (SELECT region FROM verification WHERE id = :verification) AS region, max(trace) AS trace
FROM delivery
WHERE message_id = :message AND called_at IS NOT NULL AND {has_called}",
);
