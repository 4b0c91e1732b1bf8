//! PostgreSQL dies under load, and its synchronous standby takes its place.

use std::{sync::Arc, time::Duration};

use anyhow::Context;
use tokio::time::{Instant, sleep, timeout};

use super::verdict::Verdict;
use crate::kit::{
    postgres::{Postgres, Shutdown},
    process::Role,
    tables,
    tally::Tally,
    testbed::{Plan, Testbed},
};

const RATE: f64 = 100.0;
/// How long the load runs before the failover, and after it.
const CALM: Duration = Duration::from_secs(10);
/// The longest time from the promotion until messages go on.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
const PATIENCE: Duration = Duration::from_secs(60);

pub async fn failover(plan: Plan) -> anyhow::Result<Verdict> {
    let primary = Postgres::from_environment()?;
    let standby = primary.copy().await.context("copy the server")?;
    let verdict = with_standby(plan, &primary, &standby).await;
    // Later runs in the same `scripts/services run` find the server as it was. Commits since the
    // promotion are lost with the copy.
    let stopped = standby.stop(Shutdown::Immediate).await;
    let restarted = primary.start_over("").await;
    let removed = standby.remove().await;
    let verdict = verdict?;
    stopped.and(restarted).and(removed)?;
    Ok(verdict)
}

async fn with_standby(
    mut plan: Plan,
    primary: &Postgres,
    standby: &Postgres,
) -> anyhow::Result<Verdict> {
    standby.start(&format!("-p {}", standby.port)).await?;
    // On the command line, so that the copy does not wait for a standby after its promotion.
    primary.start_over("-c synchronous_standby_names=*").await?;
    plan.env.extend([
        ("POSTGRES_HOST", "127.0.0.1,127.0.0.1".to_owned()),
        ("POSTGRES_PORT", format!("{},{}", primary.port, standby.port)),
    ]);
    let mut testbed = Testbed::prepare(&plan, Tally::default()).await?;
    let replicated = async {
        let sql = "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'";
        while tables::count(&testbed.database, sql).await? == 0 {
            sleep(Duration::from_millis(50)).await;
        }
        anyhow::Ok(())
    };
    timeout(PATIENCE, replicated).await.context("the standby does not follow")??;
    testbed.start(&Role::ALL).await?;
    let load = Arc::new(testbed.clients(0)).begin_asking(RATE);
    sleep(CALM).await;

    let died = Instant::now();
    primary.stop(Shutdown::Immediate).await?;
    testbed.database = standby.database(&testbed.name);
    standby.promote().await?;
    let promoted = Instant::now();
    let from = testbed.recorder.elapsed();
    let (called, accepted) = testbed.recorder.progress();
    let goes_on = async {
        let (mut accepts, mut calls) = (None, None);
        while accepts.is_none() || calls.is_none() {
            sleep(Duration::from_millis(5)).await;
            let now = testbed.recorder.progress();
            if now.1 > accepted {
                accepts.get_or_insert_with(|| promoted.elapsed());
            }
            if now.0 > called {
                calls.get_or_insert_with(|| promoted.elapsed());
            }
        }
        (accepts, calls)
    };
    let (accepts, calls) = timeout(PATIENCE, goes_on).await.unwrap_or_default();
    sleep(CALM).await;
    let offered = load.end().await?;
    let done = testbed.wait_until_done(PATIENCE).await;
    let bad = testbed.stop().await;

    let mut verdict = Verdict::new("failover");
    verdict.figure("asked", offered.asked);
    verdict.figure("promoted", format!("{:.1?} after the crash", promoted - died));
    verdict.figure("backlog empty", format!("{done:.1?} after the load"));
    verdict.figure("waits after the promotion", testbed.recorder.latency_since(from));
    for (what, pause) in [("requests are accepted", accepts), ("gateways are called", calls)] {
        verdict.claim(
            format!("{what} within 5 s of the promotion"),
            pause.is_some_and(|pause| pause < LONGEST_PAUSE),
            format!("{pause:.1?}"),
        );
    }
    verdict.judge(&testbed.recorder.account());
    verdict.judge_writes(&testbed.database).await?;
    verdict.claim("all messages end", done.is_some(), format!("{done:.1?}"));
    verdict.claim("all processes ended well", bad.is_empty(), bad.join(", "));
    testbed.database.close().await;
    Ok(verdict)
}
