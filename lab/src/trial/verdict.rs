//! The result of a trial.

use std::fmt::{self, Display};

use serde::Serialize;

/// A condition of the trial, and whether it held.
#[derive(Debug, Clone, Serialize)]
pub struct Claim {
    pub claim: String,
    pub holds: bool,
    /// The figures that decide it.
    pub found: String,
}

/// The figures and claims of a trial.
#[derive(Debug, Clone, Serialize)]
pub struct Verdict {
    pub trial: String,
    pub figures: Vec<(String, String)>,
    pub claims: Vec<Claim>,
}

impl Verdict {
    pub fn new(trial: &str) -> Self {
        Self { trial: trial.to_owned(), figures: Vec::new(), claims: Vec::new() }
    }

    pub fn figure(&mut self, name: impl Into<String>, value: impl Display) {
        self.figures.push((name.into(), value.to_string()));
    }

    pub fn claim(&mut self, claim: impl Into<String>, holds: bool, found: impl Display) {
        self.claims.push(Claim { claim: claim.into(), holds, found: found.to_string() });
    }

    pub fn holds(&self) -> bool {
        self.claims.iter().all(|claim| claim.holds)
    }
}

impl Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "trial: {}", self.trial)?;
        for (name, value) in &self.figures {
            writeln!(f, "  {name:<34} {value}")?;
        }
        for Claim { claim, holds, found } in &self.claims {
            let mark = if *holds { "holds " } else { "BROKEN" };
            writeln!(f, "  {mark} {claim}: {found}")?;
        }
        Ok(())
    }
}
