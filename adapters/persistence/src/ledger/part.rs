use std::ops::Range;

use application::ports::{Batch, Incoming, Record, Unreadable};

use crate::database::{Parameters, since_1970};

/// What one statement takes over of a batch.
#[derive(Clone, Copy)]
pub(super) struct Part<'a> {
    pub(super) batch: &'a Batch,
    pub(super) records: &'a [Record],
    pub(super) next_offset: i64,
}

/// The reason why a message that the database refuses is a dead letter.
const REFUSED: Unreadable = Unreadable("the database cannot store the message");

/// Stands for a number that a record does not have.
const ABSENT: i64 = -1;

impl<'a> Part<'a> {
    pub(super) fn of(batch: &'a Batch, places: Range<usize>) -> Self {
        let next = batch.records.get(places.end);
        let next_offset = next.map_or(batch.next_offset, |record| record.offset);
        Self { batch, records: &batch.records[places], next_offset }
    }

    pub(super) fn messages(self) -> impl Iterator<Item = &'a Incoming> + Clone {
        self.records.iter().filter_map(|record| record.content.as_ref().ok())
    }

    fn unreadable(self) -> impl Iterator<Item = (i64, &'a Unreadable)> + Clone {
        self.records
            .iter()
            .filter_map(|record| Some((record.offset, record.content.as_ref().err()?)))
    }

    /// Adds the table `new` of its messages.
    pub(super) fn message_rows(self, parameters: Parameters) -> Parameters {
        parameters.rows("new", self.messages(), |new| {
            new.column("id", |it| it.message.id.as_uuid())
                .column("phone", |it| it.message.phone.as_str().to_owned())
                .column("code", |it| it.message.code.as_text().into_owned())
                .column("trace", |it| {
                    it.trace.as_ref().map(|trace| trace.as_str().to_owned()).unwrap_or_default()
                })
                .column("accepted_at", |it| {
                    it.validity.map_or(ABSENT, |validity| since_1970(validity.accepted_at))
                })
                .column("expires_at", |it| {
                    it.validity.map_or(ABSENT, |validity| since_1970(validity.expires_at))
                })
                .column("sequence", |it| it.sequence.unwrap_or(ABSENT))
                // Empty if the message waits for its call.
                .column("gateway", |it| {
                    let gateway = self.batch.call_now.get(&it.message.id);
                    gateway.map(|gateway| gateway.as_str().to_owned()).unwrap_or_default()
                })
        })
    }

    /// Adds the table `dead` of its records that cannot be read.
    pub(super) fn dead_rows(self, parameters: Parameters) -> Parameters {
        parameters.rows("dead", self.unreadable(), |dead| {
            dead.column("record_offset", |(offset, _)| offset)
                .column("reason", |(_, reason)| reason.0.to_owned())
        })
    }
}

/// Returns the same record without its message.
pub(super) fn buried(record: &Record) -> Record {
    let content = Err(record.content.as_ref().err().cloned().unwrap_or(REFUSED));
    Record { offset: record.offset, content }
}
