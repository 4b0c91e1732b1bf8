//! One more message, in a transaction, as each statement writes to one table.

use application::ports::ExtraSend;
use domain::ATTEMPTS;
use sea_orm::{DatabaseConnection, FromQueryResult};

use super::IS_NEWEST;
use crate::{
    database::{Database, DatabaseError, Sql, begin, clock},
    outbox::stored::{NewMessage, store},
};

#[derive(FromQueryResult)]
struct Target {
    phone: String,
    ttl: i64,
}

pub(super) async fn send_elsewhere(
    database: &Database,
    connection: &DatabaseConnection,
    extra: &ExtraSend,
) -> Result<bool, DatabaseError> {
    let transaction = begin(connection).await?;
    let now = clock(&transaction).await?;
    let parameters = || {
        database
            .parameters()
            .with("now", now)
            .id("id", extra.verification.as_uuid())
            .id("of", extra.after.as_uuid())
    };

    let find = parameters().with("sends", extra.sends).with("attempts", ATTEMPTS);
    let Some(target) = transaction.row::<Target>(&TARGET, find).await? else {
        transaction.rollback().await?;
        return Ok(false);
    };
    let message = extra.message.id.as_uuid();
    let note = parameters().id("message", message).with("reason", extra.reason.as_str());
    transaction.execute(&NOTE, note).await?;
    transaction.execute(&TAKE, parameters()).await?;
    let message = NewMessage {
        id: message,
        phone: &target.phone,
        code: extra.message.code.as_text().into_owned(),
        trace: extra.trace.as_str(),
        ttl: target.ttl,
    };
    let stored = store(database, &transaction, &[message], now).await?;
    let sequence = stored.into_values().next();
    let sequence = sequence.ok_or_else(|| DatabaseError::missing("a place in the outbox"))?;
    transaction.execute(&SEND, parameters().with("sequence", sequence)).await?;
    if database.events().are_recorded() {
        transaction.execute(&RECORD, parameters().with("reason", extra.reason.as_str())).await?;
    }
    transaction.commit().await?;
    Ok(true)
}

static TARGET: Sql = Sql::with(
    &[IS_NEWEST],
    "",
    "
SELECT phone, expires_at - {now} AS ttl
FROM verification
WHERE id = :id AND status = 'pending' AND expires_at > {now} AND sends = :sends
  AND attempts < :attempts AND {is_newest}
  AND EXISTS (SELECT 1 FROM awaited_receipt WHERE message_id = :of)
  AND NOT EXISTS (
    SELECT 1 FROM delivery WHERE delivery.message_id = :of AND delivered_at IS NOT NULL
  )",
);

static NOTE: Sql = Sql::new(
    "
INSERT INTO extra_send (message_id, gateway, passed_over, reason, sent_at)
SELECT :message, gateway, passed_over, :reason, {now}
FROM awaited_receipt
WHERE message_id = :of",
);

static TAKE: Sql = Sql::new("DELETE FROM awaited_receipt WHERE message_id = :of");

static SEND: Sql = Sql::new(
    "
UPDATE verification
SET sends = sends + 1, extra_sends = extra_sends + 1, sequence = :sequence
WHERE id = :id",
);

static RECORD: Sql = Sql::new(
    "
INSERT INTO event (kind, verification, reason, at, due_at)
VALUES ('rerouted', :id, :reason, {now}, {now})",
);
