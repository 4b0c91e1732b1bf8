//! A line on a terminal that shows how far long work has come.

use std::{
    io::{IsTerminal, Write, stderr},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Shows on standard error how far work has come, if that is a terminal and the work takes long. The
/// line is removed at the end.
#[derive(Debug)]
pub(crate) struct Progress {
    what: &'static str,
    is_terminal: bool,
    begun: Instant,
    /// When the line was written last.
    shown: Mutex<Option<Instant>>,
}

/// Work that ends before is not shown.
const QUIET: Duration = Duration::from_millis(500);

const BETWEEN: Duration = Duration::from_millis(100);

impl Progress {
    /// `what` names what is counted, such as "rows read".
    pub(crate) fn of(what: &'static str) -> Self {
        let is_terminal = stderr().is_terminal();
        Self { what, is_terminal, begun: Instant::now(), shown: Mutex::default() }
    }

    /// Shows that `done` things are done.
    pub(crate) fn at(&self, done: u64) {
        let now = Instant::now();
        if !self.is_terminal || now - self.begun < QUIET {
            return;
        }
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        if shown.is_none_or(|last| now - last >= BETWEEN) {
            *shown = Some(now);
            let _ = write!(stderr(), "\r\u{1b}[K{}", line(self.what, done, now - self.begun));
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        let shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        if shown.is_some() {
            let _ = write!(stderr(), "\r\u{1b}[K");
        }
    }
}

fn line(what: &str, done: u64, lasted: Duration) -> String {
    format!("{done} {what}, {} s", lasted.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_says_what_is_counted_and_how_long_it_takes() {
        assert_eq!(line("rows read", 12_000, Duration::from_millis(3_900)), "12000 rows read, 3 s");
    }
}
