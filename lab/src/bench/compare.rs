//! Compares a run with an earlier one.

use super::report::{Bar, Report, Row};

/// Returns the figures that got worse by more than the share `tolerance`, and the missing figures.
///
/// If a figure has a baseline, the ratio is compared: another machine or hour changes both.
pub fn regressions(before: &Report, after: &Report, tolerance: f64) -> Vec<String> {
    let worse = |old: &Row| {
        let bar = old.bar?;
        let name = format!("{}: {}", old.scenario, old.figure);
        // A figure may be judged twice: alone, and against a baseline.
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
    fn a_change_within_the_tolerance_is_no_regression() {
        assert_eq!(regressions(&report(100.0, 10.0), &report(91.0, 10.9), 0.1), [""; 0]);
    }

    #[test]
    fn worse_is_lower_for_a_rate_and_higher_for_a_latency() {
        let found = regressions(&report(100.0, 10.0), &report(89.0, 11.1), 0.1);

        assert_eq!(found, ["accept: rate: 89.00 after 100.00", "accept: p99: 11.10 after 10.00"]);
    }

    #[test]
    fn a_figure_with_a_baseline_is_not_compared_with_one_without() {
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
    fn a_figure_that_is_no_longer_measured_is_reported() {
        let mut after = report(100.0, 10.0);
        after.rows.pop();

        assert_eq!(
            regressions(&report(100.0, 10.0), &after, 0.1),
            ["accept: p99 was not measured"]
        );
    }
}
