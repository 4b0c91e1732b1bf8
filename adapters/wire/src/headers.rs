//! The names of the headers, and what a record states in them.

use std::{collections::BTreeMap, str::FromStr, time::SystemTime};

use application::ports::Unreadable;
use chrono::DateTime;
use domain::Validity;

/// The headers of a record, by name.
pub type Headers = BTreeMap<String, Vec<u8>>;

pub(crate) const SPEC_VERSION: &str = "ce_specversion";
pub(crate) const ID: &str = "ce_id";
pub(crate) const SOURCE: &str = "ce_source";
pub(crate) const TYPE: &str = "ce_type";
pub(crate) const TIME: &str = "ce_time";
pub(crate) const EXPIRY_TIME: &str = "ce_expirytime";
pub(crate) const SEQUENCE: &str = "ce_sequence";
pub(crate) const CONTENT_TYPE: &str = "content-type";
pub(crate) const TRACE_PARENT: &str = "traceparent";

/// The `ce_type` of an accepted message.
pub(crate) const ACCEPTED_V1: &str = "messager.message.accepted.v1";

/// The headers that [`crate::decode`] reads.
const READ: [&str; 7] = [SPEC_VERSION, ID, TYPE, TIME, EXPIRY_TIME, SEQUENCE, TRACE_PARENT];

/// Returns the name of a header if [`crate::decode`] reads this header.
pub fn header_that_is_read(name: &[u8]) -> Option<&'static str> {
    READ.into_iter().find(|read| read.as_bytes() == name)
}

/// Refuses a record that states a version or a type that this code does not know.
///
/// A record that states neither is accepted.
pub(crate) fn check_version(headers: &Headers) -> Result<(), Unreadable> {
    let known = |name, is_known: fn(&str) -> bool| {
        headers.get(name).is_none_or(|bytes| str::from_utf8(bytes).is_ok_and(is_known))
    };
    let specification = known(SPEC_VERSION, |text| text == "1" || text.starts_with("1."));
    let content = known(TYPE, |text| {
        text.strip_prefix(ACCEPTED_V1)
            .is_some_and(|rest| !rest.starts_with(|next: char| next.is_ascii_digit()))
    });
    if specification && content { Ok(()) } else { Err(Unreadable("unknown version")) }
}

/// Returns the validity that the headers state, if both times are there and well-formed.
pub(crate) fn stated_validity(headers: &Headers) -> Option<Validity> {
    let time = |name| {
        let text = str::from_utf8(headers.get(name)?).ok()?;
        DateTime::parse_from_rfc3339(text).ok().map(SystemTime::from)
    };
    Some(Validity { accepted_at: time(TIME)?, expires_at: time(EXPIRY_TIME)? })
}

/// Parses the bytes of a header as a text of type `T`.
pub(crate) fn parse<T: FromStr>(bytes: &[u8]) -> Option<T> {
    str::from_utf8(bytes).ok()?.parse().ok()
}
