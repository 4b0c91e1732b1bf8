use std::{sync::Arc, time::Duration};

use adapters_http::Readiness;
use application::{
    Chain, RelayBatch, RelayError,
    ports::{Backlog, MessageBroker},
};
use tokio::{
    sync::Notify,
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;

use crate::metrics::RelayMetrics;

/// The pauses between two looks at the outbox, where nobody tells of new messages.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pauses {
    pub(crate) shortest: Duration,
    pub(crate) longest: Duration,
    /// For how long after a message the next one is looked for at the shortest pauses.
    pub(crate) lively: Duration,
}

/// How long to pause now.
#[derive(Debug)]
struct PollPause {
    pauses: Pauses,
    latest: Instant,
    pause: Duration,
}

/// The pause after a failure.
const FAILED: Duration = Duration::from_millis(500);

impl PollPause {
    fn new(pauses: Pauses) -> Self {
        Self { pauses, latest: Instant::now(), pause: pauses.shortest }
    }

    /// The pause after a look that found so many messages.
    fn after(&mut self, found: usize) -> Duration {
        let Pauses { shortest, longest, lively } = self.pauses;
        if found > 0 {
            self.latest = Instant::now();
        }
        let is_lively = found > 0 || self.latest.elapsed() < lively;
        self.pause = if is_lively { shortest } else { (2 * self.pause).min(longest) };
        self.pause
    }
}

/// Relays batch after batch: a full one is followed by the next at once; where nothing has come for
/// a while the pause grows, and ends when `stored` tells of a new message.
pub(crate) async fn relay<B: Backlog, M: MessageBroker>(
    mut relay: RelayBatch<B, M>,
    batch: usize,
    pauses: Pauses,
    stored: Arc<Notify>,
    metrics: RelayMetrics,
    readiness: Readiness,
    stop: CancellationToken,
) {
    let mut pacing = PollPause::new(pauses);
    while !stop.is_cancelled() {
        // Not interrupted by `stop`: what is in hand is finished.
        let pause = match relay.execute().await {
            Ok(relayed) => {
                readiness.set_up("broker");
                metrics.relayed(&relayed);
                let pause = pacing.after(relayed.claimed);
                if relayed.published == batch {
                    continue;
                }
                pause
            }
            Err(RelayError::Broker(error)) => {
                readiness.set_down("broker", Chain(&error));
                FAILED
            }
            Err(error @ RelayError::Backlog(_)) => {
                tracing::warn!(error = %Chain(&error), "no batch relayed");
                FAILED
            }
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = stored.notified() => {}
            () = sleep(pause) => {}
        }
    }
    if let Err(error) = relay.settle().await {
        tracing::warn!(error = %Chain(&error), "what was published is published again");
    }
}

/// Looks after what no consumer took over, and says how much there is.
pub(crate) async fn sweep<B: Backlog>(backlog: B, metrics: RelayMetrics, stop: CancellationToken) {
    const PAUSE: Duration = Duration::from_secs(5);
    let mut next = Instant::now();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep_until(next) => next += PAUSE,
        }
        match backlog.sweep().await {
            Ok(swept) => {
                metrics.swept(&swept);
                if swept.waiting_again > 0 {
                    tracing::warn!(
                        messages = swept.waiting_again,
                        "published, not taken over: again"
                    );
                }
                if swept.expired > 0 {
                    tracing::warn!(
                        messages = swept.expired,
                        "messages expired before they were taken over"
                    );
                }
            }
            Err(error) => tracing::warn!(error = %Chain(&error), "the backlog was not swept"),
        }
        match backlog.size().await {
            Ok(size) => metrics.size(&size),
            Err(error) => tracing::debug!(error = %Chain(&error), "the backlog was not counted"),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn pauses_grow_when_nothing_has_come_for_a_while() {
        let ms = Duration::from_millis;
        let mut pacing = PollPause::new(Pauses { shortest: ms(1), longest: ms(6), lively: ms(50) });

        assert_eq!([pacing.after(3), pacing.after(0)], [ms(1), ms(1)]);
        advance(ms(50)).await;
        assert_eq!([pacing.after(0), pacing.after(0), pacing.after(0)], [ms(2), ms(4), ms(6)]);
        assert_eq!([pacing.after(1), pacing.after(0)], [ms(1), ms(1)]);
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_is_told_of_messages_looks_soon_only_after_one() {
        let ms = Duration::from_millis;
        let pauses = Pauses { shortest: ms(1), longest: ms(6), lively: Duration::ZERO };
        let mut pacing = PollPause::new(pauses);

        assert_eq!([pacing.after(0), pacing.after(0)], [ms(2), ms(4)]);
        assert_eq!([pacing.after(1), pacing.after(0)], [ms(1), ms(2)]);
    }
}
