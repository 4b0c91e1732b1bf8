use std::{fmt, pin::Pin, time::Duration};

use domain::{GatewayName, MessageId, Region};

use crate::{
    TraceParent,
    ports::{Receipt, StoreError},
};

/// Delivery receipts that gateways report.
///
/// A receipt is stored on the entries of all groups that called its gateway for its message, last or
/// earlier, together with its event. Receipts may come twice, in any order, and before the outcome of the call is
/// recorded. The first of each kind counts, and [`Receipt::Undelivered`] is ignored after
/// [`Receipt::Delivered`].
///
/// [`Receipt::Undelivered`] is also ignored if the message goes on without this gateway: it waits for
/// its next call, or another gateway was called later. A gateway that refuses a message may report it
/// as undelivered, too; so while the gateway is called, such a receipt is kept until the call ends, and counts for that
/// call only.
///
/// Once a method returns `Ok`, what it returned is durable.
#[cfg_attr(any(test, feature = "mocks"), mockall::automock)]
#[trait_variant::make(Send)]
pub trait Receipts: Sync + 'static {
    /// Stores a receipt that names the message by our id.
    async fn note(
        &self,
        gateway: &GatewayName,
        message: MessageId,
        receipt: Receipt,
    ) -> Result<Noted, StoreError>;

    /// Stores a receipt that names the message by the reference that the gateway gave it.
    ///
    /// If [`DeliveryLedger::finish`](crate::ports::DeliveryLedger::finish) has not recorded the
    /// reference, the receipt is kept for ten minutes and counts as soon as a call ends with it. The
    /// number of such receipts is bounded: the oldest are dropped first.
    ///
    /// A reference is known for three days after its call.
    async fn note_reference(
        &self,
        gateway: &GatewayName,
        reference: &str,
        receipt: Receipt,
    ) -> Result<Noted, StoreError>;

    /// Returns those of `references` that calls of the gateway ended with, in any order.
    async fn known(
        &self,
        gateway: &GatewayName,
        references: &[String],
    ) -> Result<Vec<String>, StoreError>;

    /// Returns the latest call of a message that ended unknown and of which no receipt came. `None` for
    /// any other message.
    async fn unsettled(&self, message: MessageId) -> Result<Option<Unsettled>, StoreError>;
}

/// The latest call of a message that ended unknown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unsettled {
    pub gateway: GatewayName,
    /// The id that the gateway gave the SMS.
    pub reference: Option<String>,
}

/// The gateways, as far as they can be asked for the state of a message.
#[cfg_attr(any(test, feature = "mocks"), mockall::automock)]
#[trait_variant::make(Send)]
pub trait StatusSource: Sync + 'static {
    /// Returns the final state of the message with this reference. `None` if the gateway cannot be
    /// asked, does not answer, or knows no final state yet.
    async fn status(&self, gateway: &GatewayName, reference: &str) -> Option<Receipt>;
}

/// The result of noting a receipt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Noted {
    /// It is stored, and it told something new.
    Stored(NewReceipt),
    /// It told nothing new, or it came too late to count.
    Repeated,
    /// It is kept: no call has ended with its reference yet, or the call has not ended.
    Early,
    /// The gateway was not called for such a message.
    Unknown,
}

impl Noted {
    /// Whether a gateway was called for the message, as far as that is known.
    pub fn is_known(&self) -> bool {
        *self != Self::Unknown
    }
}

/// A receipt that told something new.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewReceipt {
    /// The region of the number, if it is known.
    pub region: Option<Region>,
    /// The time since the latest call of a gateway for the message.
    pub since_call: Duration,
    /// The time since the message was accepted.
    pub since_acceptance: Duration,
    /// The trace of the message: of one of its entries, if several groups have called a gateway for it.
    pub trace: Option<TraceParent>,
}

/// Takes the receipts that a gateway reports over its own connection.
///
/// An object, because a gateway must not depend on how receipts are stored.
pub trait ReceiptSink: fmt::Debug + Send + Sync + 'static {
    /// Takes one receipt. Returns whether a call has ended with the reference.
    ///
    /// After `Ok` the receipt is stored, or no message of ours is meant: the gateway may acknowledge
    /// it. After an error the provider should repeat it.
    fn note<'a>(
        &'a self,
        gateway: &'a GatewayName,
        reference: String,
        receipt: Receipt,
    ) -> Pin<Box<dyn Future<Output = Result<bool, StoreError>> + Send + 'a>>;

    /// Returns what [`Receipts::known`] returns.
    fn known<'a>(
        &'a self,
        gateway: &'a GatewayName,
        references: Vec<String>,
    ) -> Pin<Box<dyn Future<Output = Result<Vec<String>, StoreError>> + Send + 'a>>;
}
