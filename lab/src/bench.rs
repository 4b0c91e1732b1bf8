//! Measures the service, and baselines of its parts in the same run.
//!
//! Machines differ and are noisy, so the result is the ratio to a baseline. Each scenario also
//! checks that no message was lost or delivered twice.

pub mod baseline;
pub mod compare;
pub mod cost;
pub mod debezium;
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
use crate::kit::progress::{Progress, clock, say};

/// How a benchmark runs.
#[derive(Debug, Clone)]
pub struct Setting {
    /// The folder of the service's binaries.
    pub bins: PathBuf,
    /// The folder for logs.
    pub folder: PathBuf,
    /// How long one measurement takes.
    pub measured: Duration,
    /// How often each is repeated. The table shows the median.
    pub repeats: usize,
    /// The share of the rows to use if a scenario has a fixed number of them.
    pub scale: f64,
}

/// The scenarios. Each can run alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Scenario {
    /// `POST /api` on 256 connections, against pgbench, a no-op and one commit.
    Accept,
    /// One processor empties an outbox into Kafka.
    Relay,
    /// All three processes for a minute, with a flat backlog.
    EndToEnd,
    /// The same with more processors and consumers.
    Scaling,
    /// The time from the answer to the gateway's call, at 200 a second.
    Latency,
    /// `POST /v1/verifications` against `/api`, and checks against pgbench.
    Verification,
    /// Accepting and relaying in a database full of earlier messages.
    Growth,
    /// All parts while a snapshot is held open.
    Snapshot,
    /// `messager` on SQLite.
    Embedded,
    /// Memory, time to ready, size of the binaries.
    Footprint,
}

/// Runs the scenarios one after the other. The report lists the scenarios that fail.
pub async fn run(setting: &Setting, scenarios: &[Scenario]) -> anyhow::Result<Report> {
    let run = Run::now(setting.repeats, setting.measured, setting.scale).await;
    let mut report = Report::new(run, Machine::here().await?);
    for (number, scenario) in (1..).zip(scenarios) {
        let name = scenario.to_possible_value().map_or_else(String::new, |it| it.get_name().into());
        say(&format!("bench: {name}"));
        let (shown, count) = (name.clone(), scenarios.len());
        let _progress = Progress::show(move |lasted| {
            format!("  {shown}, scenario {number} of {count}: {}", clock(lasted))
        });
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
        // One failure must not lose half an hour of other figures.
        let Found { rows, curves } = found.unwrap_or_else(|error| {
            report.failures.push(format!("{name}: {error:#}"));
            say(&format!("  failed: {error:#}"));
            Found::default()
        });
        for row in &rows {
            say(&format!("  {row}"));
        }
        report.rows.extend(rows);
        report.curves.extend(curves);
    }
    Ok(report)
}

impl Setting {
    /// Returns the share of `rows`, at least one.
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
