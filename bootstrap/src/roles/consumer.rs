use std::{sync::Arc, time::Duration};

use adapters_gateway::{ConsoleGateway, Gateway, WebhookGateway, WebhookSettings};
use adapters_persistence::{EmbeddedQueue, Part, SqlDeliveryLedger, SqlPartitionLeases};
use application::{DeliverSettings, Vault};
use rand_core::Rng;

use super::{housekeeping::clean_up_orphans, parts, seeded, stream};
use crate::{
    Process,
    broker::Stream,
    config::{Beginning, GatewayConfig},
    consumer::{Consumer, ConsumerSettings},
    metrics::DeliveryMetrics,
};

/// The longest that `/v1` takes for `ttl`.
const LONGEST_TTL: Duration = Duration::from_secs(3_600);

/// Brings messages from the broker to the gateway. What is sealed is opened with the keys of
/// `vault`; nothing is read before it is open.
pub fn consumer(
    process: &mut Process,
    queue: Option<EmbeddedQueue>,
    vault: Vault,
) -> anyhow::Result<()> {
    let config = process.config.clone();
    let database = process.database("consumer", 10);
    let parts = parts(Part::Consumer, &config.consumer.broker);
    let usable = process.watch_database(database.clone(), &parts);
    let stream = match queue {
        Some(queue) => Stream::Embedded(queue),
        None => stream(&config, &database, &config.consumer.broker.topic, &vault),
    };
    let first = match stream {
        Stream::Kafka(_) => Beginning::Latest,
        Stream::Embedded(_) => Beginning::Earliest,
    };
    let (gateway, longest_call) = match config.gateway {
        GatewayConfig::Console => {
            (Gateway::Console(ConsoleGateway::stdout()), Duration::from_secs(1))
        }
        GatewayConfig::Webhook { url, timeout, deduplicates, keep_alive } => {
            let settings = WebhookSettings { url, timeout, deduplicates, keep_alive };
            (Gateway::Webhook(WebhookGateway::new(settings)?), timeout)
        }
    };
    let topic = config.consumer.broker.topic;
    let member = member()?;
    let ledger = SqlDeliveryLedger::new(
        database.clone(),
        config.consumer.group.clone(),
        topic.clone(),
        member.clone(),
    )
    .with_events(config.events.is_some());
    clean_up_orphans(process, &database, &usable)?;
    let consumer = Consumer {
        leases: SqlPartitionLeases::new(database, config.consumer.group, topic, member),
        ledger: Arc::new(ledger),
        stream: Arc::new(stream),
        gateway: Arc::new(gateway),
        settings: ConsumerSettings {
            // An SQLite file is one machine's, and its renewals cost next to nothing.
            lease_ttl: Duration::from_secs(if process.is_embedded() { 3 } else { 10 }),
            start_from: config.consumer.start_from.unwrap_or(first),
            longest_ttl: config.codes.ttl.max(LONGEST_TTL),
            deliver: DeliverSettings {
                templates: config.texts,
                vault: vault.clone(),
                default_ttl: config.codes.ttl,
                concurrency: config.consumer.concurrency,
                in_hand: 1_000.max(2 * config.consumer.concurrency),
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
        let usable = async {
            usable.cancelled().await;
            vault.opened().await;
        };
        match stop.run_until_cancelled(usable).await {
            Some(()) => consumer.run().await,
            None => Ok(()),
        }
    });
    Ok(())
}

/// A name that no other consumer has, and that tells an operator which process it is.
fn member() -> anyhow::Result<String> {
    Ok(format!("{}-{:016x}", std::process::id(), seeded()?.next_u64()))
}
