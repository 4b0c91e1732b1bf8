//! The results of a run, and their table.
//!
//! This is one file, because it is the format of the report file, which other runs are compared
//! with.

use std::{
    fmt::{self, Display},
    time::Duration,
};

use anyhow::Context;
use serde::{Deserialize, Serialize};

use crate::kit::environment::variable;

/// The results of a run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Report {
    pub run: Run,
    pub machine: Machine,
    pub rows: Vec<Row>,
    pub curves: Vec<Curve>,
    /// Scenarios that failed or lost a message, with the reason.
    pub failures: Vec<String>,
}

/// How the run was made.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Run {
    /// When it began (RFC 3339, UTC).
    pub date: String,
    /// The commit of the source, with `-dirty` if it had changes.
    pub commit: String,
    pub repeats: usize,
    /// The length of one measurement.
    pub seconds: u64,
    /// The share of the rows that scenarios used. Below 1 the run is a quick look.
    pub scale: f64,
}

/// The machine of the run.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Machine {
    pub processor: String,
    pub cores: usize,
    pub memory_gib: f64,
    pub kernel: String,
    pub postgres: String,
    pub kafka: String,
}

/// The results of a scenario.
#[derive(Debug, Clone, Default)]
pub struct Found {
    pub rows: Vec<Row>,
    pub curves: Vec<Curve>,
}

/// The distribution of a latency over all repeats.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Curve {
    pub scenario: String,
    pub figure: String,
    pub count: usize,
    /// A share of the messages, and the milliseconds that this share does not exceed.
    pub points: Vec<(f64, f64)>,
}

/// The points of a curve: from one to the next, about half as many messages take longer.
const SHARES: [f64; 18] = [
    0.0, 0.1, 0.25, 0.5, 0.625, 0.75, 0.875, 0.9, 0.9375, 0.95, 0.97, 0.98, 0.99, 0.995, 0.998,
    0.999, 0.9999, 1.0,
];

/// One figure of the service, with its baseline.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Row {
    pub scenario: String,
    pub figure: String,
    pub unit: String,
    pub ours: Spread,
    /// The baseline of the ratio. Without one, the figure itself is judged.
    pub baseline: Option<Baseline>,
    pub bar: Option<Bar>,
    pub want: Option<Bar>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Baseline {
    pub name: String,
    pub value: Spread,
}

/// Repeated measurements of one thing.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub struct Spread {
    pub least: f64,
    pub median: f64,
    pub most: f64,
}

/// A bound for a ratio, or for a figure without a baseline.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Bar {
    AtLeast(f64),
    AtMost(f64),
}

impl Report {
    pub fn new(run: Run, machine: Machine) -> Self {
        Self { run, machine, rows: Vec::new(), curves: Vec::new(), failures: Vec::new() }
    }

    /// Whether every scenario succeeded, and every bar is met.
    pub fn is_good(&self) -> bool {
        self.failures.is_empty() && self.misses().next().is_none()
    }

    /// Returns the median of a figure.
    pub fn median(&self, scenario: &str, figure: &str) -> anyhow::Result<f64> {
        let mut rows = self.rows.iter();
        let row = rows.find(|row| row.scenario == scenario && row.figure == figure);
        Ok(row.with_context(|| format!("no {scenario}: {figure}"))?.ours.median)
    }

    pub fn misses(&self) -> impl Iterator<Item = &Row> {
        self.rows.iter().filter(|row| !row.meets_bar())
    }
}

impl Run {
    /// Describes a run that starts now, of the source in this folder.
    pub async fn now(repeats: usize, measured: Duration, scale: f64) -> Self {
        Self {
            date: told("date", &["-u", "+%Y-%m-%dT%H:%M:%SZ"]).await,
            commit: told("git", &["describe", "--always", "--dirty"]).await,
            repeats,
            seconds: measured.as_secs(),
            scale,
        }
    }
}

impl Machine {
    pub async fn here() -> anyhow::Result<Self> {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let field = |path, name| {
            let text = read(path);
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.split_once(':'));
            line.map_or_else(|| "unknown".to_owned(), |(_, value)| value.trim().to_owned())
        };
        let memory = field("/proc/meminfo", "MemTotal");
        let kibibytes: f64 = memory.trim_end_matches(" kB").parse().unwrap_or(f64::NAN);
        let libs = std::fs::read_dir(variable("TEST_KAFKA_LIBS")?)?;
        // "kafka_2.13-4.1.0.jar"
        let kafka = libs.filter_map(|file| {
            let name = file.ok()?.file_name().into_string().ok()?;
            let (_, version) =
                name.strip_prefix("kafka_")?.strip_suffix(".jar")?.split_once('-')?;
            Some(format!("Kafka {version}"))
        });
        Ok(Self {
            processor: field("/proc/cpuinfo", "model name"),
            cores: std::thread::available_parallelism()?.get(),
            memory_gib: (kibibytes / 1_048_576.0).round(),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            postgres: told(&format!("{}/postgres", variable("TEST_PG_BIN")?), &["--version"]).await,
            kafka: { kafka }.next().unwrap_or_else(|| "Kafka".to_owned()),
        })
    }
}

/// Returns the output of a program, or an empty text.
async fn told(program: &str, args: &[&str]) -> String {
    let output = tokio::process::Command::new(program).args(args).output().await;
    let output = output.map(|output| output.stdout).unwrap_or_default();
    String::from_utf8_lossy(&output).trim().to_owned()
}

impl From<Vec<Row>> for Found {
    fn from(rows: Vec<Row>) -> Self {
        Self { rows, curves: Vec::new() }
    }
}

impl Curve {
    /// Takes latencies in microseconds.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_precision_loss,
        clippy::cast_sign_loss,
        reason = "some millions, times a share"
    )]
    pub fn new(scenario: &str, figure: &str, mut micros: Vec<u32>) -> Self {
        micros.sort_unstable();
        let last = micros.len().saturating_sub(1);
        let at = |share: f64| {
            let place = (micros.len() as f64 * share).ceil() as usize;
            micros.get(place.saturating_sub(1).min(last)).copied().unwrap_or(0)
        };
        Self {
            scenario: scenario.to_owned(),
            figure: figure.to_owned(),
            count: micros.len(),
            points: SHARES.iter().map(|share| (*share, f64::from(at(*share)) / 1_000.0)).collect(),
        }
    }
}

impl Row {
    pub fn new(scenario: &str, figure: impl Into<String>, unit: &str, ours: Spread) -> Self {
        Self {
            scenario: scenario.to_owned(),
            figure: figure.into(),
            unit: unit.to_owned(),
            ours,
            baseline: None,
            bar: None,
            want: None,
        }
    }

    #[must_use]
    pub fn against(mut self, name: impl Into<String>, value: Spread) -> Self {
        self.baseline = Some(Baseline { name: name.into(), value });
        self
    }

    #[must_use]
    pub fn at_least(mut self, bar: f64, want: f64) -> Self {
        (self.bar, self.want) = (Some(Bar::AtLeast(bar)), Some(Bar::AtLeast(want)));
        self
    }

    #[must_use]
    pub fn at_most(mut self, bar: f64, want: f64) -> Self {
        (self.bar, self.want) = (Some(Bar::AtMost(bar)), Some(Bar::AtMost(want)));
        self
    }

    /// Sets a target without a bar.
    #[must_use]
    pub fn wanted(mut self, want: Bar) -> Self {
        self.want = Some(want);
        self
    }

    /// Ours divided by the baseline's.
    pub fn ratio(&self) -> Option<f64> {
        let baseline = self.baseline.as_ref()?.value.median;
        (baseline > 0.0).then(|| self.ours.median / baseline)
    }

    /// Returns the value that the bars judge.
    pub fn judged(&self) -> f64 {
        self.ratio().unwrap_or(self.ours.median)
    }

    /// The figure that is judged, with its bar.
    pub fn verdict(&self) -> String {
        let unit = if self.baseline.is_some() { "×" } else { "" };
        let bar = self.bar.map_or_else(String::new, |bar| format!(" ({bar}{unit})"));
        format!("{}{unit}{bar}", short(self.judged()))
    }

    pub fn meets_bar(&self) -> bool {
        self.bar.is_none_or(|bar| bar.holds(self.judged()))
    }
}

impl Spread {
    pub fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let at = |place: usize| values.get(place).copied().unwrap_or(f64::NAN);
        Self {
            least: at(0),
            median: at(values.len() / 2),
            most: at(values.len().saturating_sub(1)),
        }
    }

    pub fn once(value: f64) -> Self {
        Self { least: value, median: value, most: value }
    }
}

impl Bar {
    pub fn value(self) -> f64 {
        match self {
            Self::AtLeast(bar) | Self::AtMost(bar) => bar,
        }
    }

    /// How many times as good as it has to be a value is.
    pub fn times(self, value: f64) -> f64 {
        match self {
            Self::AtLeast(bar) => value / bar,
            Self::AtMost(bar) => bar / value,
        }
    }

    pub fn holds(self, value: f64) -> bool {
        match self {
            Self::AtLeast(bar) => value >= bar,
            Self::AtMost(bar) => value <= bar,
        }
    }
}

impl Display for Bar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtLeast(bar) => write!(f, "≥ {}", short(*bar)),
            Self::AtMost(bar) => write!(f, "≤ {}", short(*bar)),
        }
    }
}

impl Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", short(self.median))?;
        if self.least < self.most {
            write!(f, " ({}–{})", short(self.least), short(self.most))?;
        }
        Ok(())
    }
}

impl Display for Row {
    /// A line of a Markdown table.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { scenario, figure, unit, ours, baseline, .. } = self;
        let unit_of_bars = if baseline.is_some() { "×" } else { "" };
        let bar =
            |bar: Option<Bar>| bar.map_or_else(String::new, |bar| format!("{bar}{unit_of_bars}"));
        let ratio = self.ratio().map_or_else(String::new, |ratio| format!("{}×", short(ratio)));
        let baseline = baseline
            .as_ref()
            .map_or_else(String::new, |Baseline { name, value }| format!("{name}: {value}"));
        let verdict = match self.bar {
            None => "",
            Some(_) if !self.meets_bar() => "**missed**",
            Some(_) if self.want.is_some_and(|want| want.holds(self.judged())) => "target met",
            Some(_) => "met",
        };
        write!(
            f,
            "| {scenario} | {figure} | {ours} {unit} | {baseline} | {ratio} | {} | {} | {verdict} |",
            bar(self.bar),
            bar(self.want),
        )
    }
}

impl Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Run { date, commit, repeats, seconds, scale } = &self.run;
        let Machine { processor, cores, memory_gib, kernel, postgres, kafka } = &self.machine;
        writeln!(
            f,
            "{cores} cores of {processor}, {memory_gib:.0} GiB, Linux {kernel}, {postgres}, {kafka}; \
             {date}, commit {commit}, {repeats} × {seconds} s, scale {scale}\n"
        )?;
        if *scale < 1.0 {
            writeln!(f, "A quick look with fewer rows and less time, not a result.\n")?;
        }
        writeln!(f, "| scenario | figure | service | baseline | ratio | bar | target | |")?;
        writeln!(f, "|---|---|---|---|---|---|---|---|")?;
        self.rows.iter().try_for_each(|row| writeln!(f, "{row}"))?;
        self.failures.iter().try_for_each(|failure| writeln!(f, "\n**Failed:** {failure}"))
    }
}

/// Formats with three significant digits, or all digits before the point.
fn short(value: f64) -> String {
    let digits = match value.abs() {
        size if size >= 100.0 => 0,
        size if size >= 10.0 => 1,
        _ => 2,
    };
    format!("{value:.digits$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_with_a_baseline_is_judged_by_its_ratio() {
        let row = Row::new("accept", "requests", "/s", Spread::of(vec![30.0, 10.0, 20.0]));

        assert!(row.clone().at_least(20.0, 40.0).meets_bar());
        assert!(!row.clone().against("pgbench", Spread::once(11.0)).at_least(2.0, 3.0).meets_bar());
        assert!(row.against("pgbench", Spread::once(11.0)).at_most(2.0, 3.0).meets_bar());
    }

    #[test]
    fn a_point_of_a_curve_is_the_value_that_its_share_does_not_exceed() {
        let curve = Curve::new("latency", "all", (1..=1_000).rev().map(|at| at * 1_000).collect());

        let at = |share: f64| curve.points.iter().find(|point| point.0.total_cmp(&share).is_eq());
        assert_eq!(at(0.5), Some(&(0.5, 500.0)));
        assert_eq!(at(0.99), Some(&(0.99, 990.0)));
        assert_eq!(at(1.0), Some(&(1.0, 1_000.0)));
    }

    #[test]
    fn a_row_shows_medians_with_their_spread() {
        let row = Row::new("relay", "rows", "/s", Spread::of(vec![61_234.0, 50_000.0, 70_000.0]))
            .against("claims", Spread::once(80_000.0))
            .at_least(0.5, 0.8);

        let line = row.to_string();

        assert_eq!(
            line,
            "| relay | rows | 61234 (50000–70000) /s | claims: 80000 | 0.77× | ≥ 0.50× | ≥ 0.80× | met |"
        );
    }
}
