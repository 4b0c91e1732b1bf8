//! Measures what becomes of the messages of each gateway, and moves messages between gateways for that.

use std::{sync::Arc, time::Duration};

use adapters_gateway::Gateway;
use adapters_persistence::{Database, SqlGatewayHealth};
use application::{Chain, JudgeGateways, Router};
use tokio_util::sync::CancellationToken;

use super::region_of;
use crate::{Process, config::Weights, metrics::HealthMetrics, periodic::every};

/// How often a process looks for a minute that no other has counted.
const LOOK: Duration = Duration::from_secs(20);

/// Judges gateways, together with the other processes.
pub(in crate::roles) fn judge(
    process: &mut Process,
    usable: &CancellationToken,
    database: Database,
    router: Router<Gateway>,
) -> anyhow::Result<()> {
    let metrics = HealthMetrics::register(&process.registry)?;
    let gateways = super::gateways(process);
    let judge = JudgeGateways::new(SqlGatewayHealth::new(database), Arc::new(region_of));
    let stop = process.stop.clone();
    process.spawn_when(usable, &stop.clone(), async move {
        every(LOOK, &stop, || async {
            let moves = gateways.borrow().weights == Weights::Move;
            match judge.execute(moves).await {
                Ok(judged) => metrics.judged(&router.names(), &router.regions(), &judged),
                Err(error) => tracing::warn!(
                    error = %Chain(&error),
                    "the health of the gateways was not measured; trying again"
                ),
            }
        })
        .await;
    });
    Ok(())
}
