//! A line on a terminal that shows how far a long run has come.

use std::{
    io::{IsTerminal, Write, stderr},
    time::Duration,
};

use tokio::time::{Instant, interval};
use tokio_util::task::AbortOnDropHandle;

/// Renews its line once a second, and removes it when it is dropped. It shows nothing if standard
/// error is not a terminal.
#[derive(Debug)]
pub struct Progress {
    shown: Option<AbortOnDropHandle<()>>,
}

const REMOVE: &str = "\r\u{1b}[K";

impl Progress {
    /// `line` makes the line from the time that the run has lasted.
    pub fn show(line: impl Fn(Duration) -> String + Send + 'static) -> Self {
        let shown = stderr().is_terminal().then(|| {
            let begun = Instant::now();
            AbortOnDropHandle::new(tokio::spawn(async move {
                let mut ticks = interval(Duration::from_secs(1));
                loop {
                    ticks.tick().await;
                    let _ = write!(stderr(), "{REMOVE}{}", line(begun.elapsed()));
                }
            }))
        });
        Self { shown }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.shown.take().is_some() {
            let _ = write!(stderr(), "{REMOVE}");
        }
    }
}

/// Writes a line that stays, above the line of a [`Progress`].
pub fn say(text: &str) {
    let remove = if stderr().is_terminal() { REMOVE } else { "" };
    eprintln!("{remove}{text}");
}

/// Formats a time as minutes and seconds.
pub fn clock(time: Duration) -> String {
    let seconds = time.as_secs();
    format!("{}:{:02}", seconds / 60, seconds % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_has_minutes_and_two_digits_of_seconds() {
        assert_eq!(clock(Duration::from_millis(65_900)), "1:05");
        assert_eq!(clock(Duration::from_secs(3_600)), "60:00");
    }
}
