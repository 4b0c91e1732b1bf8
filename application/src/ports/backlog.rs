use std::{num::NonZeroU32, ops::RangeInclusive, time::Duration};

use domain::{Message, Validity};

use crate::{TraceParent, ports::StoreError};

/// The outbox as a relay sees it: messages that no consumer has taken over yet, each under a number.
///
/// A later message of a phone has a higher number, if the caller knew that the earlier one was
/// accepted. A number may become visible after a higher one, soon after it was drawn, or never.
///
/// A relay changes no message. A consumer's ledger removes the messages that it takes over.
#[cfg_attr(any(test, feature = "mocks"), mockall::automock)]
#[trait_variant::make(Send)]
pub trait Backlog: Sync + 'static {
    /// Makes the caller the relay for `lease`. Returns `None` if another process is the relay.
    async fn acquire(&self, lease: Duration) -> Result<Option<Tenure>, StoreError>;

    /// Renews the lease and stores the progress. Returns whether the caller is still the relay.
    ///
    /// The caller stays the relay after the end of its lease, until another process acquires the
    /// outbox. After a failover to another database server, the caller is no longer the relay,
    /// because that server may lack its last commits.
    async fn renew(
        &self,
        tenure: &Tenure,
        reached: Reached,
        lease: Duration,
    ) -> Result<bool, StoreError>;

    /// Stores the progress and lets another relay begin, if the caller is still the relay.
    async fn release(&self, tenure: &Tenure, reached: Reached) -> Result<(), StoreError>;

    /// Reads the first `limit` messages whose number is in one of `gaps` or above `cursor`, in the order
    /// of their numbers. Leaves out what has expired. Logs each row that it cannot read.
    ///
    /// Reads nothing if the database may have lost commits since the tenure began.
    async fn look(
        &self,
        tenure: &Tenure,
        gaps: &[RangeInclusive<i64>],
        cursor: i64,
        limit: NonZeroU32,
    ) -> Result<Found, StoreError>;

    /// Looks up the lowest number, from which all reads of the whole outbox begin. Returns how long
    /// ago a group last reached the end of all partitions, if any has.
    async fn survey(&self, tenure: &Tenure) -> Result<Option<Duration>, StoreError>;

    /// Returns up to `limit` numbers within `range`, in their order, of messages that are in no ledger
    /// and have not expired.
    async fn untaken(
        &self,
        range: RangeInclusive<i64>,
        limit: NonZeroU32,
    ) -> Result<Vec<i64>, StoreError>;

    /// Ends messages that expired before a consumer took them over. Returns how many.
    ///
    /// They are recorded as expired, unless a ledger already has them.
    async fn end_expired(&self) -> Result<u64, StoreError>;

    /// Counts the messages that are waiting and those in transit, and says how old the oldest are.
    async fn size(&self) -> Result<BacklogSize, StoreError>;
}

/// The right to relay the outbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tenure {
    /// The fencing token: the next relay has a higher one.
    pub epoch: i64,
    /// The instance of the database server that gave the tenure.
    pub server: i64,
    /// How far the previous relay got.
    pub published: i64,
}

/// How far a relay got.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Reached {
    /// Every message up to this number was published, or never will be visible.
    pub published: i64,
    /// No message above this number was published.
    pub read: i64,
}

/// The result of a look.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    pub messages: Vec<Outgoing>,
    /// The numbers of rows that this service did not write. They count towards the limit.
    pub unreadable: Vec<i64>,
}

/// A message to publish.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outgoing {
    pub sequence: i64,
    pub message: Message,
    pub validity: Validity,
    pub trace: TraceParent,
    /// The time from its acceptance to the look.
    pub age: Duration,
}

/// The messages in each state: *waiting* to be published, or *in transit* to a consumer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BacklogSize {
    pub waiting: u64,
    pub in_transit: u64,
    /// The time since the oldest message of the state was accepted. Zero if there is none.
    pub oldest_waiting: Duration,
    pub oldest_in_transit: Duration,
}
