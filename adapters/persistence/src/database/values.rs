//! Values as the database stores and returns them.

use std::{
    str::FromStr,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use super::DatabaseError;

/// Returns a duration in whole milliseconds.
pub(crate) fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

/// Returns a duration of milliseconds; none if it is negative.
pub(crate) fn lasting(millis: i64) -> Duration {
    Duration::from_millis(u64::try_from(millis).unwrap_or(0))
}

/// Returns a time that the database gives in milliseconds since 1970.
pub(crate) fn time(millis: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_millis(millis.unsigned_abs())
}

/// Returns a time in milliseconds since 1970. This service stores no time before that.
pub(crate) fn since_1970(time: SystemTime) -> i64 {
    time.duration_since(UNIX_EPOCH).map_or(0, millis)
}

/// Parses a text column. Fails on a value that this service never writes.
pub(crate) fn parsed<T: FromStr>(text: &str, what: &str) -> Result<T, DatabaseError> {
    text.parse().map_err(|_| DatabaseError::not(what))
}

/// Returns the bytes of a column that always has `N`.
pub(crate) fn bytes<const N: usize>(bytes: Vec<u8>, what: &str) -> Result<[u8; N], DatabaseError> {
    bytes.try_into().map_err(|_| DatabaseError::not(&format!("{N} bytes of {what}")))
}

/// Writes bytes in the form that both databases read from a text.
pub(crate) fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |half: u8| char::from(DIGITS[usize::from(half)]);
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}

/// Reads bytes in the form of [`hex`].
pub(crate) fn read_hex<const N: usize>(text: &str) -> Result<[u8; N], DatabaseError> {
    let mut bytes = [0; N];
    let is_whole = text.len() == 2 * N && text.is_ascii();
    for (place, byte) in bytes.iter_mut().enumerate() {
        let digits = text.get(2 * place..2 * place + 2).filter(|_| is_whole);
        let digits = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok());
        *byte = digits.ok_or_else(|| DatabaseError::not(&format!("{N} bytes")))?;
    }
    Ok(bytes)
}
