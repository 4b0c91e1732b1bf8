//! Trials: each tries one promise of the service, and says with figures whether it held.

pub mod clock;
pub mod desk;
pub mod disconnect;
pub mod http;
pub mod isolation;
pub mod load;
pub mod overload;
pub mod phones;
pub mod poison;
pub mod recovery;
pub mod rollover;
pub mod stand;
pub mod tape;
pub mod verdict;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::Context;
use clap::{Args, Subcommand};

use self::{stand::Plan, verdict::Verdict};

/// Trials of single promises; each exits with 1 if it was broken. Run them inside `scripts/services
/// run`.
#[derive(Debug, Subcommand)]
pub enum Trial {
    /// Slow phones and poison records hold nobody else up.
    Isolation {
        #[arg(long, default_value_t = 60)]
        seconds: u64,
        #[command(flatten)]
        common: Common,
    },
    /// A fresh group with `latest`, and a deleted topic, get all their messages.
    Recovery {
        /// Between the last publication and the consumers' start.
        #[arg(long, default_value_t = 0)]
        pause_seconds: u64,
        #[command(flatten)]
        common: Common,
    },
    /// More than can be done, for long: memory stays flat and all is done in the end.
    Overload {
        #[arg(long, default_value_t = 10.0)]
        minutes: f64,
        /// Of the sustainable rate, which is measured first.
        #[arg(long, default_value_t = 1.5)]
        factor: f64,
        #[command(flatten)]
        common: Common,
    },
    /// SIGTERM after SIGTERM under load.
    Rollover {
        #[arg(long, default_value_t = 100)]
        count: usize,
        /// Binaries of the version before: the run begins with them and their schema, migrates it
        /// half-way, and mixes both versions from then on.
        #[arg(long)]
        other_bins: Option<PathBuf>,
        #[command(flatten)]
        common: Common,
    },
    /// Every process has a clock ten minutes off.
    Clock {
        #[arg(long, default_value_t = 2.0)]
        minutes: f64,
        #[arg(long, default_value = "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1")]
        library: PathBuf,
        #[command(flatten)]
        common: Common,
    },
    /// Clients go away in the middle of their requests.
    Disconnect {
        #[arg(long, default_value_t = 10_000)]
        clients: usize,
        #[command(flatten)]
        common: Common,
    },
}

/// What every trial takes.
#[derive(Debug, Args)]
pub struct Common {
    /// Where to write the verdict as JSON.
    #[arg(long)]
    report: Option<PathBuf>,
    /// Where the service's binaries are [default: beside this one].
    #[arg(long)]
    bins: Option<PathBuf>,
}

impl Trial {
    /// Tries, and prints what was found.
    pub async fn run(self) -> anyhow::Result<ExitCode> {
        let folder = std::env::temp_dir().join(format!("messager-trial-{}", std::process::id()));
        std::fs::create_dir_all(&folder)?;
        let bins = match &self.common().bins {
            Some(bins) => bins.clone(),
            None => std::env::current_exe()?.parent().context("a folder of our own")?.to_owned(),
        };
        let report = self.common().report.clone();
        let bins = std::path::absolute(bins)?;
        let verdict = self
            .verdict(Plan::usual(&bins, &folder))
            .await
            .with_context(|| format!("logs: {}", folder.display()))?;
        if let Some(path) = report {
            std::fs::write(path, serde_json::to_vec_pretty(&verdict)?)
                .context("write the report")?;
        }
        println!("{verdict}");
        end(&folder, verdict.holds())
    }

    async fn verdict(self, mut plan: Plan) -> anyhow::Result<Verdict> {
        match self {
            Self::Isolation { seconds, .. } => {
                isolation::isolation(plan, Duration::from_secs(seconds)).await
            }
            Self::Recovery { pause_seconds, .. } => {
                recovery::recovery(plan, Duration::from_secs(pause_seconds)).await
            }
            Self::Overload { minutes, factor, .. } => {
                overload::overload(plan, of_minutes(minutes)?, factor).await
            }
            Self::Rollover { count, other_bins, .. } => {
                let other = other_bins.map(std::path::absolute).transpose()?;
                rollover::rollover(plan, count, other).await
            }
            Self::Clock { minutes, library, .. } => {
                plan.library = Some(library);
                clock::clock(plan, of_minutes(minutes)?).await
            }
            Self::Disconnect { clients, .. } => disconnect::disconnect(plan, clients).await,
        }
    }

    fn common(&self) -> &Common {
        match self {
            Self::Isolation { common, .. }
            | Self::Recovery { common, .. }
            | Self::Overload { common, .. }
            | Self::Rollover { common, .. }
            | Self::Clock { common, .. }
            | Self::Disconnect { common, .. } => common,
        }
    }
}

fn of_minutes(minutes: f64) -> anyhow::Result<Duration> {
    Duration::try_from_secs_f64(minutes * 60.0).context("--minutes")
}

fn end(folder: &Path, held: bool) -> anyhow::Result<ExitCode> {
    if held {
        std::fs::remove_dir_all(folder)?;
        return Ok(ExitCode::SUCCESS);
    }
    println!("logs are kept in {}", folder.display());
    Ok(ExitCode::FAILURE)
}
