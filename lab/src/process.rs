//! The processes of the service, as an init system has them: started, killed, watched.

use std::{
    fmt,
    fs::{File, OpenOptions},
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
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

/// The binaries that run all the time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    Api,
    Processor,
    Consumer,
    /// All three in one; not one of [`Role::ALL`].
    Messager,
}

/// One process of the service, under a name that stays when it is started again.
#[derive(Debug)]
pub struct Process {
    pub role: Role,
    pub name: String,
    program: PathBuf,
    log: PathBuf,
    metrics_port: u16,
    state: Mutex<State>,
    /// Held by whoever does something to the process.
    hands: Arc<tokio::sync::Mutex<()>>,
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
    /// A process that is not started yet; it will have nothing in its environment but `env`.
    pub fn new(
        role: Role,
        number: usize,
        bins: &Path,
        folder: &Path,
        metrics_port: u16,
        mut env: Vec<(String, String)>,
    ) -> Self {
        let name = format!("{role}-{number}");
        env.push(("PROMETHEUS_SERVER_PORT".to_owned(), metrics_port.to_string()));
        Self {
            role,
            program: bins.join(role.to_string()),
            log: folder.join(format!("{name}.log")),
            name,
            metrics_port,
            state: Mutex::new(State { env, child: None }),
            hands: Arc::default(),
        }
    }

    pub fn log(&self) -> &Path {
        &self.log
    }

    /// From its next start on.
    pub fn set(&self, name: &str, value: &str) {
        let mut state = self.state();
        state.env.retain(|(known, _)| known != name);
        state.env.push((name.to_owned(), value.to_owned()));
    }

    /// Keeps everybody else's hands off, if nobody has theirs on it.
    pub fn try_take(&self) -> Option<OwnedMutexGuard<()>> {
        Arc::clone(&self.hands).try_lock_owned().ok()
    }

    /// Starts it, unless it runs.
    pub fn start(&self) -> anyhow::Result<()> {
        let mut state = self.state();
        if state.child.is_some() {
            return Ok(());
        }
        let log = OpenOptions::new().create(true).append(true).open(&self.log)?;
        let child = Command::new(&self.program)
            .env_clear()
            .envs(state.env.iter().map(|(name, value)| (name, value)))
            .current_dir(self.log.parent().unwrap_or(Path::new(".")))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("start {}", self.program.display()))?;
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

    /// Asks it to end, and kills it if it has not done so after `patience`: then there is no status.
    pub async fn terminate(&self, patience: Duration) -> Option<ExitStatus> {
        // Taken first: its end must not look like one that nobody asked for.
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

    /// Whether it ended though nobody ended it; it can be started again then.
    pub fn has_crashed(&self) -> Option<ExitStatus> {
        let mut state = self.state();
        let status = state.child.as_mut()?.try_wait().ok()??;
        state.child = None;
        Some(status)
    }

    /// Resident memory in KiB.
    pub fn memory(&self) -> Option<u64> {
        let pid = self.pid()?.as_raw_nonzero();
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        line.trim().strip_suffix("kB")?.trim().parse().ok()
    }

    /// Waits until it says that it is ready.
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

    /// Whether it says that it is ready.
    pub async fn is_ready(&self) -> bool {
        let port = self.metrics_port;
        tokio::task::spawn_blocking(move || is_ready(port)).await.unwrap_or(false)
    }

    /// Its number, if it runs.
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

fn is_ready(port: u16) -> bool {
    let ask = || -> std::io::Result<String> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let limit = Duration::from_secs(1);
        let mut stream = TcpStream::connect_timeout(&address, limit)?;
        stream.set_read_timeout(Some(limit))?;
        stream.write_all(b"GET /readyz HTTP/1.0\r\n\r\n")?;
        let mut answer = [0; 12];
        stream.read_exact(&mut answer)?;
        Ok(String::from_utf8_lossy(&answer).into_owned())
    };
    ask().is_ok_and(|answer| answer.ends_with(" 200"))
}

/// Runs one of the service's binaries to its end, for what it does and not for what it serves.
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

/// Free ports, none of which the kernel gives to an outgoing connection.
pub fn free_ports(count: usize, rng: &mut impl rand::RngExt) -> Vec<u16> {
    let mut ports: Vec<u16> = Vec::with_capacity(count);
    while ports.len() < count {
        let port = rng.random_range(10_000..30_000);
        let free = || std::net::TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).is_ok();
        if !ports.contains(&port) && free() {
            ports.push(port);
        }
    }
    ports
}
