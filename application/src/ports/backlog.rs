use std::{num::NonZeroU32, time::Duration};

use domain::{Message, Validity};

use crate::{TraceParent, ports::StoreError};

/// The outbox as a relay sees it: messages that no consumer has taken over yet.
///
/// A message is *waiting* until a relay settles it, and then *in transit*. A consumer's ledger may
/// take it over in either state, which removes it from the backlog. A message that is in transit for
/// too long returns to *waiting*.
#[cfg_attr(any(test, feature = "mocks"), mockall::automock)]
#[trait_variant::make(Send)]
pub trait Backlog: Sync + 'static {
    /// Leases up to `limit` waiting messages for `lease`, in the order of their acceptance.
    ///
    /// A leased message is invisible to other callers. If the lease ends before a `settle`, the
    /// message may be claimed again. A message is not claimed while an older message to the same
    /// phone, which was never settled, is not in this batch or is leased. An expired message is never
    /// claimed.
    async fn claim(&self, limit: NonZeroU32, lease: Duration) -> Result<Vec<Claimed>, StoreError>;

    /// Renews the lease of each claim that the caller still holds.
    async fn extend(&self, claims: &[Claim], lease: Duration) -> Result<(), StoreError>;

    /// Records messages as published. They are now in transit.
    ///
    /// If no consumer has taken a message over after `confirm_within`, it returns to waiting as soon
    /// as a group has read the topic up to its end at the time of the publication. If no group reads
    /// that far, it returns to waiting after sixteen times `confirm_within`. Both times double with
    /// each publication.
    ///
    /// A claim that the caller no longer holds, or whose message a consumer has taken over, is
    /// skipped. Safe to repeat.
    async fn settle(&self, claims: &[Claim], confirm_within: Duration) -> Result<(), StoreError>;

    /// Returns messages to waiting that were in transit for too long, and ends expired messages.
    ///
    /// An expired message is recorded as expired, unless a ledger already has it.
    async fn sweep(&self) -> Result<Swept, StoreError>;

    /// Counts the messages that are waiting and those in transit, and says how old the oldest are.
    async fn size(&self) -> Result<BacklogSize, StoreError>;
}

/// The right to publish and settle one message. `attempt` is its fencing token: the next claim of the
/// message has a higher one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claim {
    pub sequence: i64,
    pub attempt: i32,
}

/// A claimed message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claimed {
    pub claim: Claim,
    pub message: Message,
    pub validity: Validity,
    pub trace: TraceParent,
    /// The time from the acceptance to the claim.
    pub age: Duration,
}

/// The result of a sweep.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Swept {
    pub waiting_again: u64,
    pub expired: u64,
}

/// The messages in each state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BacklogSize {
    pub waiting: u64,
    pub in_transit: u64,
    /// The time since the oldest message of the state was accepted. Zero if there is none.
    pub oldest_waiting: Duration,
    pub oldest_in_transit: Duration,
}
