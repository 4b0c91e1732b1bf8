//! Daily limits on what gateways cost. The cost of a call is reserved in the commit of its intent.
//!
//! A reservation belongs to a message and a gateway. It stays if the gateway has the message or may have
//! it, and then pays for all calls of that gateway for that message. Otherwise it is given back: after
//! the outcome, or when the message is called for again. After a crash in between it stays, so more is
//! never spent than a limit allows.

mod book;

use std::collections::{BTreeMap, HashSet};

use application::ports::{Cost, Next};
use domain::{GatewayName, MessageId};
use sea_orm::FromQueryResult;
use serde_json::{Map, Value};

use self::book::Book;
pub(super) use self::book::Reservation;
use super::{
    entry::EntryRow,
    gateways::{CALLED, NAMED},
    starts::Starts,
};
use crate::database::{Database, DatabaseError, Parameters, Sql, Transaction, parsed};

/// The decision of the limits on the calls of one statement.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// The calls that may begin, and those that have expired.
    pub(super) granted: HashSet<MessageId>,
    pub(super) unaffordable: Vec<MessageId>,
    /// The amounts that the calls reserve. `None`: an earlier reservation is given back.
    reservations: BTreeMap<MessageId, Option<Reservation>>,
    /// The reservations that are given back in any case.
    back: Vec<Reservation>,
}

#[derive(FromQueryResult)]
struct OwnRow {
    id: String,
    reserved: Option<String>,
    maybe_taken: Option<String>,
    /// The gateway of a call that was interrupted.
    interrupted: Option<String>,
    day: i32,
    expired: bool,
}

impl OwnRow {
    /// Whether a gateway may have the message.
    fn may_have(&self, gateway: &str) -> bool {
        let names = self.maybe_taken.as_deref().unwrap_or_default();
        names.split(' ').any(|name| name == gateway) || self.interrupted.as_deref() == Some(gateway)
    }

    /// Returns the reservation that no call needs any more.
    fn unused(&self) -> Option<Reservation> {
        let reserved = self.reserved.as_deref().and_then(Reservation::read)?;
        (!self.may_have(&reserved.gateway)).then_some(reserved)
    }
}

/// Locks the entries of calls and what was spent, and decides which calls may begin. `parameters` must have
/// the fence, the turn and the ids.
pub(super) async fn plan(
    transaction: &Transaction,
    parameters: Parameters,
    none: &Parameters,
    starts: Starts<'_>,
) -> Result<Plan, DatabaseError> {
    let rows: Vec<OwnRow> = transaction.rows(&OWN, parameters).await?;
    let mut by_id = BTreeMap::new();
    for row in rows {
        by_id.insert(parsed::<MessageId>(&row.id, "an id")?, row);
    }
    let wanted = starts.0.iter().filter_map(|start| {
        let row = by_id.get(&start.id).filter(|row| !row.expired)?;
        let (gateway, cost) = bought(&start.next)?;
        let is_new = !row.may_have(gateway.as_str());
        is_new.then(|| (start.id, Reservation::of(gateway, cost, row.day), cost))
    });
    let wanted: Vec<(MessageId, Reservation, &Cost)> = wanted.collect();
    let mut plan = Plan::default();
    for (id, row) in &by_id {
        plan.granted.insert(*id);
        if let Some(unused) = row.unused() {
            plan.back.push(unused);
            plan.reservations.insert(*id, None);
        }
    }
    let reservations = wanted.iter().map(|(_, reservation, _)| reservation);
    let mut book = Book::open(transaction, none, reservations, &plan.back).await?;
    for unused in &plan.back {
        book.give_back(unused);
    }
    for (id, reservation, cost) in wanted {
        if book.reserve(&reservation, cost) {
            plan.reservations.insert(id, Some(reservation));
        } else {
            plan.granted.remove(&id);
            plan.unaffordable.push(id);
        }
    }
    Ok(plan)
}

impl Plan {
    /// Stores what the calls that have begun reserve. `parameters` must have the fence.
    pub(super) async fn carry_out(
        self,
        transaction: &Transaction,
        parameters: Parameters,
        none: &Parameters,
        group: &str,
        begun: &[EntryRow],
    ) -> Result<(), DatabaseError> {
        if !self.unaffordable.is_empty() {
            let ids = self.unaffordable.iter().map(|id| id.as_uuid());
            transaction.execute(&WITHDRAW, parameters.list("ids", ids)).await?;
        }
        let is_begun = |id: &MessageId| {
            let id = id.as_uuid().to_string();
            begun.iter().any(|it| it.recorded.id == id && !it.recorded.has_ended())
        };
        let reservations: BTreeMap<MessageId, Option<Reservation>> = self
            .reservations
            .into_iter()
            .map(|(id, it)| (id, it.filter(|_| is_begun(&id))))
            .collect();
        let mut changes = Book::default();
        self.back.iter().for_each(|unused| changes.give_back(unused));
        reservations.values().flatten().for_each(|reservation| changes.add(reservation));
        changes.store(transaction, none).await?;
        note(transaction, none, group, &reservations).await
    }
}

/// Gives back what was reserved for calls that a gateway surely refused.
pub(super) async fn give_back(
    database: &Database,
    transaction: &Transaction,
    group: &str,
    ids: &[MessageId],
) -> Result<(), DatabaseError> {
    let none = database.parameters();
    let parameters =
        none.clone().with("group", group).list("ids", ids.iter().map(|id| id.as_uuid()));
    let rows: Vec<OwnRow> = transaction.rows(&REFUSED, parameters).await?;
    let mut changes = Book::default();
    let mut reservations = BTreeMap::new();
    for row in rows {
        if let Some(unused) = row.unused() {
            changes.give_back(&unused);
            reservations.insert(parsed(&row.id, "an id")?, None);
        }
    }
    note(transaction, &none, group, &reservations).await?;
    changes.store(transaction, &none).await
}

/// Stores the reservations of entries on their rows.
async fn note(
    transaction: &Transaction,
    none: &Parameters,
    group: &str,
    reservations: &BTreeMap<MessageId, Option<Reservation>>,
) -> Result<(), DatabaseError> {
    if reservations.is_empty() {
        return Ok(());
    }
    let values = reservations.iter().filter_map(|(id, reservation)| {
        Some((id.as_uuid().to_string(), Value::from(reservation.as_ref()?.text())))
    });
    let parameters = none
        .clone()
        .with("group", group)
        .list("ids", reservations.keys().map(|id| id.as_uuid()))
        .with("reservations", Value::from(values.collect::<Map<_, _>>()));
    transaction.execute(&NOTE, parameters).await?;
    Ok(())
}

fn bought(next: &Next) -> Option<(&GatewayName, &Cost)> {
    match next {
        Next::Buy(gateway, cost) => Some((gateway, cost)),
        _ => None,
    }
}

static OWN: Sql = Sql::with(
    &[CALLED, NAMED],
    "
SELECT message_id::text AS id, reserved, maybe_taken,
    CASE WHEN state = 'calling' AND epoch <> :epoch THEN {called} END AS interrupted,
    floor(extract(epoch FROM now()) / 86400)::integer AS day, expires_at <= now() AS expired
FROM delivery
WHERE {named}
FOR UPDATE",
    "
SELECT message_id AS id, reserved, maybe_taken,
    CASE WHEN state = 'calling' AND epoch <> :epoch THEN {called} END AS interrupted,
    clock.now / 86400000 AS day, expires_at <= clock.now AS expired
FROM delivery CROSS JOIN (SELECT {now} AS now) AS clock
WHERE {named}",
);

/// Makes an entry pending whose grant was not heard and that can no longer be afforded. Otherwise the
/// next owner would take its call for interrupted.
static WITHDRAW: Sql = Sql::pair(
    "
UPDATE delivery
SET state = 'pending', gateway = NULL, due_at = now()
WHERE group_id = :group AND message_id = ANY (:ids::uuid[]) AND state || '' = 'calling'
  AND epoch = :epoch",
    "
UPDATE delivery
SET state = 'pending', gateway = NULL, due_at = {now}
WHERE group_id = :group AND message_id IN (SELECT value FROM json_each(:ids))
  AND state = 'calling' AND epoch = :epoch",
);

static REFUSED: Sql = Sql::pair(
    "
SELECT message_id::text AS id, reserved, maybe_taken, NULL AS interrupted, 0 AS day,
    false AS expired
FROM delivery
WHERE group_id = :group AND message_id = ANY (:ids::uuid[]) AND reserved IS NOT NULL
  AND state || '' NOT IN ('calling', 'sent')
FOR UPDATE",
    "
SELECT message_id AS id, reserved, maybe_taken, NULL AS interrupted, 0 AS day, false AS expired
FROM delivery
WHERE group_id = :group AND message_id IN (SELECT value FROM json_each(:ids))
  AND reserved IS NOT NULL AND state NOT IN ('calling', 'sent')",
);

static NOTE: Sql = Sql::pair(
    "
UPDATE delivery
SET reserved = :reservations ->> message_id::text
WHERE group_id = :group AND message_id = ANY (:ids::uuid[])",
    "
UPDATE delivery
SET reserved = :reservations ->> message_id
WHERE group_id = :group AND message_id IN (SELECT value FROM json_each(:ids))",
);
