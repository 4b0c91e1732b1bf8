//! The ports in memory. They follow the contracts in the doc comments, on the clock of a paused runtime.
//!
//! [`Memory`] is the database, the topic and the gateways, which survive a crash. [`Provider`] is one of
//! the gateways. [`Member`] is a consumer's view of it. A consumer can be paused: its requests to the database are then carried out
//! late, or carried out in time and answered late. Any answer of the database can be lost.
//!
//! This is one file, because all ports share one state.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    num::NonZeroU32,
    ops::RangeInclusive,
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, SystemTime},
};

use application::{
    BoxError, TraceParent,
    ports::{
        Accepted, Admitted, Backlog, BacklogSize, Batch, BrokerError, Call, CallOutcome,
        DeliveryLedger, DeliveryState, Due, Enqueued, Fetched, Found, Incoming, Lease, LedgerError,
        MessageBroker, MessageStream, NewSend, Next, Outbox, OutcomeClass, Outgoing,
        PartitionLeases, Past, Reached, Record, Recorded, Renewed, SendError, Sms, SmsGateway,
        Start, StartFrom, Started, StoreError, StreamError, Tenure, Verdict,
    },
};
use domain::{GatewayName, Message, MessageId, PhoneNumber, Validity};
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};

pub(crate) const PARTITIONS: i32 = 2;

/// The maximum number of records in a fetch. It is small, so that readers lag.
const FETCH_LIMIT: usize = 3;

#[derive(Debug, Clone)]
pub(crate) struct Memory {
    state: Arc<Mutex<State>>,
    begun: Instant,
}

#[derive(Debug, Default)]
pub(crate) struct State {
    outbox: BTreeMap<i64, Row>,
    /// The highest number that was drawn.
    drawn: i64,
    /// How long the next messages take to be stored after their number was drawn.
    pub(crate) slow: VecDeque<Duration>,
    relay: RelayRow,
    ledger: Vec<Entry>,
    leases: BTreeMap<i32, PartitionRow>,
    members: BTreeMap<u32, Duration>,
    topic: BTreeMap<i32, Vec<Incoming>>,
    /// How many answers of the database will be lost, and of which statement.
    pub(crate) unheard: (Statement, u32),
    /// What the broker and each gateway do next. Empty means that they work.
    pub(crate) publications: VecDeque<Publication>,
    pub(crate) answers: BTreeMap<GatewayName, VecDeque<Answer>>,
    /// A record of what happened.
    pub(crate) stored: Vec<(MessageId, Validity)>,
    pub(crate) expired: Vec<MessageId>,
    pub(crate) ended: Vec<(MessageId, DeliveryState)>,
    pub(crate) calls: Vec<Called>,
}

#[derive(Debug, Clone)]
struct Row {
    message: Message,
    validity: Validity,
    trace: TraceParent,
}

#[derive(Debug, Default)]
struct RelayRow {
    is_held: bool,
    epoch: i64,
    expires_at: Duration,
    published: i64,
}

#[derive(Debug)]
struct Entry {
    partition: i32,
    message: Message,
    trace: Option<TraceParent>,
    validity: Validity,
    state: DeliveryState,
    past: Past,
    /// The gateway of the call in progress.
    gateway: Option<GatewayName>,
    /// The epoch under which the last call began.
    epoch: i64,
    due_at: Duration,
}

#[derive(Debug, Default)]
struct PartitionRow {
    owner: Option<u32>,
    epoch: i64,
    expires_at: Duration,
    next_offset: Option<i64>,
    added_later: bool,
    /// The moment up to which the partition has been read completely.
    seen_until: Option<Duration>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Statement {
    #[default]
    Any,
    Renew,
    Admit,
    Start,
    Finish,
}

/// Whether the process of a consumer runs, and if not, where it is paused: before each statement, or
/// after a statement of a kind was committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pace {
    Goes,
    StopsBefore,
    StopsAfter(Statement),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Publication {
    /// The publication takes several leases.
    Slow,
    ArrivesUnheard,
    DoesNotArrive,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    Slow,
    Rejected,
    Unroutable,
    Misconfigured,
    Throttled,
    Unavailable,
    AcceptedUnheard,
    NotAcceptedUnheard,
    /// The gateway accepts the message and never answers.
    Hangs,
}

/// A call of a gateway.
#[derive(Debug)]
pub(crate) struct Called {
    pub(crate) gateway: GatewayName,
    pub(crate) id: MessageId,
    pub(crate) phone: PhoneNumber,
    pub(crate) at: SystemTime,
    pub(crate) accepted: bool,
    /// The caller does not know the outcome.
    pub(crate) ambiguous: bool,
}

impl Memory {
    pub(crate) fn new() -> Self {
        Self { state: Arc::default(), begun: Instant::now() }
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no port panics")
    }

    pub(crate) fn time(&self) -> SystemTime {
        clock(self.now())
    }

    fn now(&self) -> Duration {
        self.begun.elapsed()
    }

    /// Carries out one atomic step of the database.
    fn commit<T>(
        &self,
        statement: Statement,
        step: impl FnOnce(&mut State, Duration) -> T,
    ) -> Result<T, BoxError> {
        let mut state = self.state();
        let answer = step(&mut state, self.now());
        let (unheard, times) = &mut state.unheard;
        if *times > 0 && [Statement::Any, statement].contains(unheard) {
            *times -= 1;
            return Err("the answer to the commit was lost".into());
        }
        Ok(answer)
    }

    /// Ends the lease of the relay.
    pub(crate) fn end_tenure(&self) {
        self.state().relay.expires_at = Duration::ZERO;
    }

    /// Ends the lease of a partition.
    pub(crate) fn end_lease(&self, partition: i32) {
        if let Some(row) = self.state().leases.get_mut(&partition) {
            row.expires_at = Duration::ZERO;
        }
    }

    pub(crate) fn wipe_topic(&self) {
        self.state().topic.clear();
    }

    /// Whether no message is in flight.
    pub(crate) fn is_quiet(&self) -> bool {
        let state = self.state();
        let open = state.ledger.iter().any(Entry::is_open);
        state.outbox.is_empty() && !open
    }
}

/// The clock of the database and of the gateway.
fn clock(since_begun: Duration) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000) + since_begun
}

fn partition_of(phone: &PhoneNumber) -> i32 {
    let last = phone.as_str().bytes().last().expect("a phone has digits");
    i32::from(last) % PARTITIONS
}

impl Row {
    fn expires_by(&self, now: Duration) -> bool {
        self.validity.expires_at <= clock(now)
    }
}

impl Entry {
    fn is_open(&self) -> bool {
        matches!(self.state, DeliveryState::Pending | DeliveryState::Calling)
    }

    fn expires_by(&self, time: Duration) -> bool {
        self.validity.expires_at <= clock(time)
    }

    /// Records the intent to call.
    fn start(
        &mut self,
        gateway: &GatewayName,
        epoch: i64,
        now: Duration,
        call_limit: Duration,
    ) -> Call {
        self.state = DeliveryState::Calling;
        self.past.attempts += 1;
        self.gateway = Some(gateway.clone());
        self.epoch = epoch;
        self.due_at = now + call_limit;
        let expires_at = self.validity.expires_at;
        let good_for = expires_at.duration_since(clock(now)).unwrap_or_default();
        Call { id: self.message.id, attempt: self.past.attempts, expires_at, good_for }
    }

    /// The time at which it expires.
    fn lifetime(&self) -> Duration {
        self.validity.expires_at.duration_since(clock(Duration::ZERO)).unwrap_or_default()
    }

    /// Whether the entry may be called for, or wait, under a lease of this epoch.
    fn may_start(&self, epoch: i64, now: Duration) -> bool {
        match self.state {
            DeliveryState::Pending => true,
            // Its grant was not heard, or its call was interrupted.
            DeliveryState::Calling => self.epoch == epoch || self.due_at <= now,
            _ => false,
        }
    }

    fn is_interrupted(&self, epoch: i64) -> bool {
        self.state == DeliveryState::Calling && self.epoch != epoch
    }

    /// Ends the call in progress, which may have been made.
    fn end_call(&mut self, class: OutcomeClass) {
        let Some(gateway) = self.gateway.take() else { return };
        self.past.tried.push(gateway.clone());
        match class {
            OutcomeClass::Ambiguous => self.past.may_have(gateway),
            OutcomeClass::Unroutable => self.past.unroutable.push(gateway),
            _ => {}
        }
    }

    fn due(&self, epoch: i64, now: Duration) -> Due {
        let interrupted = self.is_interrupted(epoch);
        let mut past = self.past.clone();
        if let Some(gateway) = self.gateway.clone().filter(|_| interrupted) {
            past.tried.push(gateway.clone());
            past.may_have(gateway);
        }
        Due {
            message: self.message.clone(),
            trace: self.trace.clone(),
            interrupted,
            expired: self.expires_by(now),
            past,
        }
    }

    fn recorded(&self, now: Duration) -> Recorded {
        let age = clock(now).duration_since(self.validity.accepted_at).unwrap_or_default();
        Recorded { id: self.message.id, state: self.state, age }
    }
}

impl State {
    fn entry(&mut self, id: MessageId) -> Option<&mut Entry> {
        self.ledger.iter_mut().find(|entry| entry.message.id == id)
    }

    fn knows(&self, id: MessageId) -> bool {
        self.ledger.iter().any(|entry| entry.message.id == id)
    }

    /// The moment up to which the group has read all partitions.
    fn seen(&self) -> Option<Duration> {
        self.leases.values().map(|row| row.seen_until).min().flatten()
    }

    /// The row of the relay, if it has this tenure.
    fn held(&mut self, tenure: &Tenure) -> Option<&mut RelayRow> {
        Some(&mut self.relay).filter(|row| row.is_held && row.epoch == tenure.epoch)
    }

    fn records(&self, partition: i32, offset: i64) -> Result<Vec<Record>, StreamError> {
        let topic = self.topic.get(&partition).map_or(&[][..], Vec::as_slice);
        let first = usize::try_from(offset).expect("offsets begin at zero");
        let rest = topic.get(first..).ok_or(StreamError::OutOfRange { offset })?;
        let record =
            |(offset, incoming): (i64, &Incoming)| Record { offset, content: Ok(incoming.clone()) };
        Ok((offset..).zip(rest).map(record).collect())
    }

    fn fence(&mut self, lease: &Lease, member: u32) -> Result<&mut PartitionRow, LedgerError> {
        let row = self.leases.entry(lease.partition).or_default();
        if row.owner == Some(member) && row.epoch == lease.epoch {
            Ok(row)
        } else {
            Err(LedgerError::Fenced { partition: lease.partition })
        }
    }
}

impl Outbox for Memory {
    /// Limits are not modelled; these tests set none.
    async fn enqueue(&self, new: NewSend) -> Result<Enqueued, StoreError> {
        assert!(new.phone_limits.is_off() && new.extra.is_empty(), "nothing is counted here");
        let (sequence, slow) = {
            let mut state = self.state();
            state.drawn += 1;
            (state.drawn, state.slow.pop_front())
        };
        if let Some(slow) = slow {
            sleep(slow).await;
        }
        self.commit(Statement::Any, |state, now| {
            let at = clock(now);
            let validity = Validity::starting_at(at, new.ttl);
            state.stored.push((new.message.id, validity));
            state.outbox.insert(sequence, Row { message: new.message, validity, trace: new.trace });
            Enqueued::Accepted { at }
        })
        .map_err(StoreError::Unavailable)
    }
}

impl Backlog for Memory {
    async fn acquire(&self, lease: Duration) -> Result<Option<Tenure>, StoreError> {
        self.commit(Statement::Any, |state, now| {
            let row = &mut state.relay;
            if row.is_held && row.expires_at > now {
                return None;
            }
            row.is_held = true;
            row.epoch += 1;
            row.expires_at = now + lease;
            Some(Tenure { epoch: row.epoch, server: 0, published: row.published })
        })
        .map_err(StoreError::Unavailable)
    }

    async fn renew(
        &self,
        tenure: &Tenure,
        reached: Reached,
        lease: Duration,
    ) -> Result<bool, StoreError> {
        self.commit(Statement::Renew, |state, now| {
            let Some(row) = state.held(tenure) else { return false };
            row.expires_at = now + lease;
            row.published = reached.published;
            true
        })
        .map_err(StoreError::Unavailable)
    }

    async fn release(&self, tenure: &Tenure, reached: Reached) -> Result<(), StoreError> {
        self.commit(Statement::Any, |state, _| {
            if let Some(row) = state.held(tenure) {
                row.is_held = false;
                row.published = reached.published;
            }
        })
        .map_err(StoreError::Unavailable)
    }

    async fn look(
        &self,
        _: &Tenure,
        gaps: &[RangeInclusive<i64>],
        cursor: i64,
        limit: NonZeroU32,
    ) -> Result<Found, StoreError> {
        self.commit(Statement::Any, |state, now| {
            let wanted = state.outbox.iter().filter(|(sequence, row)| {
                let is_unread =
                    **sequence > cursor || gaps.iter().any(|gap| gap.contains(*sequence));
                is_unread && !row.expires_by(now)
            });
            let outgoing = |(sequence, row): (&i64, &Row)| Outgoing {
                sequence: *sequence,
                message: row.message.clone(),
                validity: row.validity,
                trace: row.trace.clone(),
                age: Duration::ZERO,
            };
            let limit = usize::try_from(limit.get()).expect("it is small");
            let messages = wanted.take(limit).map(outgoing).collect();
            Found { messages, unreadable: Vec::new() }
        })
        .map_err(StoreError::Unavailable)
    }

    async fn survey(&self, _: &Tenure) -> Result<Option<Duration>, StoreError> {
        self.commit(Statement::Any, |state, now| state.seen().map(|seen| now.saturating_sub(seen)))
            .map_err(StoreError::Unavailable)
    }

    async fn untaken(
        &self,
        range: RangeInclusive<i64>,
        limit: NonZeroU32,
    ) -> Result<Vec<i64>, StoreError> {
        self.commit(Statement::Any, |state, now| {
            let untaken = state
                .outbox
                .range(range)
                .filter(|(_, row)| !row.expires_by(now) && !state.knows(row.message.id));
            let limit = usize::try_from(limit.get()).expect("it is small");
            untaken.take(limit).map(|(sequence, _)| *sequence).collect()
        })
        .map_err(StoreError::Unavailable)
    }

    async fn end_expired(&self) -> Result<u64, StoreError> {
        self.commit(Statement::Any, |state, now| {
            let rows = state.outbox.extract_if(.., |_, row| row.expires_by(now));
            let ended: Vec<MessageId> = rows.map(|(_, row)| row.message.id).collect();
            state.expired.extend(&ended);
            ended.len() as u64
        })
        .map_err(StoreError::Unavailable)
    }

    async fn size(&self) -> Result<BacklogSize, StoreError> {
        Ok(BacklogSize::default())
    }
}

impl MessageBroker for Memory {
    async fn ready(&self) -> Result<(), BrokerError> {
        Ok(())
    }

    async fn publish(&self, messages: &[Outgoing]) -> Vec<Result<(), BrokerError>> {
        let mut failed = [false; PARTITIONS as usize];
        let mut answers = Vec::new();
        for outgoing in messages {
            let partition = partition_of(&outgoing.message.phone);
            let failed = &mut failed[usize::try_from(partition).expect("it is no negative number")];
            if *failed {
                answers.push(Err(BrokerError::Held));
                continue;
            }
            let publication = self.state().publications.pop_front();
            let latency = if publication == Some(Publication::Slow) { 5_000 } else { 20 };
            sleep(Duration::from_millis(latency)).await;
            if publication != Some(Publication::DoesNotArrive) {
                let incoming = Incoming {
                    message: outgoing.message.clone(),
                    validity: Some(outgoing.validity),
                    trace: Some(outgoing.trace.clone()),
                    sequence: Some(outgoing.sequence),
                };
                self.state().topic.entry(partition).or_default().push(incoming);
            }
            *failed = matches!(
                publication,
                Some(Publication::ArrivesUnheard | Publication::DoesNotArrive)
            );
            let unheard = || BrokerError::Unavailable("the answer was lost".into());
            answers.push(if *failed { Err(unheard()) } else { Ok(()) });
        }
        answers
    }
}

/// A consumer's view.
#[derive(Debug, Clone)]
pub(crate) struct Member {
    memory: Memory,
    /// The id of the consumer, which is never reused.
    name: u32,
    pace: watch::Receiver<Pace>,
}

impl Member {
    pub(crate) fn new(memory: Memory, name: u32, pace: watch::Receiver<Pace>) -> Self {
        Self { memory, name, pace }
    }

    /// Waits for a short time, and while the consumer is paused.
    async fn commit<T>(
        &self,
        statement: Statement,
        step: impl FnOnce(&mut State, Duration) -> T + Send,
    ) -> Result<T, BoxError> {
        let mut pace = self.pace.clone();
        let _ = pace.wait_for(|pace| *pace != Pace::StopsBefore).await;
        sleep(Duration::from_millis(1)).await;
        let answer = self.memory.commit(statement, step);
        let _ = pace.wait_for(|pace| *pace != Pace::StopsAfter(statement)).await;
        answer
    }
}

impl PartitionLeases for Member {
    async fn register(&self, partitions: &[i32]) -> Result<(), StoreError> {
        self.commit(Statement::Any, |state, _| {
            let added_later = !state.leases.is_empty();
            for partition in partitions {
                let new = PartitionRow { added_later, ..PartitionRow::default() };
                state.leases.entry(*partition).or_insert(new);
            }
        })
        .await
        .map_err(StoreError::Unavailable)
    }

    async fn renew(&self, leases: &[Lease], ttl: Duration) -> Result<Renewed, StoreError> {
        self.commit(Statement::Any, |state, now| {
            state.members.insert(self.name, now + ttl);
            let mut held = Vec::new();
            for lease in leases {
                if let Ok(row) = state.fence(lease, self.name) {
                    row.expires_at = now + ttl;
                    let seen = lease.seen.map(|at| now.saturating_sub(at.elapsed()));
                    row.seen_until = row.seen_until.max(seen);
                    held.push(lease.partition);
                }
            }
            let members = state.members.values().filter(|until| **until > now).count();
            Renewed { held, members, partitions: state.leases.len() }
        })
        .await
        .map_err(StoreError::Unavailable)
    }

    async fn acquire(&self, limit: usize, ttl: Duration) -> Result<Vec<Lease>, StoreError> {
        self.commit(Statement::Any, |state, now| {
            let free = state
                .leases
                .iter_mut()
                .filter(|(_, row)| row.owner.is_none() || row.expires_at <= now);
            free.take(limit)
                .map(|(partition, row)| {
                    row.owner = Some(self.name);
                    row.epoch += 1;
                    row.expires_at = now + ttl;
                    Lease {
                        partition: *partition,
                        epoch: row.epoch,
                        next_offset: row.next_offset,
                        added_later: row.added_later,
                        first_at: None,
                        seen: None,
                    }
                })
                .collect()
        })
        .await
        .map_err(StoreError::Unavailable)
    }

    async fn release(&self, lease: &Lease) -> Result<(), StoreError> {
        self.commit(Statement::Any, |state, _| {
            if let Ok(row) = state.fence(lease, self.name) {
                row.owner = None;
            }
        })
        .await
        .map_err(StoreError::Unavailable)
    }

    async fn leave(&self) -> Result<(), StoreError> {
        self.commit(Statement::Any, |state, _| state.members.retain(|name, _| *name != self.name))
            .await
            .map_err(StoreError::Unavailable)
    }
}

impl MessageStream for Member {
    async fn partitions(&self) -> Result<Vec<i32>, StreamError> {
        Ok((0..PARTITIONS).collect())
    }

    async fn first_offset(&self, partition: i32, from: StartFrom) -> Result<i64, StreamError> {
        let state = self.memory.state();
        let records = state.topic.get(&partition).map_or(0, Vec::len);
        Ok(match from {
            StartFrom::Earliest | StartFrom::Since(_) => 0,
            StartFrom::Latest => i64::try_from(records).expect("few are published"),
        })
    }

    async fn fetch(&self, partition: i32, offset: i64) -> Result<Fetched, StreamError> {
        let mut records = self.memory.state().records(partition, offset)?;
        let rest = records.split_off(records.len().min(FETCH_LIMIT)).len();
        let wait = if records.is_empty() { 200 } else { 5 };
        sleep(Duration::from_millis(wait)).await;
        let next_offset = records.last().map_or(offset, |record| record.offset + 1);
        Ok(Fetched { records, next_offset, lag: i64::try_from(rest).expect("few are published") })
    }
}

impl DeliveryLedger for Member {
    async fn admit(&self, lease: &Lease, batch: &Batch) -> Result<Admitted, LedgerError> {
        self.commit(Statement::Admit, |state, now| {
            state.fence(lease, self.name)?.next_offset = Some(batch.next_offset);
            let mut admitted = Admitted::default();
            for Incoming { message, validity, trace, sequence } in batch.messages() {
                if let Some(sequence) = sequence {
                    state.outbox.remove(sequence);
                }
                if state.knows(message.id) || state.expired.contains(&message.id) {
                    continue;
                }
                let mut entry = Entry {
                    partition: lease.partition,
                    message: message.clone(),
                    trace: trace.clone(),
                    validity: validity
                        .unwrap_or_else(|| Validity::starting_at(clock(now), batch.default_ttl)),
                    state: DeliveryState::Pending,
                    past: Past::default(),
                    gateway: None,
                    epoch: 0,
                    due_at: now,
                };
                if entry.expires_by(now) {
                    entry.state = DeliveryState::Expired;
                    state.ended.push((message.id, entry.state));
                    admitted.expired.push(entry.recorded(now));
                } else if let Some(gateway) = batch.call_now.get(&message.id) {
                    let call = entry.start(gateway, lease.epoch, now, batch.call_limit);
                    admitted.calls.push(call);
                } else {
                    admitted.fresh.push(message.id);
                }
                state.ledger.push(entry);
            }
            Ok(admitted)
        })
        .await
        .map_err(LedgerError::Unavailable)?
    }

    async fn start(
        &self,
        lease: &Lease,
        starts: &[Start],
        call_limit: Duration,
    ) -> Result<Started, LedgerError> {
        self.commit(Statement::Start, |state, now| {
            state.fence(lease, self.name)?;
            let mut started = Started::default();
            for Start { id, next } in starts {
                let entry = state.entry(*id).filter(|entry| entry.may_start(lease.epoch, now));
                let Some(entry) = entry else { continue };
                if entry.is_interrupted(lease.epoch) {
                    entry.end_call(OutcomeClass::Ambiguous);
                }
                if entry.expires_by(now) {
                    entry.state = DeliveryState::Expired;
                    started.ended.push(entry.recorded(now));
                    state.ended.push((*id, DeliveryState::Expired));
                    continue;
                }
                match next {
                    // No limit is modelled.
                    Next::Call(gateway) | Next::Buy(gateway, _) => {
                        let call = entry.start(gateway, lease.epoch, now, call_limit);
                        started.calls.push(call);
                    }
                    Next::Wait(wait) => {
                        entry.state = DeliveryState::Pending;
                        entry.gateway = None;
                        entry.due_at = (now + *wait).min(entry.lifetime());
                    }
                    Next::Unknown(_) if entry.past.ambiguous.is_empty() => {}
                    Next::Fail(_) | Next::Unknown(_) => {
                        entry.state = match entry.past.ambiguous[..] {
                            [] => DeliveryState::Failed,
                            _ => DeliveryState::Unknown,
                        };
                        let ended = entry.recorded(now);
                        state.ended.push((*id, ended.state));
                        started.ended.push(ended);
                    }
                }
            }
            Ok(started)
        })
        .await
        .map_err(LedgerError::Unavailable)?
    }

    async fn finish(&self, outcomes: &[CallOutcome]) -> Result<Vec<Recorded>, LedgerError> {
        self.commit(Statement::Finish, |state, now| {
            let mut recorded = Vec::new();
            for CallOutcome { id, attempt, class, verdict, .. } in outcomes {
                let entry = state.entry(*id);
                let is_current = |entry: &&mut Entry| {
                    entry.state == DeliveryState::Calling && entry.past.attempts == *attempt
                };
                let Some(entry) = entry.filter(is_current) else { continue };
                entry.end_call(*class);
                entry.state = match verdict {
                    Verdict::Sent { .. } => DeliveryState::Sent,
                    Verdict::Failed => DeliveryState::Failed,
                    Verdict::Unknown => DeliveryState::Unknown,
                    Verdict::Retry { after } if entry.expires_by(now + *after) => {
                        DeliveryState::Expired
                    }
                    Verdict::Retry { after } => {
                        entry.due_at = now + *after;
                        DeliveryState::Pending
                    }
                };
                recorded.push(entry.recorded(now));
                let (is_open, end) = (entry.is_open(), entry.state);
                if !is_open {
                    state.ended.push((*id, end));
                }
            }
            recorded
        })
        .await
        .map_err(LedgerError::Unavailable)
    }

    async fn open(&self, lease: &Lease) -> Result<Vec<(PhoneNumber, usize)>, LedgerError> {
        self.commit(Statement::Any, |state, _| {
            let mut open: BTreeMap<&str, (&PhoneNumber, usize)> = BTreeMap::new();
            let here = state.ledger.iter().filter(|entry| entry.partition == lease.partition);
            for entry in here.filter(|entry| entry.is_open()) {
                let phone = &entry.message.phone;
                open.entry(phone.as_str()).or_insert((phone, 0)).1 += 1;
            }
            open.into_values().map(|(phone, entries)| (phone.clone(), entries)).collect()
        })
        .await
        .map_err(LedgerError::Unavailable)
    }

    async fn due(&self, lease: &Lease, limit: usize) -> Result<Vec<Due>, LedgerError> {
        self.commit(Statement::Any, |state, now| {
            state.fence(lease, self.name)?;
            let mut oldest: Vec<&Entry> = Vec::new();
            let here = state.ledger.iter().filter(|entry| entry.partition == lease.partition);
            for entry in here.filter(|entry| entry.is_open()) {
                if oldest.iter().all(|older| older.message.phone != entry.message.phone) {
                    oldest.push(entry);
                }
            }
            let ours =
                |entry: &Entry| entry.state == DeliveryState::Calling && entry.epoch == lease.epoch;
            oldest.retain(|entry| entry.due_at <= now || ours(entry));
            oldest.sort_by_key(|entry| entry.past.attempts > 0 && !entry.expires_by(now));
            let due = oldest.into_iter().take(limit);
            Ok(due.map(|entry| entry.due(lease.epoch, now)).collect())
        })
        .await
        .map_err(LedgerError::Unavailable)?
    }

    async fn passed_over(
        &self,
        _: &[MessageId],
    ) -> Result<HashMap<MessageId, Vec<GatewayName>>, LedgerError> {
        Ok(HashMap::new())
    }
}

/// A gateway.
#[derive(Debug, Clone)]
pub(crate) struct Provider {
    pub(crate) memory: Memory,
    pub(crate) name: GatewayName,
    pub(crate) deduplicates: bool,
}

impl Provider {
    /// Takes a call, and returns how it ends.
    fn take(&self, sms: &Sms) -> Option<Answer> {
        let at = clock(self.memory.now());
        let mut state = self.memory.state();
        let is_same = |call: &&Called| call.gateway == self.name && call.id == sms.message.id;
        let has_it = state.calls.iter().filter(is_same).any(|call| call.accepted);
        let mut answer = state.answers.entry(self.name.clone()).or_default().pop_front();
        let refuses = matches!(answer, Some(Answer::Rejected | Answer::Unroutable));
        if self.deduplicates && has_it && refuses {
            // It may be busy, but it says of a message that it knows what it said before.
            answer = None;
        }
        let (accepted, ambiguous) = match answer {
            None | Some(Answer::Slow) => (true, false),
            Some(Answer::AcceptedUnheard | Answer::Hangs) => (true, true),
            Some(Answer::NotAcceptedUnheard) => (false, true),
            Some(
                Answer::Rejected
                | Answer::Unroutable
                | Answer::Misconfigured
                | Answer::Throttled
                | Answer::Unavailable,
            ) => (false, false),
        };
        let Message { id, phone, .. } = sms.message.clone();
        let gateway = self.name.clone();
        state.calls.push(Called { gateway, id, phone, at, accepted, ambiguous });
        answer
    }
}

impl SmsGateway for Provider {
    async fn send(&self, sms: &Sms) -> Result<Accepted, SendError> {
        let answer = self.take(sms);
        let detail = String::new();
        let latency = if answer == Some(Answer::Slow) { 8_000 } else { 30 };
        sleep(Duration::from_millis(latency)).await;
        match answer {
            None | Some(Answer::Slow) => Ok(Accepted::default()),
            Some(Answer::Rejected) => Err(SendError::Rejected(detail)),
            Some(Answer::Unroutable) => Err(SendError::Unroutable(detail)),
            Some(Answer::Misconfigured) => Err(SendError::Misconfigured(detail)),
            Some(Answer::Throttled) => {
                Err(SendError::Throttled { detail, retry_after: Some(Duration::from_secs(1)) })
            }
            Some(Answer::Unavailable) => Err(SendError::Unavailable { detail, retry_after: None }),
            Some(Answer::AcceptedUnheard | Answer::NotAcceptedUnheard) => {
                Err(SendError::Ambiguous(detail))
            }
            Some(Answer::Hangs) => std::future::pending().await,
        }
    }

    fn deduplicates(&self) -> bool {
        self.deduplicates
    }
}
