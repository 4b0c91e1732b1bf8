//! What the API does beside answering requests.

use std::{sync::Arc, time::Duration};

use application::{
    Authorize, Chain, FlushGuard, SendElsewhere,
    ports::{ApiKeys, AwaitedReceipts, GuardCounts, Housekeeping, StoreError, Verifications},
};
use rand_core::CryptoRng;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::{
    Process,
    metrics::{GuardMetrics, ReceiptMetrics},
    periodic::every,
};

/// Ends verifications that have expired, and deletes rows that are no longer needed.
pub(super) fn run_housekeeping<V: Housekeeping + Send>(
    process: &mut Process,
    usable: &CancellationToken,
    verifications: Arc<V>,
    retention: Duration,
) {
    const EXPIRE: Duration = Duration::from_secs(5);
    /// In rounds: ten minutes. It reads whole tables.
    const PRUNE: u32 = 120;
    let stop = process.stop.clone();
    process.spawn_when(usable, &stop.clone(), async move {
        let mut rounds = 0_u32;
        let work = every(EXPIRE, &stop, || {
            let prunes = rounds.is_multiple_of(PRUNE);
            rounds = rounds.wrapping_add(1);
            let verifications = Arc::clone(&verifications);
            async move {
                let failure = "expired verifications were not ended; trying again";
                until_none(|| verifications.expire(), failure).await;
                if prunes {
                    let failure = "old rows were not deleted; trying again in ten minutes";
                    until_none(|| verifications.prune(retention), failure).await;
                }
            }
        });
        // A stop interrupts it: what is left is done after the next start.
        stop.run_until_cancelled(work).await;
    });
}

/// Sends codes again, through another gateway, whose receipt does not come in time. `stored` learns of
/// each message.
pub(super) fn send_elsewhere<W, V, R>(
    process: &mut Process,
    usable: &CancellationToken,
    elsewhere: SendElsewhere<W, V, R>,
    stored: Arc<Notify>,
) where
    W: AwaitedReceipts + Send,
    V: Verifications + Send,
    R: CryptoRng + Send + 'static,
{
    const PAUSE: Duration = Duration::from_millis(500);
    let metrics = process.receipts.clone();
    for gateway in &process.config.gateways.gateways {
        metrics.expect_reroutes(&gateway.name);
    }
    let stop = process.stop.clone();
    process.spawn_when(usable, &stop.clone(), async move {
        every(PAUSE, &stop, || {
            let (elsewhere, metrics, stored, stop) = (&elsewhere, &metrics, &stored, &stop);
            async move {
                while send_due(elsewhere, metrics, stored).await && !stop.is_cancelled() {}
            }
        })
        .await;
    });
}

/// Does one round. Returns whether more messages may be due.
async fn send_due<W, V, R>(
    elsewhere: &SendElsewhere<W, V, R>,
    metrics: &ReceiptMetrics,
    stored: &Notify,
) -> bool
where
    W: AwaitedReceipts,
    V: Verifications,
    R: CryptoRng + Send + 'static,
{
    match elsewhere.execute().await {
        Ok(sent) => {
            for (gateway, reason) in &sent.stored {
                metrics.rerouted(gateway, *reason);
                stored.notify_one();
            }
            sent.is_full()
        }
        Err(error) => {
            tracing::warn!(
                error = %Chain(&error),
                "overdue receipts were not read; trying again"
            );
            false
        }
    }
}

/// Calls `act` until it has nothing left to do.
async fn until_none<F>(mut act: impl FnMut() -> F, failure: &'static str)
where
    F: Future<Output = Result<u64, StoreError>>,
{
    loop {
        match act().await {
            Ok(0) => return,
            Ok(_) => {}
            Err(error) => {
                tracing::warn!(error = %Chain(&error), "{failure}");
                return;
            }
        }
    }
}

/// Adds the guard's counts of this process to those of all processes, and once more after the last
/// request.
pub(super) fn share_guard_counts<C: GuardCounts + Send>(
    process: &mut Process,
    usable: &CancellationToken,
    served: &CancellationToken,
    guard: FlushGuard<C>,
    metrics: GuardMetrics,
) {
    const PAUSE: Duration = Duration::from_millis(250);
    let until = served.clone();
    process.spawn_when(usable, served, async move {
        let share = || async {
            match guard.execute().await {
                Ok(flushed) => metrics.flushed(&flushed),
                Err(error) => tracing::warn!(
                    error = %Chain(&error),
                    "the guard's counts were not shared with other processes; trying again"
                ),
            }
        };
        every(PAUSE, &until, share).await;
        share().await;
    });
}

/// Keeps the known API keys up to date, and records their use.
pub(super) fn refresh_api_keys<K: ApiKeys + Send>(
    process: &mut Process,
    usable: &CancellationToken,
    served: &CancellationToken,
    keys: Arc<Authorize<K>>,
) {
    const REFRESH: Duration = Duration::from_secs(5);
    /// In rounds: a minute.
    const NOTE: u32 = 12;
    let until = served.clone();
    process.spawn_when(usable, served, async move {
        let note_use = || async {
            if let Err(error) = keys.note_use().await {
                tracing::warn!(
                    error = %Chain(&error),
                    "the last use of API keys was not recorded; trying again"
                );
            }
        };
        let mut rounds = 0_u32;
        every(REFRESH, &until, || {
            rounds = rounds.wrapping_add(1);
            let notes = rounds.is_multiple_of(NOTE);
            let (keys, note_use) = (&keys, &note_use);
            async move {
                if let Err(error) = keys.refresh().await {
                    tracing::warn!(
                        error = %Chain(&error),
                        "API keys were not read: new keys do not work yet, and revoked ones still \
                         do; trying again"
                    );
                }
                if notes {
                    note_use().await;
                }
            }
        })
        .await;
        note_use().await;
    });
}
