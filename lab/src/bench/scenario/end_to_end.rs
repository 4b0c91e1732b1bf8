//! All three processes at their highest rate, with a backlog that does not grow.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::ensure;
use tokio::time::{Instant, sleep};
use tokio_util::task::AbortOnDropHandle;

use super::{end, prepare};
use crate::{
    bench::{
        Setting,
        cost::Usage,
        report::{Found, Row, Spread},
    },
    kit::{
        clients::Clients,
        load::{Worker, closed_loop},
        process::Role,
        recorder::Reply,
        tally::Tally,
        testbed::Testbed,
    },
};

const CONNECTIONS: usize = 64;
/// How many accepted messages may wait for their call: flat, and enough to keep all parts busy.
const BACKLOG: usize = 4_000;
const WARM_UP: Duration = Duration::from_secs(10);
const DURATION: Duration = Duration::from_secs(60);
const PATIENCE: Duration = Duration::from_secs(60);

/// The names of figures that the capacity model reads.
pub mod figure {
    pub const RATE: &str = "messages, flat backlog";
    pub const API: &str = "CPU of api a message";
    pub const PROCESSOR: &str = "CPU of processor a message";
    pub const CONSUMER: &str = "CPU of consumer a message";
    pub const POSTGRES: &str = "CPU of PostgreSQL a message";
    pub const KAFKA: &str = "CPU of Kafka a message";
    pub const LAB: &str = "CPU of clients and gateway a message";
    pub const WAL: &str = "WAL a message";
    pub const COMMITS: &str = "commits a message";
    pub const DEAD_TUPLES: &str = "dead tuples a message";
}

pub const SCENARIO: &str = "end-to-end";

/// The result of a load with a flat backlog.
#[derive(Debug)]
pub(super) struct Sustained {
    /// Calls at the gateway a second.
    pub(super) rate: f64,
    pub(super) usage: Usage,
    /// The most memory of a process of each role, in MiB.
    pub(super) memory: Vec<(Role, f64)>,
}

pub async fn measure(setting: &Setting) -> anyhow::Result<Found> {
    let mut found = Vec::new();
    for _ in 0..setting.repeats {
        let testbed = prepare(setting, (1, 1, 1), &[("LIMIT_PHONE", "off")]).await?;
        testbed.start(&Role::ALL).await?;
        found.push(sustain(&testbed, duration(setting)).await?);
        end(&testbed).await?;
    }
    let each = |part: fn(&Sustained) -> f64| Spread::of(found.iter().map(part).collect());
    let row = |name: &str, unit, part| Row::new(SCENARIO, name, unit, each(part));
    let rows = vec![
        row(figure::RATE, "/s", |it| it.rate).at_least(9_000.0, 12_000.0),
        row("CPU a message, ours and PostgreSQL's", "µs", |it| {
            it.usage.ours() + it.usage.postgres
        })
        .at_most(170.0, 120.0),
        row(figure::API, "µs", |it| it.usage.api),
        row(figure::PROCESSOR, "µs", |it| it.usage.processor),
        row(figure::CONSUMER, "µs", |it| it.usage.consumer),
        row(figure::POSTGRES, "µs", |it| it.usage.postgres),
        row(figure::KAFKA, "µs", |it| it.usage.kafka),
        row(figure::LAB, "µs", |it| it.usage.lab),
        row(figure::WAL, "bytes", |it| it.usage.wal_bytes).at_most(1_700.0, 1_200.0),
        row(figure::COMMITS, "", |it| it.usage.commits),
        row(figure::DEAD_TUPLES, "", |it| it.usage.dead_tuples).at_most(2.0, 1.0),
        row("memory of api", "MiB", |it| it.memory_of(Role::Api)).at_most(48.0, 24.0),
        row("memory of processor", "MiB", |it| it.memory_of(Role::Processor)).at_most(48.0, 24.0),
        row("memory of consumer", "MiB", |it| it.memory_of(Role::Consumer)).at_most(48.0, 24.0),
    ];
    Ok(rows.into())
}

/// Returns a minute, or less for a quick look.
pub(super) fn duration(setting: &Setting) -> Duration {
    if setting.scale < 1.0 { setting.measured } else { DURATION }
}

/// Asks as fast as messages leave, then waits until all have left.
pub(super) async fn sustain(
    testbed: &Testbed<Tally>,
    duration: Duration,
) -> anyhow::Result<Sustained> {
    let clients = Arc::new(testbed.clients(0));
    let stop = Arc::new(AtomicBool::new(false));
    let asking = ask(Arc::clone(&clients), Arc::clone(&stop));
    let asking = AbortOnDropHandle::new(tokio::spawn(asking));
    sleep(WARM_UP.min(duration)).await;
    let before = Usage::now(testbed.processes.iter(), &testbed.database).await?;
    let (called_before, _) = testbed.recorder.progress();
    let begun = Instant::now();
    sleep(duration).await;
    let after = Usage::now(testbed.processes.iter(), &testbed.database).await?;
    let (called, _) = testbed.recorder.progress();
    let seconds = begun.elapsed().as_secs_f64();
    let memory = Role::ALL.map(|role| (role, memory(testbed, role)));
    stop.store(true, Ordering::Relaxed);
    asking.await??;
    ensure!(testbed.wait_until_done(PATIENCE).await.is_some(), "messages are left");
    let account = testbed.recorder.account();
    ensure!(account.unclean() == 0, "answers other than 200 and 503: {:?}", account.samples);
    ensure!(account.lost == 0 && account.repeated == 0, "lost or repeated: {account:?}");

    #[expect(clippy::cast_precision_loss, reason = "some hundred thousand")]
    let messages = (called - called_before) as f64;
    Ok(Sustained {
        rate: messages / seconds,
        usage: after.since(before, messages),
        memory: memory.to_vec(),
    })
}

/// Asks until `stop`, and not while the backlog is full.
async fn ask(clients: Arc<Clients<Tally>>, stop: Arc<AtomicBool>) -> anyhow::Result<()> {
    let workers = (0..CONNECTIONS).map(|_| Asking { clients: Arc::clone(&clients) }).collect();
    closed_loop(workers, 0, move |_, _| !stop.load(Ordering::Relaxed)).await?;
    Ok(())
}

struct Asking {
    clients: Arc<Clients<Tally>>,
}

impl Worker for Asking {
    async fn work(&mut self, _number: u64, _due: Instant) -> io::Result<()> {
        let (called, accepted) = self.clients.recorder().progress();
        let is_full = accepted.saturating_sub(called) >= BACKLOG;
        if is_full || self.clients.ask_new().await != Reply::Accepted {
            sleep(Duration::from_millis(2)).await;
        }
        Ok(())
    }
}

#[expect(clippy::cast_precision_loss, reason = "KiB of memory")]
fn memory(testbed: &Testbed<Tally>, role: Role) -> f64 {
    let memory = testbed.of_role(role).filter_map(|process| process.memory());
    memory.max().unwrap_or(0) as f64 / 1_024.0
}

impl Sustained {
    fn memory_of(&self, role: Role) -> f64 {
        self.memory.iter().find(|(of, _)| *of == role).map_or(f64::NAN, |(_, memory)| *memory)
    }
}
