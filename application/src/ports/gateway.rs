use std::{
    fmt,
    time::{Duration, SystemTime},
};

use domain::{Code, Message};

use crate::{TraceParent, ports::OutcomeClass};

/// Whoever brings an SMS to a phone, for money.
#[cfg_attr(any(test, feature = "mocks"), mockall::automock)]
#[trait_variant::make(Send)]
pub trait SmsGateway: Sync + 'static {
    /// Hands one SMS over. One call is one request: nothing is repeated inside.
    ///
    /// Ends in bounded time. May be dropped, and then its outcome is ambiguous.
    async fn send(&self, sms: &Sms) -> Result<Accepted, SendError>;

    /// Whether the gateway knows a message again by its id, so that a repeated call for it does
    /// not send a second SMS.
    fn deduplicates(&self) -> bool;
}

/// One SMS.
#[derive(Clone, PartialEq, Eq)]
pub struct Sms {
    pub message: Message,
    /// The message's, opened.
    pub code: Code,
    pub text: String,
    pub expires_at: SystemTime,
    pub trace: Option<TraceParent>,
}

/// The gateway has the SMS and will be paid for it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Accepted {
    /// The gateway's own name for it.
    pub reference: Option<String>,
}

/// Why a gateway did not accept an SMS, by what can be done about it.
///
/// The texts are ours or a status, never a gateway's own words: those may repeat the number.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// Not this message, ever.
    #[error("rejected: {0}")]
    Rejected(String),
    /// Not from us, as things are set up: credentials, credit, sender.
    #[error("misconfigured: {0}")]
    Misconfigured(String),
    /// Not now; it was not accepted.
    #[error("throttled: {detail}")]
    Throttled { detail: String, retry_after: Option<Duration> },
    /// Out of order; it was not accepted.
    #[error("unavailable: {detail}")]
    Unavailable { detail: String, retry_after: Option<Duration> },
    /// The request went out and no answer came that says what became of it.
    #[error("ambiguous: {0}")]
    Ambiguous(String),
}

impl SendError {
    pub fn class(&self) -> OutcomeClass {
        match self {
            Self::Rejected(_) => OutcomeClass::Rejected,
            Self::Misconfigured(_) => OutcomeClass::Misconfigured,
            Self::Throttled { .. } => OutcomeClass::Throttled,
            Self::Unavailable { .. } => OutcomeClass::Unavailable,
            Self::Ambiguous(_) => OutcomeClass::Ambiguous,
        }
    }

    /// What was said, without the class.
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

/// Leaves the text out: the code stands in it.
impl fmt::Debug for Sms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sms")
            .field("message", &self.message)
            .field("expires_at", &self.expires_at)
            .finish_non_exhaustive()
    }
}
