//! What a take-over did, and what it left.

use std::{collections::BTreeMap, fmt::Write, time::Duration};

use application::{TakenOver, ports::GoCounts};
use serde_json::json;

use crate::cli::rfc3339;

/// The most unusable rows that the text names. JSON names all.
const NAMED: usize = 20;

#[derive(Debug)]
pub(super) struct Report {
    zone: String,
    ttl: Duration,
    pub(super) taken: u64,
    published: u64,
    /// `None` if nothing was to be given back.
    pub(super) given_back: Option<u64>,
    left: Left,
}

/// What is left in the table.
#[derive(Debug, Default)]
pub(super) struct Left {
    pub(super) counts: GoCounts,
    /// Rows that are `new` and no messages, each with the reason. `counts` has them too.
    pub(super) unusable: BTreeMap<i64, &'static str>,
    /// How many of them the Go processor has claimed.
    pub(super) unusable_claimed: u64,
}

impl Report {
    pub(super) fn new(zone: &str, ttl: Duration) -> Self {
        Self {
            zone: zone.to_owned(),
            ttl,
            taken: 0,
            published: 0,
            given_back: None,
            left: Left::default(),
        }
    }

    /// Adds what a batch did.
    pub(super) fn add(&mut self, done: TakenOver) {
        self.taken += done.taken;
        self.published += done.published;
    }

    /// Sets what is left at the end.
    pub(super) fn end(&mut self, left: Left) {
        self.left = left;
    }

    fn newest(&self) -> String {
        self.left.counts.newest.map_or_else(|| "-".to_owned(), rfc3339)
    }

    /// Formats the report as a table: a line for each count, with tabs.
    pub(super) fn lines(&self) -> String {
        let Self { zone, ttl, taken, published, given_back, left } = self;
        let Left { counts, unusable, .. } = left;
        let ttl = ttl.as_secs();
        let mut text = String::new();
        let mut line = |name: &str, rows: u64, meaning: &str| {
            // A text takes all that is written to it.
            let _ = writeln!(text, "{name}\t{rows}\t{meaning}");
        };
        if let Some(given_back) = given_back {
            line("given back", *given_back, "from the outbox to the Go service");
        } else {
            line("taken over", *taken, "from the Go service to the outbox");
            line("published", *published, "the topic had their messages, so they were set to done");
        }
        line("new", left.waiting(), "left in the table: wait to be taken over");
        line(
            "claimed",
            left.claimed(),
            "left in the table: the Go processor has them; stop it, then use --stopped",
        );
        let expired = format!("left in the table: older than CODE_TTL, which is {ttl} s");
        line("expired", counts.expired, &expired);
        line("unusable", unusable.len() as u64, "left in the table: no valid message");
        line("done", counts.done, "left in the table: were sent, or taken over");
        for (row, reason) in unusable.iter().take(NAMED) {
            let _ = writeln!(text, "row {row}: {reason}");
        }
        if unusable.len() > NAMED {
            let _ = writeln!(text, "and {} more, which --json lists", unusable.len() - NAMED);
        }
        let _ = writeln!(text, "times are in {zone}; the newest row is of {}", self.newest());
        text
    }

    pub(super) fn json(&self) -> String {
        let Self { left, .. } = self;
        let unusable: Vec<_> = left
            .unusable
            .iter()
            .map(|(row, reason)| json!({ "row": row, "reason": reason }))
            .collect();
        let report = json!({
            "taken_over": self.taken,
            "published": self.published,
            "given_back": self.given_back,
            "new": left.waiting(),
            "claimed": left.claimed(),
            "expired": left.counts.expired,
            "unusable": unusable,
            "done": left.counts.done,
            "time_zone": self.zone,
            "newest": left.counts.newest.map(rfc3339),
        });
        format!("{report:#}\n")
    }
}

impl Left {
    /// Rows that can be taken over.
    fn waiting(&self) -> u64 {
        let unusable = self.unusable.len() as u64 - self.unusable_claimed;
        self.counts.waiting.saturating_sub(unusable)
    }

    /// Rows that can be taken over when the Go processor is stopped.
    fn claimed(&self) -> u64 {
        self.counts.claimed.saturating_sub(self.unusable_claimed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn report_counts_and_names_what_is_left() {
        let mut report = Report::new("UTC", Duration::from_secs(600));
        report.add(TakenOver { taken: 3, published: 1, ..TakenOver::default() });
        report.add(TakenOver { taken: 2, ..TakenOver::default() });
        let counts = GoCounts { done: 9, waiting: 2, claimed: 4, ..GoCounts::default() };
        let unusable = [(17, "the phone is invalid"), (18, "the code is invalid")].into();
        report.end(Left { counts, unusable, unusable_claimed: 1 });

        let (lines, json) = (report.lines(), report.json());

        for line in ["taken over\t5\t", "published\t1\t", "new\t1\t", "claimed\t3\t", "done\t9\t"] {
            assert!(lines.contains(line), "{line}: {lines}");
        }
        assert!(lines.contains("unusable\t2\t") && lines.contains("row 17: the phone is invalid"));
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!((&json["taken_over"], &json["unusable"][0]["row"]), (&5.into(), &17.into()));
    }

    #[test]
    fn way_back_reports_what_was_given_back() {
        let mut report = Report::new("UTC", Duration::from_secs(600));
        report.given_back = Some(7);

        assert!(report.lines().starts_with("given back\t7\t"), "{}", report.lines());
    }
}
