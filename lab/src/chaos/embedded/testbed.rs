use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::Context;
use ports::free_port;
use tokio::time::sleep;

use super::disk::Disk;
use crate::{
    chaos::history::SharedHistory,
    kit::{
        gateway::{Character, Gateway},
        process::{Process, Role, Signal},
        recorder::{Answer, GatewayKind},
        tables::{self, Backlog},
    },
};

/// The embedded default under test: processes, their file and their gateway.
#[derive(Debug)]
pub(super) struct Embedded {
    pub(super) processes: Vec<Arc<Process>>,
    /// The ports of their APIs.
    pub(super) ports: Vec<u16>,
    pub(super) gateway: Gateway,
    pub(super) file: PathBuf,
    pub(super) history: SharedHistory,
    // Last, so that the processes are gone when it is unmounted.
    pub(super) disk: Disk,
}

const PROCESSES: usize = 2;
const PATIENCE: Duration = Duration::from_secs(60);

impl Embedded {
    /// Prepares everything, but starts no process.
    pub(super) async fn prepare(
        bins: &[PathBuf],
        folder: &Path,
        gateway_timeout: Duration,
        is_disk_required: bool,
        history: SharedHistory,
    ) -> anyhow::Result<Self> {
        let disk = Disk::mount(folder.join("disk"), is_disk_required)?;
        let file = disk.path.join("messager.db");
        let gateway = Gateway::start(Character::CHAOS, history.clone()).await?;
        let mut testbed =
            Self { processes: Vec::new(), ports: Vec::new(), gateway, file, history, disk };
        for number in 1..=PROCESSES {
            let (port, metrics_port) = (free_port(), free_port());
            let env = [
                ("APP_PORT", port.to_string()),
                ("SQLITE_PATH", testbed.file.display().to_string()),
                ("GATEWAY", "webhook".to_owned()),
                ("GATEWAY_URL", format!("http://127.0.0.1:{}/send", testbed.gateway.port())),
                ("GATEWAY_TIMEOUT", gateway_timeout.as_secs().to_string()),
                ("CODE_TTL", "600".to_owned()),
                ("PROCESSOR_CONFIRM_WITHIN", "10".to_owned()),
            ];
            let env = env.map(|(name, value)| (name.to_owned(), value)).to_vec();
            let process = Process::new(Role::Messager, number, bins, folder, metrics_port, env);
            testbed.processes.push(Arc::new(process));
            testbed.ports.push(port);
        }
        Ok(testbed)
    }

    /// Changes the gateway, and starts all processes with the setting that suits it.
    pub(super) async fn use_gateway(&self, kind: GatewayKind) -> anyhow::Result<()> {
        self.stop().await;
        self.gateway.become_kind(kind);
        for process in &self.processes {
            process.set("GATEWAY_DEDUPLICATES", &(kind == GatewayKind::Idempotent).to_string());
            process.start()?;
            // One after the other: only one of them may create the tables.
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
        Ok(tables::backlog_of_file(&self.file).await?)
    }

    /// Waits until no message waits and all processes are ready.
    pub(super) async fn done(&self) {
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
