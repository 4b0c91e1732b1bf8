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
use crate::database::{Database, DatabaseError, Parameters, Sql, lasting, parsed};

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
    /// Whether the gateway is called for the message now.
    is_calling: bool,
    since_call: Option<i64>,
    region: Option<String>,
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
    let parameters = parameters(database, gateway, message, receipt);
    let row = if database.is_postgres() {
        postgres::note(database, parameters).await?
    } else {
        let step = async |it| sqlite::note(database, &it, parameters).await;
        database.step(step).await?
    };
    Ok(match row {
        Some(NotedRow { known: true, is_new: true, since_call, region, .. }) => {
            Noted::Stored(NewReceipt {
                region: region.and_then(|region| region.parse().ok()),
                since_call: lasting(since_call.unwrap_or_default()),
            })
        }
        Some(NotedRow { known: true, is_calling: true, .. }) if receipt == Receipt::Undelivered => {
            Noted::Early
        }
        Some(NotedRow { known: true, .. }) => Noted::Repeated,
        _ => Noted::Unknown,
    })
}

/// Stores a receipt, or keeps it until the call ends.
async fn note_or_keep(
    database: &Database,
    gateway: &GatewayName,
    message: MessageId,
    receipt: Receipt,
) -> Result<Noted, DatabaseError> {
    let noted = note(database, Some(gateway), message, receipt).await?;
    if noted == Noted::Early {
        references::keep_for(database, gateway, message, receipt).await?;
    }
    Ok(noted)
}

fn parameters(
    database: &Database,
    gateway: Option<&GatewayName>,
    message: MessageId,
    receipt: Receipt,
) -> Parameters {
    database
        .parameters()
        .id("message", message.as_uuid())
        .with("is_delivered", receipt == Receipt::Delivered)
        .with("gateway", gateway.map_or("", GatewayName::as_str))
        .with("receipt", receipt.as_str())
        .id("verification", VerificationId::of(message).as_uuid())
}
