//! The result of a run, as a table and as JSON.

use std::{collections::BTreeMap, fmt};

use serde::Serialize;

use super::{
    checker::Failover,
    history::History,
    invariants::{UnknownOutcome, Violation},
};
use crate::kit::{recorder::Reply, tables::Ledger};

#[derive(Debug, Default, Serialize)]
pub struct Report {
    pub seed: u64,
    pub seconds: u64,
    pub requests: usize,
    pub accepted: usize,
    pub refused: usize,
    pub unanswered: usize,
    /// By process.
    pub kills: BTreeMap<String, usize>,
    /// By kind.
    pub faults: BTreeMap<String, usize>,
    pub calls: usize,
    pub paid: usize,
    /// Messages by state.
    pub ended: BTreeMap<String, usize>,
    /// Copies in the topic beyond one of each message.
    pub repeats: u64,
    pub rounds: Vec<RoundReport>,
    /// One for each fault of the first of several gateways.
    pub failovers: Vec<Failover>,
    /// The most resident memory of a process, in MiB, by its role.
    pub memory: BTreeMap<String, u64>,
    /// The most sessions with the database at a time.
    pub sessions: i64,
    pub unknowns: Vec<UnknownOutcome>,
    pub violations: Vec<Violation>,
}

#[derive(Debug, Clone, Serialize)]
pub struct RoundReport {
    pub gateway: String,
    pub accepted: usize,
    /// The time from the end of the faults until no message waited. `None` if that did not happen.
    pub recovery_milliseconds: Option<u64>,
}

/// How many violations of one invariant are shown. The rest is counted.
const SHOWN: usize = 3;

impl Report {
    /// Counts requests, faults, calls and messages.
    pub fn count(&mut self, history: &History, ledger: &Ledger) {
        let replies = |wanted: fn(&Reply) -> bool| {
            history.requests.iter().filter(|request| wanted(&request.reply)).count()
        };
        self.requests = history.requests.len();
        self.accepted = replies(|reply| *reply == Reply::Accepted);
        self.refused = replies(|reply| *reply == Reply::Refused);
        self.unanswered = replies(|reply| {
            matches!(reply, Reply::Nowhere | Reply::Lost | Reply::LostOnKept | Reply::Silent)
        });
        self.kills.clear();
        self.faults.clear();
        for incident in &history.incidents {
            *self.faults.entry(incident.kind.clone()).or_default() += 1;
            if incident.kind.starts_with("kill-") {
                *self.kills.entry(incident.target.clone()).or_default() += 1;
            }
        }
        self.calls = history.calls.len();
        self.paid = history.calls.iter().filter(|call| call.paid).count();
        let outages = history.outages();
        self.failovers = outages.map(|outage| Failover::of(history, ledger, outage)).collect();
        self.ended.clear();
        for entry in &ledger.entries {
            *self.ended.entry(entry.state.clone()).or_default() += 1;
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut row = |name: &str, value: &dyn fmt::Display| writeln!(f, "{name:<42}{value}");
        let list = |map: &BTreeMap<String, usize>| {
            map.iter().map(|(name, count)| format!("{name} {count}")).collect::<Vec<_>>().join(", ")
        };
        row("seed", &self.seed)?;
        row("seconds", &self.seconds)?;
        row("requests", &self.requests)?;
        row("  accepted", &self.accepted)?;
        row("  refused (503)", &self.refused)?;
        row("  without an answer", &self.unanswered)?;
        row("kills", &format!("{} ({})", self.kills.values().sum::<usize>(), list(&self.kills)))?;
        row("faults", &self.faults.values().sum::<usize>())?;
        for (kind, count) in &self.faults {
            row(&format!("  {kind}"), count)?;
        }
        row("calls of the gateway", &self.calls)?;
        row("  taken by it", &self.paid)?;
        row("messages by state", &list(&self.ended))?;
        row("copies in the topic", &self.repeats)?;
        for (number, round) in self.rounds.iter().enumerate() {
            let recovery = round
                .recovery_milliseconds
                .map_or("never".to_owned(), |time| format!("{:.1} s", time_in_seconds(time)));
            let text = format!(
                "{} gateway, {} accepted, recovered in {recovery}",
                round.gateway, round.accepted
            );
            row(&format!("round {}", number + 1), &text)?;
        }
        for failover in &self.failovers {
            row(&format!("  {}", failover.fault), failover)?;
        }
        for (role, memory) in &self.memory {
            row(&format!("memory of {role}"), &format!("{memory} MiB at most"))?;
        }
        row("sessions", &format!("{} at most", self.sessions))?;
        let mut causes: BTreeMap<&str, usize> = BTreeMap::new();
        for unknown in &self.unknowns {
            let cause = unknown.cause.split(" of ").next().unwrap_or_default();
            *causes.entry(cause).or_default() += 1;
        }
        for (cause, count) in causes {
            row(&format!("unknown: {cause}"), &count)?;
        }

        let mut shown: BTreeMap<_, usize> = BTreeMap::new();
        for violation in &self.violations {
            let shown = shown.entry(violation.invariant).or_default();
            *shown += 1;
            if *shown <= SHOWN {
                let Violation { invariant, subject, detail } = violation;
                writeln!(f, "\nVIOLATION {invariant}: {subject}: {detail}")?;
            }
        }
        for (invariant, count) in &shown {
            writeln!(f, "\n{invariant}: violated {count} times")?;
        }
        if shown.is_empty() {
            writeln!(f, "no violation")?;
        }
        Ok(())
    }
}

#[expect(clippy::cast_precision_loss, reason = "shown with one digit")]
fn time_in_seconds(milliseconds: u64) -> f64 {
    milliseconds as f64 / 1_000.0
}
