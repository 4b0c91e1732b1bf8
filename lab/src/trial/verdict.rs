//! The result of a trial.

use std::fmt::{self, Display};

use serde::Serialize;
use sqlx::PgPool;

use crate::kit::{recorder::Reply, tables, tally::Account};

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

    /// Claims that all answers were proper, and that each accepted message was sent once.
    pub fn judge(&mut self, account: &Account) {
        self.figure("answers", format!("{:?}", account.replies));
        for sample in &account.samples {
            self.figure("  unclean", sample);
        }
        self.claim(
            "no answer but 200 and 503 with Retry-After",
            account.unclean() == 0,
            format!(
                "{} lost on new connections, {} on kept ones, {} found no listener, {} others",
                account.of(Reply::Lost),
                account.of(Reply::LostOnKept),
                account.of(Reply::Nowhere),
                account.of(Reply::Silent) + account.of(Reply::Illegal) + account.of(Reply::Pending)
            ),
        );
        self.claim(
            "no message is lost or doubled",
            account.lost == 0 && account.repeated == 0 && account.strangers == 0,
            format!(
                "{} of {} lost, {} repeated ({} as another message), {} called without a 200",
                account.lost, account.accepted, account.repeated, account.doubled, account.unasked
            ),
        );
    }

    /// Claims that no process wrote what only another owner of a lease may write.
    pub async fn judge_writes(&mut self, database: &PgPool) -> anyhow::Result<()> {
        let illegal = tables::illegal_writes(database).await?;
        let shown = illegal.iter().take(3).cloned().collect::<Vec<_>>().join("; ");
        self.claim(
            "no process writes after it lost its lease",
            illegal.is_empty(),
            format!("{} illegal writes {shown}", illegal.len()),
        );
        Ok(())
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
