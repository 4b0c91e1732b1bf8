use std::{
    fmt,
    time::{Duration, SystemTime},
};

use domain::{Code, Message};

use crate::{TraceParent, ports::OutcomeClass};

/// The provider that delivers SMS.
#[cfg_attr(any(test, feature = "mocks"), mockall::automock)]
#[trait_variant::make(Send)]
pub trait SmsGateway: Sync + 'static {
    /// Sends one SMS. One call is one request, without a retry.
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
    pub trace: Option<TraceParent>,
}

/// The gateway has accepted the SMS.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Accepted {
    /// The id that the gateway gave the SMS.
    pub reference: Option<String>,
}

/// The reason why a gateway did not accept an SMS. The variants are what the caller can do about
/// it.
///
/// The texts are our own or an HTTP status, never the gateway's text, which may contain the number.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// The gateway will never accept this message.
    #[error("rejected: {0}")]
    Rejected(String),
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
            | Self::Misconfigured(detail)
            | Self::Throttled { detail, .. }
            | Self::Unavailable { detail, .. }
            | Self::Ambiguous(detail) => detail,
        }
    }
}

/// Hides the text, which contains the code.
impl fmt::Debug for Sms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sms")
            .field("message", &self.message)
            .field("expires_at", &self.expires_at)
            .finish_non_exhaustive()
    }
}
