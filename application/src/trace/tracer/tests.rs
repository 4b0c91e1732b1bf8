use rand::{SeedableRng, rngs::StdRng};

use super::*;

const SAMPLED: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
const UNSAMPLED: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00";

fn started(sampler: Sampler, capacity: usize) -> (Tracer, Spans) {
    Tracer::start(sampler, || SystemTime::UNIX_EPOCH, StdRng::seed_from_u64(1), capacity)
}

fn taken(spans: &mut Spans) -> Vec<Span> {
    let mut batch = Vec::new();
    spans.take(&mut batch, 100);
    batch
}

#[test]
fn nothing_is_recorded_if_tracing_is_off() {
    let tracer = Tracer::default();
    let caller: TraceParent = SAMPLED.parse().unwrap();

    assert!(tracer.begin(&caller, SpanKind::Internal, "store").is_none());
    let (trace, span) = tracer.enter(Some(caller.clone()), SpanKind::Server, "POST /api");
    assert_eq!(trace, Some(caller));
    assert!(span.is_none());
    assert!(tracer.enter(None, SpanKind::Server, "POST /api").0.is_none());
}

#[test]
fn span_of_a_caller_is_its_child_and_goes_on() {
    let (tracer, mut spans) = started(Sampler::default(), 10);
    let caller: TraceParent = SAMPLED.parse().unwrap();

    let (trace, span) = tracer.enter(Some(caller.clone()), SpanKind::Server, "POST /api");
    let trace = trace.unwrap();
    let mut inner = tracer.begin(&trace, SpanKind::Internal, "store").unwrap();
    inner.fail("timeout");
    drop(inner);
    drop(span);

    let [inner, outer] = &taken(&mut spans)[..] else { panic!("two spans") };
    assert_eq!((&outer.context, &outer.parent), (&trace, &Some(caller.clone())));
    assert_eq!(outer.context.trace_id(), caller.trace_id());
    assert_ne!(outer.context.span_id(), caller.span_id());
    assert_eq!(inner.parent.as_ref(), Some(&trace));
    assert_eq!(inner.error.as_deref(), Some("timeout"));
    assert_eq!(inner.attributes, [("error.type", Attribute::from("timeout"))]);
}

#[test]
fn new_trace_begins_without_a_caller_if_it_is_sampled() {
    let (tracer, mut spans) = started(Sampler::default(), 10);
    let (trace, span) = tracer.enter(None, SpanKind::Server, "POST /api");
    drop(span);
    let trace = trace.unwrap();
    assert!(trace.is_sampled());
    assert_eq!(trace.as_str().parse(), Ok(trace.clone()));
    let [span] = &taken(&mut spans)[..] else { panic!("one span") };
    assert_eq!((&span.context, &span.parent), (&trace, &None));

    let (tracer, mut spans) = started(Sampler { ratio: 0.0, follows_parent: false }, 10);
    assert!(tracer.enter(None, SpanKind::Server, "POST /api").0.is_none());
    let (trace, span) = tracer.enter(SAMPLED.parse().ok(), SpanKind::Server, "POST /api");
    assert_eq!(trace.unwrap().as_str(), UNSAMPLED);
    assert!(span.is_none());
    assert!(taken(&mut spans).is_empty());
}

#[test]
fn span_that_finds_the_queue_full_is_dropped_and_counted() {
    let (tracer, mut spans) = started(Sampler::default(), 2);
    for _ in 0..5 {
        drop(tracer.enter(None, SpanKind::Server, "POST /api"));
    }

    assert_eq!((spans.take_dropped(), spans.take_dropped()), (3, 0));
    assert_eq!(taken(&mut spans).len(), 2);
}

#[tokio::test(start_paused = true)]
async fn span_lasts_from_its_start_to_its_end() {
    let (tracer, mut spans) = started(Sampler::default(), 10);
    let second = Duration::from_secs(1);
    let begun = Instant::now();
    tokio::time::advance(second).await;
    let (_, span) = tracer.enter(None, SpanKind::Client, "call");
    let span = span.unwrap().since(begun);
    let (_, mut told) = tracer.enter(None, SpanKind::Client, "call");
    told.as_mut().unwrap().took(second / 2);
    tokio::time::advance(second).await;
    tracer.enter(None, SpanKind::Client, "discarded").1.unwrap().discard();
    drop((told, span));

    let lasted: Vec<_> = taken(&mut spans)
        .iter()
        .map(|span| (span.start, span.end.duration_since(span.start).unwrap()))
        .collect();
    let epoch = SystemTime::UNIX_EPOCH;
    assert_eq!(lasted, [(epoch, second / 2), (epoch - second, 2 * second)]);
}
