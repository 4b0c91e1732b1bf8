//! The capacity of the service, from the measured cost of a message.
//!
//! A part with some cores carries at most `cores / cost` messages a second (the utilisation law).
//! How long messages wait below that comes from a simulated queue.

use std::{cmp::Reverse, collections::BinaryHeap, fmt::Write};

use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::{
    report::Report,
    scenario::{
        end_to_end::{self, figure},
        scaling,
    },
};

/// The cost of a message: CPU time of each part in microseconds, WAL and commits.
#[derive(Debug, Clone, PartialEq)]
pub struct Costs {
    parts: Vec<(&'static str, f64)>,
    wal_bytes: f64,
    commits: f64,
    /// The measured messages a second, with `cores` for all parts.
    measured: f64,
    cores: usize,
    /// The measured messages a second with other numbers of processors and consumers.
    others: Vec<(String, f64)>,
}

/// The share of its time that a part may be busy. Beyond it, waits grow fast, and nothing is left
/// for a burst, an autovacuum or a lost machine.
const BUSY: f64 = 0.7;
/// The bytes a second that a log device is trusted to write.
const LOG: f64 = 100e6;
/// The cores of a large database server.
const LARGE: f64 = 16.0;
const POSTGRES: &str = "PostgreSQL";
const LAB: &str = "clients and gateway of the benchmark";

impl Costs {
    pub fn read(report: &Report) -> anyhow::Result<Self> {
        let median = |figure| report.median(end_to_end::SCENARIO, figure);
        let parts = [
            ("api", figure::API),
            ("processor", figure::PROCESSOR),
            ("consumer", figure::CONSUMER),
            (POSTGRES, figure::POSTGRES),
            ("Kafka", figure::KAFKA),
            (LAB, figure::LAB),
        ];
        let parts = parts.into_iter().map(|(name, figure)| Ok((name, median(figure)?)));
        let others = [(1, 1), (2, 1), (1, 2), (2, 2)].into_iter().filter_map(|(some, others)| {
            let figure = scaling::figure(some, others);
            let rate = report.median(scaling::SCENARIO, &figure).ok()?;
            Some((figure, rate))
        });
        Ok(Self {
            parts: parts.collect::<anyhow::Result<_>>()?,
            wal_bytes: median(figure::WAL)?,
            commits: median(figure::COMMITS)?,
            measured: median(figure::RATE)?,
            cores: report.machine.cores,
            others: others.collect(),
        })
    }

    fn of(&self, part: &str) -> f64 {
        self.parts.iter().find(|(name, _)| *name == part).map_or(f64::NAN, |(_, cost)| *cost)
    }

    /// Returns the cost of all parts of the benchmark's machine.
    fn all(&self) -> f64 {
        self.parts.iter().map(|(_, cost)| cost).sum()
    }
}

/// Returns the tables of `docs/scaling.md`.
pub fn tables(costs: &Costs) -> String {
    [one_machine(costs), model_and_measurement(costs), machines(costs), waits(costs), split(costs)]
        .join("\n")
}

fn one_machine(costs: &Costs) -> String {
    let mut table =
        "| part | CPU-µs a message | share | one core carries |\n|---|---|---|---|\n".to_owned();
    for (name, cost) in &costs.parts {
        let share = cost / costs.all() * 100.0;
        // Writing to memory does not fail.
        let _ = writeln!(table, "| {name} | {cost:.1} | {share:.0} % | {}/s |", rate(1e6 / cost));
    }
    let _ = writeln!(
        table,
        "| all | {:.1} | 100 % | {}/s |\n\nA message also costs {:.0} bytes of WAL and {:.3} commits.",
        costs.all(),
        rate(1e6 / costs.all()),
        costs.wal_bytes,
        costs.commits
    );
    let served = costs.parts.iter().filter(|(name, _)| *name != LAB);
    if let Some((name, _)) = served.max_by(|left, right| left.1.total_cmp(&right.1)) {
        let _ = writeln!(table, "If each part has one core, {name} reaches its limit first.");
    }
    table
}

#[expect(clippy::cast_precision_loss, reason = "some cores")]
fn model_and_measurement(costs: &Costs) -> String {
    let most = costs.cores as f64 * 1e6 / costs.all();
    let mut table =
        "| run on one machine | limit of the model | measured | measured / limit |\n|---|---|---|---|\n"
            .to_owned();
    let first = [("end to end".to_owned(), costs.measured)];
    for (name, measured) in first.iter().chain(&costs.others) {
        let share = measured / most;
        let _ =
            writeln!(table, "| {name} | {}/s | {}/s | {share:.2} |", rate(most), rate(*measured));
    }
    table
}

fn machines(costs: &Costs) -> String {
    let mut table =
        "| messages a second | api | processor | consumer | PostgreSQL | WAL | commits |\n\
        |---|---|---|---|---|---|---|\n"
            .to_owned();
    for target in [1e3, 5e3, 10e3, 20e3, 50e3, 100e3] {
        let cores = |part| format!("{:.1}", target * costs.of(part) / 1e6 / BUSY);
        let _ = writeln!(
            table,
            "| {} | {} | {} | {} | {} | {:.1} MB/s | {}/s |",
            rate(target),
            cores("api"),
            cores("processor"),
            cores("consumer"),
            cores(POSTGRES),
            target * costs.wal_bytes / 1e6,
            rate(target * costs.commits),
        );
    }
    table
}

/// Waits for a database server with four cores.
fn waits(costs: &Costs) -> String {
    const CORES: usize = 4;
    let service = costs.of(POSTGRES) / 1e6;
    let mut table = format!(
        "| utilisation of PostgreSQL's {CORES} cores | messages a second | mean wait | 99th percentile |\n\
         |---|---|---|---|\n"
    );
    for busy in [0.5, 0.7, 0.8, 0.9, 0.95, 0.98] {
        let queue = Queue { servers: CORES, service, busy };
        let Waits { mean, p99 } = queue.simulate(400_000);
        let _ = writeln!(
            table,
            "| {:.0} % | {}/s | {:.0} µs | {:.0} µs |",
            busy * 100.0,
            rate(queue.rate()),
            mean * 1e6,
            p99 * 1e6
        );
    }
    table
}

fn split(costs: &Costs) -> String {
    let by_cpu = LARGE * BUSY * 1e6 / costs.of(POSTGRES);
    let by_log = LOG * BUSY / costs.wal_bytes;
    let one = by_cpu.min(by_log);
    let mut table = format!(
        "One PostgreSQL with {LARGE:.0} cores carries {}/s by its CPU and {}/s by a log device of \
         {:.0} MB/s, with {:.0} % of either in use. The lower of the two counts: {}/s.\n\n\
         | messages a second | databases | messages a second in each |\n|---|---|---|\n",
        rate(by_cpu),
        rate(by_log),
        LOG / 1e6,
        BUSY * 100.0,
        rate(one)
    );
    for target in [20e3, 50e3, 100e3, 200e3, 500e3] {
        let databases = (target / one).ceil();
        let _ = writeln!(
            table,
            "| {} | {databases:.0} | {}/s |",
            rate(target),
            rate(target / databases)
        );
    }
    table
}

/// A queue with random arrivals and a constant service time.
#[derive(Debug, Clone, Copy)]
struct Queue {
    servers: usize,
    /// Seconds.
    service: f64,
    /// The share of its time that a server is busy.
    busy: f64,
}

/// In seconds.
#[derive(Debug, Clone, Copy)]
struct Waits {
    mean: f64,
    p99: f64,
}

/// Nanoseconds, because floats have no total order.
type Moment = u64;

impl Queue {
    #[expect(clippy::cast_precision_loss, reason = "some servers")]
    fn rate(&self) -> f64 {
        self.servers as f64 * self.busy / self.service
    }

    /// Serves messages in the order of their arrival, by the first server that is free.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_precision_loss,
        clippy::cast_sign_loss,
        reason = "some hours in nanoseconds"
    )]
    fn simulate(&self, messages: usize) -> Waits {
        let mut rng = StdRng::seed_from_u64(1);
        let mut free: BinaryHeap<Reverse<Moment>> = vec![Reverse(0); self.servers].into();
        let (mut now, mut waits) = (0.0_f64, Vec::with_capacity(messages));
        for _ in 0..messages {
            now += -(1.0 - rng.random::<f64>()).ln() / self.rate();
            let came = (now * 1e9) as Moment;
            let Reverse(earliest) = free.pop().unwrap_or_default();
            let begins = came.max(earliest);
            free.push(Reverse(begins + (self.service * 1e9) as Moment));
            waits.push(begins - came);
        }
        waits.sort_unstable();
        let sum: u64 = waits.iter().sum();
        let p99 = waits.get(messages * 99 / 100).copied().unwrap_or(0);
        Waits { mean: sum as f64 / messages as f64 / 1e9, p99: p99 as f64 / 1e9 }
    }
}

/// Formats with at least two significant digits and a separator of thousands.
fn rate(value: f64) -> String {
    match value {
        value if value >= 1e6 => format!("{:.1} million", value / 1e6),
        value if value >= 10e3 => format!("{:.0},000", value / 1e3),
        value if value >= 1e3 => format!("{:.0},{:03.0}", (value / 1e3).floor(), value % 1e3),
        value => format!("{value:.0}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::report::{Machine, Row, Run, Spread};

    /// The formula of Pollaczek and Khinchine: with one server and one service time, `busy ·
    /// service / 2(1 - busy)`.
    #[test]
    fn the_simulated_queue_waits_as_the_formula_says() {
        for busy in [0.5, 0.8, 0.9] {
            let queue = Queue { servers: 1, service: 0.001, busy };

            let mean = queue.simulate(1_000_000).mean;

            let formula = busy * queue.service / (2.0 * (1.0 - busy));
            assert!((mean / formula - 1.0).abs() < 0.05, "{mean} s, {formula} s at {busy}");
        }
    }

    #[test]
    fn messages_wait_less_with_more_servers() {
        let wait = |servers| Queue { servers, service: 0.001, busy: 0.9 }.simulate(100_000).mean;

        assert!(wait(4) < wait(2) && wait(2) < wait(1));
    }

    #[test]
    fn the_limit_of_a_machine_is_its_cores_divided_by_the_cost_of_all_parts() {
        let costs = Costs::read(&report()).unwrap();

        let tables = tables(&costs);

        // 60 µs of two cores.
        assert!(tables.contains("| end to end | 33,000/s | 20,000/s | 0.60 |"), "{tables}");
        // 16 cores, 70 % busy, 10 µs each; 70 MB/s of 1,000 bytes.
        assert!(tables.contains("1.1 million/s by its CPU and 70,000/s by a log"), "{tables}");
        assert!(tables.contains("| 100,000 | 2 | 50,000/s |"), "{tables}");
    }

    #[test]
    fn a_report_without_a_figure_of_the_model_is_an_error() {
        let mut report = report();
        report.rows.remove(0);

        assert!(Costs::read(&report).is_err());
    }

    fn report() -> Report {
        let mut report = Report::new(Run::default(), Machine { cores: 2, ..Machine::default() });
        let parts = [figure::API, figure::PROCESSOR, figure::CONSUMER, figure::POSTGRES];
        let row = |figure, value| Row::new(end_to_end::SCENARIO, figure, "", Spread::once(value));
        report.rows = parts.map(|figure| row(figure, 10.0)).into();
        report.rows.extend([
            row(figure::KAFKA, 10.0),
            row(figure::LAB, 10.0),
            row(figure::WAL, 1_000.0),
            row(figure::COMMITS, 0.01),
            row(figure::RATE, 20_000.0),
        ]);
        report
    }
}
