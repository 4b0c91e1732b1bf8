use std::time::Duration;

use adapters_persistence::{Database, SqlHousekeeping};
use application::Chain;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::{Process, metrics::HousekeepingMetrics};

/// How often what has expired is ended, and how often what is old is deleted.
const END: Duration = Duration::from_secs(10);
const PRUNE: Duration = Duration::from_secs(600);

/// The pause is so many times as long as the work took, at least.
const REST: u32 = 20;

/// Ends, wipes and deletes what no owner looks after, whatever its group or topic. Once in each
/// process: the parts of one may all ask for it.
pub(super) fn clean_up_orphans(
    process: &mut Process,
    database: &Database,
    usable: &CancellationToken,
) -> anyhow::Result<()> {
    if !process.needs_housekeeping() {
        return Ok(());
    }
    let events = process.config.events.is_some();
    let housekeeping = SqlHousekeeping::new(database.clone(), events);
    let metrics = HousekeepingMetrics::register(&process.registry, process.expired.clone())?;
    let retention = process.config.consumer.retention;
    let (usable, stop) = (usable.clone(), process.stop.clone());
    process.spawn(async move {
        let work = async {
            usable.cancelled().await;
            let mut next_prune = Instant::now();
            loop {
                let begun = Instant::now();
                match housekeeping.end_expired().await {
                    Ok(ended) => {
                        metrics.ended(&ended);
                        if ended.expired + ended.unknown > 0 {
                            tracing::warn!(
                                expired = ended.expired,
                                unknown = ended.unknown,
                                "messages of a consumer that is gone were ended"
                            );
                        }
                    }
                    Err(error) => {
                        tracing::warn!(error = %Chain(&error), "what has expired was not ended");
                    }
                }
                if begun >= next_prune {
                    next_prune = begun + PRUNE;
                    if let Err(error) = housekeeping.prune(retention).await {
                        tracing::warn!(error = %Chain(&error), "old rows stay");
                    }
                }
                sleep(END.max(REST * begun.elapsed())).await;
            }
        };
        stop.run_until_cancelled(work).await;
        Ok(())
    });
    Ok(())
}
