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
}

/// The pause after a failure.
const FAILED: Duration = Duration::from_millis(500);

/// Relays batch after batch: a full one is followed by the next at once; where nothing waits the
/// pause grows, and ends when `stored` tells of a new message.
pub(crate) async fn relay<B: Backlog, M: MessageBroker>(
    mut relay: RelayBatch<B, M>,
    batch: usize,
    pauses: Pauses,
    stored: Arc<Notify>,
    metrics: RelayMetrics,
    readiness: Readiness,
    stop: CancellationToken,
) {
    let mut pause = pauses.shortest;
    while !stop.is_cancelled() {
        // Not interrupted by `stop`: what is in hand is finished.
        match relay.execute().await {
            Ok(relayed) => {
                readiness.set_up("broker");
                metrics.relayed(&relayed);
                if relayed.published == batch {
                    continue;
                }
                let idle = relayed.claimed == 0;
                pause = if idle { (2 * pause).min(pauses.longest) } else { pauses.shortest };
            }
            Err(RelayError::Broker(error)) => {
                readiness.set_down("broker", Chain(&error));
                pause = FAILED;
            }
            Err(error @ RelayError::Backlog(_)) => {
                tracing::warn!(error = %Chain(&error), "no batch relayed");
                pause = FAILED;
            }
        }
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
