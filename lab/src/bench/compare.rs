//! Whether a run is worse than one before.

use super::report::{Bar, Report, Row};

/// Figures that are worse than before by more than `tolerance`, as a share; and those that are
/// gone.
///
/// Ratios are compared where there are baselines: another machine, or another hour, changes both.
pub fn regressions(before: &Report, after: &Report, tolerance: f64) -> Vec<String> {
    let worse = |old: &Row| {
        let bar = old.bar?;
        let name = format!("{}: {}", old.scenario, old.figure);
        // A figure may be judged twice: by itself, and beside a baseline.
        let key = |row: &Row| (row.scenario.clone(), row.figure.clone(), row.baseline.is_some());
        let same = |row: &&Row| key(row) == key(old);
        let Some(new) = after.rows.iter().find(same) else {
            return Some(format!("{name} was not measured"));
        };
        let (old, new) = (old.judged(), new.judged());
        let is_worse = match bar {
            Bar::AtLeast(_) => new < old * (1.0 - tolerance),
            Bar::AtMost(_) => new > old * (1.0 + tolerance),
        };
        is_worse.then(|| format!("{name}: {new:.2} after {old:.2}"))
    };
    before.rows.iter().filter_map(worse).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::report::{Machine, Run, Spread};

    fn report(rate: f64, latency: f64) -> Report {
        let rows = vec![
            Row::new("accept", "rate", "/s", Spread::once(rate)).at_least(1.0, 2.0),
            Row::new("accept", "p99", "ms", Spread::once(latency)).at_most(9.0, 5.0),
        ];
        Report { rows, ..Report::new(Run::default(), Machine::default()) }
    }

    #[test]
    fn noise_is_no_regression() {
        assert_eq!(regressions(&report(100.0, 10.0), &report(91.0, 10.9), 0.1), [""; 0]);
    }

    #[test]
    fn worse_is_less_of_one_and_more_of_another() {
        let found = regressions(&report(100.0, 10.0), &report(89.0, 11.1), 0.1);

        assert_eq!(found, ["accept: rate: 89.00 after 100.00", "accept: p99: 11.10 after 10.00"]);
    }

    #[test]
    fn a_figure_that_is_judged_twice_is_compared_with_its_like() {
        let report = |ratio: f64, rate: f64| {
            let row = || Row::new("relay", "rows", "/s", Spread::once(rate)).at_least(0.5, 1.0);
            let beside = row().against("Kafka", Spread::once(rate / ratio));
            Report { rows: vec![beside, row()], ..report(1.0, 1.0) }
        };

        assert_eq!(regressions(&report(2.0, 100.0), &report(2.0, 100.0), 0.1), [""; 0]);
        assert_eq!(
            regressions(&report(2.0, 100.0), &report(2.0, 50.0), 0.1),
            ["relay: rows: 50.00 after 100.00"]
        );
    }

    #[test]
    fn what_is_not_measured_any_more_is_told() {
        let mut after = report(100.0, 10.0);
        after.rows.pop();

        assert_eq!(
            regressions(&report(100.0, 10.0), &after, 0.1),
            ["accept: p99 was not measured"]
        );
    }
}
