use std::{sync::Arc, time::Duration};

use adapters_broker::{KafkaBroker, KafkaPublisherSettings};
use adapters_gateway::{EventSinkSettings, WebhookEventSink};
use adapters_persistence::{Database, EmbeddedQueue, Part, SqlBacklog, SqlEventOutbox};
use anyhow::Context;
use application::{Chain, DeliverEvents, EventSettings, RelayBatch, RelaySettings, Vault};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::{embedded_queue, housekeeping::clean_up_orphans, kafka, parts, traced, unique_name};
use crate::{
    Pool, Process,
    broker::{Broker, TracedBroker},
    config::{Config, EventsConfig},
    metrics::{EventMetrics, RelayMetrics},
    periodic::{every, repeat},
    random::seeded,
    relay::{Pauses, end_expired, relay},
};

/// Publishes the messages of the outbox to the broker, and posts events. `stored` is notified of
/// new messages if the API runs in the same process.
pub fn processor(
    process: &mut Process,
    queue: Option<EmbeddedQueue>,
    stored: Arc<Notify>,
) -> anyhow::Result<()> {
    let config = process.config.clone();
    // A publication and a posted event do no harm if they are repeated.
    // Everything that a consumer has taken over is durable, and so is everything before it.
    let database = process.database_to_repeat(Pool::Processor);
    let usable =
        process.watch_database(database.clone(), &parts(Part::Processor, &config.relay.broker));
    clean_up_orphans(process, &database, &usable)?;
    let broker = broker(process, &config, queue);
    if let Broker::Embedded(queue) = &broker {
        trim(process, &usable, queue.clone(), config.codes.ttl);
    }
    let topic = config.relay.broker.topic.clone();
    let backlog = SqlBacklog::new(database.clone(), topic, unique_name()?);
    let traced = traced(process, &config.relay.broker, None);
    let batch = RelayBatch::new(
        backlog.clone(),
        TracedBroker { broker, traced, steps: process.steps.clone() },
        RelaySettings {
            batch: config.relay.batch,
            lease: config.relay.reservation,
            confirm_within: config.relay.confirm_within,
        },
    );
    let pauses = Pauses {
        shortest: Duration::from_millis(1),
        longest: config.relay.reservation.min(Duration::from_millis(50)),
        // In the process that stores messages, the relay is notified of them.
        lively: Duration::from_millis(if process.is_embedded() { 0 } else { 50 }),
        busy: Duration::from_millis(10),
    };
    let size = usize::try_from(config.relay.batch.get())?;
    let metrics =
        RelayMetrics::register(&process.registry, process.expired.clone(), &process.steps)?;
    let (stop, readiness) = (process.stop.clone(), process.readiness.clone());
    if let Some(events) = config.events {
        deliver_events(process, &usable, database, events)?;
    }
    process.spawn_when(
        &usable,
        &stop,
        relay(batch, size, pauses, stored, metrics.clone(), readiness, stop.clone()),
    );
    process.spawn_when(&usable, &stop, end_expired(backlog, metrics, stop.clone()));
    Ok(())
}

fn broker(process: &Process, config: &Config, queue: Option<EmbeddedQueue>) -> Broker {
    if let Some(queue) = queue {
        return Broker::Embedded(queue);
    }
    if config.relay.broker.is_kafka() {
        return Broker::Kafka(kafka_broker(config));
    }
    // Connections that do not repeat: a record that was read must not change.
    let database = process.database(Pool::Queue);
    // Without keys: the processor only writes, and passes sealed codes on as they are.
    let vault = Vault::default();
    Broker::Embedded(embedded_queue(config, &database, &config.relay.broker, &vault))
}

/// Makes the broker that the relay publishes to.
pub(crate) fn kafka_broker(config: &Config) -> KafkaBroker {
    KafkaBroker::new(KafkaPublisherSettings {
        kafka: kafka(config, &config.relay.broker, "messager-processor"),
        partitions: config.relay.partitions,
        replication_factor: config.relay.replication,
    })
}

/// Deletes records of the embedded queue that no consumer needs any more.
fn trim(process: &mut Process, usable: &CancellationToken, queue: EmbeddedQueue, ttl: Duration) {
    const TRIM: Duration = Duration::from_secs(5);
    let stop = process.stop.clone();
    process.spawn_when(usable, &stop.clone(), async move {
        every(TRIM, &stop, || async {
            // A record older than its code is never sent; it is kept twice as long, to be safe.
            if let Err(error) = queue.trim(2 * ttl).await {
                tracing::warn!(
                    error = %Chain(&error),
                    "old records were not deleted from the queue; trying again"
                );
            }
        })
        .await;
    });
}

/// Posts events to `EVENTS_URL`.
fn deliver_events(
    process: &mut Process,
    usable: &CancellationToken,
    database: Database,
    events: EventsConfig,
) -> anyhow::Result<()> {
    const PAUSE: Duration = Duration::from_millis(500);
    let EventsConfig { url, secrets, allow_private, authorities } = events;
    let settings =
        EventSinkSettings { allow_private, authorities, ..EventSinkSettings::new(url, secrets) };
    let sink = WebhookEventSink::new(settings).context("EVENTS_URL")?;
    let outbox = Arc::new(SqlEventOutbox::new(database));
    let settings = EventSettings::default();
    let deliver = DeliverEvents::new(outbox, Arc::new(sink), seeded()?, settings);
    let metrics = EventMetrics::register(&process.registry)?;
    let stop = process.stop.clone();
    process.spawn_when(usable, &stop.clone(), async move {
        let work = repeat(&stop, || async {
            match deliver.execute().await {
                Ok(posted) => {
                    metrics.posted(&posted);
                    if posted.claimed == settings.batch { Duration::ZERO } else { PAUSE }
                }
                Err(error) => {
                    tracing::warn!(
                        error = %Chain(&error),
                        "no events were posted, because the database did not answer; trying again"
                    );
                    PAUSE
                }
            }
        });
        // A stop interrupts it: an event that was not settled is posted again.
        stop.run_until_cancelled(work).await;
    });
    Ok(())
}
