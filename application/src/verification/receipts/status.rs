use std::sync::Arc;

use autometrics::autometrics;
use domain::{GatewayName, MessageId};

use crate::ports::{Noted, Receipt, Receipts, StatusSource, StoreError};

/// Asks gateways what became of messages that ended unknown.
#[derive(Debug)]
pub struct AskStatus<R, S> {
    receipts: R,
    source: Arc<S>,
}

/// The result of one question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Asked {
    /// The gateway said what became of the message, and its word is stored as a receipt.
    Answered { gateway: GatewayName, receipt: Receipt, noted: Noted },
    /// The gateway does not know a final state yet, or did not answer.
    Open,
    /// The message did not end unknown, or its receipt has come.
    Settled,
}

impl<R: Receipts, S: StatusSource> AskStatus<R, S> {
    pub fn new(receipts: R, source: Arc<S>) -> Self {
        Self { receipts, source }
    }

    /// Asks the latest gateway of a message for its state, if the message ended unknown. Safe to repeat.
    ///
    /// The outcome of such a call was not heard, so its reference is usually not known. Gateways that
    /// use our id as theirs are asked by that.
    #[autometrics(struct_name = "AskStatus")]
    pub async fn execute(&self, message: MessageId) -> Result<Asked, StoreError> {
        let Some(unsettled) = self.receipts.unsettled(message).await? else {
            return Ok(Asked::Settled);
        };
        let reference = unsettled.reference.unwrap_or_else(|| message.to_string());
        let gateway = unsettled.gateway;
        let Some(receipt) = self.source.status(&gateway, &reference).await else {
            return Ok(Asked::Open);
        };
        let noted = self.receipts.note(&gateway, message, receipt).await?;
        Ok(Asked::Answered { gateway, receipt, noted })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ports::{MockReceipts, MockStatusSource, Unsettled};

    const MESSAGE: &str = "6f2c1a52-9d3f-4f0e-8a55-0d2f6f3b9c01";

    async fn ask(reference: Option<&str>, expected: &'static str, said: Option<Receipt>) -> Asked {
        let unsettled =
            Unsettled { gateway: GatewayName::default(), reference: reference.map(str::to_owned) };
        let mut receipts = MockReceipts::new();
        receipts.expect_unsettled().once().returning(move |_| Ok(Some(unsettled.clone())));
        receipts.expect_note().times(usize::from(said.is_some())).returning(|_, message, _| {
            assert_eq!(message, MESSAGE.parse().unwrap());
            Ok(Noted::Repeated)
        });
        let mut source = MockStatusSource::new();
        source
            .expect_status()
            .withf(move |gateway, asked| *gateway == GatewayName::default() && asked == expected)
            .once()
            .returning(move |_, _| said);
        let ask = AskStatus::new(receipts, Arc::new(source));
        ask.execute(MESSAGE.parse().unwrap()).await.unwrap()
    }

    #[tokio::test]
    async fn the_answer_of_the_gateway_is_stored_as_a_receipt() {
        let receipt = Receipt::Delivered;
        let (gateway, noted) = (GatewayName::default(), Noted::Repeated);
        let answered = Asked::Answered { gateway, receipt, noted };

        assert_eq!(ask(Some("SM1"), "SM1", Some(receipt)).await, answered);
        assert_eq!(ask(None, MESSAGE, Some(receipt)).await, answered);
        assert_eq!(ask(None, MESSAGE, None).await, Asked::Open);
    }

    #[tokio::test]
    async fn a_settled_message_is_not_asked_for() {
        let mut receipts = MockReceipts::new();
        receipts.expect_unsettled().once().returning(|_| Ok(None));

        let ask = AskStatus::new(receipts, Arc::new(MockStatusSource::new()));

        assert_eq!(ask.execute(MESSAGE.parse().unwrap()).await.unwrap(), Asked::Settled);
    }
}
