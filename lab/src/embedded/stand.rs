use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::Context;
use rand::rngs::StdRng;
use tokio::time::sleep;

use super::disk::Disk;
use crate::{
    gateway::{Answer, Gateway, Memory},
    history::Recorder,
    ledger::{self, Backlog},
    process::{Process, Role, Signal, free_ports},
};

/// The processes, their file and their gateway.
#[derive(Debug)]
pub(super) struct Stand {
    pub(super) processes: Vec<Arc<Process>>,
    /// Of their APIs.
    pub(super) ports: Vec<u16>,
    pub(super) gateway: Gateway,
    pub(super) file: PathBuf,
    pub(super) recorder: Recorder,
    // Last, so that the processes have gone when it is unmounted.
    pub(super) disk: Disk,
}

const PROCESSES: usize = 2;
const PATIENCE: Duration = Duration::from_secs(60);

impl Stand {
    /// Prepares everything but starts no process.
    pub(super) async fn prepare(
        bins: &Path,
        folder: &Path,
        gateway_timeout: Duration,
        recorder: Recorder,
        rng: &mut StdRng,
    ) -> anyhow::Result<Self> {
        let disk = Disk::mount(folder.join("disk"))?;
        let file = disk.path.join("messager.db");
        let ports = free_ports(1 + 2 * PROCESSES, rng);
        let gateway = Gateway::start(ports[0], recorder.clone()).await?;
        let mut stand =
            Self { processes: Vec::new(), ports: Vec::new(), gateway, file, recorder, disk };
        for (number, ports) in (1..).zip(ports[1..].chunks_exact(2)) {
            let env = [
                ("APP_PORT", ports[0].to_string()),
                ("SQLITE_PATH", stand.file.display().to_string()),
                ("GATEWAY", "webhook".to_owned()),
                ("GATEWAY_URL", format!("http://127.0.0.1:{}/send", stand.gateway.port())),
                ("GATEWAY_TIMEOUT", gateway_timeout.as_secs().to_string()),
                ("CODE_TTL", "600".to_owned()),
                ("PROCESSOR_CONFIRM_WITHIN", "10".to_owned()),
            ];
            let env = env.map(|(name, value)| (name.to_owned(), value)).to_vec();
            let process = Process::new(Role::Messager, number, bins, folder, ports[1], env);
            stand.processes.push(Arc::new(process));
            stand.ports.push(ports[0]);
        }
        Ok(stand)
    }

    /// Changes the gateway, and starts all processes with the setting that suits it.
    pub(super) async fn use_gateway(&self, memory: Memory) -> anyhow::Result<()> {
        self.stop().await;
        self.gateway.remember(memory);
        for process in &self.processes {
            process.set("GATEWAY_DEDUPLICATES", &(memory == Memory::Idempotent).to_string());
            process.start()?;
            // One after the other: only one of them may make the tables.
            process.ready(PATIENCE).await?;
        }
        Ok(())
    }

    /// Takes all faults away.
    pub(super) fn heal(&self) -> anyhow::Result<()> {
        self.gateway.answer(Answer::Accept);
        if self.disk.is_mounted {
            self.disk.make_writable().context("make the disk writable")?;
            self.disk.free().context("free the disk")?;
        }
        for process in &self.processes {
            process.signal(Signal::CONT);
            process.start()?;
        }
        Ok(())
    }

    pub(super) async fn stop(&self) {
        for process in &self.processes {
            process.terminate(Duration::from_secs(30)).await;
        }
    }

    pub(super) async fn backlog(&self) -> anyhow::Result<Backlog> {
        Ok(ledger::backlog_of_file(&self.file).await?)
    }

    /// Waits until nothing waits, and all processes are ready.
    pub(super) async fn is_done(&self) {
        loop {
            let mut ready = true;
            for process in &self.processes {
                ready &= process.is_ready().await;
            }
            if ready && self.backlog().await.is_ok_and(|backlog| backlog.is_empty()) {
                return;
            }
            sleep(Duration::from_millis(100)).await;
        }
    }
}
