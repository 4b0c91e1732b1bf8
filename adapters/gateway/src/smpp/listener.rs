//! The way of a receipt from a session to the store.

use std::sync::Arc;

use application::ports::{Receipt, ReceiptSink};
use domain::GatewayName;
use smpp34::{data_sm, deliver_sm};
use tokio::sync::mpsc;

use super::{
    pdu::{self, Pdu},
    receipt::{Delivery, ReceiptIds, Report, read},
    status,
};

/// Hands the receipts of one gateway to the store.
#[derive(Debug, Clone)]
pub(super) struct Listener {
    pub(super) gateway: GatewayName,
    pub(super) sink: Arc<dyn ReceiptSink>,
    pub(super) ids: ReceiptIds,
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
        let candidates = self.ids.candidates(id);
        let (command, sequence) = (pdu.header.command_id, pdu.header.sequence_number);
        let Self { gateway, sink, .. } = self.clone();
        tokio::spawn(async move {
            let status = match sink.note(&gateway, candidates, receipt).await {
                Ok(()) => status::OK,
                Err(error) => {
                    let error = application::Chain(&error);
                    tracing::warn!(%gateway, %error, "receipt not stored; the SMSC is to repeat it");
                    status::TEMPORARY_ERROR
                }
            };
            // The session may have ended. The SMSC then repeats the delivery.
            _ = stored.send(Delivered { command, sequence, status });
        });
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
