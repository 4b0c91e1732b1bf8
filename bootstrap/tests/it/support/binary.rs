use std::{
    fs::File,
    path::{Path, PathBuf},
    process::{ExitStatus, Output, Stdio},
    time::{Duration, Instant},
};

use ports::free_port;
use tokio::process::{Child, Command};

use super::{eventually, get, services::unique};

/// One of our binaries before its start. Its environment has only the variables of [`Self::env`].
#[derive(Debug)]
pub(crate) struct Binary {
    command: Command,
    pub(crate) port: u16,
    pub(crate) metrics_port: u16,
    stdout: PathBuf,
    stderr: PathBuf,
}

/// A running binary. It is killed when this value is dropped.
#[derive(Debug)]
pub(crate) struct Running {
    child: Child,
    pub(crate) port: u16,
    pub(crate) metrics_port: u16,
    stdout: PathBuf,
    stderr: PathBuf,
}

impl Binary {
    pub(crate) fn new(name: &str, folder: &Path) -> Self {
        let program = match name {
            "api" => env!("CARGO_BIN_EXE_api"),
            "processor" => env!("CARGO_BIN_EXE_processor"),
            "consumer" => env!("CARGO_BIN_EXE_consumer"),
            "messager" => env!("CARGO_BIN_EXE_messager"),
            other => panic!("no binary {other}"),
        };
        let mut command = Command::new(program);
        command.env_clear().current_dir(folder).kill_on_drop(true);
        let (port, metrics_port) = (free_port(), free_port());
        let output = folder.join(format!("{name}-{}", unique()));
        Self {
            command,
            port,
            metrics_port,
            stdout: output.with_extension("out"),
            stderr: output.with_extension("err"),
        }
        .env("APP_PORT", &port.to_string())
        .env("PROMETHEUS_SERVER_PORT", &metrics_port.to_string())
    }

    pub(crate) fn env(mut self, name: &str, value: &str) -> Self {
        self.command.env(name, value);
        self
    }

    pub(crate) fn without(mut self, name: &str) -> Self {
        self.command.env_remove(name);
        self
    }

    pub(crate) fn args(mut self, args: &[&str]) -> Self {
        self.command.args(args);
        self
    }

    /// Limits the number of open descriptors.
    pub(crate) fn with_descriptors(mut self, limit: u32) -> Self {
        let bare = self.command.as_std();
        let mut limited = Command::new("/bin/sh");
        limited.args(["-c", &format!("ulimit -n {limit} && exec \"$0\" \"$@\"")]);
        limited.arg(bare.get_program()).args(bare.get_args());
        limited.env_clear().kill_on_drop(true);
        for (name, value) in bare.get_envs() {
            limited.env(name, value.unwrap_or_default());
        }
        if let Some(folder) = bare.get_current_dir() {
            limited.current_dir(folder);
        }
        self.command = limited;
        self
    }

    /// Runs the binary until it ends.
    pub(crate) async fn output(mut self) -> Output {
        let limit = Duration::from_secs(20);
        tokio::time::timeout(limit, self.command.output()).await.expect("it ends").unwrap()
    }

    /// Runs the binary with a closed standard output until it ends.
    pub(crate) async fn output_to_closed_pipe(mut self) -> Output {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        self.command.stdin(Stdio::null()).stdout(writer).stderr(Stdio::piped());
        let limit = Duration::from_secs(20);
        let output = self.command.spawn().unwrap().wait_with_output();
        tokio::time::timeout(limit, output).await.expect("it ends").unwrap()
    }

    pub(crate) fn spawn(mut self) -> Running {
        self.command
            .stdin(Stdio::null())
            .stdout(File::create(&self.stdout).unwrap())
            .stderr(File::create(&self.stderr).unwrap());
        Running {
            child: self.command.spawn().unwrap(),
            port: self.port,
            metrics_port: self.metrics_port,
            stdout: self.stdout,
            stderr: self.stderr,
        }
    }

    /// Starts the binary and waits until it is ready.
    pub(crate) async fn ready(self) -> Running {
        let running = self.spawn();
        running.is_ready().await;
        running
    }
}

impl Running {
    pub(crate) async fn is_ready(&self) {
        eventually("ready", Duration::from_secs(30), async || {
            (get(self.metrics_port, "/readyz").await?.0 == 200).then_some(())
        })
        .await;
    }

    pub(crate) fn stdout(&self) -> String {
        std::fs::read_to_string(&self.stdout).unwrap()
    }

    /// Returns the log.
    pub(crate) fn stderr(&self) -> String {
        std::fs::read_to_string(&self.stderr).unwrap()
    }

    /// Returns the path of the log, which remains after the binary has ended.
    pub(crate) fn stderr_path(&self) -> PathBuf {
        self.stderr.clone()
    }

    /// Returns the value of a metric, by its name with labels.
    pub(crate) async fn metric(&self, name: &str) -> Option<f64> {
        let (_, text) = get(self.metrics_port, "/metrics").await?;
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
        line.parse().ok()
    }

    /// Returns the peak of its memory, in bytes.
    pub(crate) fn peak_memory(&self) -> u64 {
        let pid = self.child.id().expect("still running");
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
    }

    pub(crate) async fn signal(&self, signal: &str) {
        let pid = self.child.id().expect("still running").to_string();
        let status = Command::new("kill").args(["-s", signal, &pid]).status().await.unwrap();
        assert!(status.success());
    }

    /// Sends a signal and waits for the end. Returns how long that took.
    pub(crate) async fn stop(mut self, signal: &str) -> (ExitStatus, Duration) {
        let begun = Instant::now();
        self.signal(signal).await;
        let limit = Duration::from_secs(30);
        let status =
            tokio::time::timeout(limit, self.child.wait()).await.expect("it ends").unwrap();
        (status, begun.elapsed())
    }

    /// Waits until the binary ends by itself.
    pub(crate) async fn ended(&mut self) -> ExitStatus {
        let limit = Duration::from_secs(30);
        tokio::time::timeout(limit, self.child.wait()).await.expect("it ends").unwrap()
    }
}
