use std::{
    collections::HashMap,
    num::NonZeroUsize,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use adapters_http::Readiness;
use application::{
    Chain, DeliverMessages, DeliverSettings, Delivered, Router, SharePartitions, ShareSettings,
    ports::{
        Batch, DeliveryLedger, DeliveryState, Fetched, Lease, LedgerError, MessageStream,
        PartitionLeases, SmsGateway, StartFrom, StreamError,
    },
};
use rand::{SeedableRng, rngs::StdRng};
use tokio::{
    sync::{mpsc, watch},
    task::{AbortHandle, JoinSet},
    time::{Instant, sleep},
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use crate::{config::Beginning, metrics::DeliveryMetrics, status::UnknownMessages};

/// A consumer of a group: it takes its share of the partitions and delivers their messages.
#[derive(Debug)]
pub(crate) struct Consumer<S, T, L, G> {
    pub(crate) stream: Arc<S>,
    pub(crate) leases: T,
    pub(crate) ledger: Arc<L>,
    pub(crate) router: Router<G>,
    pub(crate) settings: ConsumerSettings,
    pub(crate) metrics: DeliveryMetrics,
    pub(crate) unknown: UnknownMessages,
    pub(crate) readiness: Readiness,
    pub(crate) stop: CancellationToken,
}

#[derive(Debug, Clone)]
pub(crate) struct ConsumerSettings {
    pub(crate) lease_ttl: Duration,
    pub(crate) start_from: Beginning,
    /// The greatest age of a message that may still be valid.
    pub(crate) longest_ttl: Duration,
    pub(crate) deliver: DeliverSettings,
}

/// A partition that this consumer reads.
struct PartitionReader {
    lease: Lease,
    seen: Arc<Seen>,
    stop: CancellationToken,
    worker: AbortHandle,
}

/// The latest moment up to which a partition has been read: every record that it had then.
#[derive(Debug, Default)]
struct Seen(Mutex<Option<Instant>>);

impl Seen {
    fn set(&self, at: Instant) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(at);
    }

    fn get(&self) -> Option<Instant> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How often partitions are shared out, and so how soon a released one is taken.
const SHARE: Duration = Duration::from_millis(500);
/// How often the topic is asked for new partitions.
const DISCOVER: Duration = Duration::from_secs(5);
/// How far the clock that dates records may be from that of the database.
const SKEW: Duration = Duration::from_secs(60);
/// The pause after a failure.
const PAUSE: Duration = Duration::from_millis(500);

impl<S, T, L, G> Consumer<S, T, L, G>
where
    S: MessageStream + Send,
    T: PartitionLeases + Clone + Send,
    L: DeliveryLedger + Send,
    G: SmsGateway + Send,
{
    /// Consumes until a stop, then releases the partitions and waits for the calls under way.
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        let consumer = Arc::new(self);
        let share = SharePartitions::new(
            consumer.leases.clone(),
            ShareSettings { ttl: consumer.settings.lease_ttl },
        );
        let mut reading: HashMap<i32, PartitionReader> = HashMap::new();
        let mut workers = JoinSet::new();
        let (discovered, mut known) = watch::channel(Vec::new());
        let mut discovery =
            AbortOnDropHandle::new(tokio::spawn(Arc::clone(&consumer).discover(discovered)));
        let mut shared_before = false;
        let mut failed = false;
        let mut only_renew_until = Instant::now();

        while !consumer.stop.is_cancelled() {
            let lease = |it: &PartitionReader| Lease { seen: it.seen.get(), ..it.lease.clone() };
            let held: Vec<Lease> = reading.values().map(lease).collect();
            let only_renew = Instant::now() < only_renew_until;
            let partitions = known.borrow_and_update().clone();
            match share.execute(&held, &partitions, only_renew).await {
                Ok(shared) => {
                    if failed && shared_before {
                        only_renew_until = Instant::now() + consumer.settings.lease_ttl;
                    }
                    (failed, shared_before) = (false, true);
                    if let Some(consumers) = NonZeroUsize::new(shared.consumers) {
                        consumer.router.share(consumers);
                    }
                    for partition in shared.dropped {
                        if let Some(reading) = reading.remove(&partition) {
                            reading.stop.cancel();
                        }
                    }
                    for lease in shared.taken {
                        let stop = CancellationToken::new();
                        let seen = Arc::<Seen>::default();
                        let work = Arc::clone(&consumer).work(
                            lease.clone(),
                            Arc::clone(&seen),
                            stop.clone(),
                        );
                        let worker = workers.spawn(work);
                        reading
                            .insert(lease.partition, PartitionReader { lease, seen, stop, worker });
                    }
                }
                Err(error) => {
                    tracing::warn!(error = %Chain(&error), "the partitions could not be shared out among the consumers; trying again");
                    failed = true;
                }
            }
            consumer.metrics.held(reading.len());

            tokio::select! {
                () = consumer.stop.cancelled() => {}
                () = sleep(SHARE) => {}
                Ok(()) = known.changed() => {}
                _ = &mut discovery => anyhow::bail!("the search for partitions ended"),
                Some(_) = workers.join_next() => {
                    // A worker that lost its partition, or that panicked: then its lease expires.
                    reading.retain(|_, reading| !reading.worker.is_finished());
                }
            }
        }

        for reading in reading.into_values() {
            reading.stop.cancel();
        }
        if let Err(error) = consumer.leases.leave().await {
            tracing::warn!(error = %Chain(&error), "this consumer could not leave its group; its share stays reserved until its lease expires");
        }
        while workers.join_next().await.is_some() {}
        Ok(())
    }

    /// Keeps asking the broker for the partitions of the topic, until `run` ends.
    async fn discover(self: Arc<Self>, discovered: watch::Sender<Vec<i32>>) {
        while !discovered.is_closed() {
            let pause = match self.stream.partitions().await {
                Ok(partitions) => {
                    self.readiness.set_up("broker");
                    let pause = if partitions.is_empty() { SHARE / 5 } else { DISCOVER };
                    discovered.send_if_modified(|known| {
                        let changed = *known != partitions;
                        *known = partitions;
                        changed
                    });
                    pause
                }
                Err(error) => {
                    self.readiness.set_down("broker", Chain(&error));
                    SHARE
                }
            };
            sleep(pause).await;
        }
    }

    /// Delivers the messages of one partition until a stop, or until it has another owner.
    async fn work(self: Arc<Self>, lease: Lease, seen: Arc<Seen>, stop: CancellationToken) {
        let partition = lease.partition;
        tracing::info!(partition, epoch = lease.epoch, "started to read a partition");
        if let Some(offset) = self.first_offset(&lease, &stop).await {
            self.deliver(&lease, offset, seen, &stop).await;
        } else {
            self.release(&lease).await;
        }
        self.metrics.left(partition);
        tracing::info!(partition, epoch = lease.epoch, "stopped reading a partition");
    }

    async fn deliver(
        self: &Arc<Self>,
        lease: &Lease,
        offset: i64,
        seen: Arc<Seen>,
        stop: &CancellationToken,
    ) {
        let (fetched, inbox) = mpsc::channel(1);
        let read = Arc::clone(self).read(lease.partition, offset, seen, fetched);
        let mut reader = AbortOnDropHandle::new(tokio::spawn(read));
        let mut deliver = DeliverMessages::new(
            Arc::clone(&self.ledger),
            self.router.clone(),
            // It only spreads retries, so it may be predictable.
            StdRng::seed_from_u64(
                lease.epoch.cast_unsigned() ^ u64::from(lease.partition.cast_unsigned()),
            ),
            self.settings.deliver.clone(),
            lease.clone(),
            inbox,
        );
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                // It panicked: the next owner of the partition reads these records again.
                _ = &mut reader => break,
                () = deliver.wait() => {}
            }
            if !self.act(&mut deliver, lease, stop).await {
                break;
            }
        }
        drop(reader);
        // Released before the calls under way have ended: their outcomes are still recorded.
        self.release(lease).await;
        loop {
            match deliver.drain().await {
                Ok(delivered) => self.report(lease.partition, &delivered),
                Err(error) => {
                    tracing::warn!(error = %Chain(&error), "outcomes of calls were not recorded, because the database did not answer; trying again");
                    sleep(PAUSE).await;
                }
            }
            if deliver.in_flight() == 0 {
                return;
            }
        }
    }

    /// Counts what was done, and has gateways asked for messages that ended unknown.
    fn report(&self, partition: i32, delivered: &Delivered) {
        self.metrics.delivered(partition, delivered);
        for ended in &delivered.ended {
            if ended.state == DeliveryState::Unknown {
                self.unknown.add(ended.id);
            }
        }
    }

    /// Runs one round, and repeats it while the database does not answer. Returns whether to go on.
    async fn act(
        &self,
        deliver: &mut DeliverMessages<L, G, StdRng>,
        lease: &Lease,
        stop: &CancellationToken,
    ) -> bool {
        loop {
            // A stop does not interrupt a round.
            match deliver.act().await {
                Ok(delivered) => {
                    self.report(lease.partition, &delivered);
                    return true;
                }
                Err(error @ LedgerError::Fenced { .. }) => {
                    tracing::warn!(error = %Chain(&error), "another consumer has taken this partition; this consumer stops reading it");
                    return false;
                }
                Err(error @ LedgerError::Unavailable(_)) => {
                    tracing::warn!(error = %Chain(&error), "deliveries wait, because the database did not answer; trying again");
                    if stop.run_until_cancelled(sleep(PAUSE)).await.is_none() {
                        return false;
                    }
                }
            }
        }
    }

    /// Returns the offset to begin at. For a partition that the group never read it is stored at
    /// once, so that "latest" means the same after a crash. For the first group of a topic, "latest"
    /// is the earliest message that may still be valid (ADR 35). `None`: the partition was lost, or
    /// the process stops.
    async fn first_offset(&self, lease: &Lease, stop: &CancellationToken) -> Option<i64> {
        if let Some(offset) = lease.next_offset {
            return Some(offset);
        }
        // The group reads every record of a partition that was added while the group existed.
        let from = match (self.settings.start_from, lease.first_at) {
            _ if lease.added_later => StartFrom::Earliest,
            (Beginning::Earliest, _) => StartFrom::Earliest,
            (Beginning::Latest, Some(now)) => {
                let oldest = now.checked_sub(self.settings.longest_ttl + SKEW);
                oldest.map_or(StartFrom::Earliest, StartFrom::Since)
            }
            (Beginning::Latest, None) | (Beginning::End, _) => StartFrom::Latest,
        };
        loop {
            let first = self.stream.first_offset(lease.partition, from);
            match stop.run_until_cancelled(first).await? {
                Ok(offset) => {
                    let batch = Batch { next_offset: offset, ..Batch::default() };
                    match self.ledger.admit(lease, &batch).await {
                        Ok(_) => return Some(offset),
                        Err(LedgerError::Fenced { .. }) => return None,
                        Err(error) => {
                            tracing::warn!(
                                error = %Chain(&error),
                                "the first offset of a partition was not stored; trying again"
                            );
                        }
                    }
                }
                Err(error) => {
                    tracing::warn!(partition = lease.partition, error = %Chain(&error), "the partition could not be read; trying again");
                }
            }
            stop.run_until_cancelled(sleep(PAUSE)).await?;
        }
    }

    async fn read(
        self: Arc<Self>,
        partition: i32,
        mut offset: i64,
        seen: Arc<Seen>,
        fetched: mpsc::Sender<Fetched>,
    ) {
        let mut failing = false;
        // The end of the partition at some moment. When it is reached, every record of that moment
        // has been read, however many have come since.
        let mut goal: Option<(i64, Instant)> = None;
        loop {
            let asked = Instant::now();
            match self.stream.fetch(partition, offset).await {
                Ok(batch) => {
                    if std::mem::take(&mut failing) {
                        tracing::info!(partition, "the partition can be read again");
                    }
                    let end_now = batch.next_offset + batch.lag;
                    let (end, at) = *goal.get_or_insert((end_now, asked));
                    // The topic may have been replaced by a shorter one.
                    let end = end.min(end_now);
                    if batch.next_offset != offset {
                        offset = batch.next_offset;
                        if fetched.send(batch).await.is_err() {
                            return;
                        }
                    }
                    // Records in the inbox are fetched, and not taken over.
                    if offset >= end && fetched.capacity() == fetched.max_capacity() {
                        seen.set(at);
                        goal = None;
                    }
                }
                Err(StreamError::OutOfRange { .. }) => {
                    tracing::error!(
                        partition,
                        offset,
                        "the topic deleted records before they were read; reading goes on from the earliest \
                         record, and lost messages are published again"
                    );
                    match self.stream.first_offset(partition, StartFrom::Earliest).await {
                        Ok(earliest) => (offset, goal) = (earliest, None),
                        Err(_) => sleep(PAUSE).await,
                    }
                }
                Err(error @ StreamError::Unavailable(_)) => {
                    // `discover` reports whether the broker is up.
                    if !std::mem::replace(&mut failing, true) {
                        tracing::warn!(partition, error = %Chain(&error), "the partition could not be read; trying again");
                    }
                    sleep(PAUSE).await;
                }
            }
        }
    }

    async fn release(&self, lease: &Lease) {
        if let Err(error) = self.leases.release(lease).await {
            let partition = lease.partition;
            tracing::warn!(partition, error = %Chain(&error), "the partition was not released; another consumer can take it when its lease expires");
        }
    }
}
