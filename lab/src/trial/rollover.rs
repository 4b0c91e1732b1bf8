//! Restarts by SIGTERM under load, in one version or from one version to the other and back.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use rand::{RngExt, SeedableRng, rngs::StdRng};
use tokio::time::{Instant, sleep};

use super::verdict::Verdict;
use crate::kit::{
    process::{Process, Role},
    tables,
    tally::Tally,
    testbed::{Plan, Testbed},
};

const RATE: f64 = 100.0;
/// Every second request uses a new connection.
const FRESH_EVERY: usize = 2;
/// The default grace period of the service.
const GRACE: Duration = Duration::from_secs(20);
const LONGEST_WAIT: f64 = 5_000.0;

/// How long stops and starts took, by role.
#[derive(Debug, Default)]
struct Times {
    ends: BTreeMap<String, Vec<Duration>>,
    starts: BTreeMap<String, Vec<Duration>>,
    bad: Vec<String>,
    mixed: usize,
}

/// Restarts `count` processes. `other` is the older version: the run begins with it and its schema,
/// which is migrated half-way. From then on each restart changes the version.
pub async fn rollover(
    mut plan: Plan,
    count: usize,
    other: Option<PathBuf>,
) -> anyhow::Result<Verdict> {
    let newer = plan.bins[0].clone();
    if let Some(older) = &other {
        plan.bins = vec![older.clone(), newer.clone()];
    }
    let testbed = Testbed::prepare(&plan, Tally::default()).await?;
    testbed.start(&Role::ALL).await?;
    let clients = Arc::new(testbed.clients(FRESH_EVERY));
    let load = clients.begin_asking(RATE);
    sleep(Duration::from_secs(3)).await;

    let mut times = Times::default();
    let mut migrated = None;
    let mut rng = StdRng::try_from_rng(&mut rand::rngs::SysRng)?;
    let begun = Instant::now();
    for number in 0..count {
        if other.is_some() && number == count / 2 {
            migrated = Some(migrate(&testbed, &newer).await?);
        }
        let process = &testbed.processes[rng.random_range(0..testbed.processes.len())];
        times.roll(process, migrated.is_some()).await?;
        sleep(Duration::from_millis(rng.random_range(0..300))).await;
    }
    let rolled = begun.elapsed();
    sleep(Duration::from_secs(2)).await;
    let offered = load.end().await?;
    let done = testbed.wait_until_done(Duration::from_secs(60)).await;
    times.bad.extend(testbed.stop().await);

    let mut verdict = Verdict::new("rollover");
    verdict.figure("roll-overs", format!("{count} in {rolled:.0?}"));
    if let Some(took) = migrated {
        verdict.figure("schema migrated under load", format!("in {took:.1?}"));
        verdict.figure("starts of the other version", times.mixed);
    }
    verdict.figure("asked", offered.asked);
    times.add_to(&mut verdict);
    verdict.figure("longest waits (ms, at ms)", format!("{:?}", testbed.recorder.longest(5)));
    verdict.figure("states", format!("{:?}", tables::states(&testbed.database).await?));
    verdict.figure("backlog empty", format!("{done:.1?} after the load"));
    verdict.figure("  rows left in the outbox", tables::left_in_outbox(&testbed.database).await?);
    let account = testbed.recorder.account();
    verdict.judge(&account);
    verdict.claim(
        "no message waits for a lease to run out",
        account.latency.max < LONGEST_WAIT,
        account.latency,
    );
    let longest = times.ends.values().flatten().max().copied().unwrap_or_default();
    verdict.claim(
        "every process exits 0 within its grace period",
        times.bad.is_empty() && longest <= GRACE,
        format!("longest {longest:.1?}; {}", times.bad.join(", ")),
    );
    verdict.judge_writes(&testbed.database).await?;
    Ok(verdict)
}

async fn migrate(testbed: &Testbed<Tally>, bins: &Path) -> anyhow::Result<Duration> {
    let begun = Instant::now();
    testbed.migrate(bins).await?;
    Ok(begun.elapsed())
}

impl Times {
    /// Stops a process and starts it again, in the other version if `mixed`.
    async fn roll(&mut self, process: &Process, mixed: bool) -> anyhow::Result<()> {
        const PATIENCE: Duration = Duration::from_secs(40);
        let role = process.role.to_string();
        let begun = Instant::now();
        let status = process.terminate(PATIENCE).await;
        self.ends.entry(role.clone()).or_default().push(begun.elapsed());
        if !status.is_some_and(|status| status.success()) {
            self.bad.push(format!("{} ({status:?})", process.name));
        }
        if mixed {
            process.use_next_version();
            self.mixed += 1;
        }
        let begun = Instant::now();
        process.start()?;
        // An operator waits for this, too. Otherwise no process of a role might be left.
        process.ready(PATIENCE).await?;
        self.starts.entry(role).or_default().push(begun.elapsed());
        Ok(())
    }

    fn add_to(&mut self, verdict: &mut Verdict) {
        for (what, times) in [("to end", &mut self.ends), ("to be ready", &mut self.starts)] {
            for (role, times) in times {
                times.sort_unstable();
                let (middle, most) = (times[times.len() / 2], times[times.len() - 1]);
                verdict.figure(
                    format!("{role} {what}"),
                    format!("median {middle:.0?}, most {most:.0?} of {}", times.len()),
                );
            }
        }
    }
}
