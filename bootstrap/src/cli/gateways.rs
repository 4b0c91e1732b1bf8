//! `messager gateways`: checks and tests gateways, and shows where their providers report.

mod check;
mod trial;
mod urls;

use std::path::PathBuf;

use anyhow::bail;
use domain::GatewayName;

pub use self::check::check;
use crate::config::{Config, GatewaysConfig};

#[derive(Debug, Clone, PartialEq, Eq, clap::Subcommand)]
pub enum Command {
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
    /// settings. Whoever has it can report deliveries of that gateway.
    Urls,
}

impl Command {
    /// Returns the file to check if that is the command. It also works with bad settings.
    pub fn to_check(&self) -> Option<Option<PathBuf>> {
        match self {
            Self::Check { file } => Some(file.clone()),
            Self::Test(_) | Self::Urls => None,
        }
    }
}

/// Carries out `messager gateways …`.
pub async fn execute(config: &Config, command: Command) -> anyhow::Result<()> {
    match command {
        Command::Check { .. } => bail!("`check` is carried out before the settings are read"),
        Command::Test(args) => trial::execute(config, args).await,
        Command::Urls => urls::execute(config).await,
    }
}

fn ensure_is_configured(gateways: &GatewaysConfig, name: &GatewayName) -> anyhow::Result<()> {
    if gateways.find(name).is_none() {
        let names: Vec<&str> = gateways.gateways.iter().map(|it| it.name.as_str()).collect();
        bail!("there is no gateway {name}; there are: {}", names.join(", "));
    }
    Ok(())
}
