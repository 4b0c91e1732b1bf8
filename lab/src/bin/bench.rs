//! The benchmark's command line.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::Context;
use clap::{Parser, Subcommand, ValueEnum};
use lab::{
    bench::{
        Scenario, Setting,
        compare::regressions,
        model::{Costs, tables},
        pages::{PAGES, renew},
        plot::{bars, latencies},
        report::Report,
        run,
    },
    kit::environment::binaries,
};

#[derive(Debug, Parser)]
#[command(version, about = "Measures the service against baselines of its parts.")]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Measure baselines and the service, and print the table.
    ///
    /// Exits with 1 if a bar is missed or a scenario fails. Run it inside `scripts/services run`,
    /// with release binaries.
    Run(RunArgs),
    /// Compare the results of two runs.
    ///
    /// Exits with 1 if a figure with a bar got worse.
    Compare {
        before: PathBuf,
        after: PathBuf,
        /// The share of a figure that counts as noise.
        #[arg(long, default_value_t = 0.2)]
        tolerance: f64,
    },
    /// Print the table of a run's results.
    Report { results: PathBuf },
    /// Print the capacity that follows from the cost of a message in a run.
    Model { results: PathBuf },
    /// Draw the results of a run.
    Plot {
        results: PathBuf,
        #[arg(long, default_value = "docs/performance")]
        folder: PathBuf,
    },
    /// Renew the tables and drawings of docs/performance.md and docs/scaling.md from a run.
    Docs { results: PathBuf },
}

#[derive(Debug, clap::Args)]
struct RunArgs {
    /// Only these scenarios, separated by commas [default: all].
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Scenario>,
    /// How often each scenario is measured.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    repeats: u32,
    /// How long one measurement takes.
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u64).range(1..))]
    seconds: u64,
    /// The share of the rows to use if a scenario has many; below 1, long scenarios are also
    /// shortened.
    #[arg(long, default_value_t = 1.0)]
    scale: f64,
    /// The file for the results as JSON.
    #[arg(long)]
    report: Option<PathBuf>,
    /// The folder of the service's binaries [default: the folder of this program].
    #[arg(long)]
    bins: Option<PathBuf>,
}

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    match Args::parse().command {
        Command::Run(args) => bench(args).await,
        Command::Report { results } => {
            println!("{}", read(&results)?);
            Ok(ExitCode::SUCCESS)
        }
        Command::Model { results } => {
            println!("{}", tables(&Costs::read(&read(&results)?)?));
            Ok(ExitCode::SUCCESS)
        }
        Command::Plot { results, folder } => {
            plot(&read(&results)?, &folder)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Docs { results } => {
            let report = read(&results)?;
            plot(&report, Path::new("docs/performance"))?;
            for page in PAGES {
                let text = std::fs::read_to_string(page).context(page)?;
                std::fs::write(page, renew(&text, &results, &report)?).context(page)?;
            }
            Ok(ExitCode::SUCCESS)
        }
        Command::Compare { before, after, tolerance } => {
            let found = regressions(&read(&before)?, &read(&after)?, tolerance);
            for line in &found {
                println!("{line}");
            }
            Ok(if found.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
    }
}

async fn bench(args: RunArgs) -> anyhow::Result<ExitCode> {
    let folder = std::env::temp_dir().join(format!("messager-bench-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    let setting = Setting {
        bins: binaries(args.bins)?,
        folder: folder.clone(),
        measured: Duration::from_secs(args.seconds),
        repeats: usize::try_from(args.repeats)?,
        scale: args.scale,
    };
    let all = Scenario::value_variants();
    let scenarios = if args.only.is_empty() { all } else { &*args.only };
    let report = run(&setting, scenarios).await?;
    println!("{report}");
    if let Some(path) = args.report {
        let mut json = serde_json::to_vec_pretty(&report)?;
        json.push(b'\n');
        std::fs::write(&path, json).with_context(|| path.display().to_string())?;
    }
    if report.failures.is_empty() {
        std::fs::remove_dir_all(&folder)?;
    } else {
        eprintln!("logs: {}", folder.display());
    }
    Ok(if report.is_good() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn plot(report: &Report, folder: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(folder)?;
    std::fs::write(folder.join("bars.svg"), bars(report))?;
    std::fs::write(folder.join("latency.svg"), latencies(&report.curves))?;
    Ok(())
}

fn read(path: &Path) -> anyhow::Result<Report> {
    let json = std::fs::read(path).with_context(|| path.display().to_string())?;
    serde_json::from_slice(&json).with_context(|| path.display().to_string())
}
