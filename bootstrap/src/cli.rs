//! The command lines of the binaries.

mod completions;
mod confirm;
pub mod dead_letters;
pub mod doctor;
pub mod forget;
pub mod gateways;
pub mod guard;
mod healthcheck;
pub mod keys;
pub mod limits;
pub mod message;
pub mod migrate;
pub(crate) mod phone;
mod progress;
pub mod secrets;
pub mod settings;
pub mod status;
pub(crate) mod table;

use std::{
    io::{self, IsTerminal, Write, stderr, stdout},
    process::ExitCode,
    time::SystemTime,
};

use adapters_persistence::{Database, DatabaseSettings, check_schema};
use anyhow::{Context, ensure};
use chrono::{DateTime, SecondsFormat, Utc};
use clap::{CommandFactory, FromArgMatches, Parser};

pub use self::{
    completions::{CompletionsArgs, ManArgs, completions, man},
    healthcheck::healthcheck,
};

use crate::{
    config::{Config, Effective, InvalidConfig, LogFormat},
    descriptors,
    report::Audience,
};

/// The end of each help text.
pub const SETTINGS: &str = "Settings come from the environment, and from the file .env in the working \
    directory. The environment wins. .env.example and docs/settings.md list all settings.";

/// The command line of a binary that is one role of the service.
#[derive(Debug, Parser)]
#[command(
    version,
    about = "One role of Messager, which sends SMS verification codes.",
    after_help = SETTINGS
)]
pub struct Args {
    #[command(subcommand)]
    pub command: Option<Command>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::Subcommand)]
pub enum Command {
    /// Exit with 0 if the running service on this machine is ready.
    Healthcheck,
}

impl Args {
    /// Returns who reads what the process writes to standard error.
    pub fn audience(&self) -> Audience {
        if self.command.is_none() { Audience::Log } else { Audience::Person }
    }

    /// Parses the command line of the binary of this name.
    pub fn parse_for(binary: &'static str) -> Self {
        let matches = Self::command().name(binary).get_matches();
        Self::from_arg_matches(&matches).unwrap_or_else(|error| error.exit())
    }
}

/// Reads the settings and runs `main` on as many threads as there are cores.
///
/// Exits with 2 if the settings are not usable, and with 1 on another failure.
pub fn run<F: Future<Output = anyhow::Result<()>>>(
    audience: Audience,
    main: impl FnOnce(Config) -> F,
) -> ExitCode {
    // A connection uses the first bytes of the buffers that it reserves; a huge page of 2 MiB would
    // also take the rest. With 2,000 connections that was 105 MiB instead of 65.
    #[cfg(target_os = "linux")]
    let _ = rustix::thread::disable_transparent_huge_pages(true);

    descriptors::raise();

    let effective = Effective::read();
    let format = match audience {
        Audience::Person => LogFormat::Text,
        Audience::Log => effective.log_format(stderr().is_terminal()),
    };
    format.report_panics();
    let runtime = effective.config.map_err(anyhow::Error::from).and_then(|config| {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        Ok((runtime, config))
    });
    let result = runtime.and_then(|(runtime, config)| {
        let result = runtime.block_on(main(config));
        // A task that is still running did not end within the grace period.
        runtime.shutdown_background();
        result
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let code = if error.is::<InvalidConfig>() { 2 } else { 1 };
            format.report_error(&format!("{error:#}"));
            ExitCode::from(code)
        }
    }
}

/// Calls `act` with the database, whose schema must be up to date. An error names the database.
pub async fn with_database(
    config: &Config,
    name: &str,
    act: impl AsyncFnOnce(&Database) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let database = existing_database(config, name)?;
    let result = async {
        check_schema(&database).await?;
        act(&database).await
    }
    .await;
    database.close().await?;
    result.with_context(|| config.database.to_string())
}

pub(crate) fn existing_database(config: &Config, name: &str) -> anyhow::Result<Database> {
    ensure_exists(config)?;
    Ok(Database::connect_lazily(&config.database, name, 1))
}

/// Refuses an SQLite file that does not exist. It would be created, and a command that runs in the
/// wrong folder would show an empty database.
fn ensure_exists(config: &Config) -> anyhow::Result<()> {
    if let DatabaseSettings::Sqlite(path) = &config.database {
        ensure!(
            path.exists(),
            "there is no {}, which the service makes at its first start: start the service once, run \
             this command in the folder with the service's .env, or set SQLITE_PATH or \
             POSTGRES_HOST",
            path.display()
        );
    }
    Ok(())
}

/// Standard output, whose reader may close it early, as `head` does. The command then goes on.
#[derive(Debug)]
pub(crate) struct Output;

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match stdout().write(bytes) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(bytes.len()),
            written => written,
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match stdout().flush() {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            flushed => flushed,
        }
    }
}

pub(crate) fn rfc3339(time: SystemTime) -> String {
    DateTime::<Utc>::from(time).to_rfc3339_opts(SecondsFormat::Secs, true)
}
