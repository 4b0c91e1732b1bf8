//! Where the servers and the service's binaries are.

use std::path::PathBuf;

use anyhow::Context;

/// Returns a variable that `scripts/services run` sets.
#[expect(clippy::disallowed_methods, reason = "scripts/services passes its servers this way")]
pub fn variable(name: &str) -> anyhow::Result<String> {
    std::env::var(name)
        .with_context(|| format!("{name} is not set: run this inside `scripts/services run`"))
}

/// Whether a run must not leave anything out that this machine does not have, as in CI.
pub fn are_services_required() -> bool {
    variable("REQUIRE_SERVICES").is_ok_and(|value| value == "1")
}

/// Returns the absolute folder of the service's binaries: the given one, or the folder of this
/// program.
///
/// The processes run in another folder, so a relative path would not lead them there.
pub fn binaries(given: Option<PathBuf>) -> anyhow::Result<PathBuf> {
    let folder = match given {
        Some(folder) => folder,
        None => std::env::current_exe()?.parent().context("this program has no folder")?.to_owned(),
    };
    folder.canonicalize().with_context(|| folder.display().to_string())
}
