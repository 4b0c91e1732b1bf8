//! The processes of the service: started, killed and watched, as an init system does.

use std::{
    fmt,
    fs::{File, OpenOptions},
    io,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::Context;
pub use rustix::process::Signal;
use rustix::process::{Pid, kill_process};
use tokio::{
    process::{Child, Command},
    sync::OwnedMutexGuard,
    time::{sleep, timeout},
};

use super::http::Connection;

/// The binaries that serve until they are stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    Api,
    Processor,
    Consumer,
    /// All three in one. It is not one of [`Role::ALL`].
    Messager,
}

/// One process of the service. Its name stays when it is started again, perhaps in another version.
#[derive(Debug)]
pub struct Process {
    pub role: Role,
    pub name: String,
    /// The binary in each version.
    versions: Vec<PathBuf>,
    version: AtomicUsize,
    log: PathBuf,
    metrics_port: u16,
    state: Mutex<State>,
    /// Held while a fault works on the process.
    reserved: Arc<tokio::sync::Mutex<()>>,
}

#[derive(Debug)]
struct State {
    env: Vec<(String, String)>,
    child: Option<Child>,
}

impl Role {
    pub const ALL: [Self; 3] = [Self::Api, Self::Processor, Self::Consumer];
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Api => "api",
            Self::Processor => "processor",
            Self::Consumer => "consumer",
            Self::Messager => "messager",
        })
    }
}

impl Process {
    /// Describes a process without starting it. `bins` has a folder of binaries for each version.
    /// The environment of the process will be `env` and nothing else.
    pub fn new(
        role: Role,
        number: usize,
        bins: &[PathBuf],
        folder: &Path,
        metrics_port: u16,
        mut env: Vec<(String, String)>,
    ) -> Self {
        let name = format!("{role}-{number}");
        env.push(("PROMETHEUS_SERVER_PORT".to_owned(), metrics_port.to_string()));
        Self {
            role,
            versions: bins.iter().map(|bins| bins.join(role.to_string())).collect(),
            version: AtomicUsize::new(0),
            log: folder.join(format!("{name}.log")),
            name,
            metrics_port,
            state: Mutex::new(State { env, child: None }),
            reserved: Arc::default(),
        }
    }

    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Changes a setting from the next start on.
    pub fn set(&self, name: &str, value: &str) {
        let mut state = self.state();
        state.env.retain(|(known, _)| known != name);
        state.env.push((name.to_owned(), value.to_owned()));
    }

    /// Uses the next version from the next start on, and the first after the last.
    pub fn use_next_version(&self) {
        let next = (self.version.load(Ordering::Relaxed) + 1) % self.versions.len();
        self.version.store(next, Ordering::Relaxed);
    }

    /// Reserves it for one fault, unless another fault has reserved it.
    pub fn try_reserve(&self) -> Option<OwnedMutexGuard<()>> {
        Arc::clone(&self.reserved).try_lock_owned().ok()
    }

    /// Starts it, unless it runs.
    pub fn start(&self) -> anyhow::Result<()> {
        let mut state = self.state();
        if state.child.is_some() {
            return Ok(());
        }
        let program = &self.versions[self.version.load(Ordering::Relaxed)];
        let log = OpenOptions::new().create(true).append(true).open(&self.log)?;
        let child = Command::new(program)
            .env_clear()
            .envs(state.env.iter().map(|(name, value)| (name, value)))
            .current_dir(self.log.parent().unwrap_or(Path::new(".")))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("start {}", program.display()))?;
        state.child = Some(child);
        Ok(())
    }

    /// Sends a signal, if it runs.
    pub fn signal(&self, signal: Signal) {
        if let Some(pid) = self.pid() {
            // It may have ended meanwhile.
            let _ = kill_process(pid, signal);
        }
    }

    /// Kills it and waits until it is gone.
    pub async fn kill(&self) {
        let child = self.state().child.take();
        if let Some(mut child) = child {
            let _ = child.kill().await;
        }
    }

    /// Asks it to end, and kills it if it still runs after `patience`. Then there is no status.
    pub async fn terminate(&self, patience: Duration) -> Option<ExitStatus> {
        // Taken first, so that its end does not look like a crash.
        let mut child = self.state().child.take()?;
        if let Some(pid) = pid_of(&child) {
            let _ = kill_process(pid, Signal::TERM);
        }
        if let Ok(status) = timeout(patience, child.wait()).await {
            return status.ok();
        }
        let _ = child.kill().await;
        None
    }

    /// Returns its status if it ended by itself. It can be started again then.
    pub fn crash(&self) -> Option<ExitStatus> {
        let mut state = self.state();
        let status = state.child.as_mut()?.try_wait().ok()??;
        state.child = None;
        Some(status)
    }

    /// Returns its resident memory in KiB.
    pub fn memory(&self) -> Option<u64> {
        let pid = self.pid()?.as_raw_nonzero();
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        line.trim().strip_suffix("kB")?.trim().parse().ok()
    }

    /// Waits until it reports that it is ready.
    pub async fn ready(&self, patience: Duration) -> anyhow::Result<()> {
        let wait = async {
            loop {
                if self.is_ready().await {
                    return;
                }
                sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(patience, wait).await.with_context(|| format!("{} was not ready", self.name))
    }

    /// Whether it reports that it is ready.
    pub async fn is_ready(&self) -> bool {
        const LIMIT: Duration = Duration::from_secs(1);
        let ask = async {
            let mut connection = Connection::open(self.metrics_port).await?;
            let answer = connection.exchange(b"GET /readyz HTTP/1.0\r\n\r\n").await?;
            io::Result::Ok(answer.status == 200)
        };
        timeout(LIMIT, ask).await.is_ok_and(|answer| answer.unwrap_or(false))
    }

    /// Returns its process id, if it runs.
    pub fn id(&self) -> Option<u32> {
        self.state().child.as_ref()?.id()
    }

    pub fn metrics_port(&self) -> u16 {
        self.metrics_port
    }

    fn pid(&self) -> Option<Pid> {
        pid_of(self.state().child.as_ref()?)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn pid_of(child: &Child) -> Option<Pid> {
    Pid::from_raw(i32::try_from(child.id()?).ok()?)
}

/// Runs a program to its end, and fails if it does.
pub async fn run_once(
    program: &Path,
    args: &[&str],
    env: &[(String, String)],
    log: &Path,
) -> anyhow::Result<()> {
    let status = Command::new(program)
        .args(args)
        .env_clear()
        .envs(env.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(File::create(log)?)
        .status()
        .await
        .with_context(|| format!("start {}", program.display()))?;
    anyhow::ensure!(
        status.success(),
        "{} {args:?}: {status}, see {}",
        program.display(),
        log.display()
    );
    Ok(())
}
