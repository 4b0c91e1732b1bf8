use std::{sync::Arc, time::Duration};

use adapters_gateway::Gateway;
use adapters_persistence::{
    Database, EmbeddedQueue, Part, SqlCallNotes, SqlDeliveryLedger, SqlGateways,
    SqlPartitionLeases, SqlReceipts,
};
use application::{
    AskStatus, DeliverSettings, Messaging, ReceiptUrls, RoutedGateway, Router, TracedMessages,
    Vault,
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{
    gateways::{Channels, follow, judge, region_of, share, table},
    housekeeping::clean_up_orphans,
    parts, stream, traced, unique_name,
};
use crate::{
    Pool, Process,
    broker::Stream,
    config::{Beginning, Config},
    consumer::{Consumer, ConsumerSettings},
    metrics::{DeliveryMetrics, GatewayMetrics},
    receipts::StoredReceipts,
    status::{AskedGateways, UnknownMessages},
};

/// The longest `ttl` that `/v1` accepts.
const LONGEST_TTL: Duration = Duration::from_secs(3_600);

/// Hands messages from the broker to the gateway. Sealed codes are opened with the keys of `vault`;
/// nothing is read before the vault is open.
pub fn consumer(
    process: &mut Process,
    queue: Option<EmbeddedQueue>,
    vault: Vault,
) -> anyhow::Result<()> {
    let config = process.config.clone();
    let database = process.database(Pool::Consumer);
    let usable =
        process.watch_database(database.clone(), &parts(Part::Consumer, &config.consumer.broker));
    clean_up_orphans(process, &database, &usable)?;
    let stream = match queue {
        Some(queue) => Stream::Embedded(queue),
        None => stream(&config, &database, &config.consumer.broker.topic, &vault),
    };
    let (table, tariffs) = table(&config.gateways, config.numbers.default_region)?;
    let metrics = DeliveryMetrics::register(&process.registry, &process.steps)?;
    let prepare = prepare_gateways(process, &database, metrics.clone());
    prepare(&table.gateways);
    let channels = Channels::of(&table.gateways);
    let router = Router::new(table, Arc::new(region_of));
    router.set_tariffs(tariffs);
    let unknown = ask_for_unknown(process, &database, &usable, router.clone());
    GatewayMetrics::register(&process.registry, router.clone(), Gateway::channel)?;
    let mut settings = settings(&config, process.is_embedded(), &stream, vault.clone());
    let group = Some(config.consumer.group.clone());
    settings.deliver.traced = traced(process, &config.consumer.broker, group);
    let (group, topic, member) =
        (config.consumer.group, config.consumer.broker.topic, unique_name()?);
    let gateways = SqlGateways::new(database.clone());
    follow(process, router.clone(), prepare, gateways.clone());
    share(process, &usable, database.clone(), member.clone(), router.clone());
    judge(process, &usable, database.clone(), router.clone())?;
    let ledger =
        SqlDeliveryLedger::new(database.clone(), group.clone(), topic.clone(), member.clone());
    let consumer = Consumer {
        leases: SqlPartitionLeases::new(database, group, topic, member),
        ledger: Arc::new(ledger),
        stream: Arc::new(stream),
        router,
        settings,
        metrics,
        unknown,
        readiness: process.readiness.clone(),
        stop: process.stop.clone(),
    };
    let stop = process.stop.clone();
    process.spawn(async move {
        let usable = async {
            usable.cancelled().await;
            vault.opened().await;
            channels.store(&gateways).await;
        };
        match stop.run_until_cancelled(usable).await {
            Some(()) => consumer.run().await,
            None => Ok(()),
        }
    });
    Ok(())
}

/// Returns what gives gateways the database, for the receipts that they report over their own
/// connections and for their notes, and what starts their series.
fn prepare_gateways(
    process: &Process,
    database: &Database,
    metrics: DeliveryMetrics,
) -> impl Fn(&[RoutedGateway<Gateway>]) + Send + use<> {
    let counted = process.receipts.clone();
    let traced = TracedMessages::new(process.tracer.clone(), Messaging::default());
    let receipts = Arc::new(StoredReceipts::new(database.clone(), counted.clone(), traced));
    let notes = Arc::new(SqlCallNotes::new(database.clone()));
    move |gateways| {
        for RoutedGateway { name, gateway, .. } in gateways {
            counted.expect(name);
            metrics.expect(name);
            gateway.keep_notes(name, Arc::<SqlCallNotes>::clone(&notes));
            gateway.listen(name, Arc::<StoredReceipts>::clone(&receipts));
        }
    }
}

/// Has gateways asked for messages that ended unknown.
fn ask_for_unknown(
    process: &mut Process,
    database: &Database,
    usable: &CancellationToken,
    router: Router<Gateway>,
) -> UnknownMessages {
    let source = Arc::new(AskedGateways(router));
    let ask = AskStatus::new(SqlReceipts::new(database.clone()), source);
    let (unknown, questions) = UnknownMessages::new(ask, process.receipts.clone());
    let stop = process.stop.clone();
    process.spawn_when(usable, &stop.clone(), questions.run(stop));
    unknown
}

fn settings(config: &Config, is_embedded: bool, stream: &Stream, vault: Vault) -> ConsumerSettings {
    let first = match stream {
        Stream::Kafka(_) => Beginning::Latest,
        Stream::Embedded(_) => Beginning::Earliest,
    };
    let concurrency = config.consumer.concurrency;
    ConsumerSettings {
        // An SQLite file belongs to one machine, and renewing a lease in it costs little.
        lease_ttl: Duration::from_secs(if is_embedded { 3 } else { 10 }),
        start_from: config.consumer.start_from.unwrap_or(first),
        longest_ttl: config.codes.ttl.max(LONGEST_TTL),
        deliver: DeliverSettings {
            templates: Arc::clone(&config.texts),
            receipt_urls: ReceiptUrls::new(config.gateways.public_url.as_deref(), vault.clone()),
            vault,
            traced: TracedMessages::default(),
            default_ttl: config.codes.ttl,
            beat: Instant::now(),
            concurrency,
            in_hand: 1_000.max(2 * concurrency),
        },
    }
}
