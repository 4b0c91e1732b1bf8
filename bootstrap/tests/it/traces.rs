//! The spans of a message, as a collector gets them.

use std::time::Duration;

use serde_json::json;
use tokio::net::TcpListener;

use super::support::{
    Binary, Client, Collector, Folder, Gateway, Running, Span, Stack, code_for, eventually,
    free_port, phone, post_all, raw,
};

const PATIENCE: Duration = Duration::from_secs(60);
const PHONE: &str = "+79991234567";
const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const CALLER: &str = "b7ad6b7169203331";

#[tokio::test]
async fn message_is_one_trace_from_the_request_to_the_receipt() {
    let Some(stack) = Stack::new().await else { return };
    let collector = Collector::start().await;
    let url = collector.url();
    let traced = [("OTEL_EXPORTER_OTLP_ENDPOINT", url.as_str()), ("API_AUTH", "none")];
    let api = stack.start("api", &traced).ready().await;
    let processor = stack.start("processor", &traced).ready().await;
    let consumer = stack.start("consumer", &traced).ready().await;

    let traceparent = format!("00-{TRACE}-{CALLER}-01");
    let client = Client::new(api.port);
    let started = client.with_headers(vec![("traceparent", traceparent)]).start(PHONE).await;
    assert_eq!(started.status, 202, "{}", started.text);
    let code = code_for(&stack.gateway, PHONE).await;
    let sms = stack.gateway.received().pop().unwrap();
    let receipt = json!({ "id": sms.id, "status": "delivered" });
    assert_eq!(client.post("/v1/receipts", &receipt).await.status, 204);
    let find = |name: &str| collector.spans().into_iter().find(|span| span.name == name);
    eventually("the receipt", PATIENCE, async || find("receipt")).await;
    for (process, series) in [
        (&api, r#"messager_v1_request_duration_seconds_bucket{route="/v1/verifications","#),
        (&consumer, r#"messager_time_to_step_seconds_bucket{step="sent","#),
        (&consumer, r#"messager_gateway_call_duration_seconds_bucket{gateway="default","#),
    ] {
        let metrics = open_metrics(process).await;
        let exemplar = format!(" # {{trace_id=\"{TRACE}\"}} ");
        let has = |line: &str| line.starts_with(series) && line.contains(&exemplar);
        assert!(metrics.lines().any(has), "{series}\n{metrics}");
        assert!(metrics.ends_with("# EOF\n"), "{metrics}");
    }
    // A stop exports what is left.
    for process in [api, processor, consumer] {
        assert_eq!(process.stop("TERM").await.0.code(), Some(0));
    }

    let span = |name: &str| find(name).unwrap_or_else(|| panic!("{name}: {:?}", names(&collector)));
    let request = span("POST /v1/verifications");
    let store = span("store message");
    let send = span(&format!("send {}", stack.topic.name));
    let process = span(&format!("process {}", stack.topic.name));
    let call = span("call default");
    let receipt = span("receipt");
    for (span, parent, service) in [
        (&request, CALLER, "messager-api"),
        (&store, &request.id, "messager-api"),
        (&send, &request.id, "messager-processor"),
        (&process, &send.id, "messager-consumer"),
        (&call, &process.id, "messager-consumer"),
        (&receipt, &process.id, "messager-api"),
    ] {
        assert_eq!((&*span.trace, &*span.parent), (TRACE, parent), "{span:?}");
        assert_eq!(span.service, service, "{span:?}");
        assert!(!span.is_error, "{span:?}");
    }
    let of_receipt = span("POST /v1/receipts");
    assert_eq!(receipt.link, of_receipt.id);
    assert_ne!(of_receipt.trace, TRACE, "the request of the receipt has a trace of its own");
    assert_eq!(request.attribute("http.response.status_code"), Some("202"));
    for span in [&store, &send, &process, &call] {
        assert_eq!(span.attribute("messaging.message.id"), Some(&*sms.id), "{span:?}");
    }
    assert_eq!(send.attribute("messaging.destination.name"), Some(&*stack.topic.name));
    assert_eq!(process.attribute("messaging.consumer.group.name"), Some("1"));
    for (name, value) in [
        ("messager.gateway", "default"),
        ("messager.attempt", "1"),
        ("messager.outcome", "accepted"),
    ] {
        assert_eq!(call.attribute(name), Some(value));
    }
    assert_eq!(receipt.attribute("messager.receipt"), Some("delivered"));

    let records = stack.topic.records().await.concat();
    let header = &records[0].record.headers["traceparent"];
    assert_eq!(String::from_utf8_lossy(header), format!("00-{TRACE}-{}-01", send.id));
    assert_eq!(sms.traceparent, Some(format!("00-{TRACE}-{}-01", call.id)));
    assert_tell_nothing(&collector.spans(), &code);
}

/// Asks as Prometheus does.
async fn open_metrics(process: &Running) -> String {
    let request = "GET /metrics HTTP/1.1\r\nhost: messager\r\nconnection: close\r\n\
                   accept: application/openmetrics-text;version=1.0.0;q=0.6,text/plain;q=0.5\r\n\r\n";
    raw(process.metrics_port, request.as_bytes()).await
}

/// Asserts that no span has the number or the code.
fn assert_tell_nothing(spans: &[Span], code: &str) {
    for span in spans {
        for text in span.texts() {
            assert!(!text.contains(&PHONE[1..]), "{span:?}");
            let mut words = text.split(|char: char| !char.is_ascii_alphanumeric());
            assert!(words.all(|word| word != code), "{span:?}");
        }
    }
}

fn names(collector: &Collector) -> Vec<String> {
    collector.spans().into_iter().map(|span| span.name).collect()
}

#[tokio::test]
async fn only_the_part_of_the_sampler_is_traced() {
    let (folder, gateway) = (Folder::new(), Gateway::start().await);
    let collector = Collector::start().await;
    let messager = embedded(&folder, &gateway, &collector.url())
        .env("OTEL_TRACES_SAMPLER", "parentbased_traceidratio")
        .env("OTEL_TRACES_SAMPLER_ARG", "0")
        .env("OTEL_SERVICE_NAME", "codes")
        .ready()
        .await;
    let client = Client::new(messager.port);

    client.start("+79991234501").await;
    for (phone, flags) in [("+79991234502", "00"), ("+79991234503", "01")] {
        let traceparent = format!("00-{TRACE}-{CALLER}-{flags}");
        client.with_headers(vec![("traceparent", traceparent)]).start(phone).await;
    }
    for phone in ["+79991234501", "+79991234502", "+79991234503"] {
        code_for(&gateway, phone).await;
    }
    assert_eq!(messager.stop("TERM").await.0.code(), Some(0));

    let spans = collector.spans();
    let requests = spans.iter().filter(|span| span.name == "POST /v1/verifications");
    assert_eq!(requests.count(), 1, "{:?}", names(&collector));
    assert!(spans.iter().all(|span| span.trace == TRACE && span.service == "codes"), "{spans:?}");
    let received = gateway.received();
    let of = |phone: &str| received.iter().find(|sms| sms.phone == phone).unwrap();
    let unsampled = of("79991234502").traceparent.clone().unwrap();
    assert_eq!(unsampled, format!("00-{TRACE}-{CALLER}-00"));
    assert!(of("79991234501").traceparent.as_ref().unwrap().ends_with("-00"));
    assert!(of("79991234503").traceparent.as_ref().unwrap().ends_with("-01"));
}

#[tokio::test]
async fn messages_go_out_while_no_collector_runs() {
    let (folder, gateway) = (Folder::new(), Gateway::start().await);
    let url = format!("http://127.0.0.1:{}", free_port());
    let messager = embedded(&folder, &gateway, &url).ready().await;

    go_out(&messager, &gateway).await;

    eventually("dropped spans", PATIENCE, async || {
        let dropped = messager.metric("messager_spans_total{result=\"dropped\"}").await?;
        (dropped >= 50.0).then_some(())
    })
    .await;
    let exported = messager.metric("messager_spans_total{result=\"exported\"}").await;
    assert_eq!(exported, Some(0.0));
    let log = messager.stderr();
    assert_eq!(log.matches("spans were dropped").count(), 1, "{log}");
    assert_eq!(messager.stop("TERM").await.0.code(), Some(0));
}

#[tokio::test]
async fn start_warns_of_a_secret_that_crosses_the_network_in_clear_text() {
    let (folder, gateway) = (Folder::new(), Gateway::start().await);
    let messager = embedded(&folder, &gateway, "http://collector.invalid:4318")
        .env("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20hush")
        .ready()
        .await;

    let log = messager.stderr();
    assert!(log.contains("crosses the network in clear text: use an https://"), "{log}");
    assert!(!log.contains("hush"), "{log}");
}

#[tokio::test]
async fn stop_is_clean_while_the_collector_does_not_answer() {
    let (folder, gateway) = (Folder::new(), Gateway::start().await);
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", silent.local_addr().unwrap());
    let mut messager = embedded(&folder, &gateway, &url).ready().await;

    go_out(&messager, &gateway).await;

    messager.signal("TERM").await;
    assert_eq!(messager.ended().await.code(), Some(0));
    let log = messager.stderr();
    assert!(log.contains("the last spans were not exported in time"), "{log}");
}

fn embedded(folder: &Folder, gateway: &Gateway, collector: &str) -> Binary {
    Binary::new("messager", folder.path())
        .env("GATEWAY", "webhook")
        .env("GATEWAY_URL", &gateway.url())
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", collector)
}

async fn go_out(messager: &Running, gateway: &Gateway) {
    let phones: Vec<_> = (0..10).map(phone).collect();
    let answers = post_all(messager.port, phones, 4).await;
    assert_eq!(answers.accepted.len(), 10, "{}", messager.stderr());
    eventually("the messages", PATIENCE, async || (gateway.count() == 10).then_some(())).await;
}
