mod status;
mod urls;

use std::sync::Arc;

use autometrics::autometrics;
use domain::{GatewayName, MessageId};
use tokio::time::Instant;

pub use self::{
    status::{AskStatus, Asked},
    urls::ReceiptUrls,
};
use crate::{
    TraceParent, TracedMessages,
    ports::{GatewayReceipt, Noted, Receipt, Receipts, Reported, StoreError, Verifications},
};

/// Stores delivery receipts that a client of the API reports.
#[derive(Debug)]
pub struct NoteReceipt<V> {
    verifications: Arc<V>,
    traced: TracedMessages,
}

/// Stores delivery receipts that gateways report.
#[derive(Debug)]
pub struct NoteGatewayReceipt<R> {
    receipts: R,
    traced: TracedMessages,
}

impl<V: Verifications> NoteReceipt<V> {
    pub fn new(verifications: Arc<V>) -> Self {
        Self { verifications, traced: TracedMessages::default() }
    }

    #[must_use]
    pub fn traced(self, traced: TracedMessages) -> Self {
        Self { traced, ..self }
    }

    /// Stores a receipt. Returns whether a gateway was called for the message. Safe to repeat.
    /// `request` is the span of the request.
    #[autometrics(struct_name = "NoteReceipt")]
    pub async fn execute(
        &self,
        message: MessageId,
        receipt: Receipt,
        request: Option<TraceParent>,
    ) -> Result<bool, StoreError> {
        let begun = Instant::now();
        let noted = self.verifications.note_receipt(message, receipt).await?;
        self.traced.receipt(&noted, None, receipt, request, begun);
        Ok(noted.is_known())
    }
}

impl<R: Receipts> NoteGatewayReceipt<R> {
    pub fn new(receipts: R) -> Self {
        Self { receipts, traced: TracedMessages::default() }
    }

    #[must_use]
    pub fn traced(self, traced: TracedMessages) -> Self {
        Self { traced, ..self }
    }

    /// Stores a receipt as the provider of `gateway` reported it. Safe to repeat. `request` is the span
    /// of the request that brought it, if one did.
    #[autometrics(struct_name = "NoteGatewayReceipt")]
    pub async fn execute(
        &self,
        gateway: &GatewayName,
        GatewayReceipt { of, receipt }: GatewayReceipt,
        request: Option<TraceParent>,
    ) -> Result<Noted, StoreError> {
        let begun = Instant::now();
        let noted = match of {
            Reported::Message(message) => self.receipts.note(gateway, message, receipt).await,
            Reported::Reference(reference) => {
                self.receipts.note_reference(gateway, &reference, receipt).await
            }
        }?;
        self.traced.receipt(&noted, Some(gateway), receipt, request, begun);
        Ok(noted)
    }

    /// Returns those of `references` that calls of the gateway ended with.
    #[autometrics(struct_name = "NoteGatewayReceipt")]
    pub async fn known(
        &self,
        gateway: &GatewayName,
        references: &[String],
    ) -> Result<Vec<String>, StoreError> {
        self.receipts.known(gateway, references).await
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::ports::{MockReceipts, NewReceipt};

    fn main() -> GatewayName {
        "main".parse().unwrap()
    }

    #[tokio::test]
    async fn a_receipt_is_noted_by_what_it_names() {
        let message: MessageId = "6f2c1a52-9d3f-4f0e-8a55-0d2f6f3b9c01".parse().unwrap();
        let stored = Noted::Stored(NewReceipt {
            region: None,
            since_call: Duration::ZERO,
            since_acceptance: Duration::ZERO,
            trace: None,
        });
        let mut receipts = MockReceipts::new();
        receipts
            .expect_note()
            .withf(move |gateway, of, receipt| {
                *gateway == main() && *of == message && *receipt == Receipt::Delivered
            })
            .once()
            .return_once({
                let stored = stored.clone();
                move |_, _, _| Ok(stored)
            });
        receipts
            .expect_note_reference()
            .withf(|gateway, reference, receipt| {
                *gateway == main() && reference == "SM1" && *receipt == Receipt::Undelivered
            })
            .once()
            .returning(|_, _, _| Ok(Noted::Early));
        let note = NoteGatewayReceipt::new(receipts);

        let of_message =
            GatewayReceipt { of: Reported::Message(message), receipt: Receipt::Delivered };
        let of_reference = GatewayReceipt {
            of: Reported::Reference("SM1".to_owned()),
            receipt: Receipt::Undelivered,
        };

        assert_eq!(note.execute(&main(), of_message, None).await.unwrap(), stored);
        assert_eq!(note.execute(&main(), of_reference, None).await.unwrap(), Noted::Early);
    }
}
