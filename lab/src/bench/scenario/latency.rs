//! The time of a message through all parts while none of them is busy.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, ensure};
use tokio::time::{Instant, sleep};

use super::{BASELINE, end, pgbench, prepare};
use crate::{
    bench::{
        Setting,
        baseline::INSERT,
        measure::{Requests, closed, open, percentile, submissions},
        report::{Bar, Curve, Found, Row, Spread},
    },
    kit::{http::post, process::Role, tally::Latency},
};

const RATE: f64 = 200.0;
/// Requests a second that accepting is measured with.
const BUSY_RATE: f64 = 2_000.0;
const PGBENCH_CLIENTS: usize = 64;
const WARM_UP: Duration = Duration::from_secs(5);
const PATIENCE: Duration = Duration::from_secs(60);
const PROBES: usize = 300;

pub async fn measure(setting: &Setting) -> anyhow::Result<Found> {
    let (mut p50, mut p99, mut floors, mut all) = (vec![], vec![], vec![], vec![]);
    for _ in 0..setting.repeats {
        let testbed = prepare(setting, (1, 1, 1), &[("LIMIT_PHONE", "off")]).await?;
        sqlx::query(BASELINE).execute(&testbed.database).await?;
        let commit =
            pgbench(setting, &testbed, INSERT).run(1, Duration::from_secs(3)).await?.latency;
        let (produce, fetch) = testbed.topic.beside().await?.probe(PROBES).await?;
        let call = closed(testbed.gateway.port(), 1, Duration::from_secs(1), 0, &calls()).await?;
        floors.push(commit + millis(produce) + millis(fetch) + commit + call.percentile(500));

        testbed.start(&Role::ALL).await?;
        let load = Arc::new(testbed.clients(0)).begin_asking(RATE);
        sleep(WARM_UP).await;
        let from = testbed.recorder.elapsed();
        let begun = Instant::now();
        while begun.elapsed() < setting.measured {
            sleep(Duration::from_millis(100)).await;
        }
        load.end().await?;
        ensure!(testbed.wait_until_done(PATIENCE).await.is_some(), "messages are left");
        let account = testbed.recorder.account();
        ensure!(account.lost == 0 && account.repeated == 0, "lost or repeated: {account:?}");
        let waits = testbed.recorder.waits_since(from);
        let latency = Latency::of(waits.clone());
        p50.push(latency.p50);
        p99.push(latency.p99);
        all.extend(waits);
        end(&testbed).await?;
    }
    let (accepting, pgbench) = accepting(setting).await?;
    let row = |name: &str, values| Row::new("latency", name, "ms", Spread::of(values));
    let rows = vec![
        row("answer to call, p50 at 200/s", p50.clone())
            .against("commit + produce + fetch + commit + call", Spread::of(floors))
            .at_most(2.5, 2.0),
        row("answer to call, p50 at 200/s", p50).wanted(Bar::AtMost(5.0)),
        row("answer to call, p99 at 200/s", p99).at_most(10.0, 5.0),
        row("POST /api, p99 at 2,000/s, all parts running", accepting)
            .against("pgbench, one insert per commit, p99 at 2,000/s", Spread::of(pgbench))
            .at_most(5.0, 2.0),
    ];
    let curve = Curve::new("latency", "answer to call, 200 a second", all);
    Ok(Found { rows, curves: vec![curve] })
}

/// Returns the p99 of accepting at a steady rate while all parts deliver what is accepted, and that of
/// as many inserts by pgbench in the same database, both from when they were due.
async fn accepting(setting: &Setting) -> anyhow::Result<(Vec<f64>, Vec<f64>)> {
    let (mut ours, mut floors) = (vec![], vec![]);
    for _ in 0..setting.repeats {
        let testbed = prepare(setting, (1, 1, 1), &[("LIMIT_PHONE", "off")]).await?;
        sqlx::query(BASELINE).execute(&testbed.database).await?;
        let pgbench = pgbench(setting, &testbed, INSERT);
        let latencies = pgbench.open(PGBENCH_CLIENTS, BUSY_RATE, setting.measured).await?;
        floors.push(percentile(&latencies, 990));

        testbed.start(&Role::ALL).await?;
        let port = testbed.api_ports.first().copied().context("no API")?;
        open(port, BUSY_RATE, WARM_UP, 0, &submissions()).await?;
        let load = open(port, BUSY_RATE, setting.measured, 1 << 28, &submissions()).await?;
        ours.push(load.only_good()?.percentile(990));
        ensure!(testbed.wait_until_done(PATIENCE).await.is_some(), "messages are left");
        end(&testbed).await?;
    }
    Ok((ours, floors))
}

/// Returns calls like those of a consumer.
fn calls() -> Requests {
    Arc::new(|_, request| {
        post(request, "/send", r#"{"id":"0","phone":"0","code":"0","text":"0","expires_at":"0"}"#);
    })
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1_000.0
}
