//! Where the servers are: what `scripts/services` tells.

use anyhow::Context;

/// A variable that `scripts/services run` sets.
#[expect(clippy::disallowed_methods, reason = "this is how scripts/services tells of its servers")]
pub fn variable(name: &str) -> anyhow::Result<String> {
    std::env::var(name)
        .with_context(|| format!("{name} is not set: run this inside `scripts/services run`"))
}
