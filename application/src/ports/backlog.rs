use std::{num::NonZeroU32, time::Duration};

use domain::{Message, Validity};

use crate::{TraceParent, ports::StoreError};

/// The outbox as a relay sees it: messages that still have to reach a consumer.
///
/// A message is *waiting* until a relay settles it, and then *in transit*. A consumer's ledger may
/// take it over from either, which removes it here. One that is in transit for too long waits again.
#[cfg_attr(any(test, feature = "mocks"), mockall::automock)]
#[trait_variant::make(Send)]
pub trait Backlog: Sync + 'static {
    /// Leases up to `limit` waiting messages for `lease`, in the order of their acceptance.
    ///
    /// A leased message is invisible to other callers; when the lease runs out without a
    /// `settle`, it may be claimed again. A message is not claimed while an older one to the same
    /// phone, never settled yet, is left behind or leased. One that has
    /// expired is never claimed.
    async fn claim(&self, limit: NonZeroU32, lease: Duration) -> Result<Vec<Claimed>, StoreError>;

    /// Renews the lease of those claims that are still ours.
    async fn extend(&self, claims: &[Claim], lease: Duration) -> Result<(), StoreError>;

    /// Records messages as published: they are in transit now.
    ///
    /// One that no consumer has taken over after `confirm_within` waits again as soon as a group
    /// has read the topic to where it ended after the publication; where none does, after sixteen
    /// times `confirm_within`. Both times double with each publication. A claim that is no longer
    /// ours, or whose message a consumer has taken over already, is passed over. Settling twice is
    /// not an error.
    async fn settle(&self, claims: &[Claim], confirm_within: Duration) -> Result<(), StoreError>;

    /// Lets messages wait again that were in transit for too long, and ends expired ones.
    ///
    /// What has expired is recorded so, unless a ledger has it already.
    async fn sweep(&self) -> Result<Swept, StoreError>;

    /// How many messages are waiting and how many are in transit.
    async fn size(&self) -> Result<BacklogSize, StoreError>;
}

/// A right to publish and settle one message. `attempt` fences it: the next claim has another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claim {
    pub sequence: i64,
    pub attempt: i32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claimed {
    pub claim: Claim,
    pub message: Message,
    pub validity: Validity,
    pub trace: TraceParent,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Swept {
    pub waiting_again: u64,
    pub expired: u64,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BacklogSize {
    pub waiting: u64,
    pub in_transit: u64,
}
