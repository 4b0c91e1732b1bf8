use std::{
    collections::BTreeMap,
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};

use domain::{Code, Message, MessageId};

use crate::{
    TraceParent,
    ports::{OutcomeClass, Receipt},
};

/// The provider that delivers SMS.
#[cfg_attr(any(test, feature = "mocks"), mockall::automock)]
#[trait_variant::make(Send)]
pub trait SmsGateway: Sync + 'static {
    /// Sends one SMS. One call makes at most one request that sends, without a retry.
    ///
    /// Ends in bounded time. The caller may drop the future; the outcome is then ambiguous.
    async fn send(&self, sms: &Sms) -> Result<Accepted, SendError>;

    /// Whether the gateway recognises a repeated message by its id, so that a repeated call does not
    /// send a second SMS.
    fn deduplicates(&self) -> bool;
}

/// One SMS.
#[derive(Clone, PartialEq, Eq)]
pub struct Sms {
    pub message: Message,
    /// The code of the message, opened.
    pub code: Code,
    pub text: String,
    pub expires_at: SystemTime,
    /// The time that the code stays valid, counted from the grant of the call.
    pub good_for: Duration,
    pub trace: Option<TraceParent>,
    /// The sender that the route asks for. `None` stands for the gateway's own.
    pub sender: Option<Arc<str>>,
    /// The parameters of the provider for this route, such as `dlt_entity_id`.
    pub params: Arc<BTreeMap<String, String>>,
    /// The URL to which the provider reports the delivery of this message. It names the message and
    /// contains a token.
    pub callback: Option<String>,
}

/// The gateway has accepted the SMS.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Accepted {
    /// The id that the gateway gave the SMS. One that repeats the code or the text is not stored.
    pub reference: Option<String>,
    /// Whether the gateway's receipts name the message by `reference` only, so that it must be found
    /// by it.
    pub receipts_by_reference: bool,
}

/// A receipt as a gateway reported it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GatewayReceipt {
    pub of: Reported,
    pub receipt: Receipt,
}

/// The name that a gateway gives a message in a receipt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reported {
    /// Our id, which the gateway repeats.
    Message(MessageId),
    /// The id that the gateway gave the SMS.
    Reference(String),
}

/// The reason why a gateway did not accept an SMS. The variants are what the caller can do about
/// it.
///
/// The texts are our own, a status or a code of the gateway, never the gateway's text, which may
/// contain the number.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// No gateway will ever accept this message.
    #[error("rejected: {0}")]
    Rejected(String),
    /// This gateway does not deliver to this number. Another gateway may.
    #[error("unroutable: {0}")]
    Unroutable(String),
    /// The gateway accepts no message from this account, because of credentials, credit or the sender.
    #[error("misconfigured: {0}")]
    Misconfigured(String),
    /// The gateway did not accept the message now, because of a rate limit.
    #[error("throttled: {detail}")]
    Throttled { detail: String, retry_after: Option<Duration> },
    /// The gateway is out of order and did not accept the message.
    #[error("unavailable: {detail}")]
    Unavailable { detail: String, retry_after: Option<Duration> },
    /// The request was sent, and no answer says whether the gateway accepted the message.
    #[error("ambiguous: {0}")]
    Ambiguous(String),
}

impl SendError {
    /// Returns the class of the outcome.
    pub fn class(&self) -> OutcomeClass {
        match self {
            Self::Rejected(_) => OutcomeClass::Rejected,
            Self::Unroutable(_) => OutcomeClass::Unroutable,
            Self::Misconfigured(_) => OutcomeClass::Misconfigured,
            Self::Throttled { .. } => OutcomeClass::Throttled,
            Self::Unavailable { .. } => OutcomeClass::Unavailable,
            Self::Ambiguous(_) => OutcomeClass::Ambiguous,
        }
    }

    /// Returns the detail without the class.
    pub fn detail(&self) -> &str {
        match self {
            Self::Rejected(detail)
            | Self::Unroutable(detail)
            | Self::Misconfigured(detail)
            | Self::Throttled { detail, .. }
            | Self::Unavailable { detail, .. }
            | Self::Ambiguous(detail) => detail,
        }
    }
}

/// Hides the text, which contains the code, and the callback, which contains a token.
impl fmt::Debug for Sms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sms")
            .field("message", &self.message)
            .field("expires_at", &self.expires_at)
            .finish_non_exhaustive()
    }
}
