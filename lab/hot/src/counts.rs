use std::{
    collections::BTreeMap,
    fmt::Write,
    path::Path,
    process::{Command, Output},
};

use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize};

use crate::case::Cases;

/// The instructions of each case, and the compiler and machine that they were counted with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Counts {
    /// Another compiler makes other instructions from the same source.
    compiler: String,
    architecture: String,
    /// Instructions of one round, by case.
    instructions: BTreeMap<String, u64>,
}

/// Enough rounds to average out work that only some rounds do, such as an allocation.
const ROUNDS: u32 = 200;

impl Counts {
    pub(crate) fn here() -> anyhow::Result<Self> {
        let compiler = Command::new("rustc").arg("--version").output().context("run rustc")?;
        let count = |case: &str| {
            let rounds = collected(case, 2 * ROUNDS)? - collected(case, ROUNDS)?;
            anyhow::Ok((case.to_owned(), rounds / u64::from(ROUNDS)))
        };
        Ok(Self {
            compiler: String::from_utf8_lossy(&compiler.stdout).trim().to_owned(),
            architecture: architecture().to_owned(),
            instructions: Cases::new()?.names().map(count).collect::<Result<_, _>>()?,
        })
    }

    pub(crate) fn read(file: &Path) -> anyhow::Result<Self> {
        let json = std::fs::read(file).with_context(|| file.display().to_string())?;
        serde_json::from_slice(&json).with_context(|| file.display().to_string())
    }

    pub(crate) fn write(&self, file: &Path) -> anyhow::Result<()> {
        let json = serde_json::to_string_pretty(self)?;
        std::fs::write(file, json + "\n").with_context(|| file.display().to_string())
    }

    pub(crate) fn is_comparable_with(&self, before: &Self) -> bool {
        (&self.compiler, &self.architecture) == (&before.compiler, &before.architecture)
    }

    /// Returns the compiler and the machine.
    pub(crate) fn counter(&self) -> String {
        format!("{}, {}", self.compiler, self.architecture)
    }

    /// Returns the cases that take more instructions than before by more than the share `tolerance`,
    /// and the cases that only one of the two has.
    pub(crate) fn worse_than(&self, before: &Self, tolerance: f64) -> Vec<String> {
        let mut worse = Vec::new();
        for (case, was) in &before.instructions {
            match self.instructions.get(case) {
                None => worse.push(format!("{case}: no longer counted")),
                Some(is) if change(*was, *is) > tolerance => {
                    worse.push(format!("{case}: {is} instructions after {was}"));
                }
                Some(_) => {}
            }
        }
        let new = self.instructions.keys().filter(|case| !before.instructions.contains_key(*case));
        worse.extend(new.map(|case| format!("{case}: not counted before")));
        worse
    }

    /// Returns a table of both.
    pub(crate) fn beside(&self, before: &Self) -> String {
        let mut table = String::new();
        for (case, is) in &self.instructions {
            let change = before.instructions.get(case).map(|was| change(*was, *is) * 100.0);
            let change = change.map_or_else(String::new, |percent| format!("{percent:+.1} %"));
            // Writing to memory does not fail.
            let _ = writeln!(table, "{case:28}{is:>8}{change:>10}");
        }
        table
    }
}

/// Returns the kind of processor. Cryptography uses other instructions if the processor has them.
fn architecture() -> &'static str {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        return "x86_64 with AVX2";
    }
    std::env::consts::ARCH
}

#[expect(clippy::cast_precision_loss, reason = "some thousands")]
fn change(was: u64, is: u64) -> f64 {
    is as f64 / was.max(1) as f64 - 1.0
}

/// Counts all instructions of a process that runs `rounds` rounds.
fn collected(case: &str, rounds: u32) -> anyhow::Result<u64> {
    let Output { status, stderr, .. } = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(std::env::current_exe()?)
        .args(["run", case, &rounds.to_string()])
        .output()
        .context("run valgrind (Debian: valgrind)")?;
    let told = String::from_utf8_lossy(&stderr);
    ensure!(status.success(), "{case}, {status}: {told}");
    // "==4711== Collected : 1234567"
    let found =
        told.lines().find_map(|line| line.split_once("Collected : ")?.1.trim().parse().ok());
    found.with_context(|| format!("valgrind printed no count: {told}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(instructions: &[(&str, u64)]) -> Counts {
        Counts {
            compiler: "rustc 1.95.0".to_owned(),
            architecture: "x86_64".to_owned(),
            instructions: instructions.iter().map(|(case, n)| ((*case).to_owned(), *n)).collect(),
        }
    }

    #[test]
    fn only_more_instructions_than_tolerated_are_worse() {
        let before = counts(&[("a", 1_000), ("b", 1_000), ("c", 1_000)]);
        let now = counts(&[("a", 1_040), ("b", 1_060), ("c", 10)]);

        assert_eq!(now.worse_than(&before, 0.05), ["b: 1060 instructions after 1000"]);
    }

    #[test]
    fn case_of_one_side_only_is_reported() {
        let (before, now) = (counts(&[("old", 1)]), counts(&[("new", 1)]));

        assert_eq!(
            now.worse_than(&before, 0.05),
            ["old: no longer counted", "new: not counted before"]
        );
    }

    #[test]
    fn counts_of_another_compiler_are_not_comparable() {
        let before = counts(&[]);
        let now = Counts { compiler: "rustc 1.96.0".to_owned(), ..before.clone() };

        assert!(before.is_comparable_with(&before) && !now.is_comparable_with(&before));
    }
}
