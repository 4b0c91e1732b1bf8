use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use rand::{RngExt, SeedableRng, rngs::StdRng};
use sqlx::{Connection, SqliteConnection};
use tokio_util::sync::CancellationToken;

use super::testbed::Embedded;
use crate::{
    chaos::faults::{Deck, hold, is_meant, pick},
    kit::{process::Signal, recorder::Answer, tables},
};

/// A kind of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// Kill -9, and start again at once.
    Kill,
    /// SIGSTOP for longer than a lease, perhaps while it holds SQLite's lock, then SIGCONT.
    Pause,
    /// SIGTERM, and start again.
    Restart,
    /// Only one process runs for a while.
    Alone,
    /// No room on the disk.
    DiskFull,
    /// The disk takes no writes. The processes are killed and started on it: a file system cannot
    /// be made read-only while a file is open for writing.
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

/// Draws faults and carries them out, one after the other, and kills processes all the while.
#[derive(Debug)]
pub(super) struct Nemesis {
    testbed: Arc<Embedded>,
    faults: Vec<Fault>,
    rng: Mutex<StdRng>,
}

impl Nemesis {
    /// `words` select faults by the beginnings of their names.
    pub(super) fn new(testbed: Arc<Embedded>, words: &[String], rng: StdRng) -> Self {
        let is_possible = |fault: &Fault| testbed.disk.is_mounted || !fault.needs_a_disk();
        let faults = Fault::ALL.into_iter();
        let faults = faults.filter(|fault| is_meant(fault, words) && is_possible(fault)).collect();
        Self { testbed, faults, rng: Mutex::new(rng) }
    }

    /// Injects faults until `stop`, and takes them away.
    pub(super) async fn run(&self, stop: &CancellationToken) -> anyhow::Result<()> {
        let draw = || {
            let mut rng = self.rng.lock().unwrap_or_else(PoisonError::into_inner);
            StdRng::seed_from_u64(rng.random())
        };
        tokio::try_join!(self.kill(draw(), stop), self.inject(draw(), stop))?;
        Ok(())
    }

    async fn kill(&self, mut rng: StdRng, stop: &CancellationToken) -> anyhow::Result<()> {
        let Embedded { processes, history, .. } = &*self.testbed;
        while self.faults.contains(&Fault::Kill) && hold(&mut rng, 1.0..8.0, stop).await {
            let Some((process, _reserved)) = pick(processes.iter(), &mut rng) else { continue };
            let number = history.fault_began(Fault::Kill.to_string(), &*process.name);
            process.kill().await;
            process.start()?;
            history.fault_ended(number);
        }
        Ok(())
    }

    async fn inject(&self, mut rng: StdRng, stop: &CancellationToken) -> anyhow::Result<()> {
        let mut faults = self.faults.clone();
        faults.retain(|fault| *fault != Fault::Kill);
        let mut deck = Deck::new(faults);
        while hold(&mut rng, 0.5..2.0, stop).await {
            let Some((fault, ())) = deck.draw(&mut rng, |_| Some(())) else { return Ok(()) };
            self.carry_out(fault, &mut rng, stop).await?;
        }
        Ok(())
    }

    async fn carry_out(
        &self,
        fault: Fault,
        rng: &mut StdRng,
        stop: &CancellationToken,
    ) -> anyhow::Result<()> {
        let Embedded { history, disk, gateway, processes, file, .. } = &*self.testbed;
        let name = fault.to_string();
        match fault {
            Fault::Kill => {}
            Fault::Pause | Fault::Restart | Fault::Alone => {
                let picked = pick(processes.iter(), rng);
                let Some((process, _reserved)) = picked else { return Ok(()) };
                let number = history.fault_began(name, &*process.name);
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
                history.fault_ended(number);
            }
            Fault::DiskFull => {
                let number = history.fault_began(name, "disk");
                disk.fill()?;
                hold(rng, 2.0..8.0, stop).await;
                disk.free()?;
                history.fault_ended(number);
            }
            Fault::DiskReadOnly => {
                let reserved = processes.iter().filter_map(|process| process.try_reserve());
                let reserved: Vec<_> = reserved.collect();
                if reserved.len() < processes.len() {
                    return Ok(());
                }
                let number = history.fault_began(name, "disk");
                for process in processes {
                    process.kill().await;
                }
                // The lab itself may have the file open, to look at the tables.
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
                history.fault_ended(number);
            }
            Fault::FileLocked => {
                let Ok(mut connection) = tables::open_file(file).await else { return Ok(()) };
                if sqlx::raw_sql("BEGIN IMMEDIATE").execute(&mut connection).await.is_ok() {
                    let number = history.fault_began(name, "file");
                    hold(rng, 1.0..9.0, stop).await;
                    unlock(connection).await;
                    history.fault_ended(number);
                }
            }
            Fault::Gateway(answer) => {
                let number = history.fault_began(name, "gateway");
                gateway.answer(answer);
                hold(rng, 2.0..6.0, stop).await;
                gateway.answer(Answer::Accept);
                history.fault_ended(number);
            }
        }
        Ok(())
    }
}

async fn unlock(connection: SqliteConnection) {
    // Closing rolls back, and releases the lock in any case.
    let _ = connection.close().await;
}
