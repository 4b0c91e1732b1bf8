//! The bytes on the topic: how a message becomes a record, and how a record becomes a message.
//!
//! Producers and consumers of other teams read these bytes. The format is extended and never
//! changed.
//!
//! A record is an event of CloudEvents in Kafka's binary mode. The value is the data,
//! `{"phone":"…","code":"…"}`, and each attribute is a header `ce_…`. If the template is not the
//! default one, the value also has `"template"`. If a payload key is set, the value is
//! `{"sealed":"…"}`, and the seal contains all of this.
//!
//! The Go predecessor and a console producer send a value without headers. Such a record is a
//! message too, and its value is parsed as the predecessor's consumer parsed it.
//!
//! This crate is below the adapters and depends on none of them: the Kafka adapter, the embedded
//! queue and the instruction counter of the lab share it (ADR 50).

#[cfg(feature = "conformance")]
pub mod conformance;
mod decode;
mod encode;
#[cfg(test)]
mod fixtures;
mod headers;
mod key;
mod partition;
mod time;
mod value;

pub use self::{
    decode::{DecodeSettings, Place, decode},
    encode::{WireRecord, encode},
    headers::{Headers, header_that_is_read},
    key::key_of,
    partition::partition_of,
    time::milliseconds,
    value::MAX_VALUE_LENGTH,
};
