//! The one clock of the lab, and the times that come from it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Milliseconds since 1970, by the clock of this machine.
///
/// PostgreSQL runs on the same machine, so its times and these can be compared.
pub type Moment = i64;

/// Returns the time now.
#[expect(clippy::disallowed_methods, reason = "the lab compares its times with the database's")]
pub fn now() -> Moment {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    millis(since)
}

/// Returns whole milliseconds.
pub fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

/// Returns whole microseconds, at most 71 minutes.
pub fn micros(duration: Duration) -> u32 {
    u32::try_from(duration.as_micros()).unwrap_or(u32::MAX)
}
