//! Outcomes, the references that receipts name, and the receipts that are awaited.

use application::ports::CallOutcome;
use domain::VerificationId;
use sea_orm::FromQueryResult;
use serde_json::json;

use crate::{
    database::{Database, DatabaseError, Events, Fragment, Sql, millis},
    events::RECORD_ENDED,
    ledger::{
        entry::RecordedRow,
        gateways::{CALLED, WITH_CALLED},
        outcomes::{Finished, Manner, Said, passed_over},
    },
    receipts::references::{KEPT_COLUMNS, KeptRow, kept},
};

#[derive(FromQueryResult)]
struct NamedRow {
    #[sea_orm(nested)]
    recorded: RecordedRow,
    /// The reference, if a receipt came before its outcome.
    #[sea_orm(nested)]
    early: Option<KeptRow>,
}

/// Records outcomes.
pub(in crate::ledger) async fn finish(
    database: &Database,
    group: &str,
    outcomes: &[CallOutcome],
    manner: Manner,
) -> Result<Finished, DatabaseError> {
    let said = outcomes.iter().map(|outcome| Said::of(outcome, manner));
    let has_more = said.clone().any(|said| said.has_more());
    let said: serde_json::Map<_, _> = said.map(|said| (call(&said), stored(&said))).collect();
    let parameters = database
        .parameters()
        .with("group", group)
        .list("ids", outcomes.iter().map(|outcome| outcome.id.as_uuid()))
        .with("said", serde_json::Value::from(said));
    let sql = match (manner.events, has_more) {
        (Events::Recorded, true) => &FINISH_NAME_AND_RECORD,
        (Events::Recorded, false) => &FINISH_AND_RECORD,
        (Events::Off, true) => &FINISH_AND_NAME,
        (Events::Off, false) => &FINISH,
    };
    if !has_more {
        return Ok(Finished { recorded: database.rows(sql, parameters).await?, early: Vec::new() });
    }
    let rows: Vec<NamedRow> = database.rows(sql, parameters).await?;
    let (recorded, early): (Vec<_>, Vec<_>) =
        rows.into_iter().map(|row| (row.recorded, row.early)).unzip();
    Ok(Finished { recorded, early: kept(early.into_iter().flatten().collect())? })
}

fn call(said: &Said<'_>) -> String {
    format!("{} {}", said.outcome.id.as_uuid(), said.outcome.attempt)
}

fn stored(said: &Said<'_>) -> serde_json::Value {
    let mut stored = json!({
        "verdict": said.verdict,
        "wait": said.wait,
        "reference": said.reference,
        "receipts_of": said.receipts_of,
        "detail": said.detail,
        "class": said.outcome.class.as_str(),
    });
    if let Some(awaited) = said.awaited {
        let id = said.outcome.id;
        stored["awaited"] = json!({
            "verification": VerificationId::of(id).as_uuid().to_string(),
            "send": VerificationId::number_of(id).unwrap_or_default(),
            "within": millis(awaited.within),
            "passed_over": passed_over(awaited),
        });
    }
    stored
}

// Not fenced by the lease: an outcome counts even if the partition has gone to another consumer, as
// long as no later call was begun.
//
// The outcomes are one object, by id and attempt, and no table to join: a plan that was made for an
// empty table would compare each with each.
const FINISHED: Fragment = Fragment::new(
    "finished",
    "
UPDATE delivery
SET (state, code, due_at, ended_at, reference, detail, gateway, maybe_taken, attempts) = (
    SELECT outcome.state,
        CASE WHEN outcome.state = 'pending' THEN delivery.code END,
        outcome.due_at,
        CASE WHEN outcome.state = 'pending' THEN NULL ELSE now() END,
        nullif(said.reference, ''),
        concat_ws(': ', said.class, nullif(said.detail, '')),
        -- a binary of an earlier version would not replace the name when it calls
        CASE WHEN outcome.state <> 'pending' THEN gateway END,
        CASE WHEN said.class = 'ambiguous' THEN {with_called} ELSE maybe_taken END,
        -- of very many attempts the first and the latest are kept
        CASE WHEN jsonb_array_length(delivery.attempts) < 100 THEN delivery.attempts
             ELSE delivery.attempts - 1 END
            || jsonb_build_object('attempt', delivery.attempt, 'gateway', {called},
                'outcome', said.class, 'detail', said.detail, 'called_at', delivery.called_at,
                'ended_at', now())
    FROM jsonb_to_record(:said -> (delivery.message_id || ' ' || delivery.attempt))
            AS said (verdict text, wait bigint, reference text, detail text, class text)
        CROSS JOIN LATERAL (
            SELECT due_at,
                -- a retry that would come too late ends the entry
                CASE WHEN said.verdict = 'pending' AND due_at >= delivery.expires_at
                     THEN 'expired' ELSE said.verdict END AS state
            FROM (SELECT now() + {duration(said.wait)} AS due_at) AS next
        ) AS outcome
)
WHERE group_id = :group AND message_id = ANY (:ids)
  AND state || '' = 'calling' AND :said ? (message_id || ' ' || attempt)
RETURNING message_id::text AS id, state, {millis(now() - accepted_at)} AS age{names}",
);

const NO_NAMES: Fragment = Fragment::new("names", "");

/// The gateway of an entry, the reference by which its receipts find it, and the receipt that it needs
/// in time.
const NAMES: Fragment = Fragment::new(
    "names",
    ",
    {called} AS gateway, :said -> (message_id || ' ' || attempt) ->> 'receipts_of' AS reference,
    CASE WHEN delivered_at IS NULL THEN :said -> (message_id || ' ' || attempt) -> 'awaited' END
        AS awaited",
);

/// Names the messages behind the references. If a gateway gives a reference twice, it is that of the
/// latest message.
const NAMED: Fragment = Fragment::new(
    "named",
    "named AS (
    INSERT INTO gateway_receipt (gateway, reference, message_id, expires_at)
    SELECT DISTINCT ON (gateway, reference) gateway, reference, id::uuid,
        now() + interval '3 days'
    FROM finished
    WHERE state = 'sent' AND reference <> ''
    ORDER BY gateway, reference
    ON CONFLICT (gateway, reference) DO UPDATE
    SET message_id = excluded.message_id, expires_at = excluded.expires_at
    RETURNING {kept_columns}
)",
);

/// Hands messages that need a receipt to [`AwaitedReceipts`](application::ports::AwaitedReceipts).
const AWAITED: Fragment = Fragment::new(
    "awaited",
    "handed AS (
    INSERT INTO awaited_receipt
        (message_id, verification_id, send, gateway, passed_over, due_at)
    SELECT id::uuid, (awaited ->> 'verification')::uuid, (awaited ->> 'send')::smallint, gateway,
        awaited ->> 'passed_over', now() + {duration((awaited ->> 'within')::bigint)}
    FROM finished
    WHERE state = 'sent' AND awaited IS NOT NULL
    ORDER BY id
    -- another group may have the message
    ON CONFLICT DO NOTHING
)",
);

const WITH_NAMES: Fragment = Fragment::new(
    "with_names",
    "SELECT finished.id, finished.state, finished.age, named.gateway, named.reference,
    named.message, named.receipt, named.attempt
FROM finished LEFT JOIN named ON named.message = finished.id AND named.receipt IS NOT NULL",
);

static FINISH: Sql = Sql::with(&[FINISHED, CALLED, WITH_CALLED, NO_NAMES], "{finished}", "");

static FINISH_AND_NAME: Sql = Sql::with(
    &[FINISHED, CALLED, WITH_CALLED, NAMES, NAMED, AWAITED, WITH_NAMES, KEPT_COLUMNS],
    "
WITH finished AS ({finished}
), {named}, {awaited}
{with_names}",
    "",
);

static FINISH_AND_RECORD: Sql = Sql::with(
    &[FINISHED, CALLED, WITH_CALLED, NO_NAMES, RECORD_ENDED],
    "
WITH finished AS ({finished}
), ended AS (
    SELECT id::uuid AS id, state, NULL::text AS reason FROM finished WHERE state <> 'pending'
){record_ended}
SELECT * FROM finished",
    "",
);

static FINISH_NAME_AND_RECORD: Sql = Sql::with(
    &[FINISHED, CALLED, WITH_CALLED, NAMES, NAMED, AWAITED, WITH_NAMES, KEPT_COLUMNS, RECORD_ENDED],
    "
WITH finished AS ({finished}
), {named}, {awaited}, ended AS (
    SELECT id::uuid AS id, state, NULL::text AS reason FROM finished WHERE state <> 'pending'
){record_ended}
{with_names}",
    "",
);
