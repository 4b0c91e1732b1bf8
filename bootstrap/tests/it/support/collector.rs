use std::sync::{Arc, Mutex};

use axum::{Router, body::Bytes, extract::State, http::HeaderMap, routing::post};
use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::{KeyValue, any_value::Value},
    trace::v1::Span as Exported,
};
use prost::Message;
use tokio::{net::TcpListener, task::JoinHandle};

/// A collector of spans that keeps what it gets.
#[derive(Debug)]
pub(crate) struct Collector {
    port: u16,
    taken: Arc<Mutex<Vec<Span>>>,
    server: JoinHandle<()>,
}

/// A span as the collector got it. Ids are in hex digits, and empty if there is none.
#[derive(Debug, Clone)]
pub(crate) struct Span {
    pub(crate) service: String,
    pub(crate) name: String,
    pub(crate) trace: String,
    pub(crate) id: String,
    pub(crate) parent: String,
    /// The id of the span of another trace that it names.
    pub(crate) link: String,
    pub(crate) is_error: bool,
    attributes: Vec<(String, String)>,
}

impl Collector {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let taken = Arc::<Mutex<Vec<Span>>>::default();
        let router = Router::new().route("/v1/traces", post(take)).with_state(Arc::clone(&taken));
        let server = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { port, taken, server }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub(crate) fn spans(&self) -> Vec<Span> {
        self.taken.lock().unwrap().clone()
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Span {
    fn of(service: &str, span: Exported) -> Self {
        Self {
            service: service.to_owned(),
            is_error: span.status.is_some_and(|status| status.code == 2),
            name: span.name,
            trace: hex(&span.trace_id),
            id: hex(&span.span_id),
            parent: hex(&span.parent_span_id),
            link: span.links.first().map_or_else(String::new, |link| hex(&link.span_id)),
            attributes: span.attributes.into_iter().map(text).collect(),
        }
    }

    pub(crate) fn attribute(&self, name: &str) -> Option<&str> {
        self.attributes.iter().find(|it| it.0 == name).map(|it| it.1.as_str())
    }

    /// All texts of the span.
    pub(crate) fn texts(&self) -> impl Iterator<Item = &str> {
        let values = self.attributes.iter().map(|it| it.1.as_str());
        [self.name.as_str(), self.service.as_str()].into_iter().chain(values)
    }
}

async fn take(State(taken): State<Arc<Mutex<Vec<Span>>>>, headers: HeaderMap, body: Bytes) {
    assert_eq!(headers["content-type"], "application/x-protobuf");
    let request = ExportTraceServiceRequest::decode(body).unwrap();
    let mut taken = taken.lock().unwrap();
    for resource in request.resource_spans {
        let attributes = resource.resource.unwrap().attributes.into_iter().map(text);
        let service = attributes.into_iter().find(|it| it.0 == "service.name").unwrap().1;
        let spans = resource.scope_spans.into_iter().flat_map(|scope| scope.spans);
        taken.extend(spans.map(|span| Span::of(&service, span)));
    }
}

fn text(KeyValue { key, value, .. }: KeyValue) -> (String, String) {
    let value = match value.unwrap().value.unwrap() {
        Value::StringValue(text) => text,
        Value::IntValue(number) => number.to_string(),
        other => panic!("{other:?}"),
    };
    (key, value)
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}
