//! Delivery receipts of gateways: over HTTP, and over a gateway's own connection.

use std::{pin::Pin, sync::Arc};

use adapters_persistence::{Database, SqlReceipts};
use application::{
    NoteGatewayReceipt,
    ports::{Noted, Receipt, ReceiptSink, StoreError},
};
use domain::GatewayName;

use crate::metrics::ReceiptMetrics;

/// Stores receipts and counts them.
#[derive(Debug, Clone)]
pub struct StoredReceipts {
    note: Arc<NoteGatewayReceipt<SqlReceipts>>,
    metrics: ReceiptMetrics,
}

impl StoredReceipts {
    pub fn new(database: Database, metrics: ReceiptMetrics) -> Self {
        Self { note: Arc::new(NoteGatewayReceipt::new(SqlReceipts::new(database))), metrics }
    }

    fn count(&self, gateway: &GatewayName, receipt: Receipt, noted: Noted) {
        self.metrics.noted(gateway, receipt, noted);
        if noted == Noted::Unknown {
            // A provider's account may have other users.
            tracing::debug!(%gateway, "a receipt is of no message of this service");
        }
    }
}

impl ReceiptSink for StoredReceipts {
    fn note<'a>(
        &'a self,
        gateway: &'a GatewayName,
        spellings: Vec<String>,
        receipt: Receipt,
    ) -> Pin<Box<dyn Future<Output = Result<(), StoreError>> + Send + 'a>> {
        Box::pin(async move {
            let noted = self.note.execute_spelt(gateway, &spellings, receipt).await?;
            self.count(gateway, receipt, noted);
            Ok(())
        })
    }
}
