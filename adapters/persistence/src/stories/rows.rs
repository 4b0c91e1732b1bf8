//! The statements of stories, and their rows.

use domain::{MessageId, PhoneNumber};
use sea_orm::FromQueryResult;
use serde_json::Value;

use super::{Awaited, EndedCall, ExtraMessage, LedgerEntry, UnpostedEvent, WaitingMessage};
use crate::database::{DatabaseError, Sql, parsed, time};

/// The messages that wait. The table has no index by id, and few rows.
pub(super) static WAITING: Sql = Sql::new(
    "
SELECT {text(id)} AS id, phone, {millis(accepted_at)} AS accepted_at,
    {millis(expires_at)} AS expires_at,
    sequence <= (SELECT published FROM relay) AS is_published
FROM (SELECT * FROM outbox ORDER BY sequence LIMIT 10000) AS waiting
WHERE id BETWEEN :first AND :last",
);

#[derive(FromQueryResult)]
pub(super) struct WaitingRow {
    id: String,
    phone: String,
    accepted_at: i64,
    expires_at: i64,
    is_published: bool,
}

impl WaitingRow {
    pub(super) fn read(self) -> Result<(MessageId, WaitingMessage), DatabaseError> {
        let waiting = WaitingMessage {
            phone: phone(&self.phone)?,
            accepted_at: time(self.accepted_at),
            expires_at: time(self.expires_at),
            is_published: self.is_published,
        };
        Ok((id(&self.id)?, waiting))
    }
}

// The times in `attempts` are those of JSON in PostgreSQL, and milliseconds in SQLite.
pub(super) static ENTRIES: Sql = Sql::pair(
    "
SELECT message_id::text AS id, group_id, topic, partition, phone, state,
    {millis(accepted_at)} AS accepted_at, {millis(admitted_at)} AS admitted_at,
    {millis(expires_at)} AS expires_at, {millis(due_at)} AS due_at,
    {millis(called_at)} AS called_at, {millis(ended_at)} AS ended_at, gateway, reference, detail,
    {millis(delivered_at)} AS delivered_at, {millis(undelivered_at)} AS undelivered_at,
    (
        SELECT jsonb_agg(made || jsonb_build_object(
            'called_at', {millis((made ->> 'called_at')::timestamptz)},
            'ended_at', {millis((made ->> 'ended_at')::timestamptz)}) ORDER BY number)
        FROM jsonb_array_elements(attempts) WITH ORDINALITY AS calls (made, number)
    )::text AS calls
FROM delivery
WHERE message_id BETWEEN :first AND :last
ORDER BY message_id, place",
    "
SELECT message_id AS id, group_id, topic, partition, phone, state, accepted_at, admitted_at,
    expires_at, due_at, called_at, ended_at, gateway, reference, detail, delivered_at,
    undelivered_at, attempts AS calls
FROM delivery
WHERE message_id BETWEEN :first AND :last
ORDER BY message_id, place",
);

#[derive(FromQueryResult)]
pub(super) struct EntryRow {
    id: String,
    group_id: String,
    topic: String,
    partition: i32,
    phone: String,
    state: String,
    accepted_at: i64,
    admitted_at: Option<i64>,
    expires_at: i64,
    due_at: i64,
    called_at: Option<i64>,
    ended_at: Option<i64>,
    gateway: Option<String>,
    reference: Option<String>,
    detail: Option<String>,
    delivered_at: Option<i64>,
    undelivered_at: Option<i64>,
    calls: Option<String>,
}

impl EntryRow {
    pub(super) fn read(self) -> Result<(MessageId, LedgerEntry), DatabaseError> {
        let calls = self.calls.as_deref().unwrap_or("[]");
        let calls: Vec<Value> =
            serde_json::from_str(calls).map_err(|_| DatabaseError::not("a list of calls"))?;
        let entry = LedgerEntry {
            group: self.group_id,
            topic: self.topic,
            partition: self.partition,
            phone: phone(&self.phone)?,
            state: self.state,
            accepted_at: time(self.accepted_at),
            admitted_at: self.admitted_at.map(time),
            expires_at: time(self.expires_at),
            due_at: time(self.due_at),
            called_at: self.called_at.map(time),
            ended_at: self.ended_at.map(time),
            gateway: self.gateway,
            reference: self.reference,
            detail: self.detail,
            delivered_at: self.delivered_at.map(time),
            undelivered_at: self.undelivered_at.map(time),
            calls: calls.iter().map(call).collect(),
        };
        Ok((id(&self.id)?, entry))
    }
}

/// Reads a call. Earlier versions did not name its gateway.
fn call(made: &Value) -> EndedCall {
    let text = |name: &str| made[name].as_str().unwrap_or_default().to_owned();
    let at = |name: &str| made[name].as_i64().map(time);
    let gateway = made["gateway"].as_str().unwrap_or("default").to_owned();
    EndedCall {
        gateway,
        outcome: text("outcome"),
        detail: text("detail"),
        called_at: at("called_at"),
        ended_at: at("ended_at"),
    }
}

pub(super) static EXTRA: Sql = Sql::new(
    "
SELECT {text(message_id)} AS id, gateway, reason, {millis(sent_at)} AS sent_at
FROM extra_send
WHERE message_id BETWEEN :first AND :last",
);

#[derive(FromQueryResult)]
pub(super) struct ExtraRow {
    id: String,
    gateway: String,
    reason: String,
    sent_at: i64,
}

impl ExtraRow {
    pub(super) fn read(self) -> Result<(MessageId, ExtraMessage), DatabaseError> {
        let gateway = parsed(&self.gateway, "the name of a gateway")?;
        let extra = ExtraMessage { gateway, reason: self.reason, sent_at: time(self.sent_at) };
        Ok((id(&self.id)?, extra))
    }
}

pub(super) static AWAITED: Sql = Sql::new(
    "
SELECT {text(message_id)} AS id, gateway, {millis(due_at)} AS due_at
FROM awaited_receipt
WHERE message_id BETWEEN :first AND :last",
);

#[derive(FromQueryResult)]
pub(super) struct AwaitedRow {
    id: String,
    gateway: String,
    due_at: i64,
}

impl AwaitedRow {
    pub(super) fn read(self) -> Result<(MessageId, Awaited), DatabaseError> {
        let gateway = parsed(&self.gateway, "the name of a gateway")?;
        Ok((id(&self.id)?, Awaited { gateway, due_at: time(self.due_at) }))
    }
}

pub(super) static EVENTS: Sql = Sql::new(
    "
SELECT kind, {millis(at)} AS at, {millis(due_at)} AS due_at, attempt
FROM (SELECT * FROM event ORDER BY sequence DESC LIMIT 10000) AS newest
WHERE verification = :id
ORDER BY sequence",
);

#[derive(FromQueryResult)]
pub(super) struct EventRow {
    kind: String,
    at: i64,
    due_at: i64,
    attempt: i32,
}

impl EventRow {
    pub(super) fn read(self) -> UnpostedEvent {
        UnpostedEvent {
            kind: self.kind,
            at: time(self.at),
            due_at: time(self.due_at),
            attempts: u64::from(self.attempt.unsigned_abs()),
        }
    }
}

/// The dead letters since a time, each with the number of partitions of its group and topic.
pub(super) static DEAD_LETTERS: Sql = Sql::new(
    "
SELECT id, partition,
    (SELECT count(*) FROM partition_lease AS lease
     WHERE lease.group_id = newest.group_id AND lease.topic = newest.topic) AS partitions
FROM (SELECT * FROM dead_letter ORDER BY id DESC LIMIT 10000) AS newest
WHERE {millis(recorded_at)} >= :since
ORDER BY id DESC",
);

#[derive(FromQueryResult)]
pub(super) struct DeadLetterRow {
    pub(super) id: i64,
    pub(super) partition: i32,
    pub(super) partitions: i64,
}

fn id(text: &str) -> Result<MessageId, DatabaseError> {
    parsed(text, "an id")
}

fn phone(text: &str) -> Result<PhoneNumber, DatabaseError> {
    parsed(text, "a phone")
}
