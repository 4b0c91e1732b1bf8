//! Load above the sustainable rate, for long.
//!
//! The sustainable rate is the number of calls a second over the last three quarters of a closed
//! loop: all parts are busy then, and no request is made before the last one is answered.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::time::{Instant, interval, sleep};
use tokio_util::sync::CancellationToken;

use super::verdict::Verdict;
use crate::kit::{
    process::Role,
    recorder::Reply,
    tables,
    tally::Tally,
    testbed::{Plan, Testbed},
};

const CONNECTIONS: usize = 64;
const MEASURED: Duration = Duration::from_secs(20);
const WARM_UP: Duration = Duration::from_secs(5);
/// How much the most memory may grow after the first minute: a tenth and 8 MiB.
const GROWTH: f64 = 1.10;
const GROWTH_KIB: f64 = 8.0 * 1024.0;
const RECOVERY: Duration = Duration::from_secs(1_800);

/// The least and the most memory of each minute in KiB, by process.
type Memory = BTreeMap<String, Vec<(u64, u64)>>;

pub async fn overload(mut plan: Plan, duration: Duration, factor: f64) -> anyhow::Result<Verdict> {
    // A message that waits until the end of a long overload must not expire.
    plan.env.push(("CODE_TTL", "3600".to_owned()));
    let testbed = Testbed::prepare(&plan, Tally::default()).await?;
    testbed.start(&Role::ALL).await?;
    let clients = Arc::new(testbed.clients(0));
    let mut verdict = Verdict::new("overload");

    let from = testbed.recorder.elapsed() + WARM_UP;
    clients.ask_for(CONNECTIONS, MEASURED).await?;
    let called = testbed.recorder.called_since(from);
    let seconds = testbed.recorder.elapsed().saturating_sub(from).as_secs_f64();
    let sustainable = rate(called, seconds);
    let (_, accepted) = testbed.recorder.progress();
    let caught_up = testbed.wait_until_done(RECOVERY).await;
    verdict.figure("sustainable", format!("{sustainable:.0}/s, in {seconds:.1} s of closed loop"));
    verdict
        .figure("  accepted meanwhile", format!("{:.0}/s", rate(accepted, MEASURED.as_secs_f64())));
    verdict.figure("  caught up", format!("{caught_up:.1?} after it"));
    eprintln!("chaos: sustainable {sustainable:.0}/s, offering {:.0}/s", sustainable * factor);

    let stop = CancellationToken::new();
    let load = clients.begin_asking(sustainable * factor);
    let before = testbed.recorder.progress();
    let begun = Instant::now();
    let timer = async {
        sleep(duration).await;
        stop.cancel();
    };
    let (mut memory, ()) = tokio::join!(watch(&testbed, &stop), timer);
    let offered = load.end().await?;
    let seconds = begun.elapsed().as_secs_f64();
    let after = testbed.recorder.progress();
    let waiting = tables::count(&testbed.database, "SELECT count(*) FROM outbox").await?;
    eprintln!("chaos: the load is over, {waiting} wait in the outbox");

    let stop = CancellationToken::new();
    let recovery = async {
        let took = testbed.wait_until_done(RECOVERY).await;
        stop.cancel();
        took
    };
    let (draining, recovery) = tokio::join!(watch(&testbed, &stop), recovery);
    for (name, minutes) in draining {
        memory.entry(name).or_default().extend(minutes);
    }

    let account = testbed.recorder.account();
    let states = tables::states(&testbed.database).await?;
    let bad = testbed.stop().await;
    verdict.figure(
        "offered",
        format!(
            "{:.0}/s for {:.1} min, {} not made because too many were in flight",
            sustainable * factor,
            duration.as_secs_f64() / 60.0,
            offered.kept_back
        ),
    );
    verdict.figure("  accepted", format!("{:.0}/s", rate(after.1 - before.1, seconds)));
    verdict.figure("  reached the gateway", format!("{:.0}/s", rate(after.0 - before.0, seconds)));
    verdict.figure("  in the outbox at its end", waiting);
    verdict.figure("answers", format!("{:?}", account.replies));
    verdict.figure("answered to called, all", account.latency);
    verdict.figure("states", format!("{states:?}"));
    for sample in &account.samples {
        verdict.figure("  unclean", sample);
    }
    verdict.claim(
        "no answer but 200 and 503 with Retry-After",
        account.unclean() == 0,
        format!("{} others", account.unclean()),
    );
    claim_flat(&memory, &mut verdict);
    verdict.claim("the backlog empties", recovery.is_some(), format!("in {recovery:.1?}"));
    verdict.claim(
        "every accepted message reached the gateway once",
        account.lost == 0 && account.repeated == 0 && account.strangers == 0,
        format!(
            "{} of {} lost, {} repeated",
            account.lost,
            account.of(Reply::Accepted),
            account.repeated
        ),
    );
    verdict.claim("all processes ended well", bad.is_empty(), bad.join(", "));
    Ok(verdict)
}

fn claim_flat(memory: &Memory, verdict: &mut Verdict) {
    let mut grown = Vec::new();
    for (name, minutes) in memory {
        let mib: Vec<String> = minutes
            .iter()
            .map(|(least, most)| format!("{}-{}", least / 1_024, most / 1_024))
            .collect();
        verdict.figure(format!("{name}, MiB a minute"), mib.join(" "));
        let Some(((_, first), later)) = minutes.split_first() else { continue };
        let most = later.iter().map(|(_, most)| *most).max().unwrap_or(0);
        if kib(most) > kib(*first) * GROWTH + GROWTH_KIB {
            grown.push(format!("{name}: {first} KiB, later {most} KiB"));
        }
    }
    let found = if grown.is_empty() { "none grew".to_owned() } else { grown.join("; ") };
    verdict.claim("memory is flat after the first minute", grown.is_empty(), found);
}

/// Looks at the memory of all processes each second, until `stop`.
async fn watch(testbed: &Testbed<Tally>, stop: &CancellationToken) -> Memory {
    let mut memory = Memory::new();
    let mut ticks = interval(Duration::from_secs(1));
    let begun = Instant::now();
    while stop.run_until_cancelled(ticks.tick()).await.is_some() {
        let minute = usize::try_from(begun.elapsed().as_secs() / 60).unwrap_or(0);
        for process in &testbed.processes {
            let Some(now) = process.memory() else { continue };
            let minutes = memory.entry(process.name.clone()).or_default();
            minutes.resize((minute + 1).max(minutes.len()), (u64::MAX, 0));
            if let Some((least, most)) = minutes.get_mut(minute) {
                (*least, *most) = (now.min(*least), now.max(*most));
            }
        }
    }
    memory
}

#[expect(clippy::cast_precision_loss, reason = "shown without a fraction")]
fn rate(count: usize, seconds: f64) -> f64 {
    count as f64 / seconds
}

#[expect(clippy::cast_precision_loss, reason = "compared with a tolerance")]
fn kib(memory: u64) -> f64 {
    memory as f64
}
