//! The messages of OTLP 1 that traces need. The numbers of their fields never change.
//!
//! <https://github.com/open-telemetry/opentelemetry-proto>, `trace/v1/trace.proto`. The tests read the
//! bytes with the types that are generated from it.

use std::time::{SystemTime, UNIX_EPOCH};

use application::{Attribute, SpanKind, TraceParent};

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct ExportRequest {
    #[prost(message, repeated, tag = "1")]
    resource_spans: Vec<ResourceSpans>,
}

/// The answer of a collector.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Answer {
    #[prost(message, optional, tag = "1")]
    pub(super) partial_success: Option<PartialSuccess>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct PartialSuccess {
    #[prost(int64, tag = "1")]
    pub(super) rejected_spans: i64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ResourceSpans {
    #[prost(message, optional, tag = "1")]
    resource: Option<Resource>,
    #[prost(message, repeated, tag = "2")]
    scope_spans: Vec<ScopeSpans>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Resource {
    #[prost(message, repeated, tag = "1")]
    attributes: Vec<KeyValue>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ScopeSpans {
    #[prost(message, optional, tag = "1")]
    scope: Option<Scope>,
    #[prost(message, repeated, tag = "2")]
    spans: Vec<Span>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Scope {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    version: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Span {
    #[prost(bytes = "vec", tag = "1")]
    trace_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    id: Vec<u8>,
    #[prost(bytes = "vec", tag = "4")]
    parent_id: Vec<u8>,
    #[prost(string, tag = "5")]
    name: String,
    #[prost(int32, tag = "6")]
    kind: i32,
    #[prost(fixed64, tag = "7")]
    start_time_unix_nano: u64,
    #[prost(fixed64, tag = "8")]
    end_time_unix_nano: u64,
    #[prost(message, repeated, tag = "9")]
    attributes: Vec<KeyValue>,
    #[prost(message, repeated, tag = "13")]
    links: Vec<Link>,
    #[prost(message, optional, tag = "15")]
    status: Option<Status>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Link {
    #[prost(bytes = "vec", tag = "1")]
    trace_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    span_id: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Status {
    #[prost(int32, tag = "3")]
    code: i32,
}

#[derive(Clone, PartialEq, prost::Message)]
struct KeyValue {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(message, optional, tag = "2")]
    value: Option<AnyValue>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct AnyValue {
    #[prost(oneof = "Value", tags = "1, 3")]
    value: Option<Value>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum Value {
    #[prost(string, tag = "1")]
    Text(String),
    #[prost(int64, tag = "3")]
    Number(i64),
}

const ERROR: i32 = 2;

/// Makes the request that exports spans of one process.
pub(super) fn request(resource: Resource, spans: Vec<application::Span>) -> ExportRequest {
    let scope =
        Scope { name: "messager".to_owned(), version: env!("CARGO_PKG_VERSION").to_owned() };
    let spans = spans.into_iter().map(Span::of).collect();
    let scope_spans = vec![ScopeSpans { scope: Some(scope), spans }];
    ExportRequest { resource_spans: vec![ResourceSpans { resource: Some(resource), scope_spans }] }
}

impl Resource {
    pub(super) fn of(attributes: Vec<(&'static str, String)>) -> Self {
        let attributes = attributes.into_iter().map(|(key, text)| KeyValue::of(key, text.into()));
        Self { attributes: attributes.collect() }
    }
}

impl Span {
    fn of(span: application::Span) -> Self {
        let kind = match span.kind {
            SpanKind::Internal => 1,
            SpanKind::Server => 2,
            SpanKind::Client => 3,
            SpanKind::Producer => 4,
            SpanKind::Consumer => 5,
        };
        let attributes = span.attributes.into_iter();
        Self {
            trace_id: trace_id(&span.context),
            id: span_id(&span.context),
            parent_id: span.parent.as_ref().map_or_else(Vec::new, span_id),
            name: span.name,
            kind,
            start_time_unix_nano: nanos(span.start),
            end_time_unix_nano: nanos(span.end),
            attributes: attributes.map(|(key, value)| KeyValue::of(key, value)).collect(),
            links: span.link.iter().map(Link::of).collect(),
            status: span.error.map(|_| Status { code: ERROR }),
        }
    }
}

impl Link {
    fn of(other: &TraceParent) -> Self {
        Self { trace_id: trace_id(other), span_id: span_id(other) }
    }
}

impl KeyValue {
    fn of(key: &str, value: Attribute) -> Self {
        let value = match value {
            Attribute::Text(text) => Value::Text(text.into_owned()),
            Attribute::Number(number) => Value::Number(number),
        };
        Self { key: key.to_owned(), value: Some(AnyValue { value: Some(value) }) }
    }
}

fn trace_id(context: &TraceParent) -> Vec<u8> {
    context.trace_number().to_be_bytes().to_vec()
}

fn span_id(context: &TraceParent) -> Vec<u8> {
    context.span_number().to_be_bytes().to_vec()
}

fn nanos(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}
