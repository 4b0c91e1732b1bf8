//! The parts of documents that are generated from the results of a run.

use std::{fmt::Write, path::Path};

use anyhow::Context;

use super::{
    model::{Costs, tables},
    report::Report,
};

/// The documents with such parts, relative to the root of the repository.
pub const PAGES: [&str; 2] = ["docs/performance.md", "docs/scaling.md"];

const BEGIN: &str = "<!-- bench ";
const END: &str = "<!-- end -->";

/// Renews each part between `<!-- bench report … -->` (or `model`) and `<!-- end -->`. The first of
/// the two names the file of the results.
pub fn renew(page: &str, results: &Path, report: &Report) -> anyhow::Result<String> {
    let mut parts = page.split(BEGIN);
    let mut renewed = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let kind = part.split_whitespace().next().unwrap_or_default();
        let (_, rest) = part.split_once(END).with_context(|| format!("{kind}: no {END}"))?;
        let text = match kind {
            "report" => report.to_string(),
            "model" => tables(&Costs::read(report)?),
            _ => anyhow::bail!("there is no generated part {kind:?}"),
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

    /// The generated parts must not be edited by hand.
    #[test]
    fn the_generated_parts_match_the_results_that_they_name() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        for page in PAGES {
            let text = std::fs::read_to_string(root.join(page)).unwrap();
            let named = text.split_once(BEGIN).unwrap().1.split_once(" -->").unwrap().0;
            let results = Path::new(named.split_once(' ').unwrap().1);
            let json = std::fs::read(root.join(results)).unwrap();
            let report = serde_json::from_slice(&json).unwrap();

            let renewed = renew(&text, results, &report).unwrap();

            // Not `assert_eq`, which would print both documents.
            let is_same = renewed == text;
            assert!(is_same, "{page}: run cargo run --bin bench -- docs {}", results.display());
        }
    }
}
