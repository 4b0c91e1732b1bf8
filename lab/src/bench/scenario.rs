//! What is measured, one module each.

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
use crate::{
    process::Role,
    trial::stand::{Plan, Stand},
};

/// Room for a baseline in the stand's database: a table like the outbox.
const BASELINE: &str = "CREATE TABLE bench_outbox (LIKE outbox INCLUDING ALL)";

/// The service with so many processes of each role, none of them started yet.
async fn stand(
    setting: &Setting,
    (apis, processors, consumers): (usize, usize, usize),
    env: &[(&'static str, &str)],
) -> anyhow::Result<Stand> {
    let mut plan = Plan::usual(&setting.bins, &setting.folder);
    (plan.apis, plan.processors, plan.consumers) = (apis, processors, consumers);
    plan.is_watched = false;
    plan.env.extend(env.iter().map(|(name, value)| (*name, (*value).to_owned())));
    Stand::prepare(&plan).await.context("put the service up")
}

/// The service's only API's port, with the API started.
async fn api(stand: &Stand) -> anyhow::Result<u16> {
    stand.start(&[Role::Api]).await?;
    stand.api_ports.first().copied().context("no API")
}

fn pgbench<'a>(setting: &'a Setting, stand: &'a Stand, script: &'a str) -> PgBench<'a> {
    PgBench { postgres: &stand.postgres, database: &stand.name, script, folder: &setting.folder }
}

/// Ends the service; an error if a process did not end well.
async fn end(stand: &Stand) -> anyhow::Result<()> {
    let bad = stand.stop().await;
    anyhow::ensure!(bad.is_empty(), "did not end well: {}", bad.join(", "));
    stand.drop_database().await
}
