//! Messages that expire before a consumer takes them over. They end in the ledger of no group (`''`),
//! unless a group has them.

use std::ops::Range;

use sea_orm::{DatabaseConnection, FromQueryResult};

use crate::{
    database::{Database, DatabaseError, Parameters, Sql, begin},
    events::record_ended,
    refusal::{code, first_taken, in_parts},
};

/// Rows that one statement touches at most, so that none takes long.
const ENDED: u64 = 10_000;

/// Ends messages that expired before a consumer took them over. Returns how many.
pub(crate) async fn end_expired(database: &Database) -> Result<u64, DatabaseError> {
    #[derive(FromQueryResult)]
    struct Row {
        sequence: i64,
    }

    let recorded = database.events().are_recorded();
    let mut expired = 0;
    loop {
        let found: Vec<Row> = database.rows(&EXPIRED, database.parameters()).await?;
        if found.is_empty() {
            return Ok(expired);
        }
        let found = &found;
        let list = |places: Range<usize>| {
            let sequences = found[places].iter().map(|row| row.sequence);
            database.parameters().list("sequences", sequences)
        };
        let end_part = |places: Range<usize>| end(database, list(places), recorded);
        let end_alone = |place: usize, error: DatabaseError| async move {
            tracing::error!(
                sequence = found[place].sequence,
                sqlstate = code(&error),
                "the database refuses to record an expired message; the service deletes it if the second try fails too"
            );
            // It must not stay, because its code would.
            let step = |noted: bool| async move {
                let alone = list(place..place + 1);
                if noted {
                    end(database, alone, false).await
                } else {
                    database.execute(&FORGET, alone).await
                }
            };
            Ok(first_taken([true, false], step).await?.unwrap_or(0))
        };
        let ended: u64 = in_parts(found.len(), end_part, end_alone).await?.iter().sum();
        expired += ended;
        // If other processes have locked the rest, they end it.
        if ended < ENDED {
            return Ok(expired);
        }
    }
}

/// Notes messages as expired and deletes them, in one commit.
async fn end(
    database: &Database,
    sequences: Parameters,
    recorded: bool,
) -> Result<u64, DatabaseError> {
    if database.is_postgres() {
        return database.execute(&END, sequences.with("events", recorded)).await;
    }
    let step = async |it| end_sqlite(database, &it, sequences, recorded).await;
    database.step(step).await
}

async fn end_sqlite(
    database: &Database,
    connection: &DatabaseConnection,
    sequences: Parameters,
    recorded: bool,
) -> Result<u64, DatabaseError> {
    #[derive(FromQueryResult)]
    struct Row {
        id: String,
    }

    let transaction = begin(connection).await?;
    let noted: Vec<Row> = transaction.rows(&NOTE, sequences.clone()).await?;
    if recorded && !noted.is_empty() {
        let ended = noted.iter().map(|row| (&*row.id, "expired"));
        record_ended(database, &transaction, "", ended).await?;
    }
    transaction.execute(&LEAVE, sequences).await?;
    transaction.commit().await?;
    Ok(u64::try_from(noted.len()).unwrap_or(u64::MAX))
}

static EXPIRED: Sql = Sql::new(
    "
SELECT sequence
FROM outbox
WHERE sequence >= (SELECT oldest FROM relay) AND expires_at <= {now}
LIMIT 10000",
);

// A message that ends in the ledger of no group has failed: see `events::RECORD_ENDED`.
//
// The rows of `event` and `delivery` are new, so their order is harmless: no other transaction sees
// them, and one that ends the same message waits for or skips its row in the table that it leaves.
static END: Sql = Sql::pair(
    "
WITH late AS (
    SELECT sequence
    FROM outbox
    WHERE sequence = ANY (:sequences) AND expires_at <= now()
    FOR UPDATE SKIP LOCKED
), gone AS (
    DELETE FROM outbox WHERE sequence = ANY (ARRAY(SELECT sequence FROM late)) RETURNING *
), told AS (
    INSERT INTO event (id, kind, verification, delivery)
    SELECT gone.id, 'failed', verification.id, 'expired'
    FROM gone CROSS JOIN LATERAL (
        SELECT id FROM verification WHERE id = (left(gone.id::text, 34) || '00')::uuid OFFSET 0
    ) AS verification
    WHERE :events AND NOT EXISTS (SELECT 1 FROM delivery WHERE delivery.message_id = gone.id)
)
INSERT INTO delivery
    (group_id, topic, partition, message_id, phone, trace, state, accepted_at, expires_at,
     ended_at, detail)
SELECT '', '', -1, id, phone, trace, 'expired', accepted_at, expires_at, now(),
    'no consumer took it over in time'
FROM gone
WHERE NOT EXISTS (SELECT 1 FROM delivery WHERE delivery.message_id = gone.id)
ON CONFLICT DO NOTHING",
    "",
);

static NOTE: Sql = Sql::pair(
    "",
    "
INSERT INTO delivery
    (group_id, topic, partition, message_id, phone, trace, state, accepted_at, expires_at, due_at,
     ended_at, detail)
SELECT '', '', -1, id, phone, trace, 'expired', accepted_at, expires_at, now, now,
    'no consumer took it over in time'
FROM outbox, (SELECT {now} AS now)
WHERE sequence IN (SELECT value FROM json_each(:sequences)) AND expires_at <= now
  AND NOT EXISTS (SELECT 1 FROM delivery WHERE delivery.message_id = outbox.id)
ON CONFLICT DO NOTHING
RETURNING message_id AS id",
);

static LEAVE: Sql = Sql::pair(
    "",
    "
DELETE FROM outbox
WHERE sequence IN (SELECT value FROM json_each(:sequences)) AND expires_at <= {now}
  AND EXISTS (SELECT 1 FROM delivery WHERE delivery.message_id = outbox.id)",
);

static FORGET: Sql = Sql::pair(
    "DELETE FROM outbox WHERE sequence = ANY (:sequences) AND expires_at <= now()",
    "
DELETE FROM outbox
WHERE sequence IN (SELECT value FROM json_each(:sequences)) AND expires_at <= {now}",
);
