//! `messager gateways`: lists, checks, tests and drains gateways, and shows where their providers
//! report.

mod check;
mod health;
mod list;
mod trial;
mod urls;

use std::{io::Write, path::PathBuf};

use adapters_persistence::{Database, SqlGateways};
use anyhow::bail;
use domain::GatewayName;

pub use self::check::check;
pub(crate) use self::list::Gateways;
use super::{Output, with_database};
use crate::config::{Config, GatewaysConfig};

#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    /// Print the list as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, clap::Subcommand)]
pub enum Command {
    /// List the gateways, their state in each process, the calls of the last five minutes, and what
    /// became of the messages of the last half hour (the default).
    List {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Check a file of gateways. Exits with 2 and lists every problem if a process would not start
    /// with it.
    Check {
        /// Instead of the file that `GATEWAYS_FILE` names.
        file: Option<PathBuf>,
    },
    /// Send one SMS through a gateway, and tell what came of it. It needs no database. The SMS is
    /// real, and may cost money.
    Test(trial::Args),
    /// Print the URL at which the provider of each gateway reports deliveries, to paste into its
    /// settings. Anyone who has the URL can report deliveries for the gateway.
    Urls {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Take a gateway out of service. Within two seconds, no process calls it.
    Drain { name: GatewayName },
    /// Put a drained gateway back into service.
    Undrain { name: GatewayName },
}

impl Args {
    /// Returns the file to check if that is the command. It also works with bad settings.
    pub fn to_check(&self) -> Option<Option<PathBuf>> {
        match &self.command {
            Some(Command::Check { file }) => Some(file.clone()),
            _ => None,
        }
    }
}

/// Carries out `messager gateways …`.
pub async fn execute(config: &Config, args: Args) -> anyhow::Result<()> {
    let all_json = args.json;
    match args.command.unwrap_or(Command::List { json: false }) {
        Command::List { json } => list::execute(config, json || all_json).await,
        Command::Check { .. } => bail!("`check` is carried out before the settings are read"),
        Command::Test(args) => trial::execute(config, args).await,
        Command::Urls { json } => urls::execute(config, json || all_json).await,
        Command::Drain { name } => {
            ensure_is_configured(&config.gateways, &name)?;
            with_database(config, "messager gateways", async |database| {
                Ok(writeln!(Output, "{}", drain(&config.gateways, database, &name).await?)?)
            })
            .await
        }
        Command::Undrain { name } => {
            with_database(config, "messager gateways", async |database| {
                Ok(writeln!(Output, "{}", undrain(&config.gateways, database, &name).await?)?)
            })
            .await
        }
    }
}

/// Takes a gateway out of service. Returns the result.
pub(crate) async fn drain(
    gateways: &GatewaysConfig,
    database: &Database,
    name: &GatewayName,
) -> anyhow::Result<String> {
    ensure_is_configured(gateways, name)?;
    let is_new = SqlGateways::new(database.clone()).drain(name).await?;
    Ok(drained(name, is_new))
}

/// Puts a gateway back into service. Returns the result.
pub(crate) async fn undrain(
    gateways: &GatewaysConfig,
    database: &Database,
    name: &GatewayName,
) -> anyhow::Result<String> {
    let was = SqlGateways::new(database.clone()).undrain(name).await?;
    if !was {
        // The name of a gateway that was removed may still be drained.
        ensure_is_configured(gateways, name)?;
    }
    Ok(undrained(name, was))
}

fn drained(name: &GatewayName, is_new: bool) -> String {
    if is_new {
        format!("{name} is drained: no process calls it from a second or two later on")
    } else {
        format!("{name} was drained before")
    }
}

fn undrained(name: &GatewayName, was: bool) -> String {
    if was { format!("{name} is in service again") } else { format!("{name} was not drained") }
}

fn ensure_is_configured(gateways: &GatewaysConfig, name: &GatewayName) -> anyhow::Result<()> {
    if gateways.find(name).is_none() {
        let names: Vec<&str> = gateways.gateways.iter().map(|it| it.name.as_str()).collect();
        bail!("there is no gateway {name}; there are: {}", names.join(", "));
    }
    Ok(())
}
