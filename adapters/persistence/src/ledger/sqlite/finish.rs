//! Outcomes, the references that receipts name, and the receipts that are awaited.

use std::collections::HashSet;

use application::ports::CallOutcome;
use domain::VerificationId;
use sea_orm::DatabaseConnection;

use super::record;
use crate::{
    database::{Database, DatabaseError, Events, Sql, Transaction, begin, millis, query},
    ledger::{
        entry::RecordedRow,
        gateways::{CALLED, WITH_CALLED},
        outcomes::{Finished, Manner, Said, passed_over},
    },
    receipts::references::{KEPT_COLUMNS, Kept, kept},
};

/// Records outcomes.
pub(in crate::ledger) async fn finish(
    database: &Database,
    connection: &DatabaseConnection,
    group: &str,
    outcomes: &[CallOutcome],
    manner: Manner,
) -> Result<Finished, DatabaseError> {
    let said = outcomes.iter().map(|outcome| Said::of(outcome, manner));
    let has_more = said.clone().any(|said| said.has_more());
    let parameters =
        database.parameters().with("group", group).rows("given", said.clone(), |said| {
            said.column("id", |it| it.outcome.id.as_uuid())
                .column("attempt", |it| it.outcome.attempt.cast_signed())
                .column("verdict", |it| it.verdict.to_owned())
                .column("wait", |it| it.wait)
                .column("reference", |it| it.reference.to_owned())
                .column("detail", |it| it.detail.to_owned())
                .column("class", |it| it.outcome.class.as_str().to_owned())
        });
    if manner.events == Events::Off && !has_more {
        let recorded = query(connection, FINISH.statement(parameters)?).await?;
        return Ok(Finished { recorded, early: Vec::new() });
    }
    let transaction = begin(connection).await?;
    let recorded: Vec<RecordedRow> = transaction.rows(&FINISH, parameters).await?;
    if manner.events == Events::Recorded {
        record(database, &transaction, group, recorded.iter()).await?;
    }
    let sent: HashSet<&str> =
        recorded.iter().filter(|row| row.state == "sent").map(|row| &*row.id).collect();
    let said: Vec<Said<'_>> = said
        .filter(|said| said.has_more() && sent.contains(&*said.outcome.id.to_string()))
        .collect();
    let early = name(database, &transaction, group, &said).await?;
    await_receipts(database, &transaction, group, &said).await?;
    transaction.commit().await?;
    Ok(Finished { recorded, early })
}

/// Names the messages behind the references of outcomes. Returns the receipts that came before.
async fn name(
    database: &Database,
    transaction: &Transaction,
    group: &str,
    said: &[Said<'_>],
) -> Result<Vec<Kept>, DatabaseError> {
    let named = said.iter().filter(|said| !said.receipts_of.is_empty());
    if named.clone().next().is_none() {
        return Ok(Vec::new());
    }
    let parameters = database.parameters().with("group", group).rows("named", named, |it| {
        it.column("id", |it| it.outcome.id.as_uuid())
            .column("receipts_of", |it| it.receipts_of.to_owned())
    });
    kept(transaction.rows(&NAME, parameters).await?)
}

/// Hands messages that need a receipt to [`AwaitedReceipts`](application::ports::AwaitedReceipts).
async fn await_receipts(
    database: &Database,
    transaction: &Transaction,
    group: &str,
    said: &[Said<'_>],
) -> Result<(), DatabaseError> {
    let awaited = said.iter().filter_map(|said| Some((said.outcome.id, said.awaited?)));
    if awaited.clone().next().is_none() {
        return Ok(());
    }
    let parameters = database.parameters().with("group", group).rows("awaited", awaited, |it| {
        it.column("id", |(id, _)| id.as_uuid())
            .column("verification", |(id, _)| VerificationId::of(id).as_uuid())
            .column("send", |(id, _)| i64::from(VerificationId::number_of(id).unwrap_or_default()))
            .column("within", |(_, awaited)| millis(awaited.within))
            .column("passed_over", |(_, awaited)| passed_over(awaited))
    });
    transaction.execute(&AWAIT, parameters).await?;
    Ok(())
}

// If a gateway gives a reference twice, it is that of the latest message.
static NAME: Sql = Sql::with(
    &[CALLED, KEPT_COLUMNS],
    "",
    "
INSERT INTO gateway_receipt (gateway, reference, message_id, expires_at)
SELECT {called}, named.receipts_of, delivery.message_id, {now} + 259200000
FROM :named CROSS JOIN delivery
WHERE delivery.group_id = :group AND delivery.message_id = named.id
ON CONFLICT (gateway, reference) DO UPDATE
SET message_id = excluded.message_id, expires_at = excluded.expires_at
RETURNING {kept_columns}",
);

static AWAIT: Sql = Sql::with(
    &[CALLED],
    "",
    "
INSERT INTO awaited_receipt (message_id, verification_id, send, gateway, passed_over, due_at)
SELECT awaited.id, awaited.verification, awaited.send, {called}, awaited.passed_over,
    {now} + awaited.within
FROM :awaited CROSS JOIN delivery
WHERE delivery.group_id = :group AND delivery.message_id = awaited.id AND delivered_at IS NULL
-- another group may have the message
ON CONFLICT DO NOTHING",
);

// As in PostgreSQL, not fenced by the lease.
static FINISH: Sql = Sql::with(
    &[CALLED, WITH_CALLED],
    "",
    "
WITH clock AS MATERIALIZED (
    SELECT {now} AS now
), said AS MATERIALIZED (
    SELECT id, attempt, verdict, clock.now + wait AS due_at, reference, detail, class
    FROM clock CROSS JOIN :given
), outcome AS MATERIALIZED (
    SELECT said.*,
        -- a retry that would come too late ends the entry
        CASE WHEN said.verdict = 'pending' AND said.due_at >= entry.expires_at
             THEN 'expired' ELSE said.verdict END AS state
    FROM said CROSS JOIN delivery AS entry
    WHERE entry.group_id = :group AND entry.message_id = said.id
)
UPDATE delivery
SET state = outcome.state,
    code = CASE WHEN outcome.state = 'pending' THEN code END,
    due_at = outcome.due_at,
    ended_at = CASE WHEN outcome.state = 'pending' THEN NULL ELSE (SELECT now FROM clock) END,
    reference = nullif(outcome.reference, ''),
    detail = outcome.class || iif(outcome.detail = '', '', ': ' || outcome.detail),
    -- a binary of an earlier version would not replace the name when it calls
    gateway = iif(outcome.state = 'pending', NULL, gateway),
    maybe_taken = iif(outcome.class = 'ambiguous', {with_called}, maybe_taken),
    -- of very many attempts the first and the latest are kept
    attempts = json_insert(
        iif(json_array_length(attempts) < 100, attempts, json_remove(attempts, '$[1]')),
        '$[#]', json_object('attempt', outcome.attempt, 'gateway', {called},
            'outcome', outcome.class, 'detail', outcome.detail, 'called_at', called_at,
            'ended_at', (SELECT now FROM clock)))
FROM outcome
WHERE delivery.group_id = :group AND delivery.message_id = outcome.id
  AND delivery.state = 'calling' AND delivery.attempt = outcome.attempt
RETURNING message_id AS id, state, {now} - accepted_at AS age",
);
