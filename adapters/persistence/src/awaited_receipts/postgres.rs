//! One more message, in one statement.

use application::ports::ExtraSend;
use domain::ATTEMPTS;
use sea_orm::FromQueryResult;

use super::IS_NEWEST;
use crate::database::{Database, DatabaseError, Sql};

pub(super) async fn send_elsewhere(
    database: &Database,
    extra: &ExtraSend,
) -> Result<bool, DatabaseError> {
    #[derive(FromQueryResult)]
    struct Row {
        is_sent: bool,
    }

    let parameters = database
        .parameters()
        .id("id", extra.verification.as_uuid())
        .id("of", extra.after.as_uuid())
        .with("sends", i16::from(extra.sends))
        .with("attempts", i16::from(ATTEMPTS))
        .id("message", extra.message.id.as_uuid())
        .with("code", extra.message.code.as_text().into_owned())
        .with("trace", extra.trace.as_str())
        .with("reason", extra.reason.as_str())
        .with("events", database.events().are_recorded());
    let row: Option<Row> = database.row(&SEND, parameters).await?;
    Ok(row.is_some_and(|row| row.is_sent))
}

// The row of the verification is locked and read again before anything is done. The second of two
// callers finds that it has changed, or that the receipt is no longer awaited.
static SEND: Sql = Sql::with(
    &[IS_NEWEST],
    "
WITH target AS (
    SELECT id, phone, expires_at
    FROM verification
    WHERE id = :id AND status || '' = 'pending' AND expires_at > now() AND sends = :sends
      AND attempts < :attempts AND {is_newest}
    FOR UPDATE
), taken AS (
    DELETE FROM awaited_receipt
    WHERE message_id = :of AND EXISTS (SELECT 1 FROM target) AND NOT EXISTS (
        SELECT 1 FROM delivery WHERE delivery.message_id = :of AND delivered_at IS NOT NULL
    )
    RETURNING gateway, passed_over
), stored AS (
    INSERT INTO outbox (id, phone, code, trace, expires_at)
    SELECT :message, phone, :code, :trace, expires_at
    FROM target, taken
    RETURNING sequence
), noted AS (
    INSERT INTO extra_send (message_id, gateway, passed_over, reason)
    SELECT :message, gateway, passed_over, :reason FROM taken
), sent AS (
    UPDATE verification
    SET sends = sends + 1, extra_sends = extra_sends + 1, sequence = stored.sequence
    FROM stored
    WHERE id = :id
    RETURNING id
), told AS (
    INSERT INTO event (kind, verification, reason)
    SELECT 'rerouted', id, :reason FROM sent WHERE :events
)
SELECT count(*) > 0 AS is_sent FROM sent",
    "",
);
