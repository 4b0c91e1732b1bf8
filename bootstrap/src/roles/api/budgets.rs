//! The budgets of gateways, as the API sees them.

use std::{sync::Arc, time::Duration};

use adapters_persistence::{Database, SqlGateways};
use application::{Budgets, Chain};
use tokio_util::sync::CancellationToken;

use crate::{
    Process,
    metrics::BudgetMetrics,
    periodic::every,
    roles::gateways::{gateways, region_of, routes, tariffs},
};

/// How often the amounts that were spent are read.
const LOOK: Duration = Duration::from_secs(1);

/// Returns the budgets of the gateways in force. They follow the settings, and what is spent.
pub(super) fn budgets(
    process: &mut Process,
    database: Database,
    usable: &CancellationToken,
) -> anyhow::Result<Budgets> {
    let home = process.config.numbers.default_region;
    let budgets = Budgets::new(Arc::new(region_of));
    BudgetMetrics::register(&process.registry, budgets.clone())?;
    let mut gateways = gateways(process);
    let mut in_force = Arc::clone(&gateways.borrow_and_update());
    budgets.replace(routes(&in_force), tariffs(&in_force, home));
    let (followed, store) = (budgets.clone(), SqlGateways::new(database));
    let stop = process.stop.clone();
    process.spawn_when(usable, &stop.clone(), async move {
        every(LOOK, &stop, || {
            let now = Arc::clone(&gateways.borrow_and_update());
            if !Arc::ptr_eq(&now, &in_force) {
                followed.replace(routes(&now), tariffs(&now, home));
                in_force = now;
            }
            read(&followed, &store)
        })
        .await;
    });
    Ok(budgets)
}

async fn read(budgets: &Budgets, store: &SqlGateways) {
    if !budgets.has_limits() {
        return;
    }
    match store.spent_today().await {
        Ok(spent) => budgets.note(spent),
        Err(error) => tracing::warn!(
            error = %Chain(&error),
            "the spending of the gateways was not read; the last known values apply; trying again"
        ),
    }
}
