use std::time::{Duration, SystemTime};

use domain::{Channel, Metadata, VerificationId};

use crate::ports::{EventKind, StoreError};

/// Events that are still to be delivered to `EVENTS_URL`. Each is stored in the same transaction as
/// the change that it reports.
#[cfg_attr(any(test, feature = "mocks"), mockall::automock)]
#[trait_variant::make(Send)]
pub trait EventOutbox: Sync + 'static {
    /// Leases up to `limit` due events for `lease`, oldest first. Other callers do not see them until
    /// the lease ends.
    async fn claim(&self, limit: usize, lease: Duration) -> Result<Vec<DueEvent>, StoreError>;

    /// Removes an event that was delivered or given up, if the caller still holds the claim.
    async fn settle(&self, event: &EventClaim) -> Result<(), StoreError>;

    /// Schedules the next attempt, if the caller still holds the claim.
    async fn retry(&self, event: &EventClaim, after: Duration) -> Result<(), StoreError>;
}

/// The receiver of events.
#[cfg_attr(any(test, feature = "mocks"), mockall::automock)]
#[trait_variant::make(Send)]
pub trait EventSink: Sync + 'static {
    /// Posts one event. One call is one request and ends in bounded time.
    async fn post(&self, event: &DueEvent) -> Result<(), PostError>;
}

/// The right to post one event once. `attempt` is its fencing token: the next claim of the event has
/// a higher one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EventClaim {
    pub sequence: i64,
    /// Counted from 1.
    pub attempt: u32,
}

/// An event that is due. All fields except `claim.attempt` and `claimed_at` are the same at every
/// attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DueEvent {
    pub claim: EventClaim,
    /// A unique id of 32 hexadecimal digits, the same at every attempt.
    pub id: String,
    pub kind: EventKind,
    pub at: SystemTime,
    /// The time of the database clock when the event was claimed.
    pub claimed_at: SystemTime,
    /// `None` for [`EventKind::Blocked`].
    pub verification: Option<VerificationId>,
    /// The masked phone. `None` if the verification has been deleted.
    pub phone: Option<String>,
    pub metadata: Option<Metadata>,
    /// The channel of the latest call for the verification that had ended when the event happened. SMS
    /// if there was none.
    pub channel: Channel,
    /// Whether the verification is of a test number, to which nothing is sent.
    pub test: bool,
    /// The result of the delivery, if the event reports one: `sent`, `failed`, `expired`, `unknown`,
    /// or the delivery receipt of the gateway: `delivered`, `undelivered`. Of [`EventKind::Rerouted`], its
    /// reason.
    pub delivery: Option<String>,
    /// The reason why the message failed without a call, as [`FailureReason`](crate::ports::FailureReason)
    /// spells it.
    pub reason: Option<String>,
}

/// The reason why an event was not accepted. The texts are our own or an HTTP status.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PostError {
    /// The receiver asks not to receive this event again.
    #[error("gone")]
    Gone,
    #[error("{detail}")]
    Failed { detail: String, retry_after: Option<Duration> },
}
