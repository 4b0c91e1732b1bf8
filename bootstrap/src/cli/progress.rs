//! A line on a terminal that shows how far long work has come.

use std::{
    io::{IsTerminal, Write, stderr},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use tokio::time::interval;

/// Shows on standard error how far work has come, if that is a terminal and the work takes long. The
/// line is removed at the end.
#[derive(Debug)]
pub(crate) struct Progress {
    what: &'static str,
    is_shown: bool,
    begun: Instant,
    /// When the line was written last.
    written: Mutex<Option<Instant>>,
}

/// Work that ends before is not shown.
const QUIET: Duration = Duration::from_millis(500);

const BETWEEN: Duration = Duration::from_millis(100);

impl Progress {
    /// `what` names what is counted, such as "rows read".
    pub(crate) fn of(what: &'static str) -> Self {
        let is_shown = stderr().is_terminal();
        Self { what, is_shown, begun: Instant::now(), written: Mutex::default() }
    }

    /// Shows nothing.
    pub(crate) fn silent() -> Self {
        let mut silent = Self::of("");
        silent.is_shown = false;
        silent
    }

    /// Shows that `done` things are done.
    pub(crate) fn at(&self, done: u64) {
        self.say(&format!("{done} {}", self.what));
    }

    /// Shows what is being done, and for how long, until `work` ends.
    pub(crate) async fn during<T>(&self, doing: &str, work: impl Future<Output = T>) -> T {
        let mut ticks = interval(Duration::from_secs(1));
        tokio::pin!(work);
        loop {
            tokio::select! {
                done = &mut work => return done,
                _ = ticks.tick() => self.say(doing),
            }
        }
    }

    fn say(&self, text: &str) {
        let now = Instant::now();
        if !self.is_shown || now - self.begun < QUIET {
            return;
        }
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        if written.is_none_or(|last| now - last >= BETWEEN) {
            *written = Some(now);
            let _ = write!(stderr(), "\r\u{1b}[K{}", line(text, now - self.begun));
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        let written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        if written.is_some() {
            let _ = write!(stderr(), "\r\u{1b}[K");
        }
    }
}

fn line(text: &str, lasted: Duration) -> String {
    format!("{text}, {} s", lasted.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_says_what_is_done_and_how_long_it_takes() {
        assert_eq!(line("12000 rows read", Duration::from_millis(3_900)), "12000 rows read, 3 s");
    }

    #[tokio::test(start_paused = true)]
    async fn work_is_done_while_it_is_shown() {
        let work = async {
            tokio::time::sleep(Duration::from_secs(5)).await;
            7
        };

        assert_eq!(Progress::silent().during("working", work).await, 7);
    }
}
