//! The question before something that cannot be undone.

use std::io::{self, IsTerminal, Write, stdin};

use anyhow::bail;

/// Asks on the terminal to type yes, and returns whether that was the answer. Fails without a
/// terminal.
pub(super) fn confirmed(question: &str) -> anyhow::Result<bool> {
    if !stdin().is_terminal() {
        bail!(
            "refused, because there is no terminal to ask on: nothing was changed. --yes skips the \
             question"
        );
    }
    write!(io::stderr(), "{question}: ")?;
    let mut answer = String::new();
    stdin().read_line(&mut answer)?;
    Ok(answer.trim() == "yes")
}
