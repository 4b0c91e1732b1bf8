//! The events of a verification, read from its row and those of its messages (ADR 21).

use std::collections::BTreeMap;

use application::ports::{Event, EventKind, EventReason, FailureReason, Verification};
use domain::{Channel, GatewayName, VerificationStatus};
use sea_orm::FromQueryResult;

use crate::database::{Database, DatabaseError, Sql, parsed, time};

/// What ledgers know of one message.
#[derive(Debug, Default)]
struct Story {
    published: Option<i64>,
    sent: Option<i64>,
    open: bool,
    failed: Option<i64>,
    /// The reason why it failed without a call.
    reason: Option<FailureReason>,
    delivered: Option<i64>,
    undelivered: Option<i64>,
    /// The gateway that accepted it, or else one that was called.
    gateway: Option<GatewayName>,
    /// The channel of that gateway.
    channel: Option<Channel>,
}

#[derive(FromQueryResult)]
struct MessageRow {
    id: String,
    state: String,
    published_at: Option<i64>,
    ended_at: Option<i64>,
    delivered_at: Option<i64>,
    undelivered_at: Option<i64>,
    gateway: Option<String>,
    channel: Option<String>,
    /// Of a message that failed.
    detail: Option<String>,
}

// A message that a consumer has taken over was published. A message that expired before any group had
// it is in the ledger of no group (`''`).
static MESSAGES: Sql = Sql::pair(
    "
SELECT message_id::text AS id, state,
    {millis(CASE WHEN group_id <> '' THEN admitted_at END)} AS published_at,
    {millis(ended_at)} AS ended_at, {millis(delivered_at)} AS delivered_at,
    {millis(undelivered_at)} AS undelivered_at, gateway,
    (SELECT channel FROM gateway_channel WHERE gateway_channel.gateway = delivery.gateway)
        AS channel,
    CASE state WHEN 'failed' THEN detail END AS detail
FROM delivery
WHERE message_id = ANY (:ids::uuid[])",
    "
SELECT message_id AS id, state, CASE WHEN group_id <> '' THEN admitted_at END AS published_at,
    ended_at, delivered_at, undelivered_at, gateway,
    (SELECT channel FROM gateway_channel WHERE gateway_channel.gateway = delivery.gateway)
        AS channel,
    CASE state WHEN 'failed' THEN detail END AS detail
FROM delivery
WHERE message_id IN (SELECT value FROM json_each(:ids))",
);

/// Returns the channel of a gateway. Earlier versions stored none, and knew only SMS.
fn channel(stored: Option<&str>) -> Result<Channel, DatabaseError> {
    stored.map_or(Ok(Channel::default()), |channel| parsed(channel, "a channel"))
}

/// A message that was sent because a receipt was missing.
#[derive(FromQueryResult)]
struct ExtraRow {
    gateway: String,
    channel: Option<String>,
    reason: String,
    sent_at: i64,
}

impl ExtraRow {
    fn event(&self) -> Result<Event, DatabaseError> {
        Ok(Event {
            gateway: Some(parsed(&self.gateway, "a gateway")?),
            channel: Some(channel(self.channel.as_deref())?),
            reason: Some(EventReason::Rerouting(parsed(&self.reason, "a reason")?)),
            ..Event::new(EventKind::Rerouted, time(self.sent_at))
        })
    }
}

static EXTRA: Sql = Sql::pair(
    "
SELECT gateway,
    (SELECT channel FROM gateway_channel WHERE gateway_channel.gateway = extra_send.gateway)
        AS channel,
    reason, {millis(sent_at)} AS sent_at
FROM extra_send
WHERE message_id = ANY (:ids::uuid[])",
    "
SELECT gateway,
    (SELECT channel FROM gateway_channel WHERE gateway_channel.gateway = extra_send.gateway)
        AS channel,
    reason, sent_at
FROM extra_send
WHERE message_id IN (SELECT value FROM json_each(:ids))",
);

/// Returns the events in their order.
pub(super) async fn events(
    database: &Database,
    verification: &Verification,
) -> Result<Vec<Event>, DatabaseError> {
    let ids = || (1..=verification.sends).map(|send| verification.id.message(send).as_uuid());
    let parameters = database.parameters().list("ids", ids());
    let rows: Vec<MessageRow> = database.rows(&MESSAGES, parameters).await?;
    let mut stories: BTreeMap<String, Story> = BTreeMap::new();
    for row in rows {
        stories.entry(row.id.clone()).or_default().add(&row)?;
    }

    let mut events = vec![Event::new(EventKind::Created, verification.created_at)];
    if !verification.is_test() {
        events.push(Event::new(EventKind::Queued, verification.created_at));
        if verification.asked_sends() > 1 {
            events.push(Event::new(EventKind::Queued, verification.sent_at));
        }
    }
    events.extend(stories.values().flat_map(Story::events));
    if verification.extra_sends > 0 {
        let extra = database.parameters().list("ids", ids());
        let extra: Vec<ExtraRow> = database.rows(&EXTRA, extra).await?;
        events.extend(extra.iter().map(ExtraRow::event).collect::<Result<Vec<_>, _>>()?);
    }
    let end = match verification.status {
        VerificationStatus::Pending => None,
        VerificationStatus::Approved => Some(EventKind::Approved),
        VerificationStatus::Expired => Some(EventKind::Expired),
        VerificationStatus::Canceled => Some(EventKind::Canceled),
    };
    events.extend(end.zip(verification.ended_at).map(|(kind, at)| Event::new(kind, at)));
    events.sort_by_key(|event| (event.at, event.kind));
    Ok(events)
}

impl Story {
    fn add(&mut self, row: &MessageRow) -> Result<(), DatabaseError> {
        let earliest = |known: Option<i64>, new: Option<i64>| known.into_iter().chain(new).min();
        self.published = earliest(self.published, row.published_at);
        self.delivered = earliest(self.delivered, row.delivered_at);
        self.undelivered = earliest(self.undelivered, row.undelivered_at);
        match &*row.state {
            "sent" => self.sent = earliest(self.sent, row.ended_at),
            "failed" | "expired" | "unknown" => self.failed = self.failed.max(row.ended_at),
            _ => self.open = true,
        }
        let reason = row.detail.as_deref().and_then(FailureReason::of_detail);
        self.reason = self.reason.or(reason);
        if let Some(gateway) = &row.gateway
            && (row.state == "sent" || self.gateway.is_none())
        {
            self.gateway = Some(parsed(gateway, "a gateway")?);
            self.channel = Some(channel(row.channel.as_deref())?);
        }
        Ok(())
    }

    /// If several groups have a message, one that sent it is enough. The message has failed if no
    /// group can send it any more, or the gateway says so; a delivered message has not failed.
    fn events(&self) -> impl Iterator<Item = Event> {
        let failed = match self {
            Self { delivered: Some(_), .. } => None,
            Self { sent: None, open: false, failed: Some(at), .. } => Some(*at),
            Self { undelivered, .. } => *undelivered,
        };
        let events = [
            (EventKind::Published, self.published),
            (EventKind::Sent, self.sent),
            (EventKind::Delivered, self.delivered),
            (EventKind::Failed, failed),
        ];
        let event = |(kind, at): (EventKind, Option<i64>)| {
            let follows_from_a_call = kind != EventKind::Published;
            let gateway = self.gateway.clone().filter(|_| follows_from_a_call);
            let channel = self.channel.filter(|_| follows_from_a_call);
            let reason =
                self.reason.filter(|_| kind == EventKind::Failed).map(EventReason::Failure);
            Some(Event { kind, at: time(at?), gateway, channel, reason })
        };
        events.into_iter().filter_map(event)
    }
}
