//! A run on PostgreSQL and Kafka: rounds of faults under load, each followed by a judgement.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::Context;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use sqlx::Row;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use super::{
    checker,
    findings::Findings,
    history::{Round, SharedHistory},
    invariants::{Invariant, Violation},
    nemesis::Nemesis,
    phases::{RECOVERY, SLOW_AFTER, inject},
    report::{Report, RoundReport},
    traffic::{Pace, Traffic},
};
use crate::kit::{
    clock::{millis, now},
    gateway::Character,
    kafka::Records,
    progress::say,
    recorder::GatewayKind,
    tables::{self, Backlog},
    testbed::{Plan, Testbed},
};

/// The parameters of a run.
#[derive(Debug, Clone)]
pub struct Scenario {
    pub duration: Duration,
    pub seed: u64,
    /// Requests a second.
    pub rate: u32,
    /// The share of phones that get several messages.
    pub sequences: f64,
    /// Beginnings of the names of faults. Without any, all faults are used.
    pub faults: Vec<String>,
    /// The gateway of every round. `None` alternates.
    pub gateway: Option<GatewayKind>,
    /// Whether the first round with a violation is the last.
    pub fail_fast: bool,
    pub bins: PathBuf,
    /// For logs.
    pub folder: PathBuf,
}

/// How long the service waits for the gateway, and the messages in a batch: small, so that a short
/// run sees what follows them.
pub(super) const GATEWAY_TIMEOUT: Duration = Duration::from_secs(3);
const BATCH: u64 = 200;

const ROUND: Duration = Duration::from_secs(120);
/// The part of a round that is left for the recovery.
pub(super) const CALM: Duration = Duration::from_secs(15);
/// How much longer the run watches a backlog that does not empty in time.
const EXTRA_WAIT: Duration = Duration::from_secs(120);

/// Twice the size of the pools of all processes: sessions of killed processes take a while to end.
const SESSIONS_LIMIT: i64 = 2 * (2 * 3 + 2 * 4 + 3 * 10);

/// The most that was used at a time.
#[derive(Debug, Default)]
struct Usage {
    /// KiB, by role.
    memory: BTreeMap<String, u64>,
    sessions: i64,
}

/// A run that goes on, and what it found so far.
pub(super) struct Run {
    begun: Instant,
    testbed: Arc<Testbed<SharedHistory>>,
    history: SharedHistory,
    usage: Arc<Mutex<Usage>>,
    records: Records,
    /// How often the topic was wiped.
    wipes: usize,
    pub(super) findings: Findings,
    /// How much longer to watch a round that does not recover.
    extra_wait: Duration,
    _watch: AbortOnDropHandle<()>,
}

/// Runs a scenario. An error is the lab's failure, not the service's.
pub async fn run(scenario: &Scenario) -> anyhow::Result<Report> {
    let mut rng = StdRng::seed_from_u64(scenario.seed);
    let history = SharedHistory::default();
    let plan = Plan {
        env: settings(),
        has_proxies: true,
        gateway: Character::CHAOS,
        ..Plan::usual(&scenario.bins, &scenario.folder)
    };
    let testbed = Arc::new(Testbed::prepare(&plan, history.clone()).await?);
    let nemesis = Nemesis::new(Arc::clone(&testbed), &scenario.faults, draw(&mut rng));
    let pace = Pace { rate: scenario.rate, sequences: scenario.sequences };
    let ports = testbed.api_ports.clone();
    let mut traffic = Traffic::new(ports, pace, history.clone(), draw(&mut rng));

    let _progress = history.show_progress(scenario.duration);
    let mut run = Run::begin(testbed, history, scenario.seed);
    if scenario.fail_fast {
        run.extra_wait = Duration::ZERO;
    }
    run.rounds(scenario, &nemesis, &mut traffic, &mut rng).await?;
    run.end().await
}

fn draw(rng: &mut StdRng) -> StdRng {
    StdRng::seed_from_u64(rng.random())
}

/// Returns the settings of all processes.
pub(super) fn settings() -> Vec<(&'static str, String)> {
    vec![
        ("CODE_TTL", "600".to_owned()),
        ("GATEWAY_TIMEOUT", GATEWAY_TIMEOUT.as_secs().to_string()),
        ("PROCESSOR_TAKE_MESSAGE_LIMIT", BATCH.to_string()),
        ("PROCESSOR_RESERVATION_TIME", "1".to_owned()),
        ("PROCESSOR_CONFIRM_WITHIN", "10".to_owned()),
    ]
}

/// Returns how many rounds there are, and how long each is.
fn rounds(scenario: &Scenario) -> (u32, Duration) {
    let least = if scenario.gateway.is_none() { 2 } else { 1 };
    let count = scenario.duration.as_secs() / ROUND.as_secs();
    let count = u32::try_from(count).unwrap_or(u32::MAX).max(least);
    (count, scenario.duration / count)
}

impl Run {
    /// Begins to watch the processes.
    pub(super) fn begin(
        testbed: Arc<Testbed<SharedHistory>>,
        history: SharedHistory,
        seed: u64,
    ) -> Self {
        let usage = Arc::default();
        let watch = watch(Arc::clone(&testbed), Arc::clone(&usage));
        Self {
            begun: Instant::now(),
            testbed,
            history,
            usage,
            records: Records::default(),
            wipes: 0,
            findings: Findings::new(seed),
            extra_wait: EXTRA_WAIT,
            _watch: AbortOnDropHandle::new(tokio::spawn(watch)),
        }
    }

    /// Ends all processes, and returns what was found.
    pub(super) async fn end(mut self) -> anyhow::Result<Report> {
        self.testbed.stop().await;
        let processes = self.testbed.processes.iter();
        let logs = processes.map(|process| (&*process.name, process.log()));
        self.findings.search_logs(&self.history, logs)?;
        self.judge_usage();
        let mut report = self.findings.report;
        report.seconds = self.begun.elapsed().as_secs();
        Ok(report)
    }

    /// Runs one round after the other, and judges each at its end.
    async fn rounds(
        &mut self,
        scenario: &Scenario,
        nemesis: &Nemesis,
        traffic: &mut Traffic,
        rng: &mut StdRng,
    ) -> anyhow::Result<()> {
        let (rounds, length) = rounds(scenario);
        for number in 1..=rounds {
            let alternate =
                if number % 2 == 1 { GatewayKind::Idempotent } else { GatewayKind::Plain };
            let gateway = scenario.gateway.unwrap_or(alternate);
            let before = self.findings.report.accepted;
            let recovery = self.round(gateway, length, nemesis, traffic, rng.random()).await?;
            self.judge(recovery.is_some()).await?;
            let accepted = self.findings.report.accepted - before;
            self.findings.report.rounds.push(RoundReport {
                gateway: gateway.to_string(),
                accepted,
                recovery_milliseconds: recovery
                    .map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX)),
            });
            let violations = self.findings.report.violations.len();
            say(&format!(
                "chaos: round {number} of {rounds}: {gateway} gateway, {accepted} accepted, \
                recovery {recovery:.1?}, {violations} violations so far"
            ));
            if recovery.is_none() || (violations > 0 && scenario.fail_fast) {
                break;
            }
        }
        Ok(())
    }

    /// Runs a round. Returns how long it took until no message waited.
    async fn round(
        &mut self,
        gateway: GatewayKind,
        length: Duration,
        nemesis: &Nemesis,
        traffic: &mut Traffic,
        seed: u64,
    ) -> anyhow::Result<Option<Duration>> {
        let begun = Instant::now();
        self.testbed.use_gateway(gateway).await?;
        self.history.lock().rounds.push(Round::new(gateway));

        let under_faults = length.saturating_sub(CALM + begun.elapsed()).max(length / 2);
        let faults = async |stop: &CancellationToken| nemesis.run(stop, seed).await;
        self.endure(under_faults, faults, traffic).await
    }

    /// Injects faults under load for `length`, then waits. Returns how long it took until no message
    /// waited.
    pub(super) async fn endure(
        &mut self,
        length: Duration,
        faults: impl AsyncFnOnce(&CancellationToken) -> anyhow::Result<()>,
        traffic: &mut Traffic,
    ) -> anyhow::Result<Option<Duration>> {
        inject(length, faults, async || self.testbed.heal().await, traffic).await?;

        let healed = Instant::now();
        let recovered = self.wait_until_done(RECOVERY).await;
        let recovery = recovered.then(|| healed.elapsed());
        if !recovered {
            let detail = self.describe_backlog().await?;
            let in_the_end = self.wait_until_done(self.extra_wait).await;
            let later = if in_the_end {
                format!("all was done after {:.1?}", healed.elapsed())
            } else {
                format!("still not empty after {:.1?}", healed.elapsed())
            };
            self.findings.add(Violation {
                invariant: Invariant::Stuck,
                subject: "backlog".to_owned(),
                detail: format!("not empty {RECOVERY:?} after the faults; {later}\n{detail}"),
            });
        }
        self.history.all_faults_ended();
        Ok(recovery)
    }

    async fn wait_until_done(&self, patience: Duration) -> bool {
        let done = async {
            loop {
                // The pool may still have sessions from before a restart, which fail.
                let backlog = tables::backlog(&self.testbed.database).await;
                if backlog.is_ok_and(|backlog| backlog.is_empty()) {
                    return;
                }
                sleep(Duration::from_millis(100)).await;
            }
        };
        timeout(patience, done).await.is_ok()
    }

    /// Judges the run so far. `done` tells whether no message waits.
    pub(super) async fn judge(&mut self, done: bool) -> anyhow::Result<()> {
        let database = &self.testbed.database;
        let ledger = tables::read(database).await.context("read the ledger")?;
        let history = self.history.lock().clone();
        let is_wipe = |kind: &str| kind == "topic-wipe";
        let wipes = history.incidents.iter().filter(|incident| is_wipe(&incident.kind)).count();
        if std::mem::replace(&mut self.wipes, wipes) < wipes {
            self.records.rewind();
        }
        self.testbed.topic.read(&mut self.records).await.context("read the topic")?;
        self.findings.report.repeats = self.records.repeats();
        let copies = self.records.copies();
        if let Some(violation) = checker::check_repeats(&history, &ledger, copies) {
            self.findings.add(violation);
        }
        self.findings.report.count(&history, &ledger);
        if done {
            let call_limit = millis(GATEWAY_TIMEOUT);
            self.findings.add_judgement(checker::check(&history, &ledger, call_limit));
        }
        Ok(())
    }

    fn judge_usage(&mut self) {
        let usage = std::mem::take(&mut *self.usage.lock().unwrap_or_else(PoisonError::into_inner));
        self.findings.report.sessions = usage.sessions;
        if usage.sessions > SESSIONS_LIMIT {
            self.findings.add(Violation {
                invariant: Invariant::Memory,
                subject: "sessions".to_owned(),
                detail: format!("{} at a time, {SESSIONS_LIMIT} are allowed", usage.sessions),
            });
        }
        self.findings.judge_memory(usage.memory);
    }

    /// Describes the waiting rows, and the leases under which they should be worked on.
    async fn describe_backlog(&self) -> anyhow::Result<String> {
        const TABLES: [(&str, &str); 4] = [
            (
                "outbox",
                "SELECT format('%s %s, expires %s', sequence, id, expires_at)
                FROM outbox ORDER BY sequence LIMIT 5",
            ),
            (
                "relay",
                "SELECT format('%s, epoch %s, until %s, published %s, read %s, oldest %s', owner,
                    epoch, expires_at, published, read_up_to, oldest) FROM relay",
            ),
            (
                "delivery",
                "SELECT format('%s partition %s, %s, attempt %s, due %s, called %s, %s', message_id,
                    partition, state, attempt, due_at, called_at, detail)
                FROM delivery WHERE state IN ('pending', 'calling') ORDER BY place LIMIT 10",
            ),
            (
                "partition_lease",
                "SELECT format('%s: %s, epoch %s, until %s, offset %s', partition, owner, epoch,
                    expires_at, next_offset) FROM partition_lease ORDER BY partition",
            ),
        ];
        let Backlog { outbox, open } = tables::backlog(&self.testbed.database).await?;
        let mut text = format!("  {outbox} in outbox, {open} open");
        for (table, sql) in TABLES {
            for row in sqlx::query(sql).fetch_all(&self.testbed.database).await? {
                let line: String = row.try_get(0)?;
                text.extend(["\n  ", table, ": ", &*line]);
            }
        }
        Ok(text)
    }
}

/// Restarts processes that crash, and measures what all use, until it is dropped.
async fn watch(testbed: Arc<Testbed<SharedHistory>>, usage: Arc<Mutex<Usage>>) {
    const PAUSE: Duration = Duration::from_millis(500);
    loop {
        let (begun, began_at) = (Instant::now(), now());
        for process in &testbed.processes {
            if let Some(status) = process.crash() {
                testbed.recorder.crashed(format!("{} ({status})", process.name));
                // As an init system does. If the start fails too, the round will not recover.
                let _ = process.start();
            }
            let memory = process.memory().unwrap_or(0);
            let mut usage = usage.lock().unwrap_or_else(PoisonError::into_inner);
            let most = usage.memory.entry(process.role.to_string()).or_default();
            *most = memory.max(*most);
        }
        if let Ok(sessions) = tables::sessions(&testbed.database).await {
            let mut usage = usage.lock().unwrap_or_else(PoisonError::into_inner);
            usage.sessions = sessions.max(usage.sessions);
        }
        // A fault may have ended the session of the lab. Then there is no commit to wait for.
        let _ = tables::commit_once(&testbed.database).await;
        sleep(PAUSE).await;
        if begun.elapsed() > PAUSE + SLOW_AFTER {
            testbed.recorder.slow(began_at);
        }
    }
}
