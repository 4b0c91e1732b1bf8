//! The report of a run while it grows.

use std::{
    collections::{BTreeMap, HashSet},
    path::Path,
};

use anyhow::Context;

use super::{
    history::{History, SharedHistory},
    invariants::{Invariant, Judgement, Violation},
    logs::Secrets,
    report::Report,
};

const MEMORY_LIMIT_MIB: u64 = 128;

/// The report, with each violation once.
#[derive(Debug)]
pub struct Findings {
    pub report: Report,
    known: HashSet<(Invariant, String)>,
}

impl Findings {
    pub fn new(seed: u64) -> Self {
        Self { report: Report { seed, ..Report::default() }, known: HashSet::new() }
    }

    /// Adds a violation, unless the same invariant is already violated for the same subject.
    pub fn add(&mut self, violation: Violation) {
        if self.known.insert((violation.invariant, violation.subject.clone())) {
            self.report.violations.push(violation);
        }
    }

    pub fn add_judgement(&mut self, judgement: Judgement) {
        self.report.unknowns = judgement.unknowns;
        for violation in judgement.violations {
            self.add(violation);
        }
    }

    /// Searches the logs of processes for phones and codes of the run.
    pub fn search_logs<'a>(
        &mut self,
        history: &SharedHistory,
        logs: impl Iterator<Item = (&'a str, &'a Path)>,
    ) -> anyhow::Result<()> {
        let history: History = history.lock().clone();
        let secrets = Secrets::of(&history);
        for (process, log) in logs {
            for violation in secrets.search(process, log).context("read a log")? {
                self.add(violation);
            }
        }
        Ok(())
    }

    /// Judges the most memory that a process had, in KiB by role.
    pub fn judge_memory(&mut self, used: BTreeMap<String, u64>) {
        for (role, kib) in used {
            let mib = kib / 1024;
            if mib > MEMORY_LIMIT_MIB {
                let detail = format!("{mib} MiB, {MEMORY_LIMIT_MIB} are allowed");
                let subject = role.clone();
                self.add(Violation { invariant: Invariant::Memory, subject, detail });
            }
            self.report.memory.insert(role, mib);
        }
    }
}
