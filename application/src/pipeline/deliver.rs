mod backoff;
mod budget;
mod lanes;

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use autometrics::autometrics;
use domain::{CannotOpen, CarriedCode, Message, MessageId, Opened, PhoneNumber, Templates};
use rand_core::Rng;
use tokio::{
    sync::mpsc,
    task::{self, JoinSet},
    time::{Instant, sleep_until, timeout},
};

use self::{
    backoff::backoff,
    budget::RetryBudget,
    lanes::{Lanes, QueuedMessage},
};
use crate::Vault;
use crate::ports::{
    Accepted, Batch, Call, CallOutcome, DeliveryLedger, DeliveryState, Due, Fetched, Incoming,
    Lease, LedgerError, OutcomeClass, Recorded, SendError, Sms, SmsGateway, Verdict,
};

/// Brings the messages of one partition to the gateway, each once, each phone's in their order.
///
/// | in the ledger | in memory | what happens next |
/// |---|---|---|
/// | nothing | `arrived`: fetched | `admit`, which may `start` it too |
/// | pending | *waiting* in its phone's lane | `start`, when the lane is free |
/// | calling | a task in `calls`, then in `ended` | `finish` |
/// | pending, or calling for another consumer | *parked*: counted in its lane | due: `resume` |
/// | sent, failed, expired, unknown | nothing | |
///
/// *In hand* is what waits or is called for; *open* is what is pending or calling.
///
/// A message passes three commits: `admit` makes it the ledger's and moves the offset on, `start`
/// records the intent to call, `finish` records the outcome. The first two are one where nothing
/// is in the message's way. After a crash before `start` it is still to be sent; after one between
/// `start` and `finish` the call may have been made, and it is repeated only if the gateway would
/// know it again.
#[derive(Debug)]
pub struct DeliverMessages<L, G, R> {
    ledger: Arc<L>,
    gateway: Arc<G>,
    rng: R,
    settings: DeliverSettings,
    lease: Lease,
    inbox: mpsc::Receiver<Fetched>,
    arrived: Option<Fetched>,
    lanes: Lanes,
    calls: JoinSet<Result<Accepted, SendError>>,
    called: HashMap<task::Id, Called>,
    ended: Vec<(PhoneNumber, CallOutcome)>,
    budget: RetryBudget,
    /// Something was asked of the ledger and not heard of: it may be done, now or soon.
    unheard: bool,
    /// When the next round may begin.
    next_round: Instant,
    /// When to look for parked messages whose time has come, and when to do so at the earliest.
    next_look: Instant,
    earliest_look: Instant,
    /// When the lanes were held against the ledger; None: it is to be done again.
    synced: Option<Instant>,
    delivered: Delivered,
}

#[derive(Debug, Clone)]
pub struct DeliverSettings {
    pub templates: Arc<Templates>,
    /// Opens what is sealed. Must be open before anything is delivered.
    pub vault: Vault,
    /// How long a message may be sent whose record says nothing of time.
    pub default_ttl: Duration,
    /// Calls at a time, for one partition.
    pub concurrency: usize,
    /// Messages in memory, for one partition; beyond that, reading pauses.
    pub in_hand: usize,
    /// A call without an outcome after that is ambiguous.
    pub call_limit: Duration,
}

/// What happened since it was last asked for.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Delivered {
    pub admitted: usize,
    /// Records of messages that the ledger had already.
    pub passed_over: usize,
    pub unreadable: usize,
    /// Calls begun.
    pub calls: usize,
    /// What calls that ended came to.
    pub outcomes: Vec<OutcomeClass>,
    pub retries: usize,
    /// Retries that were due and had to wait for the budget.
    pub held_back: usize,
    pub ended: Vec<Recorded>,
    pub lag: Option<i64>,
}

#[derive(Debug)]
struct Called {
    id: MessageId,
    phone: PhoneNumber,
    attempt: u32,
}

/// How often the ledger is asked which parked messages are due.
const LOOK: Duration = Duration::from_millis(250);
/// A round about one message may be followed soon by the next, which brings another one to its
/// phone. Each further message adds [`FURTHER`]: where much happens, more of it is recorded together.
const ROUND: Duration = Duration::from_millis(1);
const FURTHER: Duration = Duration::from_millis(5);
const LONGEST_ROUND: Duration = Duration::from_millis(20);
/// How much longer outcomes wait for a round with new messages, where nothing in memory waits for
/// them.
const OUTCOME: Duration = Duration::from_millis(5);
/// How often the lanes are held against the ledger where something is parked, which other consumers
/// may have ended.
const SYNC: Duration = Duration::from_secs(5);
/// The same where all that is open is in hand: only an operator may add to it, who brings a dead
/// letter back. The look goes through all that has been open and is not vacuumed.
const REST: Duration = Duration::from_secs(20);
/// Phones of one partition whose messages may be open at a time; beyond that, reading pauses.
const PHONES: usize = 20_000;

impl<L: DeliveryLedger, G: SmsGateway, R: Rng + Send + 'static> DeliverMessages<L, G, R> {
    /// Delivers what `inbox` brings of the partition that `lease` is for.
    pub fn new(
        ledger: Arc<L>,
        gateway: Arc<G>,
        rng: R,
        settings: DeliverSettings,
        lease: Lease,
        inbox: mpsc::Receiver<Fetched>,
    ) -> Self {
        Self {
            ledger,
            gateway,
            rng,
            settings,
            lease,
            inbox,
            arrived: None,
            lanes: Lanes::default(),
            calls: JoinSet::new(),
            called: HashMap::new(),
            ended: Vec::new(),
            budget: RetryBudget::new(Instant::now()),
            unheard: false,
            next_round: Instant::now(),
            next_look: Instant::now(),
            earliest_look: Instant::now(),
            synced: None,
            delivered: Delivered::default(),
        }
    }

    /// Waits until there is something to do. May be dropped and called again.
    pub async fn wait(&mut self) {
        let room = self.arrived.is_none()
            && self.lanes.in_hand() < self.settings.in_hand
            && self.lanes.phones() < PHONES;
        let look = if self.lanes.parked() > 0 { Some(self.next_look) } else { self.next_sync() };
        let can_start = self.lanes.ready() > 0 && self.calls.len() < self.settings.concurrency;
        if self.arrived.is_none() && self.ended.is_empty() && !can_start {
            tokio::select! {
                Some(fetched) = self.inbox.recv(), if room => self.arrived = Some(fetched),
                Some(call) = self.calls.join_next_with_id() => self.end_call(call),
                () = sleep_until(look.unwrap_or_else(Instant::now)) => {}
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

    /// Does what is to be done: records outcomes, takes new messages over, starts calls.
    ///
    /// After an error it may be called again; after [`LedgerError::Fenced`] there is no use in
    /// that. Must not be dropped half-way.
    #[autometrics(struct_name = "DeliverMessages")]
    pub async fn act(&mut self) -> Result<Delivered, LedgerError> {
        let begun = Instant::now();
        let result = self.round().await;
        let about = self.delivered.admitted + self.delivered.outcomes.len();
        let further = u32::try_from(about.saturating_sub(1)).unwrap_or(u32::MAX);
        let pause = ROUND.saturating_add(FURTHER.saturating_mul(further));
        self.next_round = begun + pause.min(LONGEST_ROUND);
        if result.is_err() {
            // It may have been committed without our hearing of it: what the ledger has comes
            // before what is admitted next.
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
        // Before anything is admitted: what the partition's last owner left comes first.
        self.resume().await?;
        self.admit().await?;
        self.start().await
    }

    /// Waits for a call that is under way to end, if there is one, and records its outcome; starts
    /// nothing.
    ///
    /// Outcomes count also when the partition has another owner by now.
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

    /// Calls under way, or ended and not recorded.
    pub fn in_flight(&self) -> usize {
        self.calls.len() + self.ended.len()
    }

    async fn finish(&mut self) -> Result<(), LedgerError> {
        if self.ended.is_empty() {
            return Ok(());
        }
        let outcomes: Vec<CallOutcome> =
            self.ended.iter().map(|(_, outcome)| outcome.clone()).collect();
        let recorded = self.ledger.finish(&outcomes).await?;

        let state: HashMap<MessageId, DeliveryState> =
            recorded.iter().map(|recorded| (recorded.id, recorded.state)).collect();
        for (phone, outcome) in self.ended.drain(..) {
            // An outcome that was passed over belongs to an entry that somebody else works on, or
            // was recorded before without our hearing of it: the ledger will tell.
            match state.get(&outcome.id) {
                Some(DeliveryState::Pending | DeliveryState::Calling) | None => {
                    self.lanes.park(&phone);
                }
                Some(_) => {
                    self.lanes.done(&phone);
                    if self.lanes.is_waiting_in_ledger(&phone) {
                        // The next one of this phone need not wait for the next look.
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

    async fn admit(&mut self) -> Result<(), LedgerError> {
        let Some(fetched) = &self.arrived else { return Ok(()) };

        let begun = Instant::now();
        let mut batch = Batch {
            records: fetched.records.clone(),
            next_offset: fetched.next_offset,
            default_ttl: self.settings.default_ttl,
            call_limit: self.settings.call_limit,
            ..Batch::default()
        };
        batch.call_now = self.callable(batch.messages());
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
            tracing::warn!(partition, offset, %reason, "record is no message: dead letter");
        }
        self.delivered.lag = Some(fetched.lag);
        self.delivered.unreadable += unreadable;
        self.delivered.admitted += admitted_now;
        self.delivered.passed_over += known;
        if known > 0 && std::mem::take(&mut self.unheard) {
            // What was not heard of was done after the look at the ledger.
            self.synced = None;
        }
        self.delivered.ended.extend(admitted.expired);
        self.arrived = None;
        let messages = batch.records.into_iter().filter_map(|record| record.content.ok());
        for Incoming { message, trace, .. } in messages {
            // Removed, since a batch may hold a message twice.
            if let Some(call) = calls.remove(&message.id) {
                self.lanes.begin(&message.phone);
                self.call(call, message, trace, begun);
            } else if fresh.remove(&message.id) {
                self.lanes.push(QueuedMessage { message, trace });
            }
        }
        Ok(())
    }

    /// The messages that can be called for as they come: nothing of their phones is open, and what
    /// is ready already leaves room.
    fn callable<'a>(&self, messages: impl Iterator<Item = &'a Incoming>) -> HashSet<MessageId> {
        let busy = self.calls.len() + self.lanes.ready();
        let mut phones = HashSet::new();
        messages
            .map(|incoming| &incoming.message)
            .filter(|message| phones.insert(&message.phone) && self.lanes.is_free(&message.phone))
            .take(self.settings.concurrency.saturating_sub(busy))
            .map(|message| message.id)
            .collect()
    }

    /// Brings back parked messages whose time has come.
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
        for Due { message, trace, interrupted, attempt, expired } in due {
            if !self.lanes.is_idle(&message.phone) {
                continue;
            }
            if interrupted && !self.gateway.deduplicates() {
                let detail = "interrupted: the call may have been made".to_owned();
                let class = OutcomeClass::Ambiguous;
                let verdict = Verdict::Unknown;
                let outcome = CallOutcome { id: message.id, attempt, class, verdict, detail };
                self.ended.push((message.phone, outcome));
            } else if attempt > 0 && !expired && !self.budget.spend(now) {
                // It stays parked, and due.
                self.delivered.held_back += 1;
            } else {
                self.lanes.resume(QueuedMessage { message, trace });
            }
        }
        // However many entries the look went through, most of the time is left for work.
        let cost = now.elapsed();
        self.earliest_look = now + 10 * cost;
        self.next_look = now + LOOK.max(10 * cost);
        Ok(())
    }

    /// When to hold the lanes against the ledger; None: now.
    fn next_sync(&self) -> Option<Instant> {
        let pause = if self.lanes.parked() > 0 { SYNC } else { REST };
        self.synced.map(|synced| synced + pause)
    }

    async fn start(&mut self) -> Result<(), LedgerError> {
        let free = self.settings.concurrency.saturating_sub(self.calls.len());
        let taken = self.lanes.take(free);
        if taken.is_empty() {
            return Ok(());
        }
        let begun = Instant::now();
        let ids: Vec<MessageId> = taken.iter().map(|waiting| waiting.message.id).collect();
        let started = match self.ledger.start(&self.lease, &ids, self.settings.call_limit).await {
            Ok(started) => started,
            Err(error) => {
                self.lanes.put_back(taken);
                return Err(error);
            }
        };
        let ended: HashSet<MessageId> = started.ended.iter().map(|recorded| recorded.id).collect();
        self.delivered.ended.extend(started.ended);
        let calls: HashMap<MessageId, Call> =
            started.calls.into_iter().map(|call| (call.id, call)).collect();
        for QueuedMessage { message, trace } in taken {
            match calls.get(&message.id) {
                Some(call) => self.call(*call, message, trace, begun),
                None if ended.contains(&message.id) => self.lanes.done(&message.phone),
                // Somebody is calling, or it has ended: the ledger will tell.
                None => self.lanes.park(&message.phone),
            }
        }
        Ok(())
    }

    fn call(
        &mut self,
        call: Call,
        message: Message,
        trace: Option<crate::TraceParent>,
        granted: Instant,
    ) {
        self.delivered.calls += 1;
        let end_by = granted + self.settings.call_limit;
        // A call that was begun in time may end after the code has expired: its outcome counts.
        let begin_by = end_by.min(granted + call.good_for);
        let called = Called { id: message.id, phone: message.phone.clone(), attempt: call.attempt };
        let sms = self.sms(call, message, trace);
        let gateway = Arc::clone(&self.gateway);
        let handle = self.calls.spawn(async move {
            let sms = sms?;
            // Whoever was stopped for so long after `start` must not call: somebody else may have
            // taken the message for interrupted, or its code is no good any more.
            let now = Instant::now();
            if now >= begin_by {
                return Err(SendError::Unavailable {
                    detail: "not called: too late".to_owned(),
                    retry_after: None,
                });
            }
            let Accepted { reference } = timeout(end_by - now, gateway.send(&sms))
                .await
                .unwrap_or_else(|_| Err(SendError::Ambiguous("no outcome in time".to_owned())))?;
            // It is kept, and a gateway might repeat what it was given.
            let reference = reference.filter(|it| !it.contains(sms.code.as_str()));
            Ok(Accepted { reference })
        });
        self.called.insert(handle.id(), called);
    }

    fn sms(
        &self,
        call: Call,
        message: Message,
        trace: Option<crate::TraceParent>,
    ) -> Result<Sms, SendError> {
        let Opened { code, template, .. } = self.open(&message)?;
        let text = self.settings.templates.render(template.as_ref(), &code);
        Ok(Sms { message, code, text, expires_at: call.expires_at, trace })
    }

    fn open(&self, message: &Message) -> Result<Opened, SendError> {
        let sealed = match &message.code {
            CarriedCode::Clear { code, template } => {
                let (code, template) = (code.clone(), template.clone());
                return Ok(Opened { phone: message.phone.clone(), code, template });
            }
            CarriedCode::Sealed(sealed) => sealed,
        };
        let keys = self.settings.vault.keys().ok_or_else(|| SendError::Unavailable {
            detail: "not called: the keys are not there yet".to_owned(),
            retry_after: None,
        })?;
        let opened = match &keys.payload {
            Some(keys) => keys.open(message.id, sealed),
            None => Err(CannotOpen::UnknownKey),
        };
        opened
            .and_then(
                |it| if it.phone == message.phone { Ok(it) } else { Err(CannotOpen::Damaged) },
            )
            .map_err(|error| match error {
                // Another consumer may have it, or this one after its next start.
                CannotOpen::UnknownKey => SendError::Unavailable {
                    detail: format!("not called: {error}"),
                    retry_after: None,
                },
                CannotOpen::Damaged => SendError::Misconfigured(error.to_string()),
            })
    }

    fn end_call(&mut self, call: Result<(task::Id, Result<Accepted, SendError>), task::JoinError>) {
        let (task, result) = match call {
            Ok(ended) => ended,
            Err(error) => {
                (error.id(), Err(SendError::Ambiguous("the gateway adapter panicked".to_owned())))
            }
        };
        let Called { id, phone, attempt } =
            self.called.remove(&task).expect("every call is noted when it is spawned");
        let (class, detail) = match &result {
            Ok(_) => {
                self.budget.earn();
                (OutcomeClass::Accepted, String::new())
            }
            Err(error) => {
                tracing::warn!(message.id = %id, attempt, %error, "message not accepted by the gateway");
                (error.class(), error.detail().to_owned())
            }
        };
        self.delivered.outcomes.push(class);
        let verdict = self.judge(result, attempt);
        self.ended.push((phone, CallOutcome { id, attempt, class, verdict, detail }));
    }

    fn judge(&mut self, result: Result<Accepted, SendError>, attempt: u32) -> Verdict {
        match result {
            Ok(Accepted { reference }) => Verdict::Sent { reference },
            Err(SendError::Rejected(_) | SendError::Misconfigured(_)) => Verdict::Failed,
            Err(
                SendError::Throttled { retry_after, .. }
                | SendError::Unavailable { retry_after, .. },
            ) => Verdict::Retry {
                // "At once" is what it said the last time, too.
                after: retry_after
                    .filter(|wait| !wait.is_zero())
                    .unwrap_or_else(|| backoff(attempt, &mut self.rng)),
            },
            Err(SendError::Ambiguous(_)) if self.gateway.deduplicates() => {
                Verdict::Retry { after: backoff(attempt, &mut self.rng) }
            }
            Err(SendError::Ambiguous(_)) => Verdict::Unknown,
        }
    }
}

#[cfg(test)]
mod tests;
