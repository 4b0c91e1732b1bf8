//! Changes of one verification, in one statement each.

use application::ports::NewTest;
use domain::VerificationId;
use sea_orm::FromQueryResult;

use super::test_numbers::new_verification;
use crate::database::{Database, DatabaseError, Sql};

pub(super) async fn cancel(database: &Database, id: VerificationId) -> Result<(), DatabaseError> {
    let parameters = database
        .parameters()
        .id("id", id.as_uuid())
        .with("events", database.events().are_recorded());
    database.execute(&CANCEL, parameters).await?;
    Ok(())
}

/// Returns when it was created.
pub(super) async fn start_test(database: &Database, test: &NewTest) -> Result<i64, DatabaseError> {
    #[derive(FromQueryResult)]
    struct Row {
        created_at: i64,
    }

    let parameters = new_verification(database.parameters(), test)
        .with("events", database.events().are_recorded());
    let row: Option<Row> = database.row(&START_TEST, parameters).await?;
    Ok(row.ok_or_else(|| DatabaseError::missing("the new verification"))?.created_at)
}

static CANCEL: Sql = Sql::new(
    "
WITH target AS (
    SELECT id, phone
    FROM verification
    WHERE id = :id AND status || '' = 'pending' AND expires_at > now()
), cleared AS (
    UPDATE phone
    SET newest = CASE WHEN newest <> :id THEN newest END,
        newest_until = CASE WHEN newest <> :id THEN newest_until ELSE '-infinity' END
    WHERE phone = (SELECT phone FROM target)
    RETURNING 1
), canceled AS (
    UPDATE verification
    SET status = 'canceled', ended_at = now(), code_hash = NULL, seed = NULL
    WHERE id = (SELECT id FROM target) AND status || '' = 'pending' AND expires_at > now()
      AND (SELECT count(*) FROM cleared) >= 0
    RETURNING id, sequence, sends
), untaken AS (
    -- Its message expires now. A consumer that reads it from the topic looks at this row, too.
    UPDATE outbox
    SET expires_at = least(expires_at, now())
    WHERE sequence = (SELECT sequence FROM canceled)
    RETURNING 1
), uncalled AS (
    UPDATE delivery
    SET expires_at = least(expires_at, now()),
        -- due now: the next message of the phone waits for its end
        due_at = CASE state WHEN 'pending' THEN least(due_at, now()) ELSE due_at END
    WHERE message_id = ANY (ARRAY(
            SELECT (left(id::text, 34) || lpad(to_hex(send), 2, '0'))::uuid
            FROM canceled, generate_series(1, sends) AS send
        ))
      AND state || '' IN ('pending', 'calling')
      AND (SELECT count(*) FROM untaken) >= 0
    RETURNING 1
)
INSERT INTO event (kind, verification)
SELECT 'canceled', id FROM canceled WHERE :events AND (SELECT count(*) FROM uncalled) >= 0",
);

static START_TEST: Sql = Sql::new(
    "
WITH known AS (
    INSERT INTO phone
        (phone, newest, newest_until, exclusive, quota_1, sends_1, ends_1, quota_2, sends_2,
         ends_2, quota_3, sends_3, ends_3)
    VALUES (:phone, :id, now() + {duration(:ttl)}, false, 0, 0, now(), 0, 0, now(), 0, 0, now())
    ON CONFLICT (phone) DO UPDATE SET
        newest = excluded.newest, newest_until = excluded.newest_until
    RETURNING 1
), created AS (
    INSERT INTO verification
        (id, phone, origin, region, code_hash, seed, pepper_id, code_length, template, metadata,
         api_key, sequence, expires_at)
    SELECT :id, :phone, :origin, :region, decode(:code_hash, 'hex'), decode(:seed, 'hex'), :pepper,
        :code_length, :template, :metadata, :api_key, 0, now() + {duration(:ttl)}
    FROM known
    RETURNING id
), told AS (
    INSERT INTO event (kind, verification) SELECT 'created', id FROM created WHERE :events
)
SELECT {millis(now())} AS created_at FROM created",
);
