use std::time::{Duration, SystemTime};

use crate::ports::{Incoming, StoreError};

/// Records that are not messages. A dead letter has the place of the record and the reason, but not
/// the content.
#[cfg_attr(any(test, feature = "mocks"), mockall::automock)]
#[trait_variant::make(Send)]
pub trait DeadLetters: Sync + 'static {
    /// Returns the oldest `limit` dead letters of all groups, oldest first.
    async fn list(&self, limit: u64) -> Result<Vec<DeadLetter>, StoreError>;

    async fn find(&self, id: i64) -> Result<Option<DeadLetter>, StoreError>;

    /// Enters the message of a dead letter in its group's ledger, as if it had just been read, and
    /// removes the dead letter, in one commit.
    ///
    /// If the message has expired, neither happens. `default_ttl` is the time to live of a message
    /// whose record has no time. It counts from when the dead letter was recorded.
    async fn revive(
        &self,
        letter: &DeadLetter,
        message: &Incoming,
        default_ttl: Duration,
    ) -> Result<Revived, StoreError>;

    /// Removes a dead letter. Returns whether it existed.
    async fn discard(&self, id: i64) -> Result<bool, StoreError>;
}

/// A record that is not a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetter {
    pub id: i64,
    pub group: String,
    pub topic: String,
    pub partition: i32,
    pub offset: i64,
    pub reason: String,
    pub recorded_at: SystemTime,
}

/// The result of [`DeadLetters::revive`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Revived {
    /// The message will be sent.
    Pending,
    /// The group's ledger already had the message. The dead letter is removed.
    KnownAlready,
    /// The message has expired or was canceled. The dead letter remains.
    Expired,
}
