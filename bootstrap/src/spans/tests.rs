use std::{
    collections::VecDeque,
    future::pending,
    io::{self, Write},
    sync::{Arc, Mutex},
};

use application::{Sampler, SpanKind, TraceParent};
use prometheus::TextEncoder;
use tokio::time::advance;
use tracing::subscriber::DefaultGuard;

use super::*;

/// The answer of a collector to a batch.
#[derive(Debug, Clone, Copy)]
enum Answer {
    Rejects(u64),
    Unavailable,
    Refuses,
    Panics,
    Never,
}

/// Gives these answers, and then accepts everything.
#[derive(Debug, Clone, Default)]
struct Fake {
    answers: Arc<Mutex<VecDeque<Answer>>>,
    /// The size of each batch that was posted, and when.
    posted: Arc<Mutex<Vec<(usize, Instant)>>>,
}

impl Collector for Fake {
    fn encode(&self, spans: Vec<Span>) -> Bytes {
        vec![0; spans.len()].into()
    }

    async fn post(&self, batch: Bytes) -> Result<u64, NotCollected> {
        self.posted.lock().unwrap().push((batch.len(), Instant::now()));
        let answer = self.answers.lock().unwrap().pop_front();
        match answer.unwrap_or(Answer::Rejects(0)) {
            Answer::Rejects(spans) => Ok(spans),
            Answer::Unavailable => Err(NotCollected::Unavailable("status 503".to_owned())),
            Answer::Refuses => Err(NotCollected::Refused("status 400".to_owned())),
            Answer::Panics => panic!("the collector panics"),
            Answer::Never => pending().await,
        }
    }
}

/// The log of the current thread.
#[derive(Debug, Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// An export that runs.
struct Running {
    tracer: Tracer,
    export: SpanExport,
    collector: Fake,
    registry: Registry,
    log: Log,
    _guard: DefaultGuard,
}

fn start(answers: &[Answer], capacity: usize) -> Running {
    let log = Log::default();
    let writer = log.clone();
    let subscriber =
        tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
    let guard = tracing::subscriber::set_default(subscriber);
    let answers = Arc::new(Mutex::new(answers.iter().copied().collect()));
    let collector = Fake { answers, ..Fake::default() };
    let registry = Registry::new();
    let metrics = SpanMetrics::register(&registry).unwrap();
    let exporter = Exporter { collector: collector.clone(), metrics, warned: None };
    let (tracer, spans) = Tracer::start(Sampler::default(), clock, seeded().unwrap(), capacity);
    let export = SpanExport::start(exporter, spans);
    Running { tracer, export, collector, registry, log, _guard: guard }
}

impl Running {
    fn record(&self, spans: usize) {
        let parent: TraceParent =
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".parse().unwrap();
        for _ in 0..spans {
            drop(self.tracer.begin(&parent, SpanKind::Internal, "work").unwrap());
        }
    }

    /// Records spans, and waits until the export has none left.
    async fn export(&self, spans: usize) {
        self.record(spans);
        sleep(Duration::from_secs(10)).await;
    }

    fn batches(&self) -> Vec<usize> {
        self.collector.posted.lock().unwrap().iter().map(|it| it.0).collect()
    }

    /// Returns the numbers of exported and of dropped spans.
    fn counted(&self) -> (u64, u64) {
        let text = TextEncoder::new().encode_to_string(&self.registry.gather()).unwrap();
        let of = |result| {
            let name = format!("messager_spans_total{{result=\"{result}\"}} ");
            let value = text.lines().find_map(|line| line.strip_prefix(&name)).unwrap();
            value.parse().unwrap()
        };
        (of("exported"), of("dropped"))
    }

    fn warnings(&self) -> usize {
        self.log.text().matches("spans were dropped").count()
    }
}

#[tokio::test(start_paused = true)]
async fn batch_is_posted_again_after_one_and_three_seconds() {
    let running = start(&[Answer::Unavailable, Answer::Unavailable], QUEUE);

    running.export(3).await;

    let posted = running.collector.posted.lock().unwrap().clone();
    let [(3, first), (3, second), (3, third)] = posted[..] else { panic!("{posted:?}") };
    assert_eq!((second - first, third - second), (PAUSES[0], PAUSES[1]));
    assert_eq!(running.counted(), (3, 0));
    assert_eq!(running.warnings(), 0);
}

#[tokio::test(start_paused = true)]
async fn batch_is_dropped_after_three_tries_or_one_refusal() {
    let running = start(&[Answer::Unavailable; 3], QUEUE);
    running.export(3).await;
    assert_eq!((running.batches(), running.counted()), (vec![3; 3], (0, 3)));
    assert!(running.log.text().contains("status 503"), "{}", running.log.text());
    drop(running);

    let running = start(&[Answer::Refuses], QUEUE);
    running.export(3).await;
    assert_eq!((running.batches(), running.counted()), (vec![3], (0, 3)));
    assert!(running.log.text().contains("status 400"), "{}", running.log.text());
}

#[tokio::test(start_paused = true)]
async fn log_warns_of_dropped_spans_once_a_minute() {
    let running = start(&[Answer::Refuses; 3], QUEUE);

    running.export(1).await;
    running.export(1).await;
    assert_eq!((running.counted(), running.warnings()), ((0, 2), 1));

    advance(WARNING).await;
    running.export(1).await;
    assert_eq!((running.counted(), running.warnings()), ((0, 3), 2));
}

#[tokio::test(start_paused = true)]
async fn log_warns_of_spans_that_the_collector_rejects() {
    let running = start(&[Answer::Rejects(2)], QUEUE);

    running.export(5).await;

    assert_eq!(running.counted(), (3, 2));
    let log = running.log.text();
    assert!(log.contains("spans were dropped") && log.contains("rejected"), "{log}");
    assert!(log.contains("count=2"), "{log}");
}

#[tokio::test(start_paused = true)]
async fn log_warns_of_spans_that_find_the_queue_full() {
    let running = start(&[], 4);

    running.export(6).await;

    assert_eq!(running.counted(), (4, 2));
    let log = running.log.text();
    assert!(log.contains("spans were dropped") && log.contains("the queue was full"), "{log}");
}

#[tokio::test(start_paused = true)]
async fn last_spans_are_exported_at_a_stop() {
    let running = start(&[], QUEUE);
    running.record(BATCH + 1);
    let Running { export, collector, log, .. } = running;

    export.finish(Instant::now() + LAST).await;

    let posted: usize = collector.posted.lock().unwrap().iter().map(|it| it.0).sum();
    assert_eq!(posted, BATCH + 1);
    assert_eq!(log.text(), "");
}

#[tokio::test(start_paused = true)]
async fn stop_does_not_wait_longer_for_the_collector() {
    for (deadline, waits) in [(2 * LAST, LAST), (LAST / 2, LAST / 2)] {
        let running = start(&[Answer::Never], QUEUE);
        running.record(1);
        let begun = Instant::now();

        running.export.finish(begun + deadline).await;

        assert_eq!(begun.elapsed().as_secs(), waits.as_secs());
        let log = running.log.text();
        assert!(log.contains("the last spans were not exported in time"), "{log}");
    }
}

#[tokio::test(start_paused = true)]
async fn log_has_a_panic_of_the_export() {
    let running = start(&[Answer::Panics], QUEUE);
    running.export(1).await;

    running.export.finish(Instant::now() + LAST).await;

    let log = running.log.text();
    assert!(log.contains("ERROR") && log.contains("the export of spans panicked"), "{log}");
    assert!(!log.contains("in time"), "{log}");
}
