use std::time::UNIX_EPOCH;

use application::{Attribute, SpanKind};
use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTracePartialSuccess, ExportTraceServiceRequest, ExportTraceServiceResponse,
    },
    common::v1::{KeyValue, any_value::Value},
    trace::v1::{span::SpanKind as Kind, status::StatusCode as Code},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    task::JoinHandle,
};

use super::*;
use crate::testing::{Certificates, serve_tls};

const TRACE: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-00f067aa0ba902b7-01";
const OTHER: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-53995c3f42cd8ad8-01";

fn span() -> Span {
    Span {
        name: "call main".to_owned(),
        kind: SpanKind::Client,
        context: TRACE.parse().unwrap(),
        parent: PARENT.parse().ok(),
        link: OTHER.parse().ok(),
        start: UNIX_EPOCH + Duration::from_nanos(1_700_000_000_123_456_789),
        end: UNIX_EPOCH + Duration::from_nanos(1_700_000_001_000_000_000),
        attributes: vec![
            ("messager.gateway", Attribute::from("main")),
            ("messager.attempt", Attribute::from(2_u32)),
        ],
        error: Some("throttled".into()),
    }
}

fn collector(endpoint: &str) -> SpanCollector {
    SpanCollector::new(SpanCollectorSettings {
        endpoint: endpoint.parse().unwrap(),
        headers: "authorization=Bearer%20token, x-tenant=a, x-tenant=b".parse().unwrap(),
        authorities: Authorities::Public,
        resource: vec![("service.name", "messager-api".to_owned())],
    })
    .unwrap()
}

fn texts(attributes: &[KeyValue]) -> Vec<(&str, String)> {
    let value = |it: &KeyValue| match it.value.as_ref().unwrap().value.as_ref().unwrap() {
        Value::StringValue(text) => text.clone(),
        Value::IntValue(number) => number.to_string(),
        other => panic!("{other:?}"),
    };
    attributes.iter().map(|it| (it.key.as_str(), value(it))).collect()
}

#[test]
fn types_of_opentelemetry_read_the_batch() {
    let root = Span { parent: None, link: None, error: None, attributes: vec![], ..span() };

    let bytes = collector("http://127.0.0.1:1").encode(vec![span(), root]);

    let request = ExportTraceServiceRequest::decode(bytes).unwrap();
    let [resource] = &request.resource_spans[..] else { panic!("one resource") };
    let attributes = &resource.resource.as_ref().unwrap().attributes;
    assert_eq!(texts(attributes), [("service.name", "messager-api".to_owned())]);
    let [scope] = &resource.scope_spans[..] else { panic!("one scope") };
    assert_eq!(scope.scope.as_ref().unwrap().name, "messager");
    let [call, root] = &scope.spans[..] else { panic!("two spans") };
    assert_eq!(call.trace_id, 0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c_u128.to_be_bytes());
    assert_eq!(call.span_id, 0xb7ad_6b71_6920_3331_u64.to_be_bytes());
    assert_eq!(call.parent_span_id, 0x00f0_67aa_0ba9_02b7_u64.to_be_bytes());
    assert_eq!((&*call.name, call.kind()), ("call main", Kind::Client));
    assert_eq!(call.start_time_unix_nano, 1_700_000_000_123_456_789);
    assert_eq!(call.end_time_unix_nano, 1_700_000_001_000_000_000);
    let attributes =
        [("messager.gateway", "main".to_owned()), ("messager.attempt", "2".to_owned())];
    assert_eq!(texts(&call.attributes), attributes);
    let [link] = &call.links[..] else { panic!("one link") };
    assert_eq!(link.trace_id, 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736_u128.to_be_bytes());
    assert_eq!(link.span_id, 0x5399_5c3f_42cd_8ad8_u64.to_be_bytes());
    assert_eq!(call.status.as_ref().unwrap().code(), Code::Error);
    assert!(root.parent_span_id.is_empty() && root.links.is_empty() && root.status.is_none());
}

#[test]
fn kinds_are_those_of_opentelemetry() {
    for (kind, expected) in [
        (SpanKind::Internal, Kind::Internal),
        (SpanKind::Server, Kind::Server),
        (SpanKind::Client, Kind::Client),
        (SpanKind::Producer, Kind::Producer),
        (SpanKind::Consumer, Kind::Consumer),
    ] {
        let bytes = collector("http://127.0.0.1:1").encode(vec![Span { kind, ..span() }]);
        let request = ExportTraceServiceRequest::decode(bytes).unwrap();
        assert_eq!(request.resource_spans[0].scope_spans[0].spans[0].kind(), expected);
    }
}

/// Answers one request with these bytes, and returns the request.
async fn answering(status: &str, body: Vec<u8>) -> (String, JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://user:hush@{}/otlp/", listener.local_addr().unwrap());
    let head =
        format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = vec![0; 64 * 1024];
        let mut length = 0;
        while !request[..length].ends_with(b"BATCH") {
            length += stream.read(&mut request[length..]).await.unwrap();
        }
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(&body).await.unwrap();
        String::from_utf8_lossy(&request[..length]).into_owned()
    });
    (endpoint, server)
}

async fn post(status: &str, body: Vec<u8>) -> (Result<u64, NotCollected>, String) {
    let (endpoint, server) = answering(status, body).await;
    let posted = collector(&endpoint).post(Bytes::from_static(b"BATCH")).await;
    (posted, server.await.unwrap())
}

#[tokio::test]
async fn batch_is_posted_below_the_endpoint_with_the_headers() {
    let (posted, request) = post("200 OK", Vec::new()).await;

    assert_eq!(posted.unwrap(), 0);
    let request = request.to_ascii_lowercase();
    assert!(request.starts_with("post /otlp/v1/traces http/1.1\r\n"), "{request}");
    for header in [
        "content-type: application/x-protobuf",
        "authorization: bearer token",
        "x-tenant: a",
        "x-tenant: b",
    ] {
        assert_eq!(request.matches(&format!("\r\n{header}\r\n")).count(), 1, "{request}");
    }
    assert_eq!(request.matches("\r\nauthorization: ").count(), 1, "{request}");
}

#[tokio::test]
async fn rejected_spans_are_counted() {
    let partial =
        ExportTracePartialSuccess { rejected_spans: 3, error_message: "too long".to_owned() };
    let answer = ExportTraceServiceResponse { partial_success: Some(partial) };

    assert_eq!(post("200 OK", answer.encode_to_vec()).await.0.unwrap(), 3);
}

#[tokio::test]
async fn batch_may_be_retried_only_after_some_answers() {
    for (status, may_repeat) in [
        ("429 Too Many Requests", true),
        ("502 Bad Gateway", true),
        ("503 Service Unavailable", true),
        ("504 Gateway Timeout", true),
        ("400 Bad Request", false),
        ("401 Unauthorized", false),
        ("500 Internal Server Error", false),
    ] {
        let error = post(status, b"secret".to_vec()).await.0.unwrap_err();
        assert_eq!(matches!(error, NotCollected::Unavailable(_)), may_repeat, "{status}");
        assert_eq!(error.to_string(), format!("status {}", &status[..3]));
    }
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let error = collector(&endpoint).post(Bytes::new()).await.unwrap_err();
    assert!(matches!(error, NotCollected::Unavailable(_)), "{error}");
}

#[test]
fn headers_are_pairs_and_are_not_shown() {
    let headers: CollectorHeaders = "api-key=a%2Cb , X-Two=2,".parse().unwrap();

    assert_eq!(headers.0["api-key"], "a,b");
    assert_eq!(headers.0["x-two"], "2");
    assert_eq!(format!("{headers:?}"), r#"{"api-key", "x-two"}"#);
    let reserved = ["Host=a", "content-length=1", "Transfer-Encoding=chunked", "connection=close"];
    for bad in ["api-key", "=b", "a b=c", "a=%0A"].into_iter().chain(reserved) {
        assert_eq!(bad.parse::<CollectorHeaders>().unwrap_err(), InvalidCollectorHeaders, "{bad}");
    }
    let shown = format!("{:?}", collector("http://user:hush@127.0.0.1:1/key"));
    assert_eq!(shown, r#"SpanCollector { host: "127.0.0.1", .. }"#);
}

#[test]
fn endpoint_has_no_query() {
    for (endpoint, is_good) in [
        ("https://127.0.0.1:4318/otlp", true),
        ("https://127.0.0.1:4318/otlp?key=hush", false),
        ("https://127.0.0.1:4318?", false),
    ] {
        let made = SpanCollector::new(SpanCollectorSettings {
            endpoint: endpoint.parse().unwrap(),
            headers: CollectorHeaders::default(),
            authorities: Authorities::Public,
            resource: Vec::new(),
        });
        assert_eq!(made.is_ok(), is_good, "{endpoint}");
    }
}

#[tokio::test]
async fn private_authority_is_trusted_only_if_it_is_set() {
    let certificates = Certificates::make("collector");
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("https://{}", listener.local_addr().unwrap());
    tokio::spawn(serve_tls(
        listener,
        certificates.read("server.crt"),
        certificates.read("server.key"),
    ));
    let post = async |authorities| {
        let collector = SpanCollector::new(SpanCollectorSettings {
            endpoint: endpoint.parse().unwrap(),
            headers: CollectorHeaders::default(),
            authorities,
            resource: Vec::new(),
        });
        collector.unwrap().post(Bytes::from_static(b"BATCH")).await
    };

    let trusted = post(Authorities::read(&certificates.path("ca.crt")).unwrap()).await;
    let unknown = post(Authorities::Public).await;

    assert!(matches!(trusted, Ok(0)), "{trusted:?}");
    assert!(matches!(unknown, Err(NotCollected::Unavailable(_))), "{unknown:?}");
}
