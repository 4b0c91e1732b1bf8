use std::{sync::Arc, time::Duration};

use adapters_broker::{KafkaBroker, KafkaPublisherSettings};
use adapters_gateway::{EventSinkSettings, WebhookEventSink};
use adapters_persistence::{Database, EmbeddedQueue, Part, SqlBacklog, SqlEventOutbox};
use anyhow::Context;
use application::{Chain, DeliverEvents, EventSettings, RelayBatch, RelaySettings, Vault};
use tokio::{sync::Notify, time::sleep};
use tokio_util::sync::CancellationToken;

use super::{embedded_queue, housekeeping::clean_up_orphans, kafka, parts, seeded};
use crate::{
    Process,
    broker::Broker,
    config::EventsConfig,
    metrics::{EventMetrics, RelayMetrics},
    relay::{Pauses, relay, sweep},
};

/// How often records that nobody needs any more leave the embedded queue.
const TRIM: Duration = Duration::from_secs(5);

/// Moves messages from the outbox to the broker, and tells others of events. `stored` may tell of
/// new messages.
pub fn processor(
    process: &mut Process,
    queue: Option<EmbeddedQueue>,
    stored: Arc<Notify>,
) -> anyhow::Result<()> {
    let config = process.config.clone();
    // To claim, settle, publish or tell once more does no harm; what a consumer has taken over is
    // durable, and all before it.
    let database = process.database_to_repeat("processor", 4);
    let parts = parts(Part::Processor, &config.relay.broker);
    let usable = process.watch_database(database.clone(), &parts);
    let metrics = RelayMetrics::register(&process.registry, process.expired.clone())?;
    clean_up_orphans(process, &database, &usable)?;
    let broker = match queue {
        Some(queue) => Broker::Embedded(queue),
        // It only writes, and what is sealed goes out as it is.
        None if !config.relay.broker.is_kafka() => Broker::Embedded(embedded_queue(
            &config,
            // A record that was read must not change.
            &process.database("queue", 6),
            &config.relay.broker,
            &Vault::default(),
        )),
        None => Broker::Kafka(KafkaBroker::new(KafkaPublisherSettings {
            kafka: kafka(&config, &config.relay.broker, "messager-processor"),
            partitions: config.relay.partitions,
            replication_factor: config.relay.replication,
        })),
    };
    if let Broker::Embedded(queue) = &broker {
        let (queue, ttl, stop) = (queue.clone(), config.codes.ttl, process.stop.clone());
        process.spawn(async move {
            while stop.run_until_cancelled(sleep(TRIM)).await.is_some() {
                // What is older than its code is never sent; twice that, for good measure.
                if let Err(error) = queue.trim(2 * ttl).await {
                    tracing::warn!(error = %Chain(&error), "the queue was not trimmed");
                }
            }
            Ok(())
        });
    }
    let backlog = SqlBacklog::new(database.clone(), config.relay.broker.topic.clone())
        .with_events(config.events.is_some());
    let batch = RelayBatch::new(
        backlog.clone(),
        broker,
        RelaySettings {
            batch: config.relay.batch,
            lease: config.relay.reservation,
            confirm_within: config.relay.confirm_within,
        },
    );
    let pauses = Pauses {
        shortest: Duration::from_millis(1),
        longest: config.relay.reservation.min(Duration::from_millis(50)),
        // In the process that stores them, the relay is told of messages.
        lively: Duration::from_millis(if process.is_embedded() { 0 } else { 50 }),
    };
    let (stop, readiness) = (process.stop.clone(), process.readiness.clone());
    let (size, usable_too) = (usize::try_from(config.relay.batch.get())?, usable.clone());
    let swept = (backlog, metrics.clone(), stop.clone());
    if let Some(events) = config.events {
        deliver_events(process, database, events, usable.clone())?;
    }
    process.spawn(async move {
        if stop.run_until_cancelled(usable.cancelled()).await.is_some() {
            relay(batch, size, pauses, stored, metrics, readiness, stop).await;
        }
        Ok(())
    });
    process.spawn(async move {
        let (backlog, metrics, stop) = swept;
        if stop.run_until_cancelled(usable_too.cancelled()).await.is_some() {
            sweep(backlog, metrics, stop).await;
        }
        Ok(())
    });
    Ok(())
}

/// Tells others of events, for as long as the process runs.
fn deliver_events(
    process: &mut Process,
    database: Database,
    events: EventsConfig,
    usable: CancellationToken,
) -> anyhow::Result<()> {
    const PAUSE: Duration = Duration::from_millis(500);
    let EventsConfig { url, secrets, allow_private } = events;
    let settings = EventSinkSettings { allow_private, ..EventSinkSettings::new(url, secrets) };
    let sink = WebhookEventSink::new(settings).context("EVENTS_URL")?;
    let outbox = Arc::new(SqlEventOutbox::new(database));
    let settings = EventSettings::default();
    let deliver = DeliverEvents::new(outbox, Arc::new(sink), seeded()?, settings);
    let metrics = EventMetrics::register(&process.registry)?;
    let stop = process.stop.clone();
    process.spawn(async move {
        if stop.run_until_cancelled(usable.cancelled()).await.is_none() {
            return Ok(());
        }
        while !stop.is_cancelled() {
            // Dropped in its middle where told to stop: what was not settled is told again.
            let Some(posted) = stop.run_until_cancelled(deliver.execute()).await else {
                return Ok(());
            };
            match posted {
                Ok(posted) => {
                    metrics.posted(&posted);
                    if posted.claimed == settings.batch {
                        continue;
                    }
                }
                Err(error) => tracing::warn!(error = %Chain(&error), "no events posted"),
            }
            stop.run_until_cancelled(sleep(PAUSE)).await;
        }
        Ok(())
    });
    Ok(())
}
