//! The embedded default among faults: two `messager` on one SQLite file.

mod disk;
mod nemesis;
mod stand;

use std::{
    collections::{BTreeMap, HashSet},
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::Context;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use self::{nemesis::Nemesis, stand::Stand};
use crate::{
    checker::{self, Invariant, Violation},
    clock::{millis, now},
    gateway::Memory,
    history::{Recorder, Round},
    ledger,
    load::{Load, Pace},
    logs::Secrets,
    report::{Report, RoundReport},
};

/// What to run.
#[derive(Debug, Clone)]
pub struct Scenario {
    pub duration: Duration,
    pub seed: u64,
    /// Requests a second.
    pub rate: u32,
    /// Beginnings of the names of faults; none for all.
    pub faults: Vec<String>,
    pub bins: PathBuf,
    /// For logs and the file.
    pub folder: PathBuf,
}

/// How long the service waits for the gateway: short, so that a short run sees what comes after.
const GATEWAY_TIMEOUT: Duration = Duration::from_secs(3);
/// One for each kind of gateway, at least.
const ROUND: Duration = Duration::from_secs(60);
/// What a round leaves for peace.
const PEACE: Duration = Duration::from_secs(10);
/// Within which, after the faults, nothing may wait any more.
const RECOVERY: Duration = Duration::from_secs(60);
/// The share of phones that get several messages.
const SEQUENCES: f64 = 0.02;
const MEMORY_LIMIT_MIB: u64 = 128;
/// A pause of ours that lasted so much longer is the machine's doing.
const SLOW_AFTER: Duration = Duration::from_millis(1_500);

struct Run {
    stand: Arc<Stand>,
    recorder: Recorder,
    report: Report,
    known: HashSet<(Invariant, String)>,
    /// The most memory of a process, in KiB.
    memory: Arc<Mutex<u64>>,
}

/// Runs a scenario; an error is the lab's own failure, not the service's.
pub async fn run(scenario: &Scenario) -> anyhow::Result<Report> {
    let begun = Instant::now();
    let mut rng = StdRng::seed_from_u64(scenario.seed);
    let mut draw = || StdRng::seed_from_u64(rng.random());
    let recorder = Recorder::default();
    // Ports differ from run to run, so that two with one seed can follow each other.
    let mut ports = StdRng::try_from_rng(&mut rand::rngs::SysRng).context("draw ports")?;
    let stand = Stand::prepare(
        &scenario.bins,
        &scenario.folder,
        GATEWAY_TIMEOUT,
        recorder.clone(),
        &mut ports,
    )
    .await?;
    let stand = Arc::new(stand);
    let nemesis = Nemesis::new(Arc::clone(&stand), &scenario.faults, draw());
    let pace = Pace { rate: scenario.rate, sequences: SEQUENCES };
    let mut load = Load::new(stand.ports.clone(), pace, recorder.clone(), draw());

    let memory = Arc::default();
    let watch = watch(Arc::clone(&stand), Arc::clone(&memory));
    let watch = AbortOnDropHandle::new(tokio::spawn(watch));
    let report = Report { seed: scenario.seed, ..Report::default() };
    let mut run = Run { stand, recorder, report, known: HashSet::new(), memory };
    let count = (scenario.duration.as_secs() / ROUND.as_secs()).max(2);
    let count = u32::try_from(count).unwrap_or(u32::MAX);
    for number in 1..=count {
        let memory = if number % 2 == 1 { Memory::Idempotent } else { Memory::Plain };
        let length = scenario.duration / count;
        let recovered = run.round(memory, length, &nemesis, &mut load).await?;
        eprintln!(
            "chaos: round {number} of {count}: {memory} gateway, {} accepted, {} violations so far",
            run.report.accepted,
            run.report.violations.len()
        );
        if !recovered {
            break;
        }
    }
    run.stand.stop().await;
    run.search_logs()?;
    run.measure();
    run.report.seconds = begun.elapsed().as_secs();
    watch.abort();
    // Waited for, because it holds the stand, whose end unmounts the disk.
    let _ = watch.await;
    Ok(run.report)
}

impl Run {
    /// Faults under load, then peace and a judgement. Says whether nothing waited in the end.
    async fn round(
        &mut self,
        memory: Memory,
        length: Duration,
        nemesis: &Nemesis,
        load: &mut Load,
    ) -> anyhow::Result<bool> {
        let before = self.report.accepted;
        self.stand.use_gateway(memory).await?;
        self.recorder.history().rounds.push(Round { from: now(), memory });

        let (stop, stop_load) = (CancellationToken::new(), CancellationToken::new());
        let harm = async {
            let timer = async {
                sleep(length.saturating_sub(PEACE).max(length / 2)).await;
                stop.cancel();
                anyhow::Ok(())
            };
            let result = tokio::try_join!(nemesis.run(&stop), timer).map(|_| ());
            let healed = self.stand.heal();
            stop_load.cancel();
            result.and(healed)
        };
        let (harmed, ()) = tokio::join!(harm, load.run(&stop_load));
        harmed?;

        let healed = Instant::now();
        let recovered = timeout(RECOVERY, self.stand.is_done()).await;
        let recovery = recovered.is_ok().then(|| healed.elapsed());
        if recovery.is_none() {
            let backlog = self.stand.backlog().await;
            let detail = format!("not done {RECOVERY:?} after the faults: {backlog:?}");
            self.report(Invariant::Stuck, "backlog".to_owned(), detail);
        }
        self.recorder.all_healed();
        let ledger = ledger::read_file(&self.stand.file).await.context("read the ledger")?;
        let history = self.recorder.history().clone();
        self.report.count(&history, &ledger);
        if recovery.is_some() {
            let judgement = checker::check(&history, &ledger, millis(GATEWAY_TIMEOUT));
            self.report.unknowns = judgement.unknowns;
            for Violation { invariant, subject, detail } in judgement.violations {
                self.report(invariant, subject, detail);
            }
        }
        self.report.rounds.push(RoundReport {
            gateway: memory.to_string(),
            accepted: self.report.accepted - before,
            recovery_milliseconds: recovery.map(|time| millis(time).unsigned_abs()),
        });
        Ok(recovery.is_some())
    }

    /// Once for each thing that is wrong.
    fn report(&mut self, invariant: Invariant, subject: String, detail: String) {
        if self.known.insert((invariant, subject.clone())) {
            self.report.violations.push(Violation { invariant, subject, detail });
        }
    }

    fn search_logs(&mut self) -> anyhow::Result<()> {
        let history = self.recorder.history().clone();
        let secrets = Secrets::of(&history);
        for process in &Arc::clone(&self.stand).processes {
            let found = secrets.search(&process.name, process.log()).context("read a log")?;
            for Violation { invariant, subject, detail } in found {
                self.report(invariant, subject, detail);
            }
        }
        Ok(())
    }

    fn measure(&mut self) {
        let mib = *self.memory.lock().unwrap_or_else(PoisonError::into_inner) / 1024;
        if mib > MEMORY_LIMIT_MIB {
            let detail = format!("{mib} MiB, {MEMORY_LIMIT_MIB} are allowed");
            self.report(Invariant::Memory, "messager".to_owned(), detail);
        }
        self.report.memory.insert("messager".to_owned(), mib);
    }
}

/// Looks after the processes, as an init system would, for as long as it is let.
///
/// A process that cannot open its file at the start ends with an error, which is no crash. One that
/// was ready must not end.
async fn watch(stand: Arc<Stand>, memory: Arc<Mutex<u64>>) {
    const PAUSE: Duration = Duration::from_millis(500);
    let mut ready: BTreeMap<String, Option<u32>> = BTreeMap::new();
    loop {
        let (begun, began_at) = (Instant::now(), now());
        for process in &stand.processes {
            let id = process.id();
            if let Some(status) = process.has_crashed() {
                if id.is_some() && ready.get(&process.name) == Some(&id) {
                    let crash = (format!("{} ({status})", process.name), now());
                    stand.recorder.history().crashes.push(crash);
                }
                let _ = process.start();
            } else if process.is_ready().await {
                ready.insert(process.name.clone(), id);
            }
            let used = process.memory().unwrap_or(0);
            let mut most = memory.lock().unwrap_or_else(PoisonError::into_inner);
            *most = used.max(*most);
        }
        sleep(PAUSE).await;
        if begun.elapsed() > PAUSE + SLOW_AFTER {
            stand.recorder.slow(began_at);
        }
    }
}
