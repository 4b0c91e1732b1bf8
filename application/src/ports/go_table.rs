use std::{fmt, time::SystemTime};

use domain::{Code, Message, MessageId, PhoneNumber};

use crate::{TraceParent, ports::StoreError};

/// The table `message` of the Go service, in the database of the outbox (ADR 73).
///
/// The Go service may use the table at the same time. Its API inserts rows in state `new`. Its
/// processor claims some of them by a later `reserved_to`, publishes their messages, and then sets
/// them to `done`. A row that its processor never claimed has `reserved_to` equal to `created_at`.
#[cfg_attr(any(test, feature = "mocks"), mockall::automock)]
#[trait_variant::make(Send)]
pub trait GoTable: Sync + 'static {
    /// Returns the ids of all rows, or `None` if the table has no rows.
    async fn ids(&self) -> Result<Option<Ids>, StoreError>;

    /// Counts the rows of `ids`.
    async fn count(&self, ids: Ids) -> Result<GoCounts, StoreError>;

    /// Returns up to `limit` of the rows of `ids` that are `new` and have not expired, by id: those
    /// that the Go processor has claimed at least once, or those that it has never claimed.
    async fn waiting(
        &self,
        ids: Ids,
        claimed: bool,
        limit: usize,
    ) -> Result<Vec<GoRow>, StoreError>;

    /// Sets rows to `done` and stores their messages in the outbox, in one commit. Returns how many.
    ///
    /// A row that changed since it was read, or that another session is changing, is left alone. A
    /// claim of the Go processor that runs at the same time does not get a row that this call takes.
    ///
    /// A message is valid from the `created_at` of its row.
    async fn take(&self, rows: &[Taking]) -> Result<u64, StoreError>;

    /// Sets rows to `done` whose messages the Go processor has published. Returns how many.
    ///
    /// A row that changed since it was read is left alone.
    async fn mark_done(&self, rows: &[GoRow]) -> Result<u64, StoreError>;

    /// Returns up to `limit` messages of the outbox that were never published, in the order of their
    /// place, which is after `after`.
    ///
    /// Returns `None` while a processor has the outbox, even if it was killed, because the database does
    /// not show which messages it has published.
    async fn unpublished(
        &self,
        after: i64,
        limit: usize,
    ) -> Result<Option<Vec<Stored>>, StoreError>;

    /// Returns the rows of `ids` that are `done` and would not have expired, as their number and the
    /// id of their message.
    async fn done(&self, ids: Ids) -> Result<Vec<(i64, MessageId)>, StoreError>;

    /// Deletes messages from the outbox and sets their rows to `new` and never claimed, in one
    /// commit. Returns how many, or `None` while a processor has the outbox.
    ///
    /// A message that may have been published in the meantime stays.
    async fn give_back(&self, rows: &[GivingBack]) -> Result<Option<u64>, StoreError>;
}

/// The ids after `after`, up to and including `last`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ids {
    pub after: i64,
    pub last: i64,
}

/// A row in state `new`.
#[derive(Clone, PartialEq, Eq)]
pub struct GoRow {
    pub id: i64,
    /// `reserved_to` in microseconds. Each claim of the Go processor changes it.
    pub reserved_to: i64,
    /// `created_at` in microseconds, in the time zone of the table.
    pub created_at: i64,
    /// `created_at` as a time.
    pub accepted_at: SystemTime,
    /// The message, or the reason why there is none. The reason does not contain the content.
    pub content: Result<(PhoneNumber, Code), &'static str>,
}

/// A row, and its message as the outbox gets it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taking {
    pub row: GoRow,
    pub message: Message,
    pub trace: TraceParent,
}

/// A message of the outbox and its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stored {
    pub sequence: i64,
    pub id: MessageId,
}

/// A row, and the place of its message in the outbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GivingBack {
    pub row: i64,
    pub sequence: i64,
}

/// How many rows are in which state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct GoCounts {
    pub done: u64,
    /// Rows that are `new`, have not expired, and were never claimed by the Go processor.
    pub waiting: u64,
    /// Rows that are `new`, have not expired, and were claimed by the Go processor.
    pub claimed: u64,
    /// Rows that are `new` and have expired.
    pub expired: u64,
    /// Rows whose time is more than a minute in the future.
    pub ahead: u64,
    /// The latest `created_at`.
    pub newest: Option<SystemTime>,
}

impl Ids {
    /// Splits the ids into parts of at most `size`.
    pub fn parts(self, size: i64) -> impl Iterator<Item = Self> {
        let Self { after, last } = self;
        let mut next = after;
        std::iter::from_fn(move || {
            let part = Self { after: next, last: next.saturating_add(size).min(last) };
            next = part.last;
            (part.after < part.last).then_some(part)
        })
    }
}

impl GoCounts {
    /// Adds the counts of other rows.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            done: self.done + other.done,
            waiting: self.waiting + other.waiting,
            claimed: self.claimed + other.claimed,
            expired: self.expired + other.expired,
            ahead: self.ahead + other.ahead,
            newest: self.newest.max(other.newest),
        }
    }
}

/// Leaves out the content.
impl fmt::Debug for GoRow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GoRow").field("id", &self.id).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_have_each_id_once() {
        let parts = |after, last, size| {
            let parts = Ids { after, last }.parts(size);
            parts.map(|part| (part.after, part.last)).collect::<Vec<_>>()
        };

        assert_eq!(parts(0, 10, 4), [(0, 4), (4, 8), (8, 10)]);
        assert_eq!(parts(7, 8, 4), [(7, 8)]);
        assert!(parts(8, 8, 4).is_empty());
        assert_eq!(parts(i64::MAX - 1, i64::MAX, 4), [(i64::MAX - 1, i64::MAX)]);
    }
}
