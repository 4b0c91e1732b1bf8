use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use crate::ports::StoreError;

/// The leases by which the consumers of one group share the partitions of one topic.
///
/// A partition has at most one owner. Its epoch is a fencing token that grows with each new owner:
/// every write of an owner names its epoch, and a write under an old epoch does nothing. All times
/// are those of the database clock.
#[cfg_attr(any(test, feature = "mocks"), mockall::automock)]
#[trait_variant::make(Send)]
pub trait PartitionLeases: Sync + 'static {
    /// Registers partitions for the group.
    ///
    /// The first call for a group registers the partitions that the topic has at that time.
    /// Partitions that are registered later are marked [`Lease::added_later`].
    async fn register(&self, partitions: &[i32]) -> Result<(), StoreError>;

    /// Marks this consumer as alive for `ttl` and renews its leases.
    ///
    /// Returns which of `leases` this consumer still holds, and how many consumers are alive. A lease
    /// that has ended is also renewed, unless another consumer took it.
    async fn renew(&self, leases: &[Lease], ttl: Duration) -> Result<Renewed, StoreError>;

    /// Takes up to `limit` partitions that have no owner or whose lease has ended.
    async fn acquire(&self, limit: usize, ttl: Duration) -> Result<Vec<Lease>, StoreError>;

    /// Gives a partition up. Other consumers may take it at once. Does nothing if this consumer no
    /// longer holds it.
    async fn release(&self, lease: &Lease) -> Result<(), StoreError>;

    /// Removes this consumer from the group, so that the others take its share at once.
    async fn leave(&self) -> Result<(), StoreError>;
}

/// A lease on a partition. It ends when another owner takes the partition under a higher epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    pub partition: i32,
    pub epoch: i64,
    /// The offset to read next. `None` if the group has never read the partition.
    pub next_offset: Option<i64>,
    /// Whether the topic got this partition after the group began.
    pub added_later: bool,
    /// The time of the database clock when the lease was taken, if the group has never read the
    /// partition and no other group has read the topic.
    pub first_at: Option<SystemTime>,
    /// A moment up to which the partition has been read completely under this lease. `None` if no
    /// such moment is known.
    pub seen: Option<Instant>,
}

/// The result of [`PartitionLeases::renew`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Renewed {
    /// Partitions that this consumer still holds.
    pub held: Vec<i32>,
    /// Living consumers of the group, including this one.
    pub members: usize,
    /// Partitions that are registered for the group.
    pub partitions: usize,
}
