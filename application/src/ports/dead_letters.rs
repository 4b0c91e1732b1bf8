use std::time::{Duration, SystemTime};

use crate::ports::{Incoming, StoreError};

/// Records that are no message: where they stand and why, not what they hold.
#[cfg_attr(any(test, feature = "mocks"), mockall::automock)]
#[trait_variant::make(Send)]
pub trait DeadLetters: Sync + 'static {
    /// The first `limit` of all groups, oldest first.
    async fn list(&self, limit: u64) -> Result<Vec<DeadLetter>, StoreError>;

    async fn find(&self, id: i64) -> Result<Option<DeadLetter>, StoreError>;

    /// Gives the message of a letter to its group's ledger, as if it had been read just now, and
    /// removes the letter, in one commit.
    ///
    /// A message that has expired is not given to the ledger, and its letter stays.
    /// `default_ttl` is how long a message may be sent whose record says nothing of time; it
    /// counts from when the letter was recorded.
    async fn revive(
        &self,
        letter: &DeadLetter,
        message: &Incoming,
        default_ttl: Duration,
    ) -> Result<Revived, StoreError>;

    /// Removes a letter. Says whether it was there.
    async fn discard(&self, id: i64) -> Result<bool, StoreError>;
}

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

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Revived {
    /// It will be sent.
    Pending,
    /// The group's ledger had the message already; the letter is gone.
    KnownAlready,
    /// It is too late to send it; the letter stays.
    Expired,
}
