//! The fault harness's command line.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context, bail};
use clap::{Parser, Subcommand, ValueEnum};
use lab::{
    chaos::{
        embedded, gateways,
        mutants::{Mutant, Workshop},
        report::Report,
        run::{Scenario, run},
    },
    kit::{
        environment::{are_services_required, binaries},
        progress::{Progress, clock},
        recorder::{AfterAmbiguous, GatewayKind},
    },
    trial::{AmbiguousArg, Trial},
};
use rand::{Rng, SeedableRng, rngs::StdRng};
use tokio::signal::unix::{SignalKind, signal};

#[derive(Debug, Parser)]
#[command(version, about = "Injects faults into the running service and checks its promises.")]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Kill, cut, pause and restart everything under load, then check every promise.
    ///
    /// Exits with 1 if a promise was broken. Run it inside `scripts/services run`.
    Run(RunArgs),
    /// The same with the embedded default: `messager` on an SQLite file. It needs no servers.
    Embedded(EmbeddedArgs),
    /// Two gateways, of which the first fails in one way after the other, while processes are killed.
    ///
    /// Exits with 1 if a promise was broken. Run it inside `scripts/services run`.
    Gateways(GatewaysArgs),
    /// Build broken variants of the service, and check that each is caught.
    ///
    /// Exits with 1 if one is not. Run it in the root of the source tree, inside `scripts/services
    /// run`.
    Mutants(MutantsArgs),
    #[command(flatten)]
    Trial(Trial),
}

#[derive(Debug, clap::Args)]
struct RunArgs {
    /// How long to run, in rounds of two minutes.
    #[arg(long, default_value_t = 2.0)]
    minutes: f64,
    /// The seed from which faults and phones are drawn [default: random].
    #[arg(long)]
    seed: Option<u64>,
    /// Requests a second.
    #[arg(long, default_value_t = 100)]
    rate: u32,
    /// The faults to use, as prefixes of their names, separated by commas; `none` for none
    /// [default: all].
    #[arg(long, value_delimiter = ',')]
    faults: Vec<String>,
    /// The gateway: one that recognises a repeated message, one that does not, or both in turn.
    #[arg(long, value_enum, default_value_t = GatewayArg::Alternate)]
    gateway: GatewayArg,
    /// The share of phones that get several messages, to check their order.
    #[arg(long, default_value_t = 0.02)]
    sequences: f64,
    /// Stop after the first round with a violation.
    #[arg(long)]
    fail_fast: bool,
    /// The file for the report as JSON.
    #[arg(long)]
    report: Option<PathBuf>,
    /// The folder of the service's binaries [default: the folder of this program].
    #[arg(long)]
    bins: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
struct EmbeddedArgs {
    /// Leave out the faults of the disk if none can be mounted. Only needed with
    /// `REQUIRE_SERVICES=1`.
    #[arg(long)]
    without_disk: bool,
    /// How long to run, in rounds of one minute.
    #[arg(long, default_value_t = 2.0)]
    minutes: f64,
    /// The seed from which faults and phones are drawn [default: random].
    #[arg(long)]
    seed: Option<u64>,
    /// Requests a second.
    #[arg(long, default_value_t = 50)]
    rate: u32,
    /// The faults to use, as prefixes of their names, separated by commas; `none` for none
    /// [default: all].
    #[arg(long, value_delimiter = ',')]
    faults: Vec<String>,
    /// The file for the report as JSON.
    #[arg(long)]
    report: Option<PathBuf>,
    /// The folder of the service's binaries [default: the folder of this program].
    #[arg(long)]
    bins: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
struct GatewaysArgs {
    /// How long to run, in rounds of one minute, but at least two rounds.
    #[arg(long, default_value_t = 8.0)]
    minutes: f64,
    /// The seed from which faults and phones are drawn [default: random].
    #[arg(long)]
    seed: Option<u64>,
    /// Requests a second.
    #[arg(long, default_value_t = 50)]
    rate: u32,
    /// The faults of the first gateway, as prefixes of their names, separated by commas
    /// [default: all].
    #[arg(long, value_delimiter = ',')]
    faults: Vec<String>,
    /// What follows an ambiguous call [default: both in turn].
    #[arg(long, value_enum)]
    ambiguous: Option<AmbiguousArg>,
    /// Gateways that recognise a repeated message, that do not, or both in turn.
    #[arg(long, value_enum, default_value_t = GatewayArg::Alternate)]
    gateway: GatewayArg,
    /// The file for the report as JSON.
    #[arg(long)]
    report: Option<PathBuf>,
    /// The folder of the service's binaries [default: the folder of this program].
    #[arg(long)]
    bins: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
struct MutantsArgs {
    /// Only these mutants, separated by commas.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Only check that the patches apply. This needs no servers.
    #[arg(long)]
    check_patches: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum GatewayArg {
    Alternate,
    Idempotent,
    Plain,
}

impl GatewayArg {
    fn kind(self) -> Option<GatewayKind> {
        match self {
            Self::Alternate => None,
            Self::Idempotent => Some(GatewayKind::Idempotent),
            Self::Plain => Some(GatewayKind::Plain),
        }
    }
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
                Command::Gateways(args) => gateways(args).await,
                Command::Mutants(args) => mutants(args).await,
                Command::Trial(trial) => trial.run().await,
            }
        };
        // Dropping the work kills the service's processes.
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
        gateway: args.gateway.kind(),
        fail_fast: args.fail_fast,
        bins,
        folder: folder.clone(),
    };
    let report = run(&scenario).await.with_context(|| format!("logs: {}", folder.display()))?;
    finish(&report, args.report, &folder)
}

async fn embedded(args: EmbeddedArgs) -> anyhow::Result<ExitCode> {
    let Place { seed, bins, folder } = Place::of(args.seed, args.bins)?;
    let scenario = embedded::Scenario {
        duration: Duration::try_from_secs_f64(args.minutes * 60.0).context("--minutes")?,
        seed,
        rate: args.rate,
        faults: args.faults,
        is_disk_required: !args.without_disk && are_services_required(),
        bins,
        folder: folder.clone(),
    };
    let report = embedded::run(&scenario).await;
    let report = report.with_context(|| format!("logs: {}", folder.display()))?;
    finish(&report, args.report, &folder)
}

async fn gateways(args: GatewaysArgs) -> anyhow::Result<ExitCode> {
    let Place { seed, bins, folder } = Place::of(args.seed, args.bins)?;
    let scenario = gateways::Scenario {
        duration: Duration::try_from_secs_f64(args.minutes * 60.0).context("--minutes")?,
        seed,
        rate: args.rate,
        faults: args.faults,
        ambiguous: args.ambiguous.map(AfterAmbiguous::from),
        kind: args.gateway.kind(),
        bins,
        folder: folder.clone(),
    };
    let report = gateways::run(&scenario).await;
    let report = report.with_context(|| format!("logs: {}", folder.display()))?;
    finish(&report, args.report, &folder)
}

/// The seed of a run, its binaries, and the folder of its logs.
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
        let bins = binaries(bins)?;
        let folder = std::env::temp_dir().join(format!("messager-chaos-{}", std::process::id()));
        std::fs::create_dir_all(&folder)?;
        eprintln!("chaos: seed {seed}, logs in {}", folder.display());
        Ok(Self { seed, bins, folder })
    }
}

fn finish(report: &Report, path: Option<PathBuf>, folder: &Path) -> anyhow::Result<ExitCode> {
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
    let target = chaos.ancestors().nth(2).context("this program is not in a target folder")?;
    let mut mutants = Mutant::all(&root.join("lab/mutants"))?;
    mutants.retain(|mutant| args.only.is_empty() || args.only.contains(&mutant.name));
    if mutants.is_empty() {
        bail!("--only names no mutant");
    }
    let workshop = Workshop::new(root, target)?;

    let mut survivors = 0;
    for (number, mutant) in (1..).zip(&mutants) {
        let (name, about) = (&mutant.name, &mutant.about);
        if args.check_patches {
            match workshop.check(mutant).await {
                Ok(()) => println!("{name:<24}applies"),
                Err(error) => {
                    survivors += 1;
                    println!("{name:<24}DOES NOT APPLY {error:#}");
                }
            }
            continue;
        }
        eprintln!("mutants: {name}: {about}");
        let (shown, count) = (name.clone(), mutants.len());
        let progress = Progress::show(move |lasted| {
            format!("mutants: {shown}, {number} of {count}: {}", clock(lasted))
        });
        let verdict = workshop.judge(mutant, &chaos).await;
        drop(progress);
        let verdict = match verdict {
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
