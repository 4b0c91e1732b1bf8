//! A run on the embedded default: two `messager` on one SQLite file.

mod disk;
mod nemesis;
mod testbed;

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::Context;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use self::{nemesis::Nemesis, testbed::Embedded};
use super::{
    checker,
    findings::Findings,
    history::{Round, SharedHistory},
    invariants::{Invariant, Violation},
    phases::{RECOVERY, SLOW_AFTER, inject},
    report::{Report, RoundReport},
    traffic::{Pace, Traffic},
};
use crate::kit::{
    clock::{millis, now},
    progress::say,
    recorder::GatewayKind,
    tables,
};

/// The parameters of a run.
#[derive(Debug, Clone)]
pub struct Scenario {
    pub duration: Duration,
    pub seed: u64,
    /// Requests a second.
    pub rate: u32,
    /// Beginnings of the names of faults. Without any, all faults are used.
    pub faults: Vec<String>,
    /// Whether it is an error if no disk can be mounted for the faults of the disk.
    pub is_disk_required: bool,
    pub bins: PathBuf,
    /// For logs and the file.
    pub folder: PathBuf,
}

/// How long the service waits for the gateway: short, so that a short run sees what follows.
const GATEWAY_TIMEOUT: Duration = Duration::from_secs(3);
/// At least one round for each kind of gateway.
const ROUND: Duration = Duration::from_secs(60);
/// The part of a round that is left for the recovery.
const CALM: Duration = Duration::from_secs(10);
/// The share of phones that get several messages.
const SEQUENCES: f64 = 0.02;

struct Run {
    testbed: Arc<Embedded>,
    history: SharedHistory,
    findings: Findings,
    /// The most memory of a process, in KiB.
    memory: Arc<Mutex<u64>>,
}

/// Runs a scenario. An error is the lab's failure, not the service's.
pub async fn run(scenario: &Scenario) -> anyhow::Result<Report> {
    let begun = Instant::now();
    let mut rng = StdRng::seed_from_u64(scenario.seed);
    let mut draw = || StdRng::seed_from_u64(rng.random());
    let history = SharedHistory::default();
    let testbed = Embedded::prepare(
        std::slice::from_ref(&scenario.bins),
        &scenario.folder,
        GATEWAY_TIMEOUT,
        scenario.is_disk_required,
        history.clone(),
    );
    let testbed = Arc::new(testbed.await?);
    let nemesis = Nemesis::new(Arc::clone(&testbed), &scenario.faults, draw());
    let pace = Pace { rate: scenario.rate, sequences: SEQUENCES };
    let mut traffic = Traffic::new(testbed.ports.clone(), pace, history.clone(), draw());

    let _progress = history.show_progress(scenario.duration);
    let memory = Arc::default();
    let watch = watch(Arc::clone(&testbed), Arc::clone(&memory));
    let watch = AbortOnDropHandle::new(tokio::spawn(watch));
    let mut run = Run { testbed, history, findings: Findings::new(scenario.seed), memory };
    let count = (scenario.duration.as_secs() / ROUND.as_secs()).max(2);
    let count = u32::try_from(count).unwrap_or(u32::MAX);
    for number in 1..=count {
        let gateway = if number % 2 == 1 { GatewayKind::Idempotent } else { GatewayKind::Plain };
        let length = scenario.duration / count;
        let recovered = run.round(gateway, length, &nemesis, &mut traffic).await?;
        say(&format!(
            "chaos: round {number} of {count}: {gateway} gateway, {} accepted, {} violations so far",
            run.findings.report.accepted,
            run.findings.report.violations.len()
        ));
        if !recovered {
            break;
        }
    }
    run.testbed.stop().await;
    let processes = run.testbed.processes.iter();
    let logs = processes.map(|process| (&*process.name, process.log()));
    run.findings.search_logs(&run.history, logs)?;
    let most = *run.memory.lock().unwrap_or_else(PoisonError::into_inner);
    run.findings.judge_memory(BTreeMap::from([("messager".to_owned(), most)]));
    watch.abort();
    // The watch holds the testbed, whose end unmounts the disk.
    let _ = watch.await;
    let mut report = run.findings.report;
    report.seconds = begun.elapsed().as_secs();
    Ok(report)
}

impl Run {
    /// Injects faults under load, then waits and judges. Returns whether no message waits.
    async fn round(
        &mut self,
        gateway: GatewayKind,
        length: Duration,
        nemesis: &Nemesis,
        traffic: &mut Traffic,
    ) -> anyhow::Result<bool> {
        let before = self.findings.report.accepted;
        self.testbed.use_gateway(gateway).await?;
        self.history.lock().rounds.push(Round::new(gateway));

        let under_faults = length.saturating_sub(CALM).max(length / 2);
        let faults = async |stop: &CancellationToken| nemesis.run(stop).await;
        inject(under_faults, faults, async || self.testbed.heal(), traffic).await?;

        let healed = Instant::now();
        let recovered = timeout(RECOVERY, self.testbed.done()).await;
        let recovery = recovered.is_ok().then(|| healed.elapsed());
        if recovery.is_none() {
            let backlog = self.testbed.backlog().await;
            self.findings.add(Violation {
                invariant: Invariant::Stuck,
                subject: "backlog".to_owned(),
                detail: format!("not done {RECOVERY:?} after the faults: {backlog:?}"),
            });
        }
        self.history.all_faults_ended();
        let ledger = tables::read_file(&self.testbed.file).await.context("read the ledger")?;
        let history = self.history.lock().clone();
        self.findings.report.count(&history, &ledger);
        if recovery.is_some() {
            let call_limit = millis(GATEWAY_TIMEOUT);
            self.findings.add_judgement(checker::check(&history, &ledger, call_limit));
        }
        let accepted = self.findings.report.accepted - before;
        self.findings.report.rounds.push(RoundReport {
            gateway: gateway.to_string(),
            accepted,
            recovery_milliseconds: recovery.map(|time| millis(time).unsigned_abs()),
        });
        Ok(recovery.is_some())
    }
}

/// Restarts processes that end, and measures their memory, until it is aborted.
///
/// A process that cannot open its file at the start ends with an error. That is no crash. A process
/// that was ready must not end.
async fn watch(testbed: Arc<Embedded>, memory: Arc<Mutex<u64>>) {
    const PAUSE: Duration = Duration::from_millis(500);
    let mut ready: BTreeMap<String, Option<u32>> = BTreeMap::new();
    loop {
        let (begun, began_at) = (Instant::now(), now());
        for process in &testbed.processes {
            let id = process.id();
            if let Some(status) = process.crash() {
                if id.is_some() && ready.get(&process.name) == Some(&id) {
                    testbed.history.crashed(format!("{} ({status})", process.name));
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
            testbed.history.slow(began_at);
        }
    }
}
