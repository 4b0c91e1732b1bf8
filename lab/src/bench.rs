//! What the service does in a second, beside what the parts that it is made of can do.
//!
//! Machines differ and are noisy: what is quoted is the ratio to a baseline that was taken in the
//! same run. Each scenario also checks that nothing was lost or done twice.

pub mod baseline;
pub mod compare;
pub mod cost;
pub mod measure;
pub mod model;
pub mod pages;
pub mod plot;
pub mod report;
pub mod scenario;
pub mod statements;

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use clap::ValueEnum;

use self::report::{Found, Machine, Report, Run};

/// How a benchmark is run.
#[derive(Debug, Clone)]
pub struct Setting {
    /// Where the service's binaries are.
    pub bins: PathBuf,
    /// Where logs go.
    pub folder: PathBuf,
    /// How long one measurement takes.
    pub measured: Duration,
    /// How often each is repeated; the table shows the median.
    pub repeats: usize,
    /// Rows for the scenarios with a given number of them, as a share of what they ask for.
    pub scale: f64,
}

/// What is measured. Each can be run alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Scenario {
    /// `POST /api`, 256 connections, against pgbench, a no-op and one commit.
    Accept,
    /// One processor empties an outbox into Kafka.
    Relay,
    /// All three processes for a minute, with a flat backlog.
    EndToEnd,
    /// The same with more processors and consumers.
    Scaling,
    /// From the answer to the gateway's call, at 200 a second.
    Latency,
    /// `POST /v1/verifications` against `/api`, and checks against pgbench.
    Verification,
    /// Accepting and relaying in a database with a past.
    Growth,
    /// All parts while a snapshot is held open.
    Snapshot,
    /// `messager` on SQLite.
    Embedded,
    /// Memory, time to ready, size of the binaries.
    Footprint,
}

/// Runs the scenarios one after the other. One that fails is told of in the report.
pub async fn run(setting: &Setting, scenarios: &[Scenario]) -> anyhow::Result<Report> {
    let run = Run::now(setting.repeats, setting.measured, setting.scale).await;
    let mut report = Report::new(run, Machine::here().await?);
    for scenario in scenarios {
        let name = scenario.to_possible_value().map_or_else(String::new, |it| it.get_name().into());
        eprintln!("bench: {name}");
        let found: anyhow::Result<Found> = match scenario {
            Scenario::Accept => scenario::accept::measure(setting).await,
            Scenario::Relay => scenario::relay::measure(setting).await,
            Scenario::EndToEnd => scenario::end_to_end::measure(setting).await,
            Scenario::Scaling => scenario::scaling::measure(setting).await,
            Scenario::Latency => scenario::latency::measure(setting).await,
            Scenario::Verification => scenario::verification::measure(setting).await,
            Scenario::Growth => scenario::growth::measure(setting).await,
            Scenario::Snapshot => scenario::snapshot::measure(setting).await,
            Scenario::Embedded => scenario::embedded::measure(setting).await,
            Scenario::Footprint => scenario::footprint::measure(setting).await,
        };
        // Half an hour of other figures is not thrown away for it.
        let Found { rows, curves } = found.unwrap_or_else(|error| {
            report.failures.push(format!("{name}: {error:#}"));
            eprintln!("  failed: {error:#}");
            Found::default()
        });
        for row in &rows {
            eprintln!("  {row}");
        }
        report.rows.extend(rows);
        report.curves.extend(curves);
    }
    Ok(report)
}

impl Setting {
    /// A share of `rows`, at least one.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_precision_loss,
        clippy::cast_sign_loss,
        reason = "some millions, times a small factor"
    )]
    fn scaled(&self, rows: usize) -> usize {
        ((rows as f64 * self.scale) as usize).max(1)
    }

    fn bin(&self, name: &str) -> PathBuf {
        self.bins.join(name)
    }

    fn examples(&self) -> &Path {
        &self.bins
    }
}
