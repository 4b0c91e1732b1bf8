//! The three parts of the service, each as a set of tasks of a process.

use std::{sync::Arc, time::Duration};

use adapters_broker::{
    Broker, EmbeddedQueue, EmbeddedQueueSettings, KafkaBroker, KafkaPublisherSettings,
    KafkaSettings, KafkaStream, KafkaStreamSettings, Stream,
};
use adapters_gateway::{ConsoleGateway, Gateway, WebhookGateway, WebhookSettings};
use adapters_http::{ApiMetrics, ApiSettings, ServerLimits, router, serve};
use adapters_persistence::{
    CoalescingOutbox, Database, OutboxSettings, SqlBacklog, SqlDeliveryLedger, SqlPartitionLeases,
};
use anyhow::{Context, bail};
use application::{
    Chain, DeliverSettings, Keys, RelayBatch, RelaySettings, SubmitMessage, SubmitSettings, Vault,
    ports::StartFrom,
};
use rand::{
    SeedableRng,
    rngs::{StdRng, SysRng},
};
use tokio::{net::TcpListener, sync::Notify, time::sleep};

use crate::{
    Process,
    config::{BrokerConfig, Config, GatewayConfig},
    consumer::{Consumer, ConsumerSettings},
    metrics::{DeliveryMetrics, RelayMetrics},
    relay::{Pauses, relay, sweep},
};

/// How often old records leave the embedded queue, and old entries the ledger.
const TRIM: Duration = Duration::from_secs(60);
const PRUNE: Duration = Duration::from_secs(600);

/// Accepts messages on the API port. Returns what is told when one was stored.
pub async fn api(process: &mut Process) -> anyhow::Result<Arc<Notify>> {
    let port = process.config.api_port;
    let listener = TcpListener::bind(("0.0.0.0", port))
        .await
        .with_context(|| format!("listen on APP_PORT {port}"))?;
    tracing::info!(address = %listener.local_addr()?, "accepting messages");

    let settings = OutboxSettings::default();
    let database = process.database("api", u32::try_from(settings.writers)? + 1);
    process.watch_database(database.clone());
    let (outbox, mut writers) = CoalescingOutbox::start(&database, settings);
    let stored = outbox.stored();
    let mut rng = StdRng::try_from_rng(&mut SysRng).context("seed the generator of codes")?;
    // Nothing checks codes yet, so a pepper of this process's own will do.
    let peppers = domain::draw_key(&mut rng).parse().context("draw a pepper")?;
    let submit = SubmitMessage::new(
        outbox,
        rng,
        Vault::of(Keys { peppers: Some(peppers), payload: None }),
        SubmitSettings {
            code_length: process.config.code_length,
            code_ttl: process.config.code_ttl,
            phone_limits: domain::Windows::OFF,
        },
    );
    let metrics = ApiMetrics::register(&process.registry)?;
    let router = router(Arc::new(submit), metrics, ApiSettings::default());
    // Idle connections too: pools of clients and load balancers keep theirs for a while.
    let limits = ServerLimits {
        head_timeout: Duration::from_secs(30),
        farewell: Duration::from_millis(250),
        ..ServerLimits::default()
    };
    let stop = process.stop.clone();
    process.spawn(async move {
        tokio::select! {
            () = serve(listener, router, limits, stop) => {}
            _ = writers.join_next() => bail!("a writer of the outbox ended before its time"),
        }
        // The last request has gone, and with it the outbox: what is queued is stored, then the
        // writers end.
        writers.join_all().await;
        Ok(())
    });
    Ok(stored)
}

/// Moves messages from the outbox to the broker. `stored` may tell of new ones.
pub fn processor(
    process: &mut Process,
    queue: Option<EmbeddedQueue>,
    stored: Arc<Notify>,
) -> anyhow::Result<()> {
    let config = process.config.clone();
    let database = process.database("processor", 4);
    let usable = process.watch_database(database.clone());
    let metrics = RelayMetrics::register(&process.registry)?;
    let broker = match queue {
        Some(queue) => Broker::Embedded(queue),
        None if config.producer.servers.is_empty() => {
            Broker::Embedded(embedded_queue(&database, &config.producer, config.code_ttl))
        }
        None => Broker::Kafka(KafkaBroker::new(KafkaPublisherSettings {
            kafka: kafka(&config.producer, "messager-processor"),
            partitions: config.topic_partitions,
            replication_factor: config.topic_replication,
        })),
    };
    if let Broker::Embedded(queue) = &broker {
        let (queue, ttl, stop) = (queue.clone(), config.code_ttl, process.stop.clone());
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
    let backlog = SqlBacklog::new(database, config.producer.topic.clone());
    let batch = RelayBatch::new(
        backlog.clone(),
        broker,
        RelaySettings {
            batch: config.batch,
            lease: config.reservation,
            confirm_within: config.confirm_within,
        },
    );
    let pauses = Pauses {
        shortest: Duration::from_millis(2),
        longest: config.reservation.min(Duration::from_millis(50)),
    };
    let (stop, readiness) = (process.stop.clone(), process.readiness.clone());
    let (size, usable_too) = (usize::try_from(config.batch.get())?, usable.clone());
    let swept = (backlog, metrics.clone(), stop.clone());
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

/// Brings messages from the broker to the gateway.
pub fn consumer(process: &mut Process, queue: Option<EmbeddedQueue>) -> anyhow::Result<()> {
    let config = process.config.clone();
    let database = process.database("consumer", 10);
    let usable = process.watch_database(database.clone());
    let stream = match queue {
        Some(queue) => Stream::Embedded(queue),
        None => stream(&config, &database, &config.consumer.topic),
    };
    let first = match stream {
        Stream::Kafka(_) => StartFrom::Latest,
        Stream::Embedded(_) => StartFrom::Earliest,
    };
    let (gateway, longest_call) = match config.gateway {
        GatewayConfig::Console => {
            (Gateway::Console(ConsoleGateway::stdout()), Duration::from_secs(1))
        }
        GatewayConfig::Webhook { url, timeout, deduplicates } => {
            let settings = WebhookSettings { url, timeout, deduplicates };
            (Gateway::Webhook(WebhookGateway::new(settings)?), timeout)
        }
    };
    let topic = config.consumer.topic;
    let member = member()?;
    let ledger = SqlDeliveryLedger::new(
        database.clone(),
        config.group.clone(),
        topic.clone(),
        member.clone(),
    );
    let (pruned, retention, stop) =
        (ledger.clone(), config.delivery_retention, process.stop.clone());
    process.spawn(async move {
        while stop.run_until_cancelled(sleep(PRUNE)).await.is_some() {
            if let Err(error) = pruned.prune(retention).await {
                tracing::warn!(error = %Chain(&error), "the ledger was not pruned");
            }
        }
        Ok(())
    });
    let consumer = Consumer {
        leases: SqlPartitionLeases::new(database, config.group, topic, member),
        ledger: Arc::new(ledger),
        stream: Arc::new(stream),
        gateway: Arc::new(gateway),
        settings: ConsumerSettings {
            // An SQLite file is one machine's, and its renewals cost next to nothing.
            lease_ttl: Duration::from_secs(if process.is_embedded() { 3 } else { 10 }),
            start_from: config.start_from.unwrap_or(first),
            deliver: DeliverSettings {
                templates: Arc::new(domain::Templates::new(config.template)),
                vault: Vault::default(),
                default_ttl: config.code_ttl,
                concurrency: config.concurrency,
                in_hand: 1_000.max(2 * config.concurrency),
                // The gateway keeps its own limit; this one is for when it does not.
                call_limit: longest_call + Duration::from_secs(2),
            },
        },
        metrics: DeliveryMetrics::register(&process.registry)?,
        readiness: process.readiness.clone(),
        stop: process.stop.clone(),
    };
    let stop = process.stop.clone();
    process.spawn(async move {
        match stop.run_until_cancelled(usable.cancelled()).await {
            Some(()) => consumer.run().await,
            None => Ok(()),
        }
    });
    Ok(())
}

/// A topic as consumers read it.
pub fn stream(config: &Config, database: &Database, topic: &str) -> Stream {
    let broker = BrokerConfig { topic: topic.to_owned(), ..config.consumer.clone() };
    if broker.servers.is_empty() {
        return Stream::Embedded(embedded_queue(database, &broker, config.code_ttl));
    }
    Stream::Kafka(KafkaStream::new(KafkaStreamSettings {
        kafka: kafka(&broker, "messager-consumer"),
        default_ttl: config.code_ttl,
    }))
}

/// The queue that the processor and the consumer of one process share, so that the one wakes the
/// other; none where they use Kafka.
pub fn shared_queue(process: &Process) -> Option<EmbeddedQueue> {
    let config = &process.config;
    if !config.producer.servers.is_empty() || config.producer.topic != config.consumer.topic {
        return None;
    }
    Some(embedded_queue(&process.database("queue", 6), &config.producer, config.code_ttl))
}

fn embedded_queue(
    database: &Database,
    broker: &BrokerConfig,
    default_ttl: Duration,
) -> EmbeddedQueue {
    let settings = EmbeddedQueueSettings { topic: broker.topic.clone(), default_ttl };
    EmbeddedQueue::new(database.connection(), settings)
}

fn kafka(broker: &BrokerConfig, client_id: &str) -> KafkaSettings {
    KafkaSettings {
        bootstrap_servers: broker.servers.clone(),
        topic: broker.topic.clone(),
        client_id: client_id.to_owned(),
        request_timeout: Duration::from_secs(5),
    }
}

/// A name that no other consumer has, and that tells an operator which process it is.
fn member() -> anyhow::Result<String> {
    use rand_core::Rng;
    let mut rng = StdRng::try_from_rng(&mut SysRng).context("draw a name")?;
    Ok(format!("{}-{:016x}", std::process::id(), rng.next_u64()))
}
