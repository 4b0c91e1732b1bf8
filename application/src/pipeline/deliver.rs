//! Delivers messages from the topic to the gateway.
//!
//! The steps of a round share the state of one partition. This file has the round itself, taking over and
//! recording; `choosing` picks gateways and starts calls, and `calls` makes and judges them. It has a few
//! lines more than others, because the round and its counts are read together.

mod backoff;
mod budget;
mod calls;
mod choosing;
mod lanes;
mod spans;

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use autometrics::autometrics;
use domain::{GatewayName, MessageId, Templates};
use rand_core::Rng;
use tokio::{
    sync::mpsc,
    task::{self, JoinSet},
    time::{Instant, sleep_until},
};

use self::{
    budget::RetryBudgets,
    calls::{Called, Ended, Made},
    choosing::Blocked,
    lanes::{Lanes, QueuedMessage},
    spans::TakeOvers,
};
use super::routing::{PartitionLoad, Router};
use crate::{
    ReceiptUrls, TraceParent, TracedMessages, Vault,
    ports::{
        Batch, Call, DeliveryLedger, DeliveryState, Due, Fetched, Incoming, Lease, LedgerError,
        OutcomeClass, Record, Recorded, SmsGateway,
    },
};

/// Delivers the messages of one partition to the gateways: each message once, and the messages of each
/// phone in order.
///
/// | in the ledger | in memory | next step |
/// |---|---|---|
/// | no entry | fetched, in `arrived` | `admit`, which may also `start` it |
/// | pending | *waiting* in the lane of its phone | `start`, when the lane is free and a gateway has room |
/// | calling | a task in `calls`, then in `ended` | `finish` |
/// | pending, or calling for another consumer | *parked*: counted in its lane | `resume`, when it is due |
/// | sent, failed, expired, unknown | nothing | none |
///
/// A message is *in hand* while it waits or is being called for. It is *open* while it is pending or
/// calling.
///
/// A message passes three commits: `admit` enters it in the ledger and advances the offset, `start`
/// records the intent to call, and `finish` records the outcome. If nothing delays the message, the
/// first two are one commit. After a crash before `start`, the message is still to be sent. After a
/// crash between `start` and `finish`, the call may have been made; it is repeated only if the gateway
/// recognises repeated messages.
///
/// Before the intent is committed, the [`Router`] gives a permit for one gateway. A message for which
/// it has none waits in memory if a gateway works and has no room, and is parked otherwise. So a
/// gateway that is down or slow takes neither memory nor calls from messages of other routes.
#[derive(Debug)]
pub struct DeliverMessages<L, G, R> {
    ledger: Arc<L>,
    router: Router<G>,
    rng: R,
    settings: DeliverSettings,
    lease: Lease,
    inbox: mpsc::Receiver<Fetched>,
    arrived: Option<Fetched>,
    lanes: Lanes,
    calls: JoinSet<Made>,
    called: HashMap<task::Id, Called<G>>,
    ended: Vec<Ended>,
    load: PartitionLoad,
    budgets: RetryBudgets,
    blocked: Blocked,
    /// Whether a request to the ledger got no answer. It may have been carried out, or may be soon.
    unheard: bool,
    /// When the next round may begin.
    next_round: Instant,
    /// When to look for due parked messages.
    next_look: Instant,
    /// The earliest time for that look.
    earliest_look: Instant,
    /// When the lanes were compared with the ledger. `None` means that it must be done again.
    synced: Option<Instant>,
    delivered: Delivered,
}

/// Settings of [`DeliverMessages`].
#[derive(Debug, Clone)]
pub struct DeliverSettings {
    pub templates: Arc<Templates>,
    /// The keys that open sealed codes. The vault must be open before a message is delivered.
    pub vault: Vault,
    pub traced: TracedMessages,
    /// The URLs at which gateways report deliveries.
    pub receipt_urls: ReceiptUrls,
    /// The time to live of a message whose record has no time.
    pub default_ttl: Duration,
    /// Rounds of busy partitions begin 20 ms after each other, counted from this time, if they take less. All partitions of a
    /// process have the same time, so that they share commits of the ledger (ADR 84).
    pub beat: Instant,
    /// The maximum number of concurrent calls of each gateway for one partition.
    pub concurrency: usize,
    /// The number of messages that wait in memory for one partition at which reading pauses.
    pub in_hand: usize,
}

/// The counts since the last report.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Delivered {
    pub admitted: usize,
    /// The time from the acceptance of each message of `admitted` to its admission.
    pub ages: Vec<Duration>,
    /// Records whose message the ledger already had.
    pub passed_over: usize,
    pub unreadable: usize,
    /// Calls that began.
    pub calls: usize,
    /// The outcomes of calls that ended, and the gateway of each.
    pub outcomes: Vec<(GatewayName, OutcomeClass)>,
    /// How long each of these calls took, its gateway, and its span if there is one. Calls that were not
    /// made are left out.
    pub durations: Vec<(GatewayName, Duration, Option<TraceParent>)>,
    /// The traces of the messages of `ended` that a gateway accepted and that are traced, with their
    /// ages.
    pub sent_traces: Vec<(Duration, TraceParent)>,
    pub retries: usize,
    /// Messages that wait in the ledger because no gateway can take them now.
    pub deferred: usize,
    /// Due retries for which the budget had no room.
    pub held_back: usize,
    /// Messages that failed because every gateway that can take them has used its daily budget up.
    pub unaffordable: usize,
    pub ended: Vec<Recorded>,
    pub lag: Option<i64>,
}

/// The interval between two looks for due parked messages.
const LOOK: Duration = Duration::from_millis(250);
/// The pause after a round with one message. It is short, because the next round may send another
/// message to the same phone. Each further message adds [`FURTHER`], so that a busy partition records
/// more messages together.
const ROUND: Duration = Duration::from_millis(1);
const FURTHER: Duration = Duration::from_millis(5);
const LONGEST_ROUND: Duration = Duration::from_millis(20);
/// The number of calls of one round after which messages without room may wait for the next round.
const MANY_CALLS: usize = 32;
/// How much longer outcomes wait for a round with new messages, if no message in memory waits for
/// them.
const OUTCOME: Duration = Duration::from_millis(5);
/// The interval between two comparisons of the lanes with the ledger while messages are parked. Other
/// consumers may end their entries.
const SYNC: Duration = Duration::from_secs(5);
/// The same interval while all open messages are in hand. Then only an operator who retries a dead
/// letter adds an entry. The interval is long because the comparison reads all dead rows of entries
/// that are not vacuumed yet.
const REST: Duration = Duration::from_secs(20);
/// The number of phones with open messages, for one partition, at which reading pauses. Each takes up to
/// 200 bytes. If all gateways of a route are down, this many of its messages wait before those of other
/// routes do.
const PHONES: usize = 50_000;

impl<L: DeliveryLedger, G: SmsGateway, R: Rng + Send + 'static> DeliverMessages<L, G, R> {
    /// Delivers the records of `inbox`, from the partition of `lease`.
    pub fn new(
        ledger: Arc<L>,
        router: Router<G>,
        rng: R,
        settings: DeliverSettings,
        lease: Lease,
        inbox: mpsc::Receiver<Fetched>,
    ) -> Self {
        Self {
            ledger,
            router,
            rng,
            load: PartitionLoad::new(settings.concurrency),
            settings,
            lease,
            inbox,
            arrived: None,
            lanes: Lanes::default(),
            calls: JoinSet::new(),
            called: HashMap::new(),
            ended: Vec::new(),
            budgets: RetryBudgets::default(),
            blocked: Blocked::default(),
            unheard: false,
            next_round: Instant::now(),
            next_look: Instant::now(),
            earliest_look: Instant::now(),
            synced: None,
            delivered: Delivered::default(),
        }
    }

    /// Waits until there is something to do. The caller may drop the future and call again.
    pub async fn wait(&mut self) {
        let room = self.arrived.is_none()
            && self.lanes.waiting() < self.settings.in_hand
            && self.lanes.phones() < PHONES;
        let look = if self.lanes.parked() > 0 { Some(self.next_look) } else { self.next_sync() };
        let look = look.unwrap_or_else(Instant::now);
        let next = self.blocked.until().map_or(look, |until| until.min(look));
        let can_start = self.lanes.ready().any(|(route, _)| !self.blocked.has(route));
        if self.arrived.is_none() && self.ended.is_empty() && !can_start {
            tokio::select! {
                Some(fetched) = self.inbox.recv(), if room => self.arrived = Some(fetched),
                Some(call) = self.calls.join_next_with_id() => self.end_call(call),
                () = sleep_until(next) => {}
            }
        }
        if self.arrived.is_none() && self.lanes.waiting() == 0 {
            tokio::select! {
                Some(fetched) = self.inbox.recv(), if room => self.arrived = Some(fetched),
                () = sleep_until(self.next_round + OUTCOME) => {}
            }
        }
        sleep_until(self.next_round).await;
    }

    /// Does one round: records outcomes, takes new messages over, and starts calls.
    ///
    /// After an error the caller may call again, but after [`LedgerError::Fenced`] every call fails.
    /// The future must not be dropped before it ends.
    #[autometrics(struct_name = "DeliverMessages")]
    pub async fn act(&mut self) -> Result<Delivered, LedgerError> {
        let begun = Instant::now();
        let result = self.round().await;
        let about = self.delivered.admitted + self.delivered.outcomes.len();
        let further = u32::try_from(about.saturating_sub(1)).unwrap_or(u32::MAX);
        let pause = ROUND.saturating_add(FURTHER.saturating_mul(further));
        self.next_round =
            if pause < LONGEST_ROUND { begun + pause } else { self.settings.next_beat(begun) };
        if result.is_err() {
            // The change may have been committed. Entries of the ledger come before messages that are
            // admitted next.
            self.synced = None;
            self.unheard = true;
        }
        result.map(|()| std::mem::take(&mut self.delivered))
    }

    async fn round(&mut self) -> Result<(), LedgerError> {
        while let Some(call) = self.calls.try_join_next_with_id() {
            self.end_call(call);
        }
        self.finish().await?;
        // Before `admit`, because messages that the last owner of the partition left come first.
        self.resume().await?;
        self.admit().await?;
        self.start().await
    }

    /// Waits for a call in progress to end, if there is one, and records its outcome. Starts no call.
    ///
    /// Outcomes are recorded even if another consumer now owns the partition.
    pub async fn drain(&mut self) -> Result<Delivered, LedgerError> {
        if self.ended.is_empty()
            && let Some(call) = self.calls.join_next_with_id().await
        {
            self.end_call(call);
        }
        while let Some(call) = self.calls.try_join_next_with_id() {
            self.end_call(call);
        }
        self.finish().await?;
        Ok(std::mem::take(&mut self.delivered))
    }

    /// Returns the number of calls in progress, or ended and not recorded yet.
    pub fn in_flight(&self) -> usize {
        self.calls.len() + self.ended.len()
    }

    async fn finish(&mut self) -> Result<(), LedgerError> {
        if self.ended.is_empty() {
            return Ok(());
        }
        let outcomes: Vec<_> = self.ended.iter().map(|ended| ended.outcome.clone()).collect();
        let recorded = self.ledger.finish(&outcomes).await?;

        self.note_sent(&recorded);
        let state: HashMap<MessageId, DeliveryState> =
            recorded.iter().map(|recorded| (recorded.id, recorded.state)).collect();
        for Ended { phone, outcome, goes_on, .. } in self.ended.drain(..) {
            match (state.get(&outcome.id), goes_on) {
                // Another gateway can take it at once.
                (Some(DeliveryState::Pending), Some(message)) => self.lanes.put_back(message),
                // Without a state, the ledger skipped the outcome: another consumer works on the entry,
                // or the outcome was recorded before and the answer was lost. The next look at the
                // ledger shows which.
                (Some(DeliveryState::Pending | DeliveryState::Calling) | None, _) => {
                    self.lanes.park(&phone);
                }
                (Some(_), _) => {
                    self.lanes.done(&phone);
                    if self.lanes.is_waiting_in_ledger(&phone) {
                        // The next message of this phone does not wait for the next regular look.
                        self.next_look = self.earliest_look;
                    }
                }
            }
        }
        for recorded in recorded {
            match recorded.state {
                DeliveryState::Pending | DeliveryState::Calling => self.delivered.retries += 1,
                _ => self.delivered.ended.push(recorded),
            }
        }
        Ok(())
    }

    /// Notes the traces of messages that were sent. Without a tracer there are none to note.
    fn note_sent(&mut self, recorded: &[Recorded]) {
        if !self.settings.traced.is_on() {
            return;
        }
        for Recorded { id, state, age } in recorded {
            let ended = self.ended.iter().find(|it| it.outcome.id == *id);
            if *state == DeliveryState::Sent
                && let Some(trace) = ended.and_then(|it| it.trace.clone())
            {
                self.delivered.sent_traces.push((*age, trace));
            }
        }
    }

    async fn admit(&mut self) -> Result<(), LedgerError> {
        let Some(fetched) = self.arrived.take() else { return Ok(()) };

        let taken = self.take_over(&fetched).await;
        self.arrived = match taken {
            Ok(places) => fetched.rest_from(places),
            Err(_) => Some(fetched),
        };
        taken.map(drop)
    }

    /// Takes the first records of a fetch over, and returns how many.
    async fn take_over(&mut self, fetched: &Fetched) -> Result<usize, LedgerError> {
        let begun = Instant::now();
        let messages = fetched.messages().map(|it| it.message.id).collect();
        let passed_over = choosing::passed_over(&*self.ledger, messages).await?;
        let (mut permits, first_busy) = self.callable(fetched.messages(), &passed_over);
        let places = taken_now(fetched, &mut permits, first_busy);
        let lag = fetched.lag + i64::try_from(fetched.records.len() - places).unwrap_or(i64::MAX);
        let mut batch = Batch {
            records: fetched.records[..places].to_vec(),
            next_offset: fetched.records.get(places).map_or(fetched.next_offset, |it| it.offset),
            default_ttl: self.settings.default_ttl,
            ..Batch::default()
        };
        let mut spans = TakeOvers::begin(&self.settings.traced, &mut batch, self.lease.partition);
        batch.call_now = permits.iter().map(|(id, permit)| (*id, permit.name().clone())).collect();
        batch.call_limit = choosing::call_limit(permits.values());
        let admitted = self.ledger.admit(&self.lease, &batch).await?;
        let mut calls: HashMap<MessageId, Call> =
            admitted.calls.into_iter().map(|call| (call.id, call)).collect();
        let mut fresh: HashSet<MessageId> = admitted.fresh.into_iter().collect();
        let admitted_now = calls.len() + fresh.len();
        let new = admitted_now + admitted.expired.len() + admitted.refused;
        let known = batch.messages().count() - new;

        let mut unreadable = admitted.refused;
        for (offset, reason) in batch.unreadable() {
            unreadable += 1;
            let partition = self.lease.partition;
            tracing::warn!(partition, offset, %reason, "record is not a message; stored as a dead letter");
        }
        self.delivered.lag = Some(lag);
        self.delivered.unreadable += unreadable;
        self.delivered.admitted += admitted_now;
        self.delivered.ages.extend(admitted.ages);
        self.delivered.passed_over += known;
        if known > 0 && std::mem::take(&mut self.unheard) {
            // The request without an answer was carried out after the look at the ledger.
            self.synced = None;
        }
        spans.end_expired(&admitted.expired);
        self.delivered.ended.extend(admitted.expired);
        let messages = batch.records.into_iter().filter_map(|record| record.content.ok());
        for Incoming { message, trace, .. } in messages {
            let route = self.router.route_of(&message.phone);
            let past = choosing::past_of(message.id, &passed_over);
            let queued = QueuedMessage { past, ..QueuedMessage::new(message, trace) };
            let id = queued.message.id;
            // Removed, because a batch may contain a message twice.
            if calls.contains_key(&id) || fresh.contains(&id) {
                spans.end(id);
            }
            if let Some((call, permit)) = calls.remove(&id).zip(permits.remove(&id)) {
                self.lanes.begin(&queued.message.phone, route);
                self.call(call, permit, queued, begun);
            } else if fresh.remove(&id) {
                self.lanes.push(queued, route);
            }
        }
        Ok(places)
    }

    /// Brings due parked messages back into their lanes.
    async fn resume(&mut self) -> Result<(), LedgerError> {
        let now = Instant::now();
        if self.next_sync().is_none_or(|next| now >= next) {
            self.lanes.sync(self.ledger.open(&self.lease).await?);
            self.synced = Some(now);
            self.next_look = now;
        }
        if now < self.next_look || self.lanes.parked() == 0 {
            return Ok(());
        }
        let due = self.ledger.due(&self.lease, self.settings.in_hand).await?;
        let is_all = due.len() < self.settings.in_hand;
        let messages = due.iter().map(|due| due.message.id).collect();
        let mut passed_over = choosing::passed_over(&*self.ledger, messages).await?;
        for Due { message, trace, interrupted, expired, mut past } in due {
            past.passed_over = passed_over.remove(&message.id).unwrap_or_default();
            if self.lanes.is_idle(&message.phone) {
                let route = self.router.route_of(&message.phone);
                let queued = QueuedMessage { message, trace, past, interrupted, expired };
                self.lanes.resume(queued, route);
            }
        }
        // A look takes at most a tenth of the time, however many entries it reads.
        let cost = now.elapsed();
        self.earliest_look = now + 10 * cost;
        self.next_look =
            if is_all { self.earliest_look.max(now + LOOK) } else { self.earliest_look };
        Ok(())
    }

    /// Returns when to compare the lanes with the ledger. `None` means now.
    fn next_sync(&self) -> Option<Instant> {
        let pause = if self.lanes.parked() > 0 { SYNC } else { REST };
        self.synced.map(|synced| synced + pause)
    }
}

/// Returns how many records of a fetch are to be taken over in this round, and drops the permits of the
/// rest.
///
/// If a gateway has no room after many calls, messages wait in the stream rather than in the ledger: their
/// calls then begin with their admission, which is one commit less. After few calls all are taken over, so
/// that messages whose gateway is slow hold up no others.
fn taken_now<P>(
    fetched: &Fetched,
    permits: &mut HashMap<MessageId, P>,
    first_busy: Option<MessageId>,
) -> usize {
    let id = |record: &Record| Some(record.message()?.message.id);
    let is_busy = |record| first_busy.is_some() && id(record) == first_busy;
    let Some(place) = fetched.records.iter().position(is_busy) else {
        return fetched.records.len();
    };
    let ids: HashSet<MessageId> = fetched.records[..place].iter().filter_map(id).collect();
    if ids.iter().filter(|id| permits.contains_key(id)).count() < MANY_CALLS {
        return fetched.records.len();
    }
    permits.retain(|id, _| ids.contains(id));
    place
}

impl DeliverSettings {
    /// Returns when the next round of a busy partition begins.
    fn next_beat(&self, now: Instant) -> Instant {
        let round = LONGEST_ROUND.as_nanos();
        let since = now.saturating_duration_since(self.beat).as_nanos() % round;
        let left = u64::try_from(round - since).unwrap_or(u64::MAX);
        now + Duration::from_nanos(left)
    }
}

#[cfg(test)]
mod tests;
