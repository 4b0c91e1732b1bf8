//! The parts of documents that come from a run's results.

use std::{fmt::Write, path::Path};

use anyhow::Context;

use super::{
    model::{Costs, tables},
    report::Report,
};

/// The documents with such parts, from the repository's root.
pub const PAGES: [&str; 2] = ["docs/performance.md", "docs/scaling.md"];

const BEGIN: &str = "<!-- bench ";
const END: &str = "<!-- end -->";

/// Makes each part anew: what stands between `<!-- bench report … -->` (or `model`) and
/// `<!-- end -->`. The first of the two names the results.
pub fn renew(page: &str, results: &Path, report: &Report) -> anyhow::Result<String> {
    let mut parts = page.split(BEGIN);
    let mut renewed = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let kind = part.split_whitespace().next().unwrap_or_default();
        let (_, rest) = part.split_once(END).with_context(|| format!("{kind}: no {END}"))?;
        let text = match kind {
            "report" => report.to_string(),
            "model" => tables(&Costs::read(report)?),
            _ => anyhow::bail!("no part of a document is called {kind:?}"),
        };
        let text = text.trim_end();
        // Writing to memory does not fail.
        let _ = write!(renewed, "{BEGIN}{kind} {} -->\n\n{text}\n\n{END}{rest}", results.display());
    }
    Ok(renewed)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the documents say is what their results say, and was not written by hand.
    #[test]
    fn documents_have_what_their_results_say() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        for page in PAGES {
            let text = std::fs::read_to_string(root.join(page)).unwrap();
            let named = text.split_once(BEGIN).unwrap().1.split_once(" -->").unwrap().0;
            let results = Path::new(named.split_once(' ').unwrap().1);
            let json = std::fs::read(root.join(results)).unwrap();
            let report = serde_json::from_slice(&json).unwrap();

            let renewed = renew(&text, results, &report).unwrap();

            assert_eq!(renewed, text, "cargo run --bin bench -- docs {}", results.display());
        }
    }
}
