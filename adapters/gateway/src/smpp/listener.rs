//! The way of a receipt from a session to the store.

use std::{sync::Arc, time::Duration};

use application::ports::{Receipt, ReceiptSink, StoreError};
use domain::GatewayName;
use smpp34::{data_sm, deliver_sm};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep},
};

use super::{
    pdu::{self, Pdu},
    receipt::{Delivery, Report, canonical, read},
    spelling::Spelling,
    status,
};

/// How long a receipt waits for the outcome of its call, while it is not known how the SMSC spells
/// ids. A receipt may come before the outcome is recorded.
const EARLY: Duration = Duration::from_secs(2);

/// The pause between two looks for the outcome.
const LOOK: Duration = Duration::from_millis(100);

/// Hands the receipts of one gateway to the store.
#[derive(Debug, Clone)]
pub(super) struct Listener {
    pub(super) gateway: GatewayName,
    pub(super) sink: Arc<dyn ReceiptSink>,
    /// How the SMSC spells ids, as far as the receipts of all sessions show it.
    pub(super) spelling: Arc<Spelling>,
}

/// The end of the storing of a delivery, to which the SMSC now gets a response.
pub(super) struct Delivered {
    pub(super) command: u32,
    pub(super) sequence: u32,
    pub(super) status: u32,
}

impl Listener {
    /// Reads a delivery. Returns the status for the response, or `None` if a receipt is being
    /// stored; `stored` then gets the status.
    pub(super) fn hear(&self, pdu: &Pdu, stored: mpsc::UnboundedSender<Delivered>) -> Option<u32> {
        match report(pdu) {
            Some(Report::Final { id, receipt }) => {
                self.store(pdu, &id, receipt, stored);
                None
            }
            Some(Report::Intermediate) => Some(status::OK),
            Some(Report::NoReceipt) => {
                tracing::debug!(gateway = %self.gateway, "ignored an SMS of a subscriber");
                Some(status::OK)
            }
            Some(Report::Unreadable) => {
                // A repetition would not be readable either.
                tracing::warn!(gateway = %self.gateway, "ignored a receipt without id or state");
                Some(status::OK)
            }
            None => {
                tracing::warn!(gateway = %self.gateway, "refused a delivery that cannot be decoded");
                Some(status::PERMANENT_ERROR)
            }
        }
    }

    /// Stores a receipt in a task of its own, which ends even if the session ends earlier: no
    /// statement of the database may be cut off.
    fn store(
        &self,
        pdu: &Pdu,
        id: &str,
        receipt: Receipt,
        stored: mpsc::UnboundedSender<Delivered>,
    ) {
        let (command, sequence) = (pdu.header.command_id, pdu.header.sequence_number);
        let (listener, id) = (self.clone(), id.to_owned());
        tokio::spawn(async move {
            let status = match listener.note(&id, receipt).await {
                Ok(true) => status::OK,
                Ok(false) => status::TEMPORARY_ERROR,
                Err(error) => {
                    let (gateway, error) = (&listener.gateway, application::Chain(&error));
                    tracing::warn!(%gateway, %error, "receipt not stored; the SMSC is to repeat it");
                    status::TEMPORARY_ERROR
                }
            };
            // The session may have ended. The SMSC then repeats the delivery.
            _ = stored.send(Delivered { command, sequence, status });
        });
    }

    /// Stores a receipt. Returns whether it is stored; otherwise the SMSC is to repeat it.
    async fn note(&self, id: &str, receipt: Receipt) -> Result<bool, StoreError> {
        let Some(reference) = self.spelling.reference(id) else {
            return self.note_and_learn(id, receipt).await;
        };
        let is_known = self.sink.note(&self.gateway, reference, receipt).await?;
        if !is_known && !self.spelling.is_set() {
            // If receipts have shown the wrong spelling, the message may have another one.
            let known = self.sink.known(&self.gateway, Spelling::references(id)).await?;
            self.spelling.learn(id, &known);
        }
        Ok(true)
    }

    /// Stores a receipt of an SMSC of which it is not known how it spells ids.
    ///
    /// If only another spelling is known, it may be the id of another message. Then the receipt is to
    /// come again, until enough receipts have shown that the SMSC uses that spelling.
    async fn note_and_learn(&self, id: &str, receipt: Receipt) -> Result<bool, StoreError> {
        let as_written = canonical(id);
        let known = self.known(id, &as_written).await?;
        self.spelling.learn(id, &known);
        let reference = if known.is_empty() || known.contains(&as_written) {
            as_written
        } else if let Some(reference) = self.spelling.reference(id) {
            reference
        } else {
            tracing::debug!(gateway = %self.gateway, "the receipt may belong to two messages; the SMSC must repeat it");
            return Ok(false);
        };
        self.sink.note(&self.gateway, reference, receipt).await?;
        Ok(true)
    }

    /// Returns which references of the id are known. Waits for a time until the id is known as it is
    /// written.
    async fn known(&self, id: &str, as_written: &String) -> Result<Vec<String>, StoreError> {
        let deadline = Instant::now() + EARLY;
        loop {
            let known = self.sink.known(&self.gateway, Spelling::references(id)).await?;
            if known.contains(as_written) || Instant::now() >= deadline {
                return Ok(known);
            }
            sleep(LOOK).await;
        }
    }
}

/// Decodes and reads a delivery. Returns `None` if it cannot be decoded.
fn report(pdu: &Pdu) -> Option<Report> {
    let header = pdu.header.clone();
    if pdu.header.command_id == pdu::DATA_SM {
        let data_sm { esm_class, data_coding, tlvs, .. } =
            data_sm::decode(header, pdu.octets()).ok()?;
        Some(read(&Delivery { esm_class, data_coding, text: &[], parameters: tlvs }))
    } else {
        let deliver_sm { esm_class, data_coding, short_message, tlvs, .. } =
            deliver_sm::decode(header, pdu.octets()).ok()?;
        Some(read(&Delivery { esm_class, data_coding, text: &short_message, parameters: tlvs }))
    }
}
