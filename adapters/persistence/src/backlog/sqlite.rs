//! Moves rows between the outbox and `in_transit`, in transactions, as each statement writes to one
//! table.

use sea_orm::DatabaseConnection;

use crate::database::{DatabaseError, Parameters, Sql, begin};

/// Moves published messages to `in_transit`.
pub(super) async fn settle(
    connection: &DatabaseConnection,
    parameters: Parameters,
) -> Result<(), DatabaseError> {
    static COPY_TO_TRANSIT: Sql = Sql::new(
        "
WITH claim AS MATERIALIZED (
    SELECT sequence, attempt FROM :claim
)
INSERT INTO in_transit
    (sequence, id, phone, code, trace, accepted_at, expires_at, attempt, publications,
     published_at, due_at)
SELECT outbox.sequence, id, phone, code, trace, accepted_at, expires_at, outbox.attempt,
    publications + 1, clock.now, clock.now + :confirm_within
FROM (SELECT {now} AS now) AS clock CROSS JOIN claim CROSS JOIN outbox
WHERE outbox.sequence = claim.sequence AND outbox.attempt = claim.attempt
ON CONFLICT DO NOTHING",
    );
    static LEAVE_OUTBOX: Sql = Sql::new(
        "
DELETE FROM outbox
WHERE (sequence, attempt) IN (SELECT sequence, attempt FROM :claim)",
    );
    let transaction = begin(connection).await?;
    transaction.execute(&COPY_TO_TRANSIT, parameters.clone()).await?;
    transaction.execute(&LEAVE_OUTBOX, parameters).await?;
    transaction.commit().await
}

/// Moves messages back to the outbox. Returns how many.
pub(super) async fn return_to_outbox(
    connection: &DatabaseConnection,
    parameters: Parameters,
) -> Result<u64, DatabaseError> {
    static COPY_TO_OUTBOX: Sql = Sql::new(
        "
INSERT INTO outbox
    (sequence, id, phone, code, trace, accepted_at, expires_at, attempt, publications)
SELECT sequence, id, phone, code, trace, accepted_at, expires_at, attempt, publications
FROM in_transit
WHERE sequence IN (SELECT value FROM json_each(:sequences))
  AND NOT EXISTS (SELECT 1 FROM delivery WHERE delivery.message_id = in_transit.id)
ORDER BY sequence
ON CONFLICT DO NOTHING",
    );
    static LEAVE_TRANSIT: Sql = Sql::new(
        "
DELETE FROM in_transit
WHERE sequence IN (SELECT value FROM json_each(:sequences))
  AND sequence IN (SELECT sequence FROM outbox)",
    );
    let transaction = begin(connection).await?;
    let returned = transaction.execute(&COPY_TO_OUTBOX, parameters.clone()).await?;
    transaction.execute(&LEAVE_TRANSIT, parameters).await?;
    transaction.commit().await?;
    Ok(returned)
}
