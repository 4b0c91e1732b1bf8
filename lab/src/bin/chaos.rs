//! The fault harness's command line.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context, bail};
use clap::{Parser, Subcommand, ValueEnum};
use lab::{
    embedded,
    gateway::Memory,
    mutants::{Mutant, Workshop},
    report::Report,
    run::{Scenario, run},
    trial::Trial,
};
use rand::{Rng, SeedableRng, rngs::StdRng};
use tokio::signal::unix::{SignalKind, signal};

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
    /// The same with the embedded default: `messager` on an SQLite file, which needs no servers.
    Embedded(EmbeddedArgs),
    /// Build broken variants of the service, and demand that each is caught.
    ///
    /// Run it in the root of the source tree, inside `scripts/services run`.
    Mutants(MutantsArgs),
    #[command(flatten)]
    Trial(Trial),
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
    /// The share of phones that get several messages, for their order.
    #[arg(long, default_value_t = 0.02)]
    sequences: f64,
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

#[derive(Debug, clap::Args)]
struct EmbeddedArgs {
    /// How long; rounds are of one minute.
    #[arg(long, default_value_t = 2.0)]
    minutes: f64,
    /// Of the generator that draws faults and phones [default: drawn].
    #[arg(long)]
    seed: Option<u64>,
    /// Requests a second.
    #[arg(long, default_value_t = 50)]
    rate: u32,
    /// Beginnings of the names of the faults to use, by comma; `none` for none [default: all].
    #[arg(long, value_delimiter = ',')]
    faults: Vec<String>,
    /// Where to write the report as JSON.
    #[arg(long)]
    report: Option<PathBuf>,
    /// Where the service's binaries are [default: beside this one].
    #[arg(long)]
    bins: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
struct MutantsArgs {
    /// Only these, by comma.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Only see whether the patches still fit; this needs no servers.
    #[arg(long)]
    check_patches: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum GatewayArg {
    Alternate,
    Idempotent,
    Plain,
}

fn main() -> anyhow::Result<ExitCode> {
    let args = Args::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut terminated = signal(SignalKind::terminate())?;
        let work = async {
            match args.command {
                Command::Run(args) => chaos(args).await,
                Command::Embedded(args) => embedded(args).await,
                Command::Mutants(args) => mutants(args).await,
                Command::Trial(trial) => trial.run().await,
            }
        };
        // What is dropped with the work ends with it: the service's processes are killed.
        tokio::select! {
            ended = work => ended,
            _ = tokio::signal::ctrl_c() => bail!("interrupted"),
            _ = terminated.recv() => bail!("terminated"),
        }
    })
}

async fn chaos(args: RunArgs) -> anyhow::Result<ExitCode> {
    let Place { seed, bins, folder } = Place::of(args.seed, args.bins)?;
    let scenario = Scenario {
        duration: Duration::try_from_secs_f64(args.minutes * 60.0).context("--minutes")?,
        seed,
        rate: args.rate,
        sequences: args.sequences.clamp(0.0, 1.0),
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
    tell(&report, args.report, &folder)
}

async fn embedded(args: EmbeddedArgs) -> anyhow::Result<ExitCode> {
    let Place { seed, bins, folder } = Place::of(args.seed, args.bins)?;
    let scenario = embedded::Scenario {
        duration: Duration::try_from_secs_f64(args.minutes * 60.0).context("--minutes")?,
        seed,
        rate: args.rate,
        faults: args.faults,
        bins,
        folder: folder.clone(),
    };
    let report = embedded::run(&scenario).await;
    let report = report.with_context(|| format!("logs: {}", folder.display()))?;
    tell(&report, args.report, &folder)
}

/// Where a run finds the binaries and leaves its logs.
struct Place {
    seed: u64,
    bins: PathBuf,
    folder: PathBuf,
}

impl Place {
    fn of(seed: Option<u64>, bins: Option<PathBuf>) -> anyhow::Result<Self> {
        let seed = match seed {
            Some(seed) => seed,
            None => u64::from(StdRng::try_from_rng(&mut rand::rngs::SysRng)?.next_u32()),
        };
        let bins = match bins {
            Some(bins) => bins,
            None => std::env::current_exe()?.parent().context("a folder of our own")?.to_owned(),
        };
        // The processes run in another folder.
        let bins = bins.canonicalize().with_context(|| bins.display().to_string())?;
        let folder = std::env::temp_dir().join(format!("messager-chaos-{}", std::process::id()));
        std::fs::create_dir_all(&folder)?;
        eprintln!("chaos: seed {seed}, logs in {}", folder.display());
        Ok(Self { seed, bins, folder })
    }
}

fn tell(report: &Report, path: Option<PathBuf>, folder: &Path) -> anyhow::Result<ExitCode> {
    if let Some(path) = path {
        std::fs::write(path, serde_json::to_vec_pretty(report)?).context("write the report")?;
    }
    println!("{report}");
    if report.violations.is_empty() {
        std::fs::remove_dir_all(folder)?;
        return Ok(ExitCode::SUCCESS);
    }
    println!("logs are kept in {}", folder.display());
    Ok(ExitCode::FAILURE)
}

async fn mutants(args: MutantsArgs) -> anyhow::Result<ExitCode> {
    let root = Path::new(".");
    let chaos = std::env::current_exe()?;
    // The harness is in `<target>/<profile>/`.
    let target = chaos.ancestors().nth(2).context("a folder for what is built")?;
    let mut mutants = Mutant::all(&root.join("lab/mutants"))?;
    mutants.retain(|mutant| args.only.is_empty() || args.only.contains(&mutant.name));
    if mutants.is_empty() {
        bail!("there is no such mutant");
    }
    let workshop = Workshop::new(root, target)?;

    let mut survivors = 0;
    for mutant in &mutants {
        let (name, about) = (&mutant.name, &mutant.about);
        if args.check_patches {
            let fits = workshop.fits(mutant).await?;
            survivors += usize::from(!fits);
            println!("{name:<24}{}", if fits { "fits" } else { "DOES NOT FIT" });
            continue;
        }
        eprintln!("mutants: {name}: {about}");
        let verdict = match workshop.judge(mutant, &chaos).await {
            Ok(verdict) => verdict,
            Err(error) => {
                survivors += 1;
                println!("{name:<24}NO VERDICT {error:#}");
                continue;
            }
        };
        survivors += usize::from(!verdict.is_caught);
        let found: Vec<String> =
            verdict.violated.iter().map(|(name, count)| format!("{name} ({count})")).collect();
        let verdict = if verdict.is_caught { "caught" } else { "SURVIVED" };
        println!("{name:<24}{verdict:<10}{}", found.join(", "));
    }
    Ok(if survivors == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
