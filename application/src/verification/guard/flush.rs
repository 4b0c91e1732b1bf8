use std::sync::Arc;

use autometrics::autometrics;

use super::Guard;
use crate::ports::{GuardCounts, StoreError};

/// Adds the counts of this process to the shared counts, and reads the shared counts.
#[derive(Debug)]
pub struct FlushGuard<C> {
    guard: Arc<Guard>,
    counts: C,
    /// Allows one flush at a time.
    turn: tokio::sync::Mutex<()>,
}

/// The counts that a flush stored.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Flushed {
    pub keys: usize,
    pub decisions: usize,
    /// Decisions that were dropped because too many waited.
    pub lost: u64,
}

impl<C: GuardCounts> FlushGuard<C> {
    pub fn new(guard: Arc<Guard>, counts: C) -> Self {
        Self { guard, counts, turn: tokio::sync::Mutex::default() }
    }

    /// Flushes once.
    ///
    /// After an error the next flush repeats the counts. If this flush was stored although it failed,
    /// they count twice: messages then make the guard stricter, and approvals make it less strict.
    #[autometrics(struct_name = "FlushGuard")]
    pub async fn execute(&self) -> Result<Flushed, StoreError> {
        let _turn = self.turn.lock().await;
        let (deltas, decisions) = self.guard.take();
        if deltas.is_empty() && decisions.is_empty() {
            return Ok(Flushed::default());
        }
        match self.counts.add(&deltas, &decisions, self.guard.window).await {
            Ok(totals) => {
                let lost = self.guard.apply(totals);
                if lost > 0 {
                    tracing::warn!(lost, "too many guard decisions at once; some were not stored");
                }
                Ok(Flushed { keys: deltas.len(), decisions: decisions.len(), lost })
            }
            Err(error) => {
                self.guard.put_back(decisions);
                Err(error)
            }
        }
    }
}
