use std::{sync::Arc, time::Duration};

use adapters_http::Readiness;
use application::{
    Chain, RelayBatch, RelayError, Relayed,
    ports::{Backlog, MessageBroker},
};
use tokio::{
    sync::Notify,
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;

use crate::{metrics::RelayMetrics, periodic::every};

/// The pauses between two polls of the outbox while no message is announced.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pauses {
    pub(crate) shortest: Duration,
    pub(crate) longest: Duration,
    /// How long the pauses stay at the shortest after a message.
    pub(crate) lively: Duration,
    /// The longest pause after a batch: the more messages come, the more are published together.
    pub(crate) busy: Duration,
}

/// How much each message but the first of a batch adds to the pause.
const FURTHER: Duration = Duration::from_micros(500);

/// Chooses the next pause.
#[derive(Debug)]
struct PollPause {
    pauses: Pauses,
    latest: Instant,
    pause: Duration,
}

/// The pause after a failure.
const FAILED: Duration = Duration::from_millis(500);

/// The pause after a batch of which the broker did not take a message.
const REFUSED: Duration = Duration::from_millis(200);

/// The pause while another process relays.
const STAND_BY: Duration = Duration::from_millis(200);

impl PollPause {
    fn new(pauses: Pauses) -> Self {
        Self { pauses, latest: Instant::now(), pause: pauses.shortest }
    }

    /// Returns the pause after a poll that found `found` messages.
    fn after(&mut self, found: usize) -> Duration {
        let Pauses { shortest, longest, lively, busy } = self.pauses;
        if found > 0 {
            self.latest = Instant::now();
            self.pause = shortest;
            let further = u32::try_from(found - 1).unwrap_or(u32::MAX);
            return shortest.saturating_add(FURTHER.saturating_mul(further)).min(busy);
        }
        let is_lively = self.latest.elapsed() < lively;
        self.pause = if is_lively { shortest } else { (2 * self.pause).min(longest) };
        self.pause
    }
}

/// Relays batches until a stop. The next batch follows a full batch at once. Otherwise, the more
/// messages a batch had, the longer is the pause after it. While there are no messages, the pause grows. It ends as soon as `stored` announces a message.
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
        // A stop does not interrupt a batch.
        let pause = match relay.execute().await {
            Ok(None) => {
                readiness.set_up("broker");
                stop.run_until_cancelled(sleep(STAND_BY)).await;
                continue;
            }
            Ok(Some(relayed)) => {
                readiness.set_up("broker");
                note_relayed(&relayed, &metrics);
                let Relayed { found, unreadable, .. } = relayed;
                let pause = pacing.after(found);
                if relayed.published.len() < found {
                    REFUSED
                } else if found + unreadable == batch {
                    continue;
                } else {
                    pause
                }
            }
            Err(RelayError::Broker(error)) => {
                readiness.set_down("broker", Chain(&error));
                FAILED
            }
            Err(error @ RelayError::Backlog(_)) => {
                tracing::warn!(error = %Chain(&error), "no batch was relayed, because the database did not answer; trying again");
                FAILED
            }
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = stored.notified() => {}
            () = sleep(pause) => {}
        }
    }
    if let Err(error) = relay.release().await {
        tracing::warn!(error = %Chain(&error), "the progress of the relay was not stored; the next one publishes some messages again, and \
             consumers ignore the duplicates");
    }
}

fn note_relayed(relayed: &Relayed, metrics: &RelayMetrics) {
    metrics.relayed(relayed);
    if relayed.overdue > 0 {
        tracing::warn!(
            messages = relayed.overdue,
            "published messages were not taken over by a consumer in time; publishing them again"
        );
    }
}

/// Ends expired messages, and counts the backlog. Repeats this every five seconds until a stop.
pub(crate) async fn end_expired<B: Backlog>(
    backlog: B,
    metrics: RelayMetrics,
    stop: CancellationToken,
) {
    const PAUSE: Duration = Duration::from_secs(5);
    every(PAUSE, &stop, || async {
        match backlog.end_expired().await {
            Ok(0) => {}
            Ok(messages) => {
                metrics.expired(messages);
                tracing::warn!(
                    messages,
                    "messages expired before a consumer took them over; they are not sent"
                );
            }
            Err(error) => tracing::warn!(
                error = %Chain(&error),
                "the outbox was not checked for expired messages; trying again"
            ),
        }
        match backlog.size().await {
            Ok(size) => metrics.size(&size),
            Err(error) => tracing::debug!(error = %Chain(&error), "the backlog was not counted"),
        }
    })
    .await;
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn pauses_grow_while_no_message_comes() {
        let ms = Duration::from_millis;
        let mut pacing = PollPause::new(pauses(ms(50)));

        assert_eq!([pacing.after(1), pacing.after(0)], [ms(1), ms(1)]);
        advance(ms(50)).await;
        assert_eq!([pacing.after(0), pacing.after(0), pacing.after(0)], [ms(2), ms(4), ms(6)]);
        assert_eq!([pacing.after(1), pacing.after(0)], [ms(1), ms(1)]);
    }

    #[tokio::test(start_paused = true)]
    async fn notified_relay_pauses_briefly_only_after_a_message() {
        let ms = Duration::from_millis;
        let mut pacing = PollPause::new(pauses(Duration::ZERO));

        assert_eq!([pacing.after(0), pacing.after(0)], [ms(2), ms(4)]);
        assert_eq!([pacing.after(1), pacing.after(0)], [ms(1), ms(2)]);
    }

    #[tokio::test(start_paused = true)]
    async fn more_messages_gather_for_longer() {
        let ms = Duration::from_millis;
        let mut pacing = PollPause::new(pauses(ms(50)));

        assert_eq!([pacing.after(3), pacing.after(11)], [ms(2), ms(6)]);
        assert_eq!([pacing.after(500), pacing.after(0)], [ms(10), ms(1)]);
    }

    fn pauses(lively: Duration) -> Pauses {
        let ms = Duration::from_millis;
        Pauses { shortest: ms(1), longest: ms(6), lively, busy: ms(10) }
    }
}
