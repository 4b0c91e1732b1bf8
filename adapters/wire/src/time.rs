//! Times as records have them.

use std::time::SystemTime;

use chrono::{DateTime, SecondsFormat, Utc};

/// Returns a time in milliseconds since 1970, the precision of a record.
pub fn milliseconds(time: SystemTime) -> i64 {
    DateTime::<Utc>::from(time).timestamp_millis()
}

/// Returns a time as a header states it: RFC 3339, UTC, with milliseconds.
pub(crate) fn time_text(time: SystemTime) -> String {
    DateTime::<Utc>::from(time).to_rfc3339_opts(SecondsFormat::Millis, true)
}
