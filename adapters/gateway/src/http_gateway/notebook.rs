//! The notes of one gateway.

use std::{fmt, sync::Arc, time::Duration};

use application::{
    Chain,
    ports::{CallNotes, Noting, SendError},
};
use domain::{GatewayName, MessageId};
use tokio::time::{Instant, timeout_at};

use super::not_called;
use crate::wire;

/// The notes of one gateway.
pub(super) struct Notebook {
    gateway: GatewayName,
    notes: Arc<dyn CallNotes>,
}

impl Notebook {
    pub(super) fn new(gateway: GatewayName, notes: Arc<dyn CallNotes>) -> Self {
        Self { gateway, notes }
    }

    /// Returns the note on a message.
    pub(super) async fn find(
        &self,
        message: MessageId,
        deadline: Instant,
    ) -> Result<Option<String>, SendError> {
        in_time(self.notes.find(&self.gateway, message), deadline).await
    }

    /// Stores a note on a message, and returns the one that is stored.
    pub(super) async fn keep(
        &self,
        message: MessageId,
        note: &str,
        good_for: Duration,
        deadline: Instant,
    ) -> Result<String, SendError> {
        // Another text would be stored, and would not be the id any more.
        if wire::printable(note) != note {
            return Err(not_called("the id of the provider cannot be stored"));
        }
        in_time(self.notes.keep(&self.gateway, message, note, good_for), deadline).await
    }
}

/// Nothing has been sent yet, so a failure is not ambiguous.
async fn in_time<T>(noting: Noting<'_, T>, deadline: Instant) -> Result<T, SendError> {
    match timeout_at(deadline, noting).await {
        Ok(Ok(noted)) => Ok(noted),
        Ok(Err(error)) => {
            tracing::warn!(error = %Chain(&error), "the note of a call cannot be read or stored; the message takes another gateway");
            Err(not_called("the notes of the gateway are not available"))
        }
        Err(_) => Err(not_called("the notes of the gateway were not available in time")),
    }
}

impl fmt::Debug for Notebook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Notebook").field("gateway", &self.gateway).finish_non_exhaustive()
    }
}
