//! The spans of messages that are taken over.

use std::collections::HashMap;

use domain::MessageId;

use crate::{
    OpenSpan, TracedMessages,
    ports::{Batch, Recorded},
};

/// The open spans of a batch. A span that is not ended is discarded: the ledger already had the
/// message, or did not answer.
#[derive(Debug)]
pub(super) struct TakeOvers(HashMap<MessageId, OpenSpan>);

impl TakeOvers {
    /// Begins a span for each message, and replaces the trace of the message with it.
    pub(super) fn begin(traced: &TracedMessages, batch: &mut Batch, partition: i32) -> Self {
        let mut spans = HashMap::new();
        if !traced.is_on() {
            return Self(spans);
        }
        for record in &mut batch.records {
            let Ok(incoming) = &mut record.content else { continue };
            let id = incoming.message.id;
            let trace = incoming.trace.take();
            let (trace, span) = traced.take_over(trace, id, partition, record.offset);
            incoming.trace = trace;
            // A batch may contain a message twice. The ledger takes the first.
            match span {
                Some(span) if spans.contains_key(&id) => span.discard(),
                Some(span) => drop(spans.insert(id, span)),
                None => {}
            }
        }
        Self(spans)
    }

    pub(super) fn end(&mut self, id: MessageId) {
        self.0.remove(&id);
    }

    pub(super) fn end_expired(&mut self, expired: &[Recorded]) {
        for recorded in expired {
            if let Some(mut span) = self.0.remove(&recorded.id) {
                span.fail("expired");
            }
        }
    }
}

impl Drop for TakeOvers {
    fn drop(&mut self) {
        self.0.drain().for_each(|(_, span)| span.discard());
    }
}
