//! The references that gateways gave to messages, and the receipts that are kept until a reference is
//! known.
//!
//! The two sides meet at a row, whichever comes first: the commit of an outcome names its message
//! there, and a receipt for an unknown reference is kept there. The side that comes second finds both,
//! stores the receipt on the message, and takes it off the row. If a crash prevents that, the
//! housekeeping does it. It also settles a receipt that came while the gateway was called and that
//! says that the message is undelivered: only the outcome shows whether it counts. No statement here locks another table, except the one that records outcomes,
//! which comes to this table last.

use application::ports::{Noted, Receipt};
use domain::{GatewayName, MessageId};
use sea_orm::FromQueryResult;

use crate::database::{Database, DatabaseError, Fragment, Parameters, Sql, parsed};

/// The space for receipts whose reference is not known.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Room {
    /// The number that is kept when the oldest are dropped.
    pub(crate) most: i64,
    /// How many are added between two looks, because a look reads all of them.
    pub(crate) every: u64,
}

impl Room {
    pub(super) const DEFAULT: Self = Self { most: 10_000, every: 100 };
}

/// The longest reference that is stored, in bytes. SMPP allows 64, and the longest that a provider is
/// known to use has 45.
const LONGEST: usize = 255;

/// How many kept receipts the housekeeping settles at once.
const SETTLED: i64 = 1_000;

/// A receipt that was kept, and whose message is known now.
#[derive(Debug)]
pub(crate) struct Kept {
    gateway: GatewayName,
    reference: String,
    message: MessageId,
    receipt: Receipt,
    /// The attempt of the call during which the receipt came, if it came during a call.
    attempt: Option<i32>,
}

/// A row of `gateway_receipt` with all its columns.
#[derive(Debug, FromQueryResult)]
pub(crate) struct KeptRow {
    gateway: String,
    reference: String,
    message: Option<String>,
    receipt: Option<String>,
    attempt: Option<i32>,
}

impl KeptRow {
    /// Returns a receipt that can be settled. `None` if there is no receipt, or no message yet.
    pub(crate) fn kept(self) -> Result<Option<Kept>, DatabaseError> {
        let Some((message, receipt)) = self.message.zip(self.receipt) else { return Ok(None) };
        Ok(Some(Kept {
            gateway: parsed(&self.gateway, "the name of a gateway")?,
            reference: self.reference,
            message: parsed(&message, "an id")?,
            receipt: parsed(&receipt, "a receipt")?,
            attempt: self.attempt,
        }))
    }
}

impl Kept {
    /// Stores the receipt on its message, and then no longer keeps it. Safe to repeat. If the call
    /// has not ended, the receipt is kept for longer.
    pub(crate) async fn settle(&self, database: &Database) -> Result<Noted, DatabaseError> {
        let Self { gateway, message, receipt, attempt, .. } = self;
        let gateway = Some(gateway);
        let (noted, _) =
            super::note_of_call(database, gateway, *message, *receipt, *attempt).await?;
        if noted == Noted::Early {
            return Ok(noted);
        }
        let parameters = database
            .parameters()
            .with("gateway", self.gateway.as_str())
            .with("reference", self.reference.as_str())
            .with("receipt", self.receipt.as_str())
            .id("message", self.message.as_uuid());
        database.execute(&SETTLE, parameters).await?;
        Ok(noted)
    }
}

/// Whether the databases can store a reference as a text and in an index.
pub(crate) fn is_storable(reference: &str) -> bool {
    (1..=LONGEST).contains(&reference.len()) && !reference.contains('\0')
}

/// Returns the message that has the reference.
pub(super) async fn find(
    database: &Database,
    gateway: &GatewayName,
    reference: &str,
) -> Result<Option<MessageId>, DatabaseError> {
    let row: Option<KeptRow> = database.row(&FIND, named(database, gateway, reference)).await?;
    let message = row.and_then(|row| row.message);
    message.map(|message| parsed(&message, "an id")).transpose()
}

/// Returns those of `references` that are known.
pub(super) async fn known(
    database: &Database,
    gateway: &GatewayName,
    references: &[String],
) -> Result<Vec<String>, DatabaseError> {
    let storable = references.iter().filter(|it| is_storable(it)).cloned();
    let parameters =
        database.parameters().with("gateway", gateway.as_str()).list("references", storable);
    let rows: Vec<KeptRow> = database.rows(&KNOWN, parameters).await?;
    Ok(rows.into_iter().map(|row| row.reference).collect())
}

/// Keeps a receipt under the reference. Returns what can be settled at once.
pub(super) async fn keep(
    database: &Database,
    gateway: &GatewayName,
    reference: &str,
    receipt: Receipt,
) -> Result<Option<Kept>, DatabaseError> {
    let parameters = named(database, gateway, reference).with("receipt", receipt.as_str());
    let row: Option<KeptRow> = database.row(&KEEP, parameters).await?;
    row.map_or(Ok(None), KeptRow::kept)
}

/// Keeps a receipt for a message that is being called for, until the housekeeping settles it.
pub(super) async fn keep_for(
    database: &Database,
    gateway: &GatewayName,
    message: MessageId,
    receipt: Receipt,
    attempt: i32,
) -> Result<(), DatabaseError> {
    let parameters = database
        .parameters()
        .with("gateway", gateway.as_str())
        .with("reference", message.to_string())
        .id("message", message.as_uuid())
        .with("receipt", receipt.as_str())
        .with("attempt", attempt);
    database.execute(&KEEP_FOR, parameters).await?;
    Ok(())
}

/// Drops the oldest kept receipts beyond `most`.
pub(super) async fn drop_oldest(database: &Database, most: i64) -> Result<(), DatabaseError> {
    database.execute(&DROP_OLDEST, database.parameters().with("most", most)).await?;
    Ok(())
}

/// Settles receipts that came during a call, and what a crash left. Returns how many were found.
pub(crate) async fn settle_rest(database: &Database) -> Result<usize, DatabaseError> {
    let rows: Vec<KeptRow> =
        database.rows(&LEFT, database.parameters().with("limit", SETTLED)).await?;
    let left = kept(rows)?;
    for it in &left {
        it.settle(database).await?;
    }
    Ok(left.len())
}

pub(crate) fn kept(rows: Vec<KeptRow>) -> Result<Vec<Kept>, DatabaseError> {
    rows.into_iter().filter_map(|row| row.kept().transpose()).collect()
}

fn named(database: &Database, gateway: &GatewayName, reference: &str) -> Parameters {
    database.parameters().with("gateway", gateway.as_str()).with("reference", reference)
}

/// The columns of a [`KeptRow`].
pub(crate) const KEPT_COLUMNS: Fragment = Fragment::pair(
    "kept_columns",
    "gateway, reference, message_id::text AS message, receipt, attempt",
    "gateway, reference, message_id AS message, receipt, attempt",
);

const FIND_ROW: &str = "
SELECT {kept_columns}
FROM gateway_receipt
WHERE gateway = :gateway AND reference = :reference AND message_id IS NOT NULL";

static FIND: Sql = Sql::with(&[KEPT_COLUMNS], FIND_ROW, FIND_ROW);

static KNOWN: Sql = Sql::with(
    &[KEPT_COLUMNS],
    // A plan for few rows would take the gateway for the index, and compare the references one by one.
    "
SELECT known.*
FROM unnest(:references) AS wanted CROSS JOIN LATERAL (
    SELECT {kept_columns}
    FROM gateway_receipt
    WHERE gateway = :gateway AND reference = wanted AND message_id IS NOT NULL
    OFFSET 0
) AS known",
    "
SELECT {kept_columns}
FROM gateway_receipt
WHERE gateway = :gateway AND reference IN (SELECT value FROM json_each(:references))
  AND message_id IS NOT NULL",
);

// `delivered` is not replaced.
static KEEP: Sql = Sql::with(
    &[KEPT_COLUMNS],
    "
INSERT INTO gateway_receipt (gateway, reference, receipt, expires_at)
VALUES (:gateway, :reference, :receipt, now() + interval '10 minutes')
ON CONFLICT (gateway, reference) DO UPDATE
SET receipt = CASE gateway_receipt.receipt WHEN 'delivered' THEN 'delivered' ELSE excluded.receipt END,
    expires_at = greatest(gateway_receipt.expires_at, excluded.expires_at)
RETURNING {kept_columns}",
    "
INSERT INTO gateway_receipt (gateway, reference, receipt, expires_at)
VALUES (:gateway, :reference, :receipt, {now} + 600000)
ON CONFLICT (gateway, reference) DO UPDATE
SET receipt = iif(gateway_receipt.receipt = 'delivered', 'delivered', excluded.receipt),
    expires_at = max(gateway_receipt.expires_at, excluded.expires_at)
RETURNING {kept_columns}",
);

// Under our id, which no other message has. A gateway may use it as its reference, too.
static KEEP_FOR: Sql = Sql::pair(
    "
INSERT INTO gateway_receipt (gateway, reference, message_id, receipt, attempt, expires_at)
VALUES (:gateway, :reference, :message, :receipt, :attempt, now() + interval '10 minutes')
ON CONFLICT (gateway, reference) DO UPDATE
SET message_id = excluded.message_id, attempt = excluded.attempt,
    receipt = CASE gateway_receipt.receipt WHEN 'delivered' THEN 'delivered' ELSE excluded.receipt END",
    "
INSERT INTO gateway_receipt (gateway, reference, message_id, receipt, attempt, expires_at)
VALUES (:gateway, :reference, :message, :receipt, :attempt, {now} + 600000)
ON CONFLICT (gateway, reference) DO UPDATE
SET message_id = excluded.message_id, attempt = excluded.attempt,
    receipt = iif(gateway_receipt.receipt = 'delivered', 'delivered', excluded.receipt)",
);

static SETTLE: Sql = Sql::new(
    "
UPDATE gateway_receipt
SET receipt = NULL
WHERE gateway = :gateway AND reference = :reference AND message_id = :message
  AND receipt = :receipt",
);

static DROP_OLDEST: Sql = Sql::new(
    "
DELETE FROM gateway_receipt
WHERE receipt IS NOT NULL AND message_id IS NULL AND expires_at <= (
    SELECT expires_at
    FROM gateway_receipt
    WHERE receipt IS NOT NULL AND message_id IS NULL
    ORDER BY expires_at DESC
    LIMIT 1 OFFSET :most
)",
);

const LEFT_ROWS: &str = "
SELECT {kept_columns}
FROM gateway_receipt
WHERE receipt IS NOT NULL AND message_id IS NOT NULL
LIMIT :limit";

static LEFT: Sql = Sql::with(&[KEPT_COLUMNS], LEFT_ROWS, LEFT_ROWS);
