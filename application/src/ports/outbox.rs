use std::time::Duration;

use domain::Message;

use crate::{BoxError, TraceParent};

/// Where accepted messages are stored, in the order of their acceptance.
#[cfg_attr(any(test, feature = "mocks"), mockall::automock)]
#[trait_variant::make(Send)]
pub trait Outbox: Sync + 'static {
    /// Stores a message that may be sent for `ttl` from now, by the database's clock.
    ///
    /// Once this returns `Ok`, the message survives a crash of any process and of the database.
    /// After an error it may have been stored all the same. Calls that wait together may be
    /// committed together, and then a message that the database refuses fails its own call only.
    /// A call that is dropped leaves nothing half done.
    async fn enqueue(&self, message: NewMessage) -> Result<(), EnqueueError>;
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewMessage {
    pub message: Message,
    pub ttl: Duration,
    pub trace: TraceParent,
}

#[derive(Debug, thiserror::Error)]
pub enum EnqueueError {
    /// As much work is waiting for the database as may wait. Nothing was stored.
    #[error("too much work is waiting to be stored")]
    Full,
    /// The database did not confirm in time or at all. The message may have been stored.
    #[error("the outbox is unavailable")]
    Unavailable(#[source] BoxError),
}
