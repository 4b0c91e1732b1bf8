//! From a record to a message.

#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    time::{Duration, SystemTime},
};

use application::ports::{Incoming, Unreadable};
use domain::{CannotOpen, CarriedCode, Message, MessageId, PayloadKeys, SealedCode, Validity};

use crate::{
    headers::{Headers, ID, SEQUENCE, TRACE_PARENT, check_version, parse, stated_validity},
    value::{self, Data, LACKING},
};

/// The position of a record, and the time of its timestamp.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    pub topic: &'a str,
    pub partition: i32,
    pub offset: i64,
    /// In milliseconds since 1970. Negative if the record has no timestamp.
    pub written_at: i64,
}

/// How records are decoded.
#[derive(Debug, Clone, Copy)]
pub struct DecodeSettings<'a> {
    /// The validity of a message whose record states none, counted from the record's timestamp.
    pub default_ttl: Duration,
    /// The keys that open seals. Without them a sealed record is unreadable.
    pub keys: Option<&'a PayloadKeys>,
    /// Whether a message in clear is unreadable. Anyone who can write to the topic could have
    /// written it.
    pub require_sealed: bool,
}

const NOT_SEALED: Unreadable = Unreadable("not sealed, which REQUIRE_SEALED refuses");

/// Reads a record, of ours or of another producer.
///
/// A sealed message is opened to learn its phone, and its code stays sealed.
///
/// A panic while reading makes the record unreadable. Otherwise one record would end each reader
/// of its partition, and stop the partition for good.
pub fn decode(
    place: Place<'_>,
    value: Option<&[u8]>,
    headers: &Headers,
    settings: DecodeSettings<'_>,
) -> Result<Incoming, Unreadable> {
    catch_unwind(AssertUnwindSafe(|| read(place, value, headers, settings)))
        .unwrap_or(Err(Unreadable("reading the record panicked")))
}

fn read(
    place: Place<'_>,
    value: Option<&[u8]>,
    headers: &Headers,
    settings: DecodeSettings<'_>,
) -> Result<Incoming, Unreadable> {
    check_version(headers)?;
    let data = value::parse(value.ok_or(Unreadable("the record has no value"))?)?;
    let since_written =
        written_at(place).map(|time| Validity::starting_at(time, settings.default_ttl));
    let Some(id) = headers.get(ID) else {
        let Place { topic, partition, offset, written_at } = place;
        let id = MessageId::of_record(topic, partition, offset, written_at);
        let message = to_message(data, id, settings)?;
        return Ok(Incoming { message, validity: since_written, trace: None, sequence: None });
    };
    let id = parse(id).ok_or(Unreadable("the id is not a UUID"))?;
    Ok(Incoming {
        message: to_message(data, id, settings)?,
        validity: stated_validity(headers).or(since_written),
        trace: headers.get(TRACE_PARENT).and_then(|bytes| parse(bytes)),
        sequence: headers.get(SEQUENCE).and_then(|bytes| parse(bytes)),
    })
}

fn to_message(
    data: Data,
    id: MessageId,
    settings: DecodeSettings<'_>,
) -> Result<Message, Unreadable> {
    match (data.phone, data.code, data.sealed) {
        (Some(_), Some(_), _) if settings.require_sealed => Err(NOT_SEALED),
        (Some(phone), Some(code), _) => {
            let phone = phone.parse().map_err(|_| Unreadable("the phone is invalid"))?;
            let code = code.parse().map_err(|_| Unreadable("the code is invalid"))?;
            // A message with an invalid template is sent with the default one.
            let template = data.template.and_then(|it| it.parse().ok());
            Ok(Message { id, phone, code: CarriedCode::Clear { code, template } })
        }
        (None, None, Some(sealed)) => unseal(id, &sealed, settings.keys),
        _ => Err(LACKING),
    }
}

fn unseal(id: MessageId, text: &str, keys: Option<&PayloadKeys>) -> Result<Message, Unreadable> {
    let sealed: SealedCode =
        text.parse().map_err(|_| Unreadable("the seal has an unknown format"))?;
    let opened = match keys {
        Some(keys) => keys.open(id, &sealed),
        None => Err(CannotOpen::UnknownKey),
    };
    let opened = opened.map_err(|error| {
        Unreadable(match error {
            CannotOpen::UnknownKey => "sealed with a key that is not set here",
            CannotOpen::Damaged => "sealed for another message, or damaged",
        })
    })?;
    Ok(Message { id, phone: opened.phone, code: CarriedCode::Sealed(sealed) })
}

/// Returns the time of the record's timestamp.
///
/// Returns none if there is no timestamp, or if it is after the year 9999, which a database may
/// not be able to store.
fn written_at(place: Place<'_>) -> Option<SystemTime> {
    const LATEST: u64 = 253_402_300_799_999;
    let since_1970 = u64::try_from(place.written_at).ok().filter(|time| *time <= LATEST)?;
    Some(SystemTime::UNIX_EPOCH + Duration::from_millis(since_1970))
}
