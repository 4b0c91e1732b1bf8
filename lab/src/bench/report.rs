//! The table of figures.

use std::fmt::{self, Display};

use serde::{Deserialize, Serialize};

use crate::environment::variable;

/// All that a run found.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Report {
    pub machine: Machine,
    pub rows: Vec<Row>,
}

/// Where it was found.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Machine {
    pub processor: String,
    pub cores: usize,
    pub kernel: String,
    pub postgres: String,
}

/// One figure of ours, beside its baseline.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Row {
    pub scenario: String,
    pub figure: String,
    pub unit: String,
    pub ours: Spread,
    /// What it is held against; none where the figure itself is.
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

/// What a ratio, or a figure without a baseline, has to be.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Bar {
    AtLeast(f64),
    AtMost(f64),
}

impl Report {
    pub fn new(machine: Machine) -> Self {
        Self { machine, rows: Vec::new() }
    }

    pub fn misses(&self) -> impl Iterator<Item = &Row> {
        self.rows.iter().filter(|row| !row.meets_bar())
    }
}

impl Machine {
    pub async fn here() -> anyhow::Result<Self> {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let processor = read("/proc/cpuinfo")
            .lines()
            .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
            .map_or_else(|| "unknown".to_owned(), |(_, name)| name.to_owned());
        let version =
            tokio::process::Command::new(format!("{}/postgres", variable("TEST_PG_BIN")?))
                .arg("--version")
                .output()
                .await?;
        Ok(Self {
            processor,
            cores: std::thread::available_parallelism()?.get(),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            postgres: String::from_utf8_lossy(&version.stdout).trim().to_owned(),
        })
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

    /// What we should like, where no bar is set.
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

    /// What the bars are about.
    pub fn judged(&self) -> f64 {
        self.ratio().unwrap_or(self.ours.median)
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
        let bar = |bar: Option<Bar>| bar.map_or_else(String::new, |bar| bar.to_string());
        let ratio = self.ratio().map_or_else(String::new, |ratio| format!("{}×", short(ratio)));
        let baseline = baseline
            .as_ref()
            .map_or_else(String::new, |Baseline { name, value }| format!("{name}: {value}"));
        let verdict = match self.bar {
            None => "",
            Some(_) if !self.meets_bar() => "**missed**",
            Some(_) if self.want.is_some_and(|want| want.holds(self.judged())) => "as wanted",
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
        let Machine { processor, cores, kernel, postgres } = &self.machine;
        writeln!(f, "{cores} cores of {processor}, Linux {kernel}, {postgres}\n")?;
        writeln!(f, "| scenario | figure | ours | baseline | ratio | bar | we want | |")?;
        writeln!(f, "|---|---|---|---|---|---|---|---|")?;
        self.rows.iter().try_for_each(|row| writeln!(f, "{row}"))
    }
}

/// Three significant digits, or all before the point.
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
    fn a_ratio_is_judged_where_there_is_a_baseline() {
        let row = Row::new("accept", "requests", "/s", Spread::of(vec![30.0, 10.0, 20.0]));

        assert!(row.clone().at_least(20.0, 40.0).meets_bar());
        assert!(!row.clone().against("pgbench", Spread::once(11.0)).at_least(2.0, 3.0).meets_bar());
        assert!(row.against("pgbench", Spread::once(11.0)).at_most(2.0, 3.0).meets_bar());
    }

    #[test]
    fn a_row_shows_medians_with_their_spread() {
        let row = Row::new("relay", "rows", "/s", Spread::of(vec![61_234.0, 50_000.0, 70_000.0]))
            .against("claims", Spread::once(80_000.0))
            .at_least(0.5, 0.8);

        let line = row.to_string();

        assert_eq!(
            line,
            "| relay | rows | 61234 (50000–70000) /s | claims: 80000 | 0.77× | ≥ 0.50 | ≥ 0.80 | met |"
        );
    }
}
