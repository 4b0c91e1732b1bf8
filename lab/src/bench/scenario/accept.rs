//! Requests that get 200 once their message is committed.

use std::sync::Arc;

use anyhow::ensure;

use super::{BASELINE, api, end, pgbench, prepare};
use crate::{
    bench::{
        Setting,
        baseline::INSERT,
        cost::Usage,
        measure::{Requests, closed, open, percentiles, rates, submissions},
        report::{Curve, Found, Row, Spread},
    },
    kit::tables,
};

const CONNECTIONS: usize = 256;
/// The share of the highest rate at which latency is measured.
const EASY: f64 = 0.5;

pub async fn measure(setting: &Setting) -> anyhow::Result<Found> {
    let testbed = prepare(setting, (1, 0, 0), &[("LIMIT_PHONE", "off")]).await?;
    let port = api(&testbed).await?;
    sqlx::query(BASELINE).execute(&testbed.database).await?;
    let pgbench = pgbench(setting, &testbed, INSERT);
    let (requests, idle) = (submissions(), looks());
    let (mut best, mut loads, mut nothing, mut commits) = (vec![], vec![], vec![], vec![]);
    let mut cost = Vec::new();
    let mut sent = 0;
    // A first round that does not count: caches, plans, files.
    closed(port, CONNECTIONS, setting.measured / 4, sent, &requests).await?;
    for round in 1..=setting.repeats {
        let first = u64::try_from(round)? << 28;
        best.push(pgbench.best(setting.measured / 3).await?);
        commits.push(pgbench.run(1, setting.measured / 3).await?.latency);
        let metrics = testbed.processes.first().map_or(port, |process| process.metrics_port());
        nothing.push(closed(metrics, CONNECTIONS, setting.measured / 3, 0, &idle).await?);
        let before = Usage::now(testbed.processes.iter(), &testbed.database).await?;
        let load = closed(port, CONNECTIONS, setting.measured, first, &requests).await?;
        let after = Usage::now(testbed.processes.iter(), &testbed.database).await?;
        let load = load.only_good()?;
        #[expect(clippy::cast_precision_loss, reason = "some millions")]
        cost.push(after.since(before, load.good() as f64));
        sent += u64::try_from(load.good())?;
        loads.push(load);
    }
    let stored =
        u64::try_from(tables::count(&testbed.database, "SELECT count(*) FROM outbox").await?)?;
    ensure!(stored >= sent, "{sent} messages were accepted, {stored} are stored");

    let most = rates(&loads).median;
    let mut easy = Vec::new();
    for round in 1..=setting.repeats {
        let first = (100 + u64::try_from(round)?) << 28;
        let load = open(port, most * EASY, setting.measured, first, &requests).await?;
        easy.push(load.only_good()?);
    }
    end(&testbed).await?;

    let rate = |name: &str| Row::new("accept", name, "/s", rates(&loads));
    let commit = Spread::of(commits);
    let latency = |name: &str, thousandths| {
        Row::new("accept", name, "ms", percentiles(&easy, thousandths))
            .against("one insert, one client", commit)
    };
    let each = |part: fn(&Usage) -> f64| Spread::of(cost.iter().map(part).collect());
    let rows = vec![
        rate("requests, 256 connections")
            .against("pgbench, best of 16/64/128 clients", Spread::of(best))
            .at_least(2.0, 3.0),
        rate("requests against the ceiling")
            .against("GET /healthz", rates(&nothing))
            .at_least(0.35, 0.5),
        latency("p50 at half of that, open loop", 500).at_most(6.0, 3.0),
        latency("p99 at half of that, open loop", 990).at_most(40.0, 10.0),
        Row::new("accept", "CPU of api a message", "µs", each(Usage::ours)),
        Row::new("accept", "CPU of PostgreSQL a message", "µs", each(|it| it.postgres)),
        Row::new("accept", "WAL a message", "bytes", each(|it| it.wal_bytes)),
        Row::new("accept", "commits a message", "", each(|it| it.commits)),
    ];
    let all = easy.into_iter().flat_map(|load| load.latencies).collect();
    let curve = Curve::new("accept", "POST /api, open loop at half of its maximum", all);
    Ok(Found { rows, curves: vec![curve] })
}

/// Returns requests that the same server answers at once.
fn looks() -> Requests {
    Arc::new(|_, request| request.extend(b"GET /healthz HTTP/1.1\r\nHost: lab\r\n\r\n"))
}
