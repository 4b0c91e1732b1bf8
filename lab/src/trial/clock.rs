//! The service's clocks are wrong; the database's is what counts.

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

use super::{
    load::Running,
    stand::{Plan, Stand},
    verdict::Verdict,
};
use crate::{clock::now, process::Role};

const RATE: f64 = 100.0;
const OFF: i64 = 600;
const USUAL: f64 = 200.0;

/// Every second process of a role is ahead, the others are behind.
pub async fn clock(mut plan: Plan, duration: Duration) -> anyhow::Result<Verdict> {
    let library = plan.library.clone().context("no library")?;
    ensure!(
        library.exists(),
        "{} is missing: install libfaketime (apt-get install libfaketime) or say where it is \
        with --library",
        library.display()
    );
    plan.more = |_, number, plan| {
        let sign = if is_ahead(number) { '+' } else { '-' };
        let library = plan.library.as_deref().unwrap_or(Path::new("")).display();
        [
            ("LD_PRELOAD", library.to_string()),
            ("FAKETIME", format!("{sign}{OFF}s")),
            // The one is read by versions before 0.9.10, the other by those since.
            ("DONT_FAKE_MONOTONIC", "1".to_owned()),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .to_vec()
    };
    let stand = Stand::prepare(&plan).await?;
    stand.start(&Role::ALL).await?;
    let load = Running::begin(Arc::new(stand.clients(0)), RATE);
    // Kills make messages wait for leases: what is usual is measured before the first.
    let half = duration / 2;
    sleep(half).await;
    let calm = stand.tape.account().latency;
    let kills = kill(&stand, half).await?;
    let offered = load.end().await?;
    let done = stand.wait_until_done(Duration::from_secs(120)).await;

    let account = stand.tape.account();
    let states = stand.states().await?;
    let bad = stand.stop().await;
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
    verdict.figure("  rows left in transit", stand.left_in_transit().await?);
    let (off, wrong) = clocks(&stand)?;
    verdict.claim("the clocks are wrong indeed", wrong, off.join(", "));
    verdict.claim(
        "all that was accepted is sent, nothing has expired",
        account.lost == 0 && others == 0 && sent >= i64::try_from(account.accepted)?,
        format!(
            "{} accepted, {} lost, {sent} sent, {others} ended otherwise",
            account.accepted, account.lost
        ),
    );
    verdict.claim(
        "none is doubled",
        account.doubled == 0 && account.strangers == 0 && account.repeated <= kills * 64,
        format!("{} doubled", account.doubled),
    );
    verdict.claim("latency is as usual", calm.p99 < USUAL, calm);
    verdict.claim("all processes ended well", bad.is_empty(), bad.join(", "));
    let offences = stand.offences().await?;
    verdict.claim("nobody writes who lost the right to", offences.is_empty(), offences.join("; "));
    Ok(verdict)
}

fn is_ahead(number: usize) -> bool {
    !number.is_multiple_of(2)
}

async fn kill(stand: &Stand, duration: Duration) -> anyhow::Result<usize> {
    let mut rng = StdRng::try_from_rng(&mut rand::rngs::SysRng)?;
    let end = Instant::now() + duration;
    let mut kills = 0;
    while Instant::now() < end {
        let process = stand.slots[rng.random_range(0..stand.slots.len())].process();
        // A client that was cut off is no matter of clocks.
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

/// By how many seconds each process's clock is off, by the last line that it logged; and whether
/// all are as far off as they were told to be.
fn clocks(stand: &Stand) -> anyhow::Result<(Vec<String>, bool)> {
    let mut told = Vec::new();
    let mut wrong = true;
    for slot in &stand.slots {
        let process = slot.process();
        let log = BufReader::new(std::fs::File::open(process.log())?);
        // They have just ended, and said so.
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
