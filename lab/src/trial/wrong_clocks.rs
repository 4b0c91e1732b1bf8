//! The clocks of the processes are wrong. Only the database's clock counts.

use std::{
    io::{BufRead, BufReader},
    path::Path,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, ensure};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use rskafka::chrono::DateTime;
use tokio::time::{Instant, sleep};

use super::verdict::Verdict;
use crate::kit::{
    clock::now,
    process::Role,
    tables,
    tally::Tally,
    testbed::{Plan, Testbed},
};

const RATE: f64 = 100.0;
const OFF: i64 = 600;
const USUAL: f64 = 200.0;

/// The first process of a role is ahead, the second is behind, and so on.
pub async fn wrong_clocks(mut plan: Plan, duration: Duration) -> anyhow::Result<Verdict> {
    let library = plan.library.clone().context("no library")?;
    ensure!(
        library.exists(),
        "{} is missing: install libfaketime (apt-get install libfaketime) or give its path \
        with --library",
        library.display()
    );
    plan.env_of = |_, number, plan| {
        let sign = if is_ahead(number) { '+' } else { '-' };
        let library = plan.library.as_deref().unwrap_or(Path::new("")).display();
        [
            ("LD_PRELOAD", library.to_string()),
            ("FAKETIME", format!("{sign}{OFF}s")),
            // Versions before 0.9.10 read the first, later ones the second.
            ("DONT_FAKE_MONOTONIC", "1".to_owned()),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .to_vec()
    };
    let testbed = Testbed::prepare(&plan, Tally::default()).await?;
    testbed.start(&Role::ALL).await?;
    let clients = Arc::new(testbed.clients(0));
    let load = clients.begin_asking(RATE);
    // Kills make messages wait for leases. The usual latency is measured before the first kill.
    let half = duration / 2;
    sleep(half).await;
    let calm = testbed.recorder.account().latency;
    let kills = kill(&testbed, half).await?;
    let offered = load.end().await?;
    let done = testbed.wait_until_done(Duration::from_secs(120)).await;

    let account = testbed.recorder.account();
    let states = tables::states(&testbed.database).await?;
    let bad = testbed.stop().await;
    let sent: i64 = states.iter().filter(|(state, _)| state == "sent").map(|(_, n)| n).sum();
    let others: i64 = states.iter().filter(|(state, _)| state != "sent").map(|(_, n)| n).sum();

    let mut verdict = Verdict::new("clock");
    verdict.figure("asked", offered.asked);
    verdict.figure("answers", format!("{:?}", account.replies));
    verdict.figure("kills", kills);
    verdict.figure("states", format!("{states:?}"));
    verdict.figure("answered to called, before kills", calm);
    verdict.figure("answered to called, all", account.latency);
    verdict.figure("called again after a kill", account.repeated);
    verdict.figure("backlog empty", format!("{done:.1?} after the load"));
    verdict.figure("  rows left in the outbox", tables::left_in_outbox(&testbed.database).await?);
    let (off, wrong) = clocks(&testbed)?;
    verdict.claim("the clocks are wrong", wrong, off.join(", "));
    verdict.claim(
        "every accepted message is sent, none has expired",
        account.lost == 0 && others == 0 && sent >= i64::try_from(account.accepted)?,
        format!(
            "{} accepted, {} lost, {sent} sent, {others} ended otherwise",
            account.accepted, account.lost
        ),
    );
    verdict.claim(
        "no message is doubled",
        account.doubled == 0 && account.strangers == 0 && account.repeated <= kills * 64,
        format!("{} doubled", account.doubled),
    );
    verdict.claim("latency is as usual", calm.p99 < USUAL, calm);
    verdict.claim("all processes ended well", bad.is_empty(), bad.join(", "));
    let illegal = tables::illegal_writes(&testbed.database).await?;
    verdict.claim(
        "no process writes after it lost its lease",
        illegal.is_empty(),
        illegal.join("; "),
    );
    Ok(verdict)
}

fn is_ahead(number: usize) -> bool {
    !number.is_multiple_of(2)
}

async fn kill(testbed: &Testbed<Tally>, duration: Duration) -> anyhow::Result<usize> {
    let mut rng = StdRng::try_from_rng(&mut rand::rngs::SysRng)?;
    let end = Instant::now() + duration;
    let mut kills = 0;
    while Instant::now() < end {
        let process = &testbed.processes[rng.random_range(0..testbed.processes.len())];
        // A killed API loses requests, which has nothing to do with clocks.
        if process.role != Role::Api {
            process.kill().await;
            process.start()?;
            process.ready(Duration::from_secs(60)).await?;
            kills += 1;
        }
        sleep(Duration::from_millis(rng.random_range(2_000..6_000))).await;
    }
    Ok(kills)
}

/// Returns by how many seconds each process's clock is wrong, according to the last line that it
/// logged, and whether all are as wrong as intended.
fn clocks(testbed: &Testbed<Tally>) -> anyhow::Result<(Vec<String>, bool)> {
    let mut told = Vec::new();
    let mut wrong = true;
    for process in &testbed.processes {
        let log = BufReader::new(std::fs::File::open(process.log())?);
        // The processes have just ended, and logged that.
        let last = log.lines().map_while(Result::ok).filter_map(|line| time_in(&line)).last();
        let off = last.map(|time| (time - now() + 500).div_euclid(1_000));
        told.push(format!("{} {off:?} s", process.name));
        wrong &= off.is_some_and(|off| (off.abs() - OFF).abs() < 30);
    }
    Ok((told, wrong))
}

fn time_in(line: &str) -> Option<i64> {
    line.split(|char: char| char.is_ascii_whitespace() || char == '"').find_map(|word| {
        DateTime::parse_from_rfc3339(word).ok().map(|time| time.timestamp_millis())
    })
}
