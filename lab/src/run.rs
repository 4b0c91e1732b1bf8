//! A run: rounds of faults under load, each followed by peace and a judgement.

use std::{
    collections::{BTreeMap, HashSet},
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::Context;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use sqlx::Row;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use crate::{
    checker::{self, Invariant, Violation},
    clock::{millis, now},
    gateway::Memory,
    history::{Recorder, Round},
    kafka::Records,
    ledger::{self, Backlog},
    load::{Load, Pace},
    logs::Secrets,
    nemesis::Nemesis,
    report::{Report, RoundReport},
    stage::{Cast, Setup, Stage},
};

/// What to run.
#[derive(Debug, Clone)]
pub struct Scenario {
    pub duration: Duration,
    pub seed: u64,
    /// Requests a second.
    pub rate: u32,
    /// The share of phones that get several messages.
    pub sequences: f64,
    /// Beginnings of the names of faults; none for all.
    pub faults: Vec<String>,
    /// The gateway of every round; none for one after the other.
    pub memory: Option<Memory>,
    /// Whether the first round with a violation is the last.
    pub fail_fast: bool,
    pub bins: PathBuf,
    /// For logs.
    pub folder: PathBuf,
}

const CAST: Cast = Cast { apis: 2, processors: 2, consumers: 3, partitions: 4 };

/// How long the service waits for the gateway, and the messages in a batch: small, so that a
/// short run sees what comes after them.
const GATEWAY_TIMEOUT: Duration = Duration::from_secs(3);
const BATCH: u64 = 200;

const ROUND: Duration = Duration::from_secs(120);
/// What a round leaves for peace.
const PEACE: Duration = Duration::from_secs(15);
/// Within which, after the faults, nothing may wait any more.
const RECOVERY: Duration = Duration::from_secs(60);
/// How much longer we look on where something does.
const LAST_HOPE: Duration = Duration::from_secs(120);

/// What the machine or the disk takes beyond that is a trouble by itself: the service waits two
/// seconds for a connection.
const SLOW_AFTER: Duration = Duration::from_millis(1_500);

const MEMORY_LIMIT_MIB: u64 = 128;
/// Twice what the pools of all processes may hold: those of the dead need a while.
const SESSIONS_LIMIT: i64 = 2 * (2 * 3 + 2 * 4 + 3 * 10);

/// The most that was used at a time.
#[derive(Debug, Default)]
struct Use {
    /// KiB, by role.
    memory: BTreeMap<String, u64>,
    sessions: i64,
}

struct Run {
    stage: Arc<Stage>,
    recorder: Recorder,
    used: Arc<Mutex<Use>>,
    records: Records,
    /// How often the topic was wiped.
    wipes: usize,
    report: Report,
    known: HashSet<(Invariant, String)>,
    /// How much longer we look on when a round does not recover.
    last_hope: Duration,
}

/// Runs a scenario; an error is the lab's own failure, not the service's.
pub async fn run(scenario: &Scenario) -> anyhow::Result<Report> {
    let begun = Instant::now();
    let mut rng = StdRng::seed_from_u64(scenario.seed);
    // Names and ports differ from run to run, so that two with one seed can follow each other.
    let mut names = StdRng::try_from_rng(&mut rand::rngs::SysRng).context("draw names")?;
    let recorder = Recorder::default();
    let setup = Setup {
        bins: scenario.bins.clone(),
        folder: scenario.folder.clone(),
        cast: CAST,
        env: settings(),
    };
    let stage = Arc::new(Stage::prepare(&setup, recorder.clone(), &mut names).await?);
    let nemesis = Nemesis::new(Arc::clone(&stage), &scenario.faults, draw(&mut rng));
    let pace = Pace { rate: scenario.rate, sequences: scenario.sequences };
    let mut load = Load::new(stage.api_ports(), pace, recorder.clone(), draw(&mut rng));

    let mut run = Run {
        stage: Arc::clone(&stage),
        recorder: recorder.clone(),
        used: Arc::default(),
        records: Records::default(),
        wipes: 0,
        report: Report { seed: scenario.seed, ..Report::default() },
        known: HashSet::new(),
        last_hope: if scenario.fail_fast { Duration::ZERO } else { LAST_HOPE },
    };
    let watch = watch(Arc::clone(&stage), Arc::clone(&run.used));
    let _watch = AbortOnDropHandle::new(tokio::spawn(watch));

    run.rounds(scenario, &nemesis, &mut load, &mut rng).await?;
    stage.stop().await;
    run.search_logs()?;
    run.measure();
    run.report.seconds = begun.elapsed().as_secs();
    Ok(run.report)
}

fn draw(rng: &mut StdRng) -> StdRng {
    StdRng::seed_from_u64(rng.random())
}

fn settings() -> Vec<(String, String)> {
    [
        ("CODE_TTL", "600".to_owned()),
        ("GATEWAY_TIMEOUT", GATEWAY_TIMEOUT.as_secs().to_string()),
        ("PROCESSOR_TAKE_MESSAGE_LIMIT", BATCH.to_string()),
        ("PROCESSOR_RESERVATION_TIME", "1".to_owned()),
        ("PROCESSOR_CONFIRM_WITHIN", "10".to_owned()),
        ("TOPIC_PARTITIONS", CAST.partitions.to_string()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .to_vec()
}

/// How many rounds there are, and how long each is.
fn rounds(scenario: &Scenario) -> (u32, Duration) {
    let least = if scenario.memory.is_none() { 2 } else { 1 };
    let count = scenario.duration.as_secs() / ROUND.as_secs();
    let count = u32::try_from(count).unwrap_or(u32::MAX).max(least);
    (count, scenario.duration / count)
}

impl Run {
    /// One round after the other, each judged at its end.
    async fn rounds(
        &mut self,
        scenario: &Scenario,
        nemesis: &Nemesis,
        load: &mut Load,
        rng: &mut StdRng,
    ) -> anyhow::Result<()> {
        let (rounds, length) = rounds(scenario);
        for number in 1..=rounds {
            let by_turns = if number % 2 == 1 { Memory::Idempotent } else { Memory::Plain };
            let memory = scenario.memory.unwrap_or(by_turns);
            let before = self.report.accepted;
            let recovery = self.round(memory, length, nemesis, load, rng.random()).await?;
            self.judge(recovery.is_some()).await?;
            let accepted = self.report.accepted - before;
            self.report.rounds.push(RoundReport {
                gateway: memory.to_string(),
                accepted,
                recovery_milliseconds: recovery
                    .map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX)),
            });
            let violations = self.report.violations.len();
            eprintln!(
                "chaos: round {number} of {rounds}: {memory} gateway, {accepted} accepted, \
                recovery {recovery:.1?}, {violations} violations so far"
            );
            if recovery.is_none() || (violations > 0 && scenario.fail_fast) {
                break;
            }
        }
        Ok(())
    }

    /// Faults under load, then peace. Says how long it took until nothing waited.
    async fn round(
        &mut self,
        memory: Memory,
        length: Duration,
        nemesis: &Nemesis,
        load: &mut Load,
        seed: u64,
    ) -> anyhow::Result<Option<Duration>> {
        let begun = Instant::now();
        self.stage.use_gateway(memory).await?;
        self.recorder.history().rounds.push(Round { from: now(), memory });

        let war = length.saturating_sub(PEACE + begun.elapsed()).max(length / 2);
        let stop = CancellationToken::new();
        let stop_load = CancellationToken::new();
        let harm = async {
            let harm = nemesis.run(&stop, seed);
            let timer = async {
                sleep(war).await;
                stop.cancel();
                anyhow::Ok(())
            };
            let result = tokio::try_join!(harm, timer).map(|_| ());
            let healed = self.stage.heal().await;
            stop_load.cancel();
            result.and(healed)
        };
        let (harmed, ()) = tokio::join!(harm, load.run(&stop_load));
        harmed?;

        let healed = Instant::now();
        let recovered = self.wait_until_done(RECOVERY).await;
        let recovery = recovered.then(|| healed.elapsed());
        if !recovered {
            let detail = self.describe_backlog().await?;
            let in_the_end = self.wait_until_done(self.last_hope).await;
            let later = if in_the_end {
                format!("all was done after {:.1?}", healed.elapsed())
            } else {
                format!("not after {:.1?} either", healed.elapsed())
            };
            let violation = Violation {
                invariant: Invariant::Stuck,
                subject: "backlog".to_owned(),
                detail: format!("not empty {RECOVERY:?} after the faults; {later}\n{detail}"),
            };
            self.report(violation);
        }
        self.recorder.all_healed();
        Ok(recovery)
    }

    async fn wait_until_done(&self, patience: Duration) -> bool {
        let done = async {
            loop {
                // The pool may still have sessions from before a restart.
                if ledger::backlog(&self.stage.database).await.is_ok_and(|waits| waits.is_empty()) {
                    return;
                }
                sleep(Duration::from_millis(100)).await;
            }
        };
        timeout(patience, done).await.is_ok()
    }

    async fn judge(&mut self, done: bool) -> anyhow::Result<()> {
        let database = &self.stage.database;
        let ledger = ledger::read(database).await.context("read the ledger")?;
        let history = self.recorder.history().clone();
        let wipes = history.troubles.iter().filter(|trouble| trouble.kind == "topic-wipe").count();
        if std::mem::replace(&mut self.wipes, wipes) < wipes {
            self.records.rewind();
        }
        self.stage.topic.read(&mut self.records).await.context("read the topic")?;
        self.report.repeats = self.records.repeats();
        let copies = self.records.copies();
        if let Some(violation) = checker::check_repeats(&history, &ledger, copies) {
            self.report(violation);
        }
        self.report.count(&history, &ledger);
        if done {
            let judgement = checker::check(&history, &ledger, millis(GATEWAY_TIMEOUT));
            self.report.unknowns = judgement.unknowns;
            for violation in judgement.violations {
                self.report(violation);
            }
        }
        Ok(())
    }

    /// Once for each thing that is wrong.
    fn report(&mut self, violation: Violation) {
        if self.known.insert((violation.invariant, violation.subject.clone())) {
            self.report.violations.push(violation);
        }
    }

    fn search_logs(&mut self) -> anyhow::Result<()> {
        let history = self.recorder.history().clone();
        let secrets = Secrets::of(&history);
        let stage = Arc::clone(&self.stage);
        for (process, log) in stage.logs() {
            for violation in secrets.search(process, log).context("read a log")? {
                self.report(violation);
            }
        }
        Ok(())
    }

    fn measure(&mut self) {
        let used = std::mem::take(&mut *self.used.lock().unwrap_or_else(PoisonError::into_inner));
        self.report.sessions = used.sessions;
        if used.sessions > SESSIONS_LIMIT {
            self.report(Violation {
                invariant: Invariant::Memory,
                subject: "sessions".to_owned(),
                detail: format!("{} at a time, {SESSIONS_LIMIT} are allowed", used.sessions),
            });
        }
        for (role, kib) in used.memory {
            let mib = kib / 1024;
            if mib > MEMORY_LIMIT_MIB {
                let detail = format!("{mib} MiB, {MEMORY_LIMIT_MIB} are allowed");
                let subject = role.clone();
                self.report(Violation { invariant: Invariant::Memory, subject, detail });
            }
            self.report.memory.insert(role, mib);
        }
    }

    /// What waits, and who should be at it.
    async fn describe_backlog(&self) -> anyhow::Result<String> {
        const TABLES: [(&str, &str); 4] = [
            (
                "outbox",
                "SELECT format('%s attempt %s, claimable %s, publications %s', id, attempt,
                    claimable_at, publications) FROM outbox ORDER BY sequence LIMIT 5",
            ),
            (
                "in_transit",
                "SELECT format('%s attempt %s, due %s, publications %s', id, attempt, due_at,
                    publications) FROM in_transit ORDER BY sequence LIMIT 5",
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
        let Backlog { outbox, in_transit, open } = ledger::backlog(&self.stage.database).await?;
        let mut text = format!("  {outbox} in outbox, {in_transit} in transit, {open} open");
        for (table, sql) in TABLES {
            for row in sqlx::query(sql).fetch_all(&self.stage.database).await? {
                let line: String = row.try_get(0)?;
                text.extend(["\n  ", table, ": ", &*line]);
            }
        }
        Ok(text)
    }
}

/// Looks after the processes and what they use, for as long as it is let.
async fn watch(stage: Arc<Stage>, used: Arc<Mutex<Use>>) {
    const PAUSE: Duration = Duration::from_millis(500);
    loop {
        let (begun, began_at) = (Instant::now(), now());
        for process in &stage.processes {
            if let Some(status) = process.has_crashed() {
                let crash = (format!("{} ({status})", process.name), now());
                stage.recorder.history().crashes.push(crash);
                // As an init system would; if that fails too, the round will not recover.
                let _ = process.start();
            }
            let memory = process.memory().unwrap_or(0);
            let mut used = used.lock().unwrap_or_else(PoisonError::into_inner);
            let most = used.memory.entry(process.role.to_string()).or_default();
            *most = memory.max(*most);
        }
        if let Ok(sessions) = ledger::sessions(&stage.database).await {
            let mut used = used.lock().unwrap_or_else(PoisonError::into_inner);
            used.sessions = sessions.max(used.sessions);
        }
        // A session of ours may have been ended; then there is no commit to wait for.
        let _ = ledger::beat(&stage.database).await;
        sleep(PAUSE).await;
        if begun.elapsed() > PAUSE + SLOW_AFTER {
            stage.recorder.slow(began_at);
        }
    }
}
