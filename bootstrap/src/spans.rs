//! The export of spans to an OpenTelemetry collector.

use std::time::Duration;

use adapters_gateway::{NotCollected, SpanCollector, SpanCollectorSettings};
use anyhow::Context;
use application::{Span, Spans, Tracer};
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

struct Exporter {
    collector: SpanCollector,
    metrics: SpanMetrics,
    warned: Option<Instant>,
}

/// The maximum number of spans that wait for their export. Further ones are dropped.
const QUEUE: usize = 4_096;
const BATCH: usize = 512;
/// How long the first span of a batch waits for others.
const DELAY: Duration = Duration::from_secs(1);
/// The pauses before a batch is posted again.
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
    let name = format!("messager-{binary}").replace("messager-messager", "messager");
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
    let stop = CancellationToken::new();
    let task = tokio::spawn(exporter.run(spans, stop.clone()));
    Ok((tracer, SpanExport { task, stop }))
}

impl SpanExport {
    /// Exports what is left, before `deadline`. Called when nothing else runs.
    pub(crate) async fn finish(self, deadline: Instant) {
        self.stop.cancel();
        if timeout_at(deadline.min(Instant::now() + LAST), self.task).await.is_err() {
            tracing::warn!("the last spans were not exported in time");
        }
    }
}

impl Exporter {
    async fn run(mut self, mut spans: Spans, stop: CancellationToken) {
        let mut batch = Vec::new();
        while stop.run_until_cancelled(spans.recv_many(&mut batch, BATCH)).await.is_some() {
            if batch.len() < BATCH {
                stop.run_until_cancelled(sleep(DELAY)).await;
                spans.take(&mut batch, BATCH);
            }
            self.export(std::mem::take(&mut batch), &stop).await;
            self.metrics.dropped(spans.take_dropped());
        }
        loop {
            spans.take(&mut batch, BATCH);
            if batch.is_empty() {
                break;
            }
            self.export(std::mem::take(&mut batch), &stop).await;
        }
        self.metrics.dropped(spans.take_dropped());
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
                    return self.metrics.dropped(rejected);
                }
                Err(error) => error,
            };
            let pause = match (&error, pauses.next()) {
                (NotCollected::Unavailable(_), Some(pause)) if !stop.is_cancelled() => *pause,
                _ => {
                    self.warn(&error);
                    return self.metrics.dropped(count);
                }
            };
            stop.run_until_cancelled(sleep(pause)).await;
        }
    }

    fn warn(&mut self, error: &NotCollected) {
        if self.warned.is_some_and(|at| at.elapsed() < WARNING) {
            return;
        }
        self.warned = Some(Instant::now());
        tracing::warn!(
            %error,
            "spans were dropped, because the collector did not accept them; messages are not \
             affected; further drops within a minute are not logged"
        );
    }
}
