use std::sync::Arc;

use autometrics::autometrics;

use super::Guard;
use crate::ports::{GuardCounts, StoreError};

/// Adds what this process has counted to what all have, and learns what all have.
#[derive(Debug)]
pub struct FlushGuard<C> {
    guard: Arc<Guard>,
    counts: C,
    /// One flush at a time.
    turn: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default, PartialEq, Eq)]
pub struct Flushed {
    pub keys: usize,
    pub decisions: usize,
    /// Decisions that were too many to be kept.
    pub lost: u64,
}

impl<C: GuardCounts> FlushGuard<C> {
    pub fn new(guard: Arc<Guard>, counts: C) -> Self {
        Self { guard, counts, turn: tokio::sync::Mutex::default() }
    }

    /// Flushes once. After an error the next flush has what this one had, and it may then count
    /// twice: what was stored without our hearing of it errs to the strict side with sends and to
    /// the other with approvals.
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
                    tracing::warn!(lost, "decisions of the guard were too many to be stored");
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
