//! SIGTERM after SIGTERM under load, of one version or from one to the next and back.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use rand::{RngExt, SeedableRng, rngs::StdRng};
use tokio::time::{Instant, sleep};

use super::{
    load::Running,
    stand::{Plan, Slot, Stand},
    tape::{Account, Reply},
    verdict::Verdict,
};

const RATE: f64 = 100.0;
/// Every second request comes on a new connection.
const FRESH_EVERY: usize = 2;
/// What the service is given by default.
const GRACE: Duration = Duration::from_secs(20);
const LONGEST_WAIT: f64 = 5_000.0;

/// How long ends and starts took, by role.
#[derive(Debug, Default)]
struct Times {
    ends: BTreeMap<String, Vec<Duration>>,
    starts: BTreeMap<String, Vec<Duration>>,
    bad: Vec<String>,
    mixed: usize,
}

/// `other` is the older version: the run begins with it and its schema, which is migrated half-way;
/// from then on each start is of the other version than the one before it.
pub async fn rollover(
    mut plan: Plan,
    count: usize,
    other: Option<PathBuf>,
) -> anyhow::Result<Verdict> {
    let newer = plan.bins[0].clone();
    if let Some(older) = &other {
        plan.bins = vec![older.clone(), newer.clone()];
    }
    let stand = Stand::prepare(&plan).await?;
    stand.start(&crate::process::Role::ALL).await?;
    let load = Running::begin(Arc::new(stand.clients(FRESH_EVERY)), RATE);
    sleep(Duration::from_secs(3)).await;

    let mut times = Times::default();
    let mut migrated = None;
    let mut rng = StdRng::try_from_rng(&mut rand::rngs::SysRng)?;
    let begun = Instant::now();
    for number in 0..count {
        if other.is_some() && number == count / 2 {
            migrated = Some(migrate(&stand, &newer).await?);
        }
        let slot = &stand.slots[rng.random_range(0..stand.slots.len())];
        times.roll(slot, migrated.is_some()).await?;
        sleep(Duration::from_millis(rng.random_range(0..300))).await;
    }
    let rolled = begun.elapsed();
    sleep(Duration::from_secs(2)).await;
    let offered = load.end().await?;
    let done = stand.wait_until_done(Duration::from_secs(60)).await;
    times.bad.extend(stand.stop().await);

    let mut verdict = Verdict::new("rollover");
    verdict.figure("roll-overs", format!("{count} in {rolled:.0?}"));
    if let Some(took) = migrated {
        verdict.figure("schema migrated under load", format!("in {took:.1?}"));
        verdict.figure("starts of the other version", times.mixed);
    }
    verdict.figure("asked", offered.asked);
    times.tell(&mut verdict);
    verdict.figure("longest waits (ms, at ms)", format!("{:?}", stand.tape.longest(5)));
    verdict.figure("states", format!("{:?}", stand.states().await?));
    verdict.figure("backlog empty", format!("{done:.1?} after the load"));
    verdict.figure("  rows left in transit", stand.left_in_transit().await?);
    tell(&stand.tape.account(), &mut verdict);
    let longest = times.ends.values().flatten().max().copied().unwrap_or_default();
    verdict.claim(
        "every process exits 0 within its grace period",
        times.bad.is_empty() && longest <= GRACE,
        format!("longest {longest:.1?}; {}", times.bad.join(", ")),
    );
    let offences = stand.offences().await?;
    verdict.claim(
        "nobody writes who lost the right to",
        offences.is_empty(),
        format!(
            "{} offences {}",
            offences.len(),
            offences.iter().take(3).cloned().collect::<Vec<_>>().join("; ")
        ),
    );
    Ok(verdict)
}

fn tell(account: &Account, verdict: &mut Verdict) {
    verdict.figure("answers", format!("{:?}", account.replies));
    for sample in &account.samples {
        verdict.figure("  unclean", sample);
    }
    verdict.claim(
        "no answer but 200 and 503 with Retry-After",
        account.unclean() == 0,
        format!(
            "{} lost on new connections, {} on kept ones, {} nowhere, {} others",
            account.of(Reply::Lost),
            account.of(Reply::LostOnKept),
            account.of(Reply::Nowhere),
            account.of(Reply::Silent) + account.of(Reply::Illegal) + account.of(Reply::Pending)
        ),
    );
    verdict.claim(
        "nothing is lost or doubled",
        account.lost == 0 && account.repeated == 0 && account.strangers == 0,
        format!(
            "{} of {} lost, {} repeated ({} as another message), {} called without a 200",
            account.lost, account.accepted, account.repeated, account.doubled, account.unasked
        ),
    );
    verdict.claim(
        "no message waits for a lease to run out",
        account.latency.max < LONGEST_WAIT,
        account.latency,
    );
}

async fn migrate(stand: &Stand, bins: &Path) -> anyhow::Result<Duration> {
    let begun = Instant::now();
    stand.migrate(bins).await?;
    Ok(begun.elapsed())
}

impl Times {
    /// Ends a process and starts it again, in the other version if there may be two.
    async fn roll(&mut self, slot: &Slot, mixed: bool) -> anyhow::Result<()> {
        const PATIENCE: Duration = Duration::from_secs(40);
        let process = slot.process();
        let role = process.role.to_string();
        let begun = Instant::now();
        let status = process.terminate(PATIENCE).await;
        self.ends.entry(role.clone()).or_default().push(begun.elapsed());
        if !status.is_some_and(|status| status.success()) {
            self.bad.push(format!("{} ({status:?})", process.name));
        }
        if mixed {
            slot.use_version(slot.version() + 1);
            self.mixed += 1;
        }
        let begun = Instant::now();
        let process = slot.process();
        process.start()?;
        // Whoever rolls over waits for that: else none might be left.
        process.ready(PATIENCE).await?;
        self.starts.entry(role).or_default().push(begun.elapsed());
        Ok(())
    }

    fn tell(&mut self, verdict: &mut Verdict) {
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
