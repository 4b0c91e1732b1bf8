mod postgres;
pub(crate) mod references;
mod sqlite;

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use application::{
    Chain,
    ports::{NewReceipt, Noted, Receipt, Receipts, StoreError, Unsettled},
};
use autometrics::autometrics;
use domain::{GatewayName, MessageId, VerificationId};
use sea_orm::FromQueryResult;

use self::references::Room;
use crate::{
    awaited_receipts,
    database::{Database, DatabaseError, Parameters, Sql, lasting, parsed},
};

/// Delivery receipts that gateways report.
#[derive(Debug, Clone)]
pub struct SqlReceipts {
    database: Database,
    room: Room,
    /// The number of receipts that were kept for references that are not known yet.
    kept: Arc<AtomicU64>,
}

impl SqlReceipts {
    pub fn new(database: Database) -> Self {
        Self { database, room: Room::DEFAULT, kept: Arc::default() }
    }

    #[cfg(test)]
    pub(crate) fn with_room(self, room: Room) -> Self {
        Self { room, ..self }
    }

    async fn find_or_keep(
        &self,
        gateway: &GatewayName,
        reference: &str,
        receipt: Receipt,
    ) -> Result<Noted, DatabaseError> {
        if !references::is_storable(reference) {
            return Ok(Noted::Unknown);
        }
        if let Some(message) = references::find(&self.database, gateway, reference).await? {
            return note_or_keep(&self.database, gateway, message, receipt).await;
        }
        let met = references::keep(&self.database, gateway, reference, receipt).await?;
        if self.kept.fetch_add(1, Ordering::Relaxed) % self.room.every == self.room.every - 1
            && let Err(error) = references::drop_oldest(&self.database, self.room.most).await
        {
            tracing::debug!(error = %Chain(&error), "old receipts were not dropped; trying again later");
        }
        // A call ended meanwhile, and its outcome named the message before the receipt was kept.
        match met {
            Some(kept) => kept.settle(&self.database).await,
            None => Ok(Noted::Early),
        }
    }
}

impl Receipts for SqlReceipts {
    #[autometrics(struct_name = "SqlReceipts")]
    async fn note(
        &self,
        gateway: &GatewayName,
        message: MessageId,
        receipt: Receipt,
    ) -> Result<Noted, StoreError> {
        Ok(note_or_keep(&self.database, gateway, message, receipt).await?)
    }

    #[autometrics(struct_name = "SqlReceipts")]
    async fn note_reference(
        &self,
        gateway: &GatewayName,
        reference: &str,
        receipt: Receipt,
    ) -> Result<Noted, StoreError> {
        Ok(self.find_or_keep(gateway, reference, receipt).await?)
    }

    #[autometrics(struct_name = "SqlReceipts")]
    async fn known(
        &self,
        gateway: &GatewayName,
        references: &[String],
    ) -> Result<Vec<String>, StoreError> {
        Ok(references::known(&self.database, gateway, references).await?)
    }

    #[autometrics(struct_name = "SqlReceipts")]
    async fn unsettled(&self, message: MessageId) -> Result<Option<Unsettled>, StoreError> {
        let parameters = self.database.parameters().id("message", message.as_uuid());
        let row: Option<UnsettledRow> = self.database.row(&UNSETTLED, parameters).await?;
        Ok(row.map(UnsettledRow::unsettled).transpose()?)
    }
}

/// The entry that ended last, if several groups have the message.
static UNSETTLED: Sql = Sql::new(
    "
SELECT coalesce(gateway, 'default') AS gateway, reference
FROM delivery
WHERE message_id = :message AND state || '' = 'unknown' AND called_at IS NOT NULL
  AND delivered_at IS NULL AND undelivered_at IS NULL
ORDER BY ended_at DESC
LIMIT 1",
);

#[derive(Debug, FromQueryResult)]
struct UnsettledRow {
    gateway: String,
    reference: Option<String>,
}

impl UnsettledRow {
    fn unsettled(self) -> Result<Unsettled, DatabaseError> {
        let gateway = parsed(&self.gateway, "the name of a gateway")?;
        Ok(Unsettled { gateway, reference: self.reference })
    }
}

/// A message in the ledgers after its receipt was stored.
#[derive(Debug, FromQueryResult)]
struct NotedRow {
    known: bool,
    is_new: bool,
    /// The attempt of the call in which the gateway is called for the message now.
    calling: Option<i32>,
    since_call: Option<i64>,
    since_acceptance: Option<i64>,
    region: Option<String>,
    trace: Option<String>,
}

/// Stores a receipt. Without a `gateway`, it is taken for one of the latest gateway that was called.
/// If the gateway reports, while it is called, that a message is undelivered, this is
/// [`Noted::Early`], and nothing is stored.
pub(crate) async fn note(
    database: &Database,
    gateway: Option<&GatewayName>,
    message: MessageId,
    receipt: Receipt,
) -> Result<Noted, DatabaseError> {
    Ok(note_of_call(database, gateway, message, receipt, None).await?.0)
}

/// Stores a receipt as [`note`] does. One that came during a call, whose `attempt` is given, tells
/// only of that call that the message is undelivered. Also returns the attempt of a call for which
/// the receipt is early.
async fn note_of_call(
    database: &Database,
    gateway: Option<&GatewayName>,
    message: MessageId,
    receipt: Receipt,
    attempt: Option<i32>,
) -> Result<(Noted, Option<i32>), DatabaseError> {
    let parameters = parameters(database, gateway, message, receipt, attempt);
    let row = if database.is_postgres() {
        postgres::note(database, parameters).await?
    } else {
        let step = async |it| sqlite::note(database, &it, parameters).await;
        database.step(step).await?
    };
    let Some(row @ NotedRow { known: true, is_new, calling, .. }) = row else {
        return Ok((Noted::Unknown, None));
    };
    let calling = calling.filter(|calling| attempt.is_none_or(|attempt| attempt == *calling));
    let noted = if is_new {
        let receipt = NewReceipt {
            region: row.region.and_then(|region| region.parse().ok()),
            since_call: lasting(row.since_call.unwrap_or_default()),
            since_acceptance: lasting(row.since_acceptance.unwrap_or_default()),
            trace: row.trace.and_then(|trace| trace.parse().ok()),
        };
        (Noted::Stored(receipt), None)
    } else if receipt == Receipt::Undelivered && calling.is_some() {
        (Noted::Early, calling)
    } else {
        (Noted::Repeated, None)
    };
    // This also follows a repeated receipt, because it may have failed the last time.
    if receipt == Receipt::Undelivered && matches!(noted.0, Noted::Stored(_) | Noted::Repeated) {
        awaited_receipts::make_due(database, message).await?;
    }
    Ok(noted)
}

/// Stores a receipt, or keeps it until the call ends.
async fn note_or_keep(
    database: &Database,
    gateway: &GatewayName,
    message: MessageId,
    receipt: Receipt,
) -> Result<Noted, DatabaseError> {
    let (noted, calling) = note_of_call(database, Some(gateway), message, receipt, None).await?;
    if let Some(attempt) = calling {
        references::keep_for(database, gateway, message, receipt, attempt).await?;
    }
    Ok(noted)
}

fn parameters(
    database: &Database,
    gateway: Option<&GatewayName>,
    message: MessageId,
    receipt: Receipt,
    attempt: Option<i32>,
) -> Parameters {
    database
        .parameters()
        .id("message", message.as_uuid())
        .with("is_delivered", receipt == Receipt::Delivered)
        .with("gateway", gateway.map_or("", GatewayName::as_str))
        .with("attempt", attempt.unwrap_or_default())
        .with("receipt", receipt.as_str())
        .id("verification", VerificationId::of(message).as_uuid())
}
