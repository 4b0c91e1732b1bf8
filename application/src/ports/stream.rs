use std::time::SystemTime;

use domain::{Message, Validity};

use crate::{BoxError, TraceParent};

/// A topic as consumers read it: partitions, each a sequence of records with growing offsets.
#[cfg_attr(any(test, feature = "mocks"), mockall::automock)]
#[trait_variant::make(Send)]
pub trait MessageStream: Sync + 'static {
    /// The partitions that the topic has now; none if there is no such topic yet.
    async fn partitions(&self) -> Result<Vec<i32>, StreamError>;

    /// Where a reader without an offset of its own begins.
    async fn first_offset(&self, partition: i32, from: StartFrom) -> Result<i64, StreamError>;

    /// Reads records from `offset` on, in order, skipping none.
    ///
    /// Waits a short while when there are none. May be dropped at any time: reading changes
    /// nothing.
    async fn fetch(&self, partition: i32, offset: i64) -> Result<Fetched, StreamError>;
}

/// Where a group without a stored offset starts in a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StartFrom {
    Earliest,
    Latest,
    /// The first record that was written at this time or later. If there is none, the end, with
    /// nothing passed by that is written meanwhile.
    Since(SystemTime),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetched {
    pub records: Vec<Record>,
    /// The offset to go on from.
    pub next_offset: i64,
    /// How many records the partition has from `next_offset` on.
    pub lag: i64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    pub offset: i64,
    pub content: Result<Incoming, Unreadable>,
}

/// A message as a record carries it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Incoming {
    pub message: Message,
    /// Absent where the record says nothing of time.
    pub validity: Option<Validity>,
    pub trace: Option<TraceParent>,
    /// The message's place in the outbox; absent in a record that is not ours.
    pub sequence: Option<i64>,
}

/// Why a record is no message. Says nothing of its content.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Unreadable(pub &'static str);

#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// Trying again may help.
    #[error("the broker is unavailable")]
    Unavailable(#[source] BoxError),
    /// The partition has no such offset: what stood there was deleted, or the whole topic was.
    #[error("the partition has no offset {offset}")]
    OutOfRange { offset: i64 },
}
