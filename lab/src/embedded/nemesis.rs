use std::{
    fmt,
    ops::Range,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use rand::{RngExt, SeedableRng, rngs::StdRng, seq::SliceRandom};
use sqlx::{Connection, SqliteConnection};
use tokio::{sync::OwnedMutexGuard, time::sleep};
use tokio_util::sync::CancellationToken;

use super::stand::Stand;
use crate::{
    gateway::Answer,
    ledger,
    process::{Process, Signal},
};

/// A kind of harm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// Kill -9, and start again at once.
    Kill,
    /// SIGSTOP for longer than a lease, perhaps with SQLite's lock in hand, then SIGCONT.
    Pause,
    /// SIGTERM, and start again.
    Restart,
    /// One process has the file for itself for a while.
    Alone,
    /// No room on the disk.
    DiskFull,
    /// The disk takes no writes. The processes are killed and started on it: a file system cannot
    /// be made read-only while somebody has a file open for writing.
    DiskReadOnly,
    /// Another program holds SQLite's write lock, often for longer than the service waits.
    FileLocked,
    Gateway(Answer),
}

impl Fault {
    const ALL: [Self; 11] = [
        Self::Kill,
        Self::Pause,
        Self::Restart,
        Self::Alone,
        Self::DiskFull,
        Self::DiskReadOnly,
        Self::FileLocked,
        Self::Gateway(Answer::Error),
        Self::Gateway(Answer::Unavailable),
        Self::Gateway(Answer::Late),
        Self::Gateway(Answer::Reset),
    ];

    fn needs_a_disk(self) -> bool {
        matches!(self, Self::DiskFull | Self::DiskReadOnly)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kill => f.write_str("kill-messager"),
            Self::Pause => f.write_str("pause-messager"),
            Self::Restart => f.write_str("restart-messager"),
            Self::Alone => f.write_str("alone-messager"),
            Self::DiskFull => f.write_str("disk-full"),
            Self::DiskReadOnly => f.write_str("disk-read-only"),
            Self::FileLocked => f.write_str("file-locked"),
            Self::Gateway(answer) => write!(f, "gateway-{answer}"),
        }
    }
}

/// Draws faults and carries them out, one after the other, and kills all the while.
#[derive(Debug)]
pub(super) struct Nemesis {
    stand: Arc<Stand>,
    faults: Vec<Fault>,
    rng: Mutex<StdRng>,
}

impl Nemesis {
    /// `words` select faults by the beginnings of their names.
    pub(super) fn new(stand: Arc<Stand>, words: &[String], rng: StdRng) -> Self {
        let is_meant = |fault: &Fault| {
            let name = fault.to_string();
            let is_named = words.is_empty() || words.iter().any(|word| name.starts_with(word));
            is_named && (stand.disk.is_mounted || !fault.needs_a_disk())
        };
        let faults = Fault::ALL.into_iter().filter(is_meant).collect();
        Self { stand, faults, rng: Mutex::new(rng) }
    }

    /// Does harm until `stop`, and takes back what it did.
    pub(super) async fn run(&self, stop: &CancellationToken) -> anyhow::Result<()> {
        let draw = || {
            let mut rng = self.rng.lock().unwrap_or_else(PoisonError::into_inner);
            StdRng::seed_from_u64(rng.random())
        };
        tokio::try_join!(self.kill(draw(), stop), self.hand(draw(), stop))?;
        Ok(())
    }

    async fn kill(&self, mut rng: StdRng, stop: &CancellationToken) -> anyhow::Result<()> {
        while self.faults.contains(&Fault::Kill) {
            hold(&mut rng, 1.0..8.0, stop).await;
            if stop.is_cancelled() {
                break;
            }
            let Some((process, _taken)) = self.pick(&mut rng) else { continue };
            let trouble = self.stand.recorder.trouble(Fault::Kill.to_string(), &*process.name);
            process.kill().await;
            process.start()?;
            self.stand.recorder.healed(trouble);
        }
        Ok(())
    }

    async fn hand(&self, mut rng: StdRng, stop: &CancellationToken) -> anyhow::Result<()> {
        let mut left = Vec::new();
        let mut faults = self.faults.clone();
        faults.retain(|fault| *fault != Fault::Kill);
        while !faults.is_empty() {
            hold(&mut rng, 0.5..2.0, stop).await;
            if stop.is_cancelled() {
                break;
            }
            if left.is_empty() {
                left.clone_from(&faults);
                left.shuffle(&mut rng);
            }
            let Some(fault) = left.pop() else { continue };
            self.carry_out(fault, &mut rng, stop).await?;
        }
        Ok(())
    }

    /// A process that nobody else works on.
    fn pick(&self, rng: &mut StdRng) -> Option<(Arc<Process>, OwnedMutexGuard<()>)> {
        let mut processes = self.stand.processes.clone();
        processes.shuffle(rng);
        processes.into_iter().find_map(|process| {
            let taken = process.try_take()?;
            Some((process, taken))
        })
    }

    async fn carry_out(
        &self,
        fault: Fault,
        rng: &mut StdRng,
        stop: &CancellationToken,
    ) -> anyhow::Result<()> {
        let Stand { recorder, disk, gateway, processes, file, .. } = &*self.stand;
        let name = fault.to_string();
        match fault {
            Fault::Kill => {}
            Fault::Pause | Fault::Restart | Fault::Alone => {
                let Some((process, _taken)) = self.pick(rng) else { return Ok(()) };
                let trouble = recorder.trouble(name, &*process.name);
                match fault {
                    Fault::Pause => {
                        process.signal(Signal::STOP);
                        // A lease on an SQLite file lasts three seconds.
                        hold(rng, 1.0..7.0, stop).await;
                        process.signal(Signal::CONT);
                    }
                    Fault::Alone => {
                        process.kill().await;
                        hold(rng, 2.0..6.0, stop).await;
                        process.start()?;
                    }
                    _ => {
                        process.terminate(Duration::from_secs(30)).await;
                        process.start()?;
                    }
                }
                recorder.healed(trouble);
            }
            Fault::DiskFull => {
                let trouble = recorder.trouble(name, "disk");
                disk.fill()?;
                hold(rng, 2.0..8.0, stop).await;
                disk.free()?;
                recorder.healed(trouble);
            }
            Fault::DiskReadOnly => {
                let hands = processes.iter().filter_map(|process| process.try_take());
                let hands: Vec<_> = hands.collect();
                if hands.len() < processes.len() {
                    return Ok(());
                }
                let trouble = recorder.trouble(name, "disk");
                for process in processes {
                    process.kill().await;
                }
                // The file may still be open to a look of the lab's own.
                if disk.make_read_only().is_ok() {
                    for process in processes {
                        process.start()?;
                    }
                    hold(rng, 2.0..5.0, stop).await;
                    disk.make_writable()?;
                }
                for process in processes {
                    process.start()?;
                }
                recorder.healed(trouble);
            }
            Fault::FileLocked => {
                let Ok(mut connection) = ledger::open_file(file).await else { return Ok(()) };
                if sqlx::raw_sql("BEGIN IMMEDIATE").execute(&mut connection).await.is_ok() {
                    let trouble = recorder.trouble(name, "file");
                    hold(rng, 1.0..9.0, stop).await;
                    unlock(connection).await;
                    recorder.healed(trouble);
                }
            }
            Fault::Gateway(answer) => {
                let trouble = recorder.trouble(name, "gateway");
                gateway.answer(answer);
                hold(rng, 2.0..6.0, stop).await;
                gateway.answer(Answer::Accept);
                recorder.healed(trouble);
            }
        }
        Ok(())
    }
}

async fn unlock(connection: SqliteConnection) {
    // Closing rolls back, and gives the lock back in any case.
    let _ = connection.close().await;
}

/// Keeps a fault up for so many seconds, or until `stop`.
async fn hold(rng: &mut StdRng, seconds: Range<f64>, stop: &CancellationToken) {
    let pause = Duration::from_secs_f64(rng.random_range(seconds));
    stop.run_until_cancelled(sleep(pause)).await;
}
