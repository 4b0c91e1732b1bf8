use std::time::Duration;

use application::ports::{DueEvent, EventClaim, EventKind, EventOutbox, FailureReason, StoreError};
use autometrics::autometrics;
use domain::{Channel, Metadata, Origin, PhoneNumber, VerificationId};
use sea_orm::FromQueryResult;
use serde_json::{Map, Value};

use crate::database::{
    Database, DatabaseError, Fragment, Parameters, Sql, Transaction, millis, parsed, time,
};

/// Events that are still to be posted.
#[derive(Debug, Clone)]
pub struct SqlEventOutbox {
    database: Database,
}

impl SqlEventOutbox {
    pub fn new(database: Database) -> Self {
        Self { database }
    }

    fn claimed(&self, event: &EventClaim) -> Parameters {
        self.database
            .parameters()
            .with("sequence", event.sequence)
            .with("attempt", event.attempt.cast_signed())
    }
}

impl EventOutbox for SqlEventOutbox {
    #[autometrics(struct_name = "SqlEventOutbox")]
    async fn claim(&self, limit: usize, lease: Duration) -> Result<Vec<DueEvent>, StoreError> {
        let parameters = self
            .database
            .parameters()
            .with("limit", i64::try_from(limit).unwrap_or(i64::MAX))
            .with("lease", millis(lease));
        let mut events = self.database.readable_rows(&CLAIM, parameters, Row::event).await?;
        // `RETURNING` promises no order.
        events.sort_unstable_by_key(|event| event.claim.sequence);
        Ok(events)
    }

    #[autometrics(struct_name = "SqlEventOutbox")]
    async fn settle(&self, event: &EventClaim) -> Result<(), StoreError> {
        self.database.execute(&SETTLE, self.claimed(event)).await?;
        Ok(())
    }

    #[autometrics(struct_name = "SqlEventOutbox")]
    async fn retry(&self, event: &EventClaim, after: Duration) -> Result<(), StoreError> {
        let parameters = self.claimed(event).with("after", millis(after));
        self.database.execute(&RETRY, parameters).await?;
        Ok(())
    }
}

/// The channel of the latest call for a verification that had ended at the time of the event. If an
/// event comes before the first outcome, that of the gateway that is called.
///
/// It reads the calls and not `delivery.gateway` alone, so that later calls change nothing. The messages
/// of a verification have its id, but for the last byte.
const CHANNEL: Fragment = Fragment::pair(
    "channel",
    "(
    SELECT channel
    FROM gateway_channel
    WHERE gateway_channel.gateway = coalesce((
        SELECT call ->> 'gateway'
        FROM delivery CROSS JOIN LATERAL jsonb_array_elements(attempts) AS call
        WHERE message_id > claimed.verification
          AND message_id <= (left(claimed.verification::text, 34) || 'ff')::uuid
          AND (call ->> 'ended_at')::timestamptz <= claimed.at
        ORDER BY (call ->> 'ended_at')::timestamptz DESC
        LIMIT 1
    ), (
        SELECT gateway
        FROM delivery
        WHERE message_id > claimed.verification
          AND message_id <= (left(claimed.verification::text, 34) || 'ff')::uuid
          AND gateway IS NOT NULL
        ORDER BY called_at DESC
        LIMIT 1
    ))
)",
    "(
    SELECT channel
    FROM gateway_channel
    WHERE gateway_channel.gateway = coalesce((
        SELECT call.value ->> 'gateway'
        FROM delivery, json_each(attempts) AS call
        WHERE message_id > event.verification
          AND message_id <= substr(event.verification, 1, 34) || 'ff'
          AND call.value ->> 'ended_at' <= event.at
        ORDER BY call.value ->> 'ended_at' DESC
        LIMIT 1
    ), (
        SELECT gateway
        FROM delivery
        WHERE message_id > event.verification
          AND message_id <= substr(event.verification, 1, 34) || 'ff'
          AND gateway IS NOT NULL
        ORDER BY called_at DESC
        LIMIT 1
    ))
)",
);

static CLAIM: Sql = Sql::with(
    &[CHANNEL],
    "
WITH due AS (
    SELECT sequence
    FROM event
    WHERE due_at <= now()
    -- by time, so that events that wait for a retry are not read each time
    ORDER BY due_at, sequence
    LIMIT :limit
    FOR UPDATE SKIP LOCKED
), claimed AS (
    UPDATE event
    SET attempt = attempt + 1, due_at = now() + {duration(:lease)}
    WHERE sequence = ANY (ARRAY(SELECT sequence FROM due))
    RETURNING *
)
SELECT claimed.sequence, attempt, replace(claimed.id::text, '-', '') AS id, kind,
    {millis(at)} AS at, {millis(now())} AS claimed_at, claimed.verification::text AS verification,
    claimed.phone AS masked, delivery, reason, verification.phone, verification.metadata,
    verification.origin, {channel} AS channel
FROM claimed LEFT JOIN verification ON verification.id = claimed.verification",
    "
UPDATE event
SET attempt = attempt + 1, due_at = clock.now + :lease
FROM (SELECT {now} AS now) AS clock
WHERE sequence IN (
    SELECT sequence
    FROM event
    WHERE due_at <= {now}
    ORDER BY due_at, sequence
    LIMIT :limit
)
RETURNING sequence, attempt, id, kind, at, {now} AS claimed_at, verification, phone AS masked,
    delivery, reason,
    (SELECT verification.phone FROM verification WHERE verification.id = event.verification)
        AS phone,
    (SELECT metadata FROM verification WHERE verification.id = event.verification) AS metadata,
    (SELECT origin FROM verification WHERE verification.id = event.verification) AS origin,
    {channel} AS channel",
);

static SETTLE: Sql =
    Sql::new("DELETE FROM event WHERE sequence = :sequence AND attempt = :attempt");

static RETRY: Sql = Sql::new(
    "
UPDATE event
SET due_at = {now} + {duration(:after)}
WHERE sequence = :sequence AND attempt = :attempt",
);

#[derive(FromQueryResult)]
struct Row {
    sequence: i64,
    attempt: i32,
    id: String,
    kind: String,
    at: i64,
    claimed_at: i64,
    verification: Option<String>,
    /// The number of a blocked send, which has no verification.
    masked: Option<String>,
    delivery: Option<String>,
    reason: Option<String>,
    phone: Option<String>,
    metadata: Option<String>,
    origin: Option<String>,
    channel: Option<String>,
}

impl Row {
    fn event(self) -> Result<DueEvent, DatabaseError> {
        let kind = EventKind::ALL.into_iter().find(|known| known.as_str() == self.kind);
        let phone = self.phone.map(|phone| parsed::<PhoneNumber>(&phone, "a phone")).transpose()?;
        let channel = self.channel.map(|channel| parsed::<Channel>(&channel, "a channel"));
        let verification = self.verification.map(|id| parsed(&id, "an id")).transpose()?;
        Ok(DueEvent {
            claim: EventClaim { sequence: self.sequence, attempt: self.attempt.cast_unsigned() },
            id: self.id,
            kind: kind.ok_or_else(|| DatabaseError::not("a kind of event"))?,
            at: time(self.at),
            claimed_at: time(self.claimed_at),
            verification: verification.map(VerificationId::from_uuid),
            phone: phone.map(|phone| phone.masked()).or(self.masked),
            metadata: self.metadata.map(Metadata::new),
            channel: channel.transpose()?.unwrap_or_default(),
            test: self.origin.as_deref() == Some(Origin::Test.as_str()),
            delivery: self.delivery,
            reason: self.reason,
        })
    }
}

/// Returns each reason of a failure by the detail with which the ledger stores it.
pub(crate) fn reasons() -> Value {
    let reasons = FailureReason::ALL.map(|it| (it.detail().to_owned(), it.as_str().into()));
    Value::from(Map::from_iter(reasons))
}

/// Records how messages ended, in the statement of PostgreSQL that ends them: `ended` has their `id`,
/// their `state`, and the `reason` if they failed without a call.
///
/// A message's id without its last byte is that of its verification; a message of another service
/// has none. A message fails at most once: when the first group ends it without sending it, unless
/// another group has sent it or a receipt came before. Two entries that end at the same moment do not see
/// each other; so the event has the id of its message, by which the receiver knows the duplicate.
pub(crate) const RECORD_ENDED: Fragment = Fragment::pair(
    "record_ended",
    ", told AS (
    INSERT INTO event (id, kind, verification, delivery, reason)
    SELECT CASE ended.state WHEN 'sent' THEN gen_random_uuid() ELSE ended.id END,
        CASE ended.state WHEN 'sent' THEN 'sent' ELSE 'failed' END, verification.id, ended.state,
        ended.reason
    FROM ended CROSS JOIN LATERAL (
        SELECT id FROM verification WHERE id = (left(ended.id::text, 34) || '00')::uuid OFFSET 0
    ) AS verification
    -- counted, as PostgreSQL 18 would read all entries to learn which exist
    WHERE ended.state = 'sent' OR (
        SELECT count(*)
        FROM delivery AS known
        WHERE known.message_id = ended.id
          AND coalesce(known.ended_at, known.delivered_at, known.undelivered_at) IS NOT NULL
    ) = 0
)
",
    "",
);

/// Does the same in SQLite, after the statement that ended them in the ledger of `group`.
pub(crate) async fn record_ended<'a>(
    database: &Database,
    transaction: &Transaction,
    group: &str,
    ended: impl Iterator<Item = (&'a str, &'a str)> + Clone,
) -> Result<(), DatabaseError> {
    static RECORD: Sql = Sql::new(
        "
INSERT INTO event (id, kind, verification, delivery, reason, at, due_at)
SELECT
    CASE ended.state WHEN 'sent' THEN lower(hex(randomblob(16))) ELSE replace(ended.id, '-', '') END,
    CASE ended.state WHEN 'sent' THEN 'sent' ELSE 'failed' END, verification.id, ended.state,
    CASE ended.state WHEN 'failed' THEN (
        SELECT reason.value
        FROM delivery AS own CROSS JOIN json_each(:reasons) AS reason
        WHERE own.group_id = :group AND own.message_id = ended.id AND reason.key = own.detail
    ) END,
    now, now
FROM :ended
    CROSS JOIN (SELECT {now} AS now)
    CROSS JOIN verification
WHERE verification.id = substr(ended.id, 1, 34) || '00'
  AND (ended.state = 'sent' OR NOT EXISTS (
      SELECT 1
      FROM delivery AS known
      WHERE known.message_id = ended.id
        AND (known.group_id <> :group AND known.ended_at IS NOT NULL
             OR coalesce(known.delivered_at, known.undelivered_at) IS NOT NULL)
  ))",
    );
    let parameters = database
        .parameters()
        .rows("ended", ended, |ended| {
            ended
                .column("id", |(id, _)| id.to_owned())
                .column("state", |(_, state)| state.to_owned())
        })
        .with("group", group)
        .with("reasons", reasons());
    transaction.execute(&RECORD, parameters).await?;
    Ok(())
}
