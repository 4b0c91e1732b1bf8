//! The export of spans to an OpenTelemetry collector.

use std::{fmt, time::Duration};

use adapters_gateway::{NotCollected, SpanCollector, SpanCollectorSettings};
use anyhow::Context;
use application::{Span, Spans, Tracer};
use bytes::Bytes;
use prometheus::Registry;
use rand_core::Rng;
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep, timeout_at},
};
use tokio_util::sync::CancellationToken;

use crate::{config::TracesConfig, metrics::SpanMetrics, random::seeded, roles::clock};

/// The task that exports the spans of a process.
#[derive(Debug)]
pub(crate) struct SpanExport {
    task: JoinHandle<()>,
    stop: CancellationToken,
}

/// Takes batches of spans. Tests have a collector of their own.
trait Collector: Send + Sync + 'static {
    fn encode(&self, spans: Vec<Span>) -> Bytes;

    /// Posts a batch. Returns the number of spans that the collector rejected.
    fn post(&self, batch: Bytes) -> impl Future<Output = Result<u64, NotCollected>> + Send;
}

struct Exporter<C> {
    collector: C,
    metrics: SpanMetrics,
    warned: Option<Instant>,
}

/// The maximum number of spans that wait for their export. Further ones are dropped.
const QUEUE: usize = 4_096;
const BATCH: usize = 512;
/// How long the first span of a batch waits for others.
const DELAY: Duration = Duration::from_secs(1);
/// The pauses before a batch is posted again. A `Retry-After` of the collector is ignored: after a
/// longer pause, the queue would be full.
const PAUSES: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(3)];
/// How long the last spans may take at a stop.
const LAST: Duration = Duration::from_secs(5);
/// The interval between two warnings.
const WARNING: Duration = Duration::from_secs(60);

/// Starts the export. `binary` is the name of this binary.
pub(crate) fn start(
    binary: &str,
    config: &TracesConfig,
    registry: &Registry,
) -> anyhow::Result<(Tracer, SpanExport)> {
    let mut rng = seeded()?;
    let instance = format!("{:016x}", rng.next_u64());
    let name = if binary == "messager" { binary.to_owned() } else { format!("messager-{binary}") };
    let collector = SpanCollector::new(SpanCollectorSettings {
        endpoint: config.endpoint.clone(),
        headers: config.headers.clone(),
        authorities: config.authorities.clone(),
        resource: vec![
            ("service.name", config.service_name.clone().unwrap_or(name)),
            ("service.version", env!("CARGO_PKG_VERSION").to_owned()),
            ("service.instance.id", instance),
            ("messager.binary", binary.to_owned()),
        ],
    })
    .context("OTEL_EXPORTER_OTLP_ENDPOINT")?;
    let exporter = Exporter { collector, metrics: SpanMetrics::register(registry)?, warned: None };
    let (tracer, spans) = Tracer::start(config.sampler, clock, rng, QUEUE);
    Ok((tracer, SpanExport::start(exporter, spans)))
}

impl Collector for SpanCollector {
    fn encode(&self, spans: Vec<Span>) -> Bytes {
        self.encode(spans)
    }

    async fn post(&self, batch: Bytes) -> Result<u64, NotCollected> {
        self.post(batch).await
    }
}

impl SpanExport {
    fn start(exporter: Exporter<impl Collector>, spans: Spans) -> Self {
        let stop = CancellationToken::new();
        Self { task: tokio::spawn(exporter.run(spans, stop.clone())), stop }
    }

    /// Exports what is left, before `deadline`. Called when nothing else runs.
    pub(crate) async fn finish(self, deadline: Instant) {
        self.stop.cancel();
        match timeout_at(deadline.min(Instant::now() + LAST), self.task).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::error!(%error, "the export of spans panicked; later spans were lost");
            }
            Err(_) => tracing::warn!("the last spans were not exported in time"),
        }
    }
}

impl<C: Collector> Exporter<C> {
    async fn run(mut self, mut spans: Spans, stop: CancellationToken) {
        let mut batch = Vec::new();
        while stop.run_until_cancelled(spans.recv_many(&mut batch, BATCH)).await.is_some() {
            if batch.len() < BATCH {
                stop.run_until_cancelled(sleep(DELAY)).await;
                spans.take(&mut batch, BATCH);
            }
            self.export(std::mem::take(&mut batch), &stop).await;
            self.note_overflow(&spans);
        }
        loop {
            spans.take(&mut batch, BATCH);
            if batch.is_empty() {
                break;
            }
            self.export(std::mem::take(&mut batch), &stop).await;
        }
        self.note_overflow(&spans);
    }

    fn note_overflow(&mut self, spans: &Spans) {
        let dropped = spans.take_dropped();
        if dropped > 0 {
            self.note_dropped(dropped, &"the queue was full");
        }
    }

    /// Exports a batch, or drops it after some tries. A stop allows one try.
    async fn export(&mut self, batch: Vec<Span>, stop: &CancellationToken) {
        let count = batch.len() as u64;
        let bytes = self.collector.encode(batch);
        let mut pauses = PAUSES.iter();
        loop {
            let error = match self.collector.post(bytes.clone()).await {
                Ok(rejected) => {
                    let rejected = rejected.min(count);
                    self.metrics.exported(count - rejected);
                    if rejected > 0 {
                        self.note_dropped(rejected, &"the collector rejected them");
                    }
                    return;
                }
                Err(error) => error,
            };
            let pause = match (&error, pauses.next()) {
                (NotCollected::Unavailable(_), Some(pause)) if !stop.is_cancelled() => *pause,
                _ => return self.note_dropped(count, &error),
            };
            stop.run_until_cancelled(sleep(pause)).await;
        }
    }

    /// Counts dropped spans, and logs the first ones within a minute.
    fn note_dropped(&mut self, count: u64, reason: &dyn fmt::Display) {
        self.metrics.dropped(count);
        if self.warned.is_some_and(|at| at.elapsed() < WARNING) {
            return;
        }
        self.warned = Some(Instant::now());
        tracing::warn!(
            count,
            %reason,
            "spans were dropped; messages are not affected; further drops within a minute are not \
             logged"
        );
    }
}

#[cfg(test)]
mod tests;
