use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use crate::ports::StoreError;

/// How the consumers of one group share the partitions of one topic.
///
/// A partition has at most one owner. Its epoch grows with each new owner and fences the one
/// before: whatever an owner writes names the epoch, and nothing is written under an old one.
/// All times are the database's.
#[cfg_attr(any(test, feature = "mocks"), mockall::automock)]
#[trait_variant::make(Send)]
pub trait PartitionLeases: Sync + 'static {
    /// Makes partitions known to the group.
    ///
    /// The first call for a group says what the topic has at its birth; partitions that come
    /// later are marked [`Lease::added_later`].
    async fn register(&self, partitions: &[i32]) -> Result<(), StoreError>;

    /// Says that this consumer lives, for `ttl`, and renews what it holds.
    ///
    /// Returns which of `leases` are still ours and how many consumers live. A lease that ran
    /// out and that nobody took is renewed like any other.
    async fn renew(&self, leases: &[Lease], ttl: Duration) -> Result<Renewed, StoreError>;

    /// Takes up to `limit` partitions that have no owner, or whose owner's lease ran out.
    async fn acquire(&self, limit: usize, ttl: Duration) -> Result<Vec<Lease>, StoreError>;

    /// Gives a partition up: others may take it at once. Not ours any more is not an error.
    async fn release(&self, lease: &Lease) -> Result<(), StoreError>;

    /// Says that this consumer is gone, so that the others take its share at once.
    async fn leave(&self) -> Result<(), StoreError>;
}

/// A partition that is ours, until another owner comes with a higher epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    pub partition: i32,
    pub epoch: i64,
    /// Where to go on reading; `None` if the group never read the partition.
    pub next_offset: Option<i64>,
    /// The topic got this partition after the group was there.
    pub added_later: bool,
    /// The database's time when the lease was taken, if the group never read the partition and no
    /// other group has read the topic.
    pub first_at: Option<SystemTime>,
    /// All that was in the partition at that moment has been read, under this lease. `None`: no
    /// such moment is known.
    pub seen: Option<Instant>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Renewed {
    pub held: Vec<i32>,
    /// Living consumers of the group, this one among them.
    pub members: usize,
    /// Partitions known to the group.
    pub partitions: usize,
}
