use std::time::{Duration, SystemTime};

use domain::{Metadata, VerificationId};

use crate::ports::{EventKind, StoreError};

/// Events that others are still to be told of. They are written in the commit of what they tell.
#[cfg_attr(any(test, feature = "mocks"), mockall::automock)]
#[trait_variant::make(Send)]
pub trait EventOutbox: Sync + 'static {
    /// Takes up to `limit` events whose time has come, oldest first, for `lease`: others do not see
    /// them until then.
    async fn claim(&self, limit: usize, lease: Duration) -> Result<Vec<DueEvent>, StoreError>;

    /// Removes an event that was told, or that is not tried any more, if the claim is still ours.
    async fn settle(&self, event: &EventClaim) -> Result<(), StoreError>;

    /// Lets an event wait for its next try, if the claim is still ours.
    async fn retry(&self, event: &EventClaim, after: Duration) -> Result<(), StoreError>;
}

/// Whoever is told of events.
#[cfg_attr(any(test, feature = "mocks"), mockall::automock)]
#[trait_variant::make(Send)]
pub trait EventSink: Sync + 'static {
    /// Tells of one event. One call is one request, and ends in bounded time.
    async fn post(&self, event: &DueEvent) -> Result<(), PostError>;
}

/// A right to tell of one event once. `attempt` fences it: the next claim has another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EventClaim {
    pub sequence: i64,
    /// Counted from 1.
    pub attempt: u32,
}

/// An event to be told. Of what it says, all but `attempt` and `claimed_at` is the same at every
/// try.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DueEvent {
    pub claim: EventClaim,
    /// The same at every try, and no other event's: 32 hexadecimal digits.
    pub id: String,
    pub kind: EventKind,
    pub at: SystemTime,
    /// The database's now.
    pub claimed_at: SystemTime,
    /// None for [`EventKind::Blocked`].
    pub verification: Option<VerificationId>,
    /// Masked; none where the verification is not kept any more.
    pub phone: Option<String>,
    pub metadata: Option<Metadata>,
    /// Whether the verification is one of a test number: nothing was sent.
    pub test: bool,
    /// How the delivery ended, where that is the event: `sent`, `failed`, `expired`, `unknown`; or
    /// what the gateway told of it later: `delivered`, `undelivered`.
    pub delivery: Option<String>,
}

/// Why an event was not taken. The texts are ours or a status.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PostError {
    /// Whoever is posted to wants no more of it.
    #[error("gone")]
    Gone,
    #[error("{detail}")]
    Failed { detail: String, retry_after: Option<Duration> },
}
