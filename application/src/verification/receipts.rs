use std::sync::Arc;

use autometrics::autometrics;
use domain::MessageId;

use crate::ports::{Receipt, StoreError, Verifications};

/// Stores delivery receipts of gateways.
#[derive(Debug)]
pub struct NoteReceipt<V> {
    verifications: Arc<V>,
}

impl<V: Verifications> NoteReceipt<V> {
    pub fn new(verifications: Arc<V>) -> Self {
        Self { verifications }
    }

    /// Stores a receipt. Returns whether a gateway was called for the message. Safe to repeat.
    #[autometrics(struct_name = "NoteReceipt")]
    pub async fn execute(&self, message: MessageId, receipt: Receipt) -> Result<bool, StoreError> {
        self.verifications.note_receipt(message, receipt).await
    }
}
