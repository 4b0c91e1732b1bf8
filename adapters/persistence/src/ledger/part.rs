use std::ops::Range;

use application::ports::{Batch, Incoming, Lease, Record, Unreadable};

use crate::database::{Parameters, millis, since_1970};

/// What one statement takes over of the batch of a partition.
#[derive(Clone, Copy)]
pub(super) struct Part<'a> {
    pub(super) lease: &'a Lease,
    pub(super) batch: &'a Batch,
    pub(super) records: &'a [Record],
    pub(super) next_offset: i64,
}

/// The reason why a message that the database refuses is a dead letter.
const REFUSED: Unreadable = Unreadable("the database cannot store the message");

/// Stands for a number that a record does not have.
const ABSENT: i64 = -1;

impl<'a> Part<'a> {
    pub(super) fn of(lease: &'a Lease, batch: &'a Batch, places: Range<usize>) -> Self {
        let next = batch.records.get(places.end);
        let next_offset = next.map_or(batch.next_offset, |record| record.offset);
        Self { lease, batch, records: &batch.records[places], next_offset }
    }

    pub(super) fn messages(self) -> impl Iterator<Item = &'a Incoming> + Clone {
        self.records.iter().filter_map(|record| record.content.as_ref().ok())
    }

    fn unreadable(self) -> impl Iterator<Item = (i64, &'a Unreadable)> + Clone {
        self.records
            .iter()
            .filter_map(|record| Some((record.offset, record.content.as_ref().err()?)))
    }
}

/// Adds the table `new` of the messages of all parts.
pub(super) fn message_rows(parameters: Parameters, parts: &[Part<'_>]) -> Parameters {
    let messages = parts.iter().flat_map(|part| part.messages().map(move |it| (part, it)));
    parameters.rows("new", messages, |new| {
        new.column("partition", |(part, _)| part.lease.partition)
            .column("id", |(_, it)| it.message.id.as_uuid())
            .column("phone", |(_, it)| it.message.phone.as_str().to_owned())
            .column("code", |(_, it)| it.message.code.as_text().into_owned())
            .column("trace", |(_, it)| {
                it.trace.as_ref().map(|trace| trace.as_str().to_owned()).unwrap_or_default()
            })
            .column("accepted_at", |(_, it)| {
                it.validity.map_or(ABSENT, |validity| since_1970(validity.accepted_at))
            })
            .column("expires_at", |(_, it)| {
                it.validity.map_or(ABSENT, |validity| since_1970(validity.expires_at))
            })
            .column("sequence", |(_, it)| it.sequence.unwrap_or(ABSENT))
            // Empty if the message waits for its call.
            .column("gateway", |(part, it)| {
                let gateway = part.batch.call_now.get(&it.message.id);
                gateway.map(|gateway| gateway.as_str().to_owned()).unwrap_or_default()
            })
    })
}

/// Adds the table `dead` of the records of all parts that cannot be read.
pub(super) fn dead_rows(parameters: Parameters, parts: &[Part<'_>]) -> Parameters {
    let unreadable = parts.iter().flat_map(|part| part.unreadable().map(move |it| (part, it)));
    parameters.rows("dead", unreadable, |dead| {
        dead.column("partition", |(part, _)| part.lease.partition)
            .column("record_offset", |(_, (offset, _))| offset)
            .column("reason", |(_, (_, reason))| reason.0.to_owned())
    })
}

/// Adds the table `asked` of the leases of all parts.
pub(super) fn lease_rows(parameters: Parameters, parts: &[Part<'_>]) -> Parameters {
    parameters.rows("asked", parts.iter(), |asked| {
        asked
            .column("partition", |part| part.lease.partition)
            .column("epoch", |part| part.lease.epoch)
            .column("next_offset", |part| part.next_offset)
            .column("call_limit", |part| millis(part.batch.call_limit))
            .column("default_ttl", |part| millis(part.batch.default_ttl))
    })
}

/// Returns the same record without its message.
pub(super) fn buried(record: &Record) -> Record {
    let content = Err(record.content.as_ref().err().cloned().unwrap_or(REFUSED));
    Record { offset: record.offset, content }
}
