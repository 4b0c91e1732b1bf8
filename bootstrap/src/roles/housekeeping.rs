use std::time::Duration;

use adapters_persistence::{Database, Expired, SqlHousekeeping};
use application::Chain;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::{Process, metrics::HousekeepingMetrics, periodic::repeat};

/// How often messages that have expired are ended, and how often old rows are deleted.
const END: Duration = Duration::from_secs(10);
const PRUNE: Duration = Duration::from_secs(600);

/// The pause is at least so many times as long as the work took.
const REST: u32 = 20;

/// Ends, wipes and deletes rows that have no owner, whatever their group or topic. Runs once in each
/// process: several roles of one process may ask for it.
pub(super) fn clean_up_orphans(
    process: &mut Process,
    database: &Database,
    usable: &CancellationToken,
) -> anyhow::Result<()> {
    if !process.needs_housekeeping() {
        return Ok(());
    }
    let housekeeping = SqlHousekeeping::new(database.clone());
    let metrics = HousekeepingMetrics::register(&process.registry, process.expired.clone())?;
    let retention = process.config.consumer.retention;
    let stop = process.stop.clone();
    process.spawn_when(usable, &stop.clone(), async move {
        let mut next_prune = Instant::now();
        let work = repeat(&stop, || {
            let begun = Instant::now();
            let prunes = begun >= next_prune;
            if prunes {
                next_prune = begun + PRUNE;
            }
            let (housekeeping, metrics) = (&housekeeping, &metrics);
            async move {
                match housekeeping.end_expired().await {
                    Ok(ended) => note_ended(&ended, metrics),
                    Err(error) => tracing::warn!(
                        error = %Chain(&error),
                        "expired messages were not ended; trying again"
                    ),
                }
                match housekeeping.xmin_age().await {
                    Ok(age) => metrics.xmin_age(age.unwrap_or_default()),
                    Err(error) => tracing::debug!(
                        error = %Chain(&error),
                        "the age of the oldest row version was not read"
                    ),
                }
                if prunes && let Err(error) = housekeeping.prune(retention).await {
                    tracing::warn!(
                        error = %Chain(&error),
                        "old rows were not deleted; trying again in ten minutes"
                    );
                }
                END.max(REST * begun.elapsed())
            }
        });
        // A stop interrupts it: what is left is done after the next start.
        stop.run_until_cancelled(work).await;
    });
    Ok(())
}

fn note_ended(ended: &Expired, metrics: &HousekeepingMetrics) {
    metrics.ended(ended);
    if ended.expired + ended.unknown > 0 {
        tracing::warn!(
            expired = ended.expired,
            unknown = ended.unknown,
            "ended messages of a consumer that no longer runs"
        );
    }
}
