//! The fault harness's command line.

use std::{path::PathBuf, process::ExitCode, time::Duration};

use anyhow::Context;
use clap::{Parser, Subcommand, ValueEnum};
use lab::{
    gateway::Memory,
    run::{Scenario, run},
};
use rand::{Rng, SeedableRng, rngs::StdRng};

#[derive(Debug, Parser)]
#[command(version, about = "Runs the service among faults and judges what it did.")]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Kill, cut, pause and restart everything under load, then check that all promises held.
    ///
    /// Exits with 1 if one did not. Run it inside `scripts/services run`.
    Run(RunArgs),
}

#[derive(Debug, clap::Args)]
struct RunArgs {
    /// How long; rounds are of two minutes.
    #[arg(long, default_value_t = 2.0)]
    minutes: f64,
    /// Of the generator that draws faults and phones [default: drawn].
    #[arg(long)]
    seed: Option<u64>,
    /// Requests a second.
    #[arg(long, default_value_t = 100)]
    rate: u32,
    /// Beginnings of the names of the faults to use, by comma; `none` for none [default: all].
    #[arg(long, value_delimiter = ',')]
    faults: Vec<String>,
    /// Whether the gateway knows a message again.
    #[arg(long, value_enum, default_value_t = GatewayArg::Alternate)]
    gateway: GatewayArg,
    /// End after the first round with a violation.
    #[arg(long)]
    fail_fast: bool,
    /// Where to write the report as JSON.
    #[arg(long)]
    report: Option<PathBuf>,
    /// Where the service's binaries are [default: beside this one].
    #[arg(long)]
    bins: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum GatewayArg {
    Alternate,
    Idempotent,
    Plain,
}

fn main() -> anyhow::Result<ExitCode> {
    let Command::Run(args) = Args::parse().command;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        tokio::select! {
            ended = chaos(args) => ended,
            interrupted = tokio::signal::ctrl_c() => {
                interrupted.context("listen for Ctrl-C")?;
                anyhow::bail!("interrupted")
            }
        }
    })
}

async fn chaos(args: RunArgs) -> anyhow::Result<ExitCode> {
    let seed = match args.seed {
        Some(seed) => seed,
        None => u64::from(StdRng::try_from_rng(&mut rand::rngs::SysRng)?.next_u32()),
    };
    let bins = match args.bins {
        Some(bins) => bins,
        None => std::env::current_exe()?.parent().context("a folder of our own")?.to_owned(),
    };
    let folder = std::env::temp_dir().join(format!("messager-chaos-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    eprintln!("chaos: seed {seed}, logs in {}", folder.display());
    let scenario = Scenario {
        duration: Duration::try_from_secs_f64(args.minutes * 60.0).context("--minutes")?,
        seed,
        rate: args.rate,
        faults: args.faults,
        memory: match args.gateway {
            GatewayArg::Alternate => None,
            GatewayArg::Idempotent => Some(Memory::Idempotent),
            GatewayArg::Plain => Some(Memory::Plain),
        },
        fail_fast: args.fail_fast,
        bins,
        folder: folder.clone(),
    };
    let report = run(&scenario).await.with_context(|| format!("logs: {}", folder.display()))?;
    if let Some(path) = args.report {
        std::fs::write(path, serde_json::to_vec_pretty(&report)?).context("write the report")?;
    }
    println!("{report}");
    if report.violations.is_empty() {
        std::fs::remove_dir_all(&folder)?;
        return Ok(ExitCode::SUCCESS);
    }
    println!("logs are kept in {}", folder.display());
    Ok(ExitCode::FAILURE)
}
