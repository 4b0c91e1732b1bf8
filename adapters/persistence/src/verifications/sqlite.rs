//! Changes of one verification in SQLite: transactions, as each statement writes to one table.

use application::ports::{EventKind, NewTest};
use domain::VerificationId;
use sea_orm::{DatabaseConnection, FromQueryResult};

use super::test_numbers::new_verification;
use crate::database::{Database, DatabaseError, Sql, Transaction, begin, clock};

pub(super) async fn cancel(
    database: &Database,
    connection: &DatabaseConnection,
    id: VerificationId,
) -> Result<(), DatabaseError> {
    #[derive(FromQueryResult)]
    struct Row {
        phone: String,
        sequence: i64,
        sends: u8,
    }

    let transaction = begin(connection).await?;
    let now = clock(&transaction).await?;
    let parameters = || database.parameters().with("now", now);
    let cancel = parameters().id("id", id.as_uuid());
    let Some(row) = transaction.row::<Row>(&CANCEL, cancel).await? else { return Ok(()) };
    clear_newest(database, &transaction, &row.phone, id).await?;
    transaction.execute(&CANCEL_UNTAKEN, parameters().with("sequence", row.sequence)).await?;
    let messages = (1..=row.sends).map(|send| id.message(send).as_uuid());
    transaction.execute(&CANCEL_UNCALLED, parameters().list("messages", messages)).await?;
    record(database, &transaction, EventKind::Canceled, id, now).await?;
    transaction.commit().await
}

/// Returns when it was created.
pub(super) async fn start_test(
    database: &Database,
    connection: &DatabaseConnection,
    test: &NewTest,
) -> Result<i64, DatabaseError> {
    let transaction = begin(connection).await?;
    let now = clock(&transaction).await?;
    let parameters = || new_verification(database.parameters().with("now", now), test);
    transaction.execute(&POINT_TO, parameters()).await?;
    transaction.execute(&CREATE_TEST, parameters()).await?;
    record(database, &transaction, EventKind::Created, test.id, now).await?;
    transaction.commit().await?;
    Ok(now)
}

/// Records an event, if events are recorded.
pub(super) async fn record(
    database: &Database,
    transaction: &Transaction,
    kind: EventKind,
    id: VerificationId,
    now: i64,
) -> Result<(), DatabaseError> {
    if database.events().are_recorded() {
        let parameters = database
            .parameters()
            .with("now", now)
            .with("kind", kind.as_str())
            .id("id", id.as_uuid());
        transaction.execute(&RECORD, parameters).await?;
    }
    Ok(())
}

/// Takes the verification off its phone, if it is the newest.
pub(super) async fn clear_newest(
    database: &Database,
    transaction: &Transaction,
    phone: &str,
    id: VerificationId,
) -> Result<(), DatabaseError> {
    let parameters = database.parameters().with("phone", phone).id("id", id.as_uuid());
    transaction.execute(&CLEAR_NEWEST, parameters).await?;
    Ok(())
}

static RECORD: Sql = Sql::new(
    "INSERT INTO event (kind, verification, at, due_at) VALUES (:kind, :id, {now}, {now})",
);

static CLEAR_NEWEST: Sql = Sql::new(
    "UPDATE phone SET newest = NULL, newest_until = 0 WHERE phone = :phone AND newest = :id",
);

static CANCEL: Sql = Sql::new(
    "
UPDATE verification
SET status = 'canceled', ended_at = {now}, code_hash = NULL, seed = NULL
WHERE id = :id AND status = 'pending' AND expires_at > {now}
RETURNING phone, sequence, sends",
);

// A consumer that reads the message from the topic looks at this row, too.
static CANCEL_UNTAKEN: Sql =
    Sql::new("UPDATE outbox SET expires_at = min(expires_at, {now}) WHERE sequence = :sequence");

static CANCEL_UNCALLED: Sql = Sql::new(
    "
UPDATE delivery
SET expires_at = min(expires_at, {now}),
    -- due now: the next message of the phone waits for its end
    due_at = CASE state WHEN 'pending' THEN min(due_at, {now}) ELSE due_at END
WHERE message_id IN (SELECT value FROM json_each(:messages)) AND state IN ('pending', 'calling')",
);

static POINT_TO: Sql = Sql::new(
    "
INSERT INTO phone
    (phone, newest, newest_until, exclusive, quota_1, sends_1, ends_1, quota_2, sends_2, ends_2,
     quota_3, sends_3, ends_3)
VALUES (:phone, :id, {now} + :ttl, 0, 0, 0, {now}, 0, 0, {now}, 0, 0, {now})
ON CONFLICT (phone) DO UPDATE SET newest = excluded.newest, newest_until = excluded.newest_until",
);

static CREATE_TEST: Sql = Sql::new(
    "
INSERT INTO verification
    (id, phone, origin, region, code_hash, seed, pepper_id, code_length, template, metadata,
     api_key, sequence, created_at, sent_at, expires_at)
VALUES (:id, :phone, :origin, :region, unhex(:code_hash), unhex(:seed), :pepper, :code_length,
    :template, :metadata, :api_key, 0, {now}, {now}, {now} + :ttl)",
);
