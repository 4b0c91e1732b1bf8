use std::time::SystemTime;

use domain::{Message, Validity};

use crate::{BoxError, TraceParent};

/// A topic as consumers read it. Each partition is a sequence of records with growing offsets.
#[cfg_attr(any(test, feature = "mocks"), mockall::automock)]
#[trait_variant::make(Send)]
pub trait MessageStream: Sync + 'static {
    /// Returns the present partitions of the topic. The list is empty if the topic does not exist yet.
    async fn partitions(&self) -> Result<Vec<i32>, StreamError>;

    /// Returns the offset at which a reader without a stored offset begins.
    async fn first_offset(&self, partition: i32, from: StartFrom) -> Result<i64, StreamError>;

    /// Reads records from `offset` on, in order and without gaps.
    ///
    /// Waits for a short time if there are none. The caller may drop the future at any time, because
    /// reading changes nothing.
    async fn fetch(&self, partition: i32, offset: i64) -> Result<Fetched, StreamError>;
}

/// The start of a group without a stored offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StartFrom {
    Earliest,
    Latest,
    /// The first record that was written at this time or later. If there is none, the end of the
    /// partition; a record that is written in the meantime is not skipped.
    Since(SystemTime),
}

/// The result of [`MessageStream::fetch`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetched {
    pub records: Vec<Record>,
    /// The offset to read next.
    pub next_offset: i64,
    /// The number of records from `next_offset` to the end of the partition.
    pub lag: i64,
}

impl Fetched {
    pub fn messages(&self) -> impl Iterator<Item = &Incoming> + Clone {
        self.records.iter().filter_map(Record::message)
    }

    /// Returns the fetch without its first `place` records, or `None` if no other records are in it.
    #[must_use]
    pub fn rest_from(mut self, place: usize) -> Option<Self> {
        self.records.drain(..place);
        (!self.records.is_empty()).then_some(self)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    pub offset: i64,
    pub content: Result<Incoming, Unreadable>,
}

impl Record {
    /// Returns the message, or `None` if the record is unreadable.
    pub fn message(&self) -> Option<&Incoming> {
        self.content.as_ref().ok()
    }
}

/// A message in a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Incoming {
    pub message: Message,
    /// `None` if the record has no time.
    pub validity: Option<Validity>,
    pub trace: Option<TraceParent>,
    /// The sequence of the message in the outbox. `None` if another producer wrote the record.
    pub sequence: Option<i64>,
}

/// The reason why a record is not a message. The text does not contain its content.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Unreadable(pub &'static str);

/// The reason why records were not read.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// A retry may succeed.
    #[error("the broker is unavailable")]
    Unavailable(#[source] BoxError),
    /// The partition has no such offset, because the record or the whole topic was deleted.
    #[error("the partition has no offset {offset}")]
    OutOfRange { offset: i64 },
}
