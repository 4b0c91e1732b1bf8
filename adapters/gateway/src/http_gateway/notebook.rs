//! The notes of one gateway.

use std::{fmt, sync::Arc, time::Duration};

use application::{
    Chain,
    ports::{CallNotes, SendError, StoreError},
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
        let (gateway, notes) = (self.gateway.clone(), Arc::clone(&self.notes));
        in_time(async move { notes.find(&gateway, message).await }, deadline).await
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
        let (gateway, notes) = (self.gateway.clone(), Arc::clone(&self.notes));
        let note = note.to_owned();
        let keeping = async move { notes.keep(&gateway, message, &note, good_for).await };
        in_time(keeping, deadline).await
    }
}

/// Waits until `deadline`. Nothing has been sent yet, so a failure is not ambiguous.
///
/// The statement runs in a task of its own: the end of the call does not cut it off.
async fn in_time<T: Send + 'static>(
    noting: impl Future<Output = Result<T, StoreError>> + Send + 'static,
    deadline: Instant,
) -> Result<T, SendError> {
    match timeout_at(deadline, tokio::spawn(noting)).await {
        Ok(Ok(Ok(noted))) => Ok(noted),
        Ok(Ok(Err(error))) => {
            tracing::warn!(error = %Chain(&error), "the note of a call cannot be read or stored; the message takes another gateway");
            Err(not_called("the notes of the gateway are not available"))
        }
        // A panic was reported where it happened.
        Ok(Err(_)) => Err(not_called("the notes of the gateway are not available")),
        Err(_) => Err(not_called("the notes of the gateway were not available in time")),
    }
}

impl fmt::Debug for Notebook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Notebook").field("gateway", &self.gateway).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use application::ports::Noting;
    use tokio::time::sleep;

    use super::*;

    /// Takes a second to store a note.
    #[derive(Debug, Default)]
    struct Slow(Mutex<Vec<String>>);

    impl CallNotes for Slow {
        fn find<'a>(&'a self, _: &'a GatewayName, _: MessageId) -> Noting<'a, Option<String>> {
            Box::pin(async { Ok(None) })
        }

        fn keep<'a>(
            &'a self,
            _: &'a GatewayName,
            _: MessageId,
            note: &'a str,
            _: Duration,
        ) -> Noting<'a, String> {
            Box::pin(async {
                sleep(Duration::from_secs(1)).await;
                self.0.lock().unwrap().push(note.to_owned());
                Ok(note.to_owned())
            })
        }
    }

    #[tokio::test(start_paused = true)]
    async fn end_of_a_call_does_not_cut_the_storing_of_its_note_off() {
        let slow = Arc::new(Slow::default());
        let notebook = Notebook::new(GatewayName::default(), Arc::<Slow>::clone(&slow));
        let message = MessageId::of_record("t", 0, 1, 0);
        let deadline = Instant::now() + Duration::from_millis(100);

        let kept = notebook.keep(message, "r1", Duration::from_secs(60), deadline).await;
        sleep(Duration::from_secs(2)).await;

        assert!(matches!(kept, Err(SendError::Unavailable { .. })), "{kept:?}");
        assert_eq!(*slow.0.lock().unwrap(), ["r1"]);
    }
}
