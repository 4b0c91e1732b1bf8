use std::{str::FromStr, time::Duration};

use domain::{GatewayName, Message, MessageId, UnknownWord, VerificationId};

use crate::{
    TraceParent,
    ports::{StoreError, Verification},
};

/// Messages that a gateway accepted and whose delivery receipt is awaited. Without it in time, the code
/// is sent again through another gateway.
///
/// [`DeliveryLedger::finish`](crate::ports::DeliveryLedger::finish) adds a message. It is *due* when its
/// time is up, or once a receipt says that it is undelivered. All times are those of the database clock.
#[cfg_attr(any(test, feature = "mocks"), mockall::automock)]
#[trait_variant::make(Send)]
pub trait AwaitedReceipts: Sync + 'static {
    /// Leases up to `limit` due messages for `lease`, the longest due first. Other
    /// callers do not see them until the lease ends.
    ///
    /// Only messages that are still to be sent again are returned, and the others are forgotten: no
    /// receipt says that the message is delivered, it is the latest of its verification, and that is
    /// pending, has attempts left and is the newest of its phone.
    async fn claim(&self, limit: usize, lease: Duration) -> Result<Vec<Overdue>, StoreError>;

    /// Stores one more message of a verification, if that is still to be done, and forgets the message
    /// before it. This happens once for each message, and the event is recorded in the same commit.
    /// Returns whether it happened.
    ///
    /// No limit counts the message, and the caller's next resend neither waits for it nor is lost.
    async fn send_elsewhere(&self, extra: ExtraSend) -> Result<bool, StoreError>;

    /// Stops awaiting the receipt of a message.
    async fn forget(&self, message: MessageId) -> Result<(), StoreError>;
}

/// A message without the receipt that was awaited.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Overdue {
    pub message: MessageId,
    /// The gateway that accepted it.
    pub gateway: GatewayName,
    pub reason: Rerouting,
    pub verification: Verification,
}

/// A message that is sent because the one before it got no receipt. The ledger learns from it which
/// gateways to pass over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExtraSend {
    pub verification: VerificationId,
    /// The message before it, and its place among those of the verification.
    pub after: MessageId,
    pub sends: u8,
    pub reason: Rerouting,
    pub message: Message,
    pub trace: TraceParent,
}

/// The reason why a code was sent again through another gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Rerouting {
    /// No receipt came in time.
    NoReceipt,
    /// The gateway reports that the handset will not receive the message.
    Undelivered,
}

impl Rerouting {
    pub const ALL: [Self; 2] = [Self::NoReceipt, Self::Undelivered];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NoReceipt => "no-receipt",
            Self::Undelivered => "undelivered",
        }
    }
}

impl FromStr for Rerouting {
    type Err = UnknownWord;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|reason| reason.as_str() == text).ok_or(UnknownWord)
    }
}
