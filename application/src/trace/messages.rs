use std::sync::Arc;

use domain::{GatewayName, MessageId};
use tokio::time::Instant;

use super::{OpenSpan, SpanKind, TraceParent, Tracer};
use crate::ports::{NewReceipt, Noted, Receipt};

/// Records the spans of messages on their way from the outbox to the receipt.
#[derive(Debug, Clone, Default)]
pub struct TracedMessages {
    tracer: Tracer,
    messaging: Arc<Messaging>,
}

/// The attributes that describe the broker in spans.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Messaging {
    /// `kafka`, or `messager` for the embedded queue.
    pub system: &'static str,
    pub topic: String,
    /// The group of the consumer.
    pub group: Option<String>,
}

impl TracedMessages {
    pub fn new(tracer: Tracer, messaging: Messaging) -> Self {
        Self { tracer, messaging: Arc::new(messaging) }
    }

    pub fn is_on(&self) -> bool {
        self.tracer.is_on()
    }

    /// Whether spans of a message with this trace are recorded.
    pub fn samples(&self, trace: &TraceParent) -> bool {
        self.tracer.samples(trace)
    }

    /// Begins the publication of a message.
    pub fn publish(&self, trace: &TraceParent, message: MessageId) -> Option<OpenSpan> {
        let name = format_args!("send {}", self.messaging.topic);
        let mut span = self.tracer.begin(trace, SpanKind::Producer, name)?;
        self.describe(&mut span, "send", message);
        Some(span)
    }

    /// Begins the take-over of a message from a partition. A message of another producer begins a
    /// new trace if it has none. Also returns the trace to store with the message.
    pub fn take_over(
        &self,
        trace: Option<TraceParent>,
        message: MessageId,
        partition: i32,
        offset: i64,
    ) -> (Option<TraceParent>, Option<OpenSpan>) {
        let name = format_args!("process {}", self.messaging.topic);
        let (trace, mut span) = self.tracer.enter(trace, SpanKind::Consumer, name);
        if let Some(span) = &mut span {
            self.describe(span, "process", message);
            span.set("messaging.destination.partition.id", partition.to_string());
            span.set("messaging.kafka.offset", offset);
            if let Some(group) = &self.messaging.group {
                span.set("messaging.consumer.group.name", group.clone());
            }
        }
        (trace, span)
    }

    /// Begins a call of a gateway.
    pub fn call(
        &self,
        trace: Option<&TraceParent>,
        message: MessageId,
        gateway: &GatewayName,
        attempt: u32,
    ) -> Option<OpenSpan> {
        let name = format_args!("call {gateway}");
        let mut span = self.tracer.begin(trace?, SpanKind::Client, name)?;
        span.set("messaging.message.id", message.to_string());
        span.set("messager.gateway", gateway.to_string());
        span.set("messager.attempt", attempt);
        Some(span)
    }

    /// Records a receipt that was stored, in the trace of its message. `request` is the span of the
    /// request that brought it, which may be of another trace.
    pub fn receipt(
        &self,
        noted: &Noted,
        gateway: Option<&GatewayName>,
        receipt: Receipt,
        request: Option<TraceParent>,
        begun: Instant,
    ) {
        let Noted::Stored(NewReceipt { trace: Some(trace), .. }) = noted else { return };
        let span = self.tracer.begin(trace, SpanKind::Internal, "receipt");
        let Some(mut span) = span.map(|span| span.since(begun)) else { return };
        if let Some(gateway) = gateway {
            span.set("messager.gateway", gateway.to_string());
        }
        span.set("messager.receipt", receipt.as_str());
        if let Some(request) = request {
            span.link(request);
        }
    }

    fn describe(&self, span: &mut OpenSpan, operation: &'static str, message: MessageId) {
        let Messaging { system, topic, .. } = &*self.messaging;
        span.set("messaging.system", *system);
        span.set("messaging.operation.name", operation);
        span.set("messaging.operation.type", operation);
        span.set("messaging.destination.name", topic.clone());
        span.set("messaging.message.id", message.to_string());
    }
}
