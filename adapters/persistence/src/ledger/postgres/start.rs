//! The intent to call, the wait for it, and the end without a call.

use super::fenced;
use crate::{
    database::{Database, DatabaseError, EventSql, Events, Fragment, Parameters, Transaction},
    events::RECORD_ENDED,
    ledger::{
        entry::EntryRow,
        gateways::{CALLED, IN_DOUBT, INTERRUPTED, NAMED, WITH_CALLED},
        starts::Step,
    },
};

/// Does a step with the entries that `parameters` name.
pub(in crate::ledger) async fn start(
    database: &Database,
    step: Step,
    parameters: Parameters,
    events: Events,
) -> Result<Option<Vec<EntryRow>>, DatabaseError> {
    let sql = match step {
        Step::Fail | Step::Unknown => &END,
        Step::Wait => &WAIT,
        Step::Buy | Step::Call => &START,
    };
    Ok(fenced(database.rows(sql.of(events), parameters).await?))
}

/// Begins calls, within a transaction.
pub(in crate::ledger) async fn start_within(
    transaction: &Transaction,
    parameters: Parameters,
    events: Events,
) -> Result<Option<Vec<EntryRow>>, DatabaseError> {
    Ok(fenced(transaction.rows(START.of(events), parameters).await?))
}

const LEASE: Fragment = Fragment::new(
    "lease",
    "lease AS (
    SELECT 1
    FROM partition_lease
    WHERE group_id = :group AND topic = :topic AND partition = :partition AND owner = :owner
      AND epoch = :epoch
    FOR SHARE
)",
);

/// Records a call that was interrupted by the end of its consumer: it may have been made.
const NOTE_INTERRUPTED: Fragment = Fragment::new(
    "note_interrupted",
    "attempts = CASE
            WHEN state = 'pending' OR epoch = :epoch THEN attempts
            ELSE {interrupted}
        END,
        maybe_taken = CASE
            WHEN state = 'pending' OR epoch = :epoch THEN maybe_taken
            ELSE {with_called}
        END",
);

const BEGUN: Fragment = Fragment::new(
    "begun",
    "SELECT message_id::text AS id, state, attempt, {millis(expires_at)} AS expires_at,
    {millis(expires_at - now())} AS good_for, {millis(now() - accepted_at)} AS age
FROM lease LEFT JOIN begun ON true",
);

const ENDED: Fragment = Fragment::new(
    "events",
    ", ended AS (
    SELECT message_id AS id, state, NULL::text AS reason
    FROM begun
    WHERE state <> 'pending' AND state <> 'calling'
){record_ended}",
);

/// The same for entries that end without a call.
const ENDED_UNCALLED: Fragment = Fragment::new(
    "events",
    ", ended AS (
    SELECT message_id AS id, state, CASE state WHEN 'failed' THEN :reasons ->> detail END AS reason
    FROM begun
){record_ended}",
);

const RECORDED: [Fragment; 10] = recorded(ENDED);

const RECORDED_UNCALLED: [Fragment; 10] = recorded(ENDED_UNCALLED);

const fn recorded(ended: Fragment) -> [Fragment; 10] {
    [
        LEASE,
        CALLED,
        INTERRUPTED,
        WITH_CALLED,
        IN_DOUBT,
        NOTE_INTERRUPTED,
        NAMED,
        BEGUN,
        ended,
        RECORD_ENDED,
    ]
}

const OFF: [Fragment; 9] = [
    LEASE,
    CALLED,
    INTERRUPTED,
    WITH_CALLED,
    IN_DOUBT,
    NOTE_INTERRUPTED,
    NAMED,
    BEGUN,
    Fragment::NO_EVENTS,
];

// `:gateway` is the gateway of most calls, and `:others` has the rest by the id of the message: a table
// to join would be compared row by row under a plan that was made for an empty table.
static START: EventSql = EventSql::postgres(
    "
WITH {lease}, begun AS (
    UPDATE delivery
    SET state = CASE WHEN expires_at > now() THEN 'calling' ELSE 'expired' END,
        code = CASE WHEN expires_at > now() THEN code END,
        attempt = attempt + CASE WHEN expires_at > now() THEN 1 ELSE 0 END,
        epoch = :epoch,
        turn = :turn,
        due_at = now() + {duration(:call_limit)},
        called_at = CASE WHEN expires_at > now() THEN now() ELSE called_at END,
        ended_at = CASE WHEN expires_at > now() THEN NULL ELSE now() END,
        gateway = CASE
            WHEN expires_at > now() THEN coalesce(:others ->> message_id::text, :gateway)
            ELSE gateway
        END,
        {note_interrupted}
    FROM lease
    WHERE {named}
    RETURNING message_id, state, attempt, expires_at, accepted_at
){events}
{begun}",
    &RECORDED,
    &OFF,
);

// It takes a turn too, so that no earlier statement begins a call after it.
static WAIT: EventSql = EventSql::postgres(
    "
WITH {lease}, begun AS (
    UPDATE delivery
    SET state = CASE WHEN expires_at > now() THEN 'pending' ELSE 'expired' END,
        code = CASE WHEN expires_at > now() THEN code END,
        epoch = :epoch,
        turn = :turn,
        due_at = least(now() + {duration((:waits ->> message_id::text)::bigint)}, expires_at),
        ended_at = CASE WHEN expires_at > now() THEN NULL ELSE now() END,
        gateway = CASE WHEN expires_at > now() THEN NULL ELSE gateway END,
        {note_interrupted}
    FROM lease
    WHERE {named}
    RETURNING message_id, state, attempt, expires_at, accepted_at
){events}
{begun}",
    &RECORDED,
    &OFF,
);

static END: EventSql = EventSql::postgres(
    "
WITH {lease}, begun AS (
    UPDATE delivery
    SET state = CASE
            WHEN expires_at <= now() THEN 'expired'
            WHEN {in_doubt} THEN 'unknown'
            ELSE 'failed'
        END,
        code = NULL,
        epoch = :epoch,
        turn = :turn,
        ended_at = now(),
        detail = CASE WHEN expires_at > now() THEN :details ->> message_id::text ELSE detail END,
        {note_interrupted}
    FROM lease
    WHERE {named} AND (NOT :only_in_doubt OR expires_at <= now() OR {in_doubt})
    RETURNING message_id, state, attempt, expires_at, accepted_at, detail
){events}
{begun}",
    &RECORDED_UNCALLED,
    &OFF,
);
