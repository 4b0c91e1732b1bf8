//! Trials: each tests one promise of the service, and shows with figures whether it held.

pub mod brokers;
pub mod burst;
pub mod disconnect;
pub mod failover;
pub mod isolation;
pub mod overload;
pub mod poison;
pub mod recovery;
pub mod reroute;
pub mod rollover;
pub mod verdict;
pub mod wrong_clocks;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::Context;
use clap::{Args, Subcommand, ValueEnum};

use self::verdict::Verdict;
use crate::kit::{environment::binaries, recorder::AfterAmbiguous, testbed::Plan};

/// Trials of single promises. Each exits with 1 if its promise was broken. Run them inside
/// `scripts/services run`.
#[derive(Debug, Subcommand)]
pub enum Trial {
    /// Slow phones and undecodable records delay no other message.
    Isolation {
        #[arg(long, default_value_t = 60)]
        seconds: u64,
        #[command(flatten)]
        common: Common,
    },
    /// The first of two gateways fails in one way after the other: messages take the second, and
    /// other routes are as fast as before.
    Reroute {
        /// How long each fault lasts.
        #[arg(long, default_value_t = 15)]
        seconds: u64,
        /// The faults, as prefixes of their names, separated by commas [default: all].
        #[arg(long, value_delimiter = ',')]
        faults: Vec<String>,
        /// What follows an ambiguous call.
        #[arg(long, value_enum, default_value_t = AmbiguousArg::Same)]
        ambiguous: AmbiguousArg,
        #[command(flatten)]
        common: Common,
    },
    /// Three Kafka brokers, `min.insync.replicas=2`: each is killed in turn under load, and messages
    /// go on through the others within 5 s.
    Brokers {
        /// How often a broker is killed.
        #[arg(long, default_value_t = 3)]
        kills: usize,
        #[command(flatten)]
        common: Common,
    },
    /// PostgreSQL dies under load, and its synchronous standby is promoted: no message is lost.
    Failover {
        #[command(flatten)]
        common: Common,
    },
    /// A thousand messages at once leave in under four seconds if the gateway takes 100 ms for each.
    Burst {
        #[command(flatten)]
        common: Common,
    },
    /// All messages arrive with a new group that starts at `latest`, and after the topic was
    /// deleted.
    Recovery {
        /// Seconds between the last publication and the start of the consumers.
        #[arg(long, default_value_t = 0)]
        pause_seconds: u64,
        #[command(flatten)]
        common: Common,
    },
    /// Load above the sustainable rate: memory stays flat, and every message is delivered in the
    /// end.
    Overload {
        #[arg(long, default_value_t = 10.0)]
        minutes: f64,
        /// The load, as a multiple of the sustainable rate, which is measured first.
        #[arg(long, default_value_t = 1.5)]
        factor: f64,
        #[command(flatten)]
        common: Common,
    },
    /// Restarts by SIGTERM under load.
    Rollover {
        #[arg(long, default_value_t = 100)]
        count: usize,
        /// The folder of the previous version's binaries. The run begins with them and their
        /// schema, migrates it half-way, and mixes both versions from then on.
        #[arg(long)]
        other_bins: Option<PathBuf>,
        #[command(flatten)]
        common: Common,
    },
    /// The clock of every process is wrong by ten minutes.
    Clock {
        #[arg(long, default_value_t = 2.0)]
        minutes: f64,
        #[arg(long, default_value = "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1")]
        library: PathBuf,
        #[command(flatten)]
        common: Common,
    },
    /// Clients disconnect in the middle of their requests.
    Disconnect {
        #[arg(long, default_value_t = 10_000)]
        clients: usize,
        #[command(flatten)]
        common: Common,
    },
}

/// What follows an ambiguous call.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum AmbiguousArg {
    Same,
    Next,
}

impl From<AmbiguousArg> for AfterAmbiguous {
    fn from(argument: AmbiguousArg) -> Self {
        match argument {
            AmbiguousArg::Same => Self::Same,
            AmbiguousArg::Next => Self::Next,
        }
    }
}

/// Arguments of every trial.
#[derive(Debug, Args)]
pub struct Common {
    /// The file for the verdict as JSON.
    #[arg(long)]
    report: Option<PathBuf>,
    /// The folder of the service's binaries [default: the folder of this program].
    #[arg(long)]
    bins: Option<PathBuf>,
}

impl Trial {
    /// Runs the trial, and prints its verdict.
    pub async fn run(self) -> anyhow::Result<ExitCode> {
        let folder = std::env::temp_dir().join(format!("messager-trial-{}", std::process::id()));
        std::fs::create_dir_all(&folder)?;
        let bins = binaries(self.common().bins.clone())?;
        let report = self.common().report.clone();
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
            Self::Reroute { seconds, faults, ambiguous, .. } => {
                let length = Duration::from_secs(seconds);
                let ambiguous = ambiguous.into();
                let faults = reroute::Faults { length, words: faults, ambiguous };
                reroute::reroute(plan, faults).await
            }
            Self::Brokers { kills, .. } => brokers::brokers(plan, kills).await,
            Self::Failover { .. } => failover::failover(plan).await,
            Self::Burst { .. } => burst::burst(plan).await,
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
                wrong_clocks::wrong_clocks(plan, of_minutes(minutes)?).await
            }
            Self::Disconnect { clients, .. } => disconnect::disconnect(plan, clients).await,
        }
    }

    fn common(&self) -> &Common {
        match self {
            Self::Isolation { common, .. }
            | Self::Reroute { common, .. }
            | Self::Brokers { common, .. }
            | Self::Failover { common }
            | Self::Burst { common }
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
