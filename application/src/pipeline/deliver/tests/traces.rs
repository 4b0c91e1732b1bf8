//! The spans of deliveries.

use super::*;
use crate::{Attribute, Messaging, Sampler, Span, SpanKind, Spans, TraceParent, Tracer};

const HEADER: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

fn traced() -> (TracedMessages, Spans) {
    let rng = StdRng::seed_from_u64(7);
    let (tracer, spans) = Tracer::start(Sampler::default(), || SystemTime::UNIX_EPOCH, rng, 100);
    let messaging =
        Messaging { system: "kafka", topic: "message".to_owned(), group: Some("1".to_owned()) };
    (TracedMessages::new(tracer, messaging), spans)
}

fn taken(spans: &mut Spans) -> Vec<Span> {
    let mut batch = Vec::new();
    spans.take(&mut batch, 100);
    batch
}

/// A record of another producer.
fn with_header(number: i64, header: Option<&str>) -> Record {
    let mut record = record(number);
    record.content.as_mut().unwrap().trace = header.map(|it| it.parse().unwrap());
    record
}

/// A ledger that records the traces of the messages that it admits.
fn noting(fresh: fn(MessageId) -> bool) -> (MockDeliveryLedger, Arc<Mutex<Vec<TraceParent>>>) {
    let stored = Arc::<Mutex<Vec<TraceParent>>>::default();
    let mut ledger = MockDeliveryLedger::new();
    ledger.expect_open().returning(|_| Ok(Vec::new()));
    let noted = Arc::clone(&stored);
    ledger.expect_admit().returning(move |_, batch| {
        noted.lock().unwrap().extend(batch.messages().filter_map(|it| it.trace.clone()));
        let ids = batch.messages().map(|it| it.message.id);
        Ok(admitted(ids.filter(|id| fresh(*id)).collect()))
    });
    (ledger, stored)
}

#[tokio::test(start_paused = true)]
async fn call_is_a_child_of_the_take_over_which_is_a_child_of_the_header() {
    let (mut ledger, stored) = noting(|_| true);
    starts(&mut ledger);
    finishes(&mut ledger);
    let told = Arc::<Mutex<Option<Sms>>>::default();
    let mut gateway = MockSmsGateway::new();
    gateway.expect_deduplicates().return_const(true);
    let book = Arc::clone(&told);
    gateway.expect_send().returning(move |sms| {
        *book.lock().unwrap() = Some(sms.clone());
        Err(SendError::Rejected("79990000001 is bad".to_owned()))
    });
    let (mut deliver, _inbox) =
        deliver(ledger, gateway, vec![fetched(vec![with_header(1, Some(HEADER))])]);
    let (traced, mut spans) = traced();
    deliver.settings.traced = traced;

    run(&mut deliver, 1).await;

    let [process, call] = &taken(&mut spans)[..] else { panic!("two spans") };
    assert_eq!((process.kind, call.kind), (SpanKind::Consumer, SpanKind::Client));
    assert_eq!(process.parent, HEADER.parse().ok());
    assert_eq!(*stored.lock().unwrap(), std::slice::from_ref(&process.context));
    assert_eq!(call.parent.as_ref(), Some(&process.context));
    assert_eq!(told.lock().unwrap().take().unwrap().trace.as_ref(), Some(&call.context));
    assert_eq!(call.name, "call default");
    assert_eq!(call.error.as_deref(), Some("rejected"));
    for attribute in [
        ("messager.attempt", Attribute::from(1_u32)),
        ("messager.outcome", Attribute::from("rejected")),
    ] {
        assert!(call.attributes.contains(&attribute), "{call:?}");
    }
    assert!(process.attributes.contains(&("messaging.kafka.offset", Attribute::from(1_i64))));
    assert!(!format!("{process:?} {call:?}").contains("7999"), "no span has the number");
}

#[tokio::test(start_paused = true)]
async fn record_without_a_trace_begins_one() {
    let (ledger, stored) = noting(|_| true);
    let mut ledger = ledger;
    starts(&mut ledger);
    finishes(&mut ledger);
    let gateway = gateway_that(Ok(Accepted::default()), true);
    let (mut deliver, _inbox) = deliver(ledger, gateway, vec![fetched(vec![with_header(1, None)])]);
    let (traced, mut spans) = traced();
    deliver.settings.traced = traced;

    run(&mut deliver, 1).await;

    let [process, call] = &taken(&mut spans)[..] else { panic!("two spans") };
    assert_eq!((&process.parent, &call.error), (&None, &None));
    assert_eq!(*stored.lock().unwrap(), std::slice::from_ref(&process.context));
}

#[tokio::test(start_paused = true)]
async fn only_messages_that_are_taken_over_have_a_span() {
    let unsampled = HEADER.replace("-01", "-00");
    let records = vec![
        with_header(1, Some(HEADER)),
        // A batch may have a message twice.
        with_header(1, Some(HEADER)),
        with_header(2, Some(HEADER)),
        with_header(3, Some(&unsampled)),
    ];
    let (mut ledger, stored) = noting(|id| id != message(2).id);
    starts(&mut ledger);
    finishes(&mut ledger);
    let gateway = gateway_that(Ok(Accepted::default()), true);
    let (mut deliver, _inbox) = deliver(ledger, gateway, vec![fetched(records)]);
    let (traced, mut spans) = traced();
    deliver.settings.traced = traced;

    run(&mut deliver, 2).await;

    let names: Vec<_> = taken(&mut spans).into_iter().map(|span| span.name).collect();
    assert_eq!(names, ["process message", "call default"]);
    assert_eq!(stored.lock().unwrap()[3].as_str(), unsampled);
}

#[tokio::test(start_paused = true)]
async fn take_over_that_failed_has_no_span() {
    let mut ledger = MockDeliveryLedger::new();
    ledger.expect_open().returning(|_| Ok(Vec::new()));
    ledger.expect_admit().returning(|_, _| Err(LedgerError::Unavailable("reset".into())));
    let gateway = gateway_that(Ok(Accepted::default()), true);
    let (mut deliver, _inbox) =
        deliver(ledger, gateway, vec![fetched(vec![with_header(1, Some(HEADER))])]);
    let (traced, mut spans) = traced();
    deliver.settings.traced = traced;

    deliver.wait().await;
    deliver.act().await.unwrap_err();

    assert!(taken(&mut spans).is_empty());
}
