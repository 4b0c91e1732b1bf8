//! The scenarios, one module each.

pub mod accept;
pub mod embedded;
pub mod end_to_end;
pub mod footprint;
pub mod growth;
pub mod latency;
pub mod relay;
pub mod scaling;
pub mod snapshot;
pub mod verification;

use anyhow::Context;

use super::{Setting, baseline::PgBench};
use crate::kit::{
    process::Role,
    tally::Tally,
    testbed::{Plan, Testbed},
};

/// Creates a table like the outbox for a baseline.
const BASELINE: &str = "CREATE TABLE bench_outbox (LIKE outbox INCLUDING ALL)";

/// Prepares the service with so many processes of each role, and starts none.
async fn prepare(
    setting: &Setting,
    (apis, processors, consumers): (usize, usize, usize),
    env: &[(&'static str, &str)],
) -> anyhow::Result<Testbed<Tally>> {
    let mut plan = Plan::usual(&setting.bins, &setting.folder);
    (plan.apis, plan.processors, plan.consumers) = (apis, processors, consumers);
    plan.is_watched = false;
    plan.env.extend(env.iter().map(|(name, value)| (*name, (*value).to_owned())));
    Testbed::prepare(&plan, Tally::default()).await.context("prepare the service")
}

/// Starts the only API. Returns its port.
async fn api(testbed: &Testbed<Tally>) -> anyhow::Result<u16> {
    testbed.start(&[Role::Api]).await?;
    testbed.api_ports.first().copied().context("no API")
}

fn pgbench<'a>(setting: &'a Setting, testbed: &'a Testbed<Tally>, script: &'a str) -> PgBench<'a> {
    PgBench {
        postgres: &testbed.postgres,
        database: &testbed.name,
        script,
        folder: &setting.folder,
    }
}

/// Ends the service. Returns an error if a process did not exit with success.
async fn end(testbed: &Testbed<Tally>) -> anyhow::Result<()> {
    let bad = testbed.stop().await;
    anyhow::ensure!(bad.is_empty(), "did not exit with success: {}", bad.join(", "));
    testbed.drop_database().await
}
