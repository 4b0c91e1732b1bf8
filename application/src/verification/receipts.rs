use std::sync::Arc;

use autometrics::autometrics;
use domain::MessageId;

use crate::ports::{Receipt, StoreError, Verifications};

/// Notes what a gateway tells later of a message.
#[derive(Debug)]
pub struct NoteReceipt<V> {
    verifications: Arc<V>,
}

impl<V: Verifications> NoteReceipt<V> {
    pub fn new(verifications: Arc<V>) -> Self {
        Self { verifications }
    }

    /// Says whether there is such a message: one that a gateway was called for. Twice is as good
    /// as once.
    #[autometrics(struct_name = "NoteReceipt")]
    pub async fn execute(&self, message: MessageId, receipt: Receipt) -> Result<bool, StoreError> {
        self.verifications.note_receipt(message, receipt).await
    }
}
