//! Chooses the next step of each message that is ready, and starts calls.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    time::Duration,
};

use domain::{GatewayName, MessageId, VerificationId};
use rand_core::Rng;
use tokio::time::Instant;

use super::{
    DeliverMessages,
    calls::Ended,
    lanes::{QueuedMessage, RoutePlace},
};
use crate::{
    pipeline::routing::{Ask, Choice, Permit},
    ports::{
        Call, CallOutcome, DeliveryLedger, DeliveryState, FailureReason, Incoming, LedgerError,
        Next, OutcomeClass, Past, SmsGateway, Start, Started, Verdict,
    },
};

/// The routes whose messages wait in memory because no gateway has room.
#[derive(Debug, Default)]
pub(super) struct Blocked {
    routes: BTreeSet<RoutePlace>,
    /// When to look for room again. Otherwise the end of a call makes some.
    until: Option<Instant>,
}

impl Blocked {
    pub(super) fn has(&self, route: RoutePlace) -> bool {
        self.routes.contains(&route)
    }

    pub(super) fn until(&self) -> Option<Instant> {
        self.until
    }

    fn clear(&mut self) {
        *self = Self::default();
    }

    fn insert(&mut self, route: RoutePlace, wait: Duration) {
        self.routes.insert(route);
        let until = Instant::now().checked_add(wait);
        self.until = self.until.into_iter().chain(until).min();
    }
}

/// The next step of a message.
#[derive(Debug)]
enum Step<G> {
    Call(Permit<G>),
    /// A gateway works and has no room. Look again after this time, or when a call has ended.
    Stay(Duration),
    /// Park the message for this time.
    Wait(Duration),
    /// End the message without a call, because no gateway takes it.
    Fail(FailureReason),
    /// End the message without a call, because a gateway may have it.
    Unknown(&'static str),
    /// Record the outcome of the interrupted call.
    Interrupted,
}

/// The gateways that messages must not go through.
pub(super) type PassedOver = HashMap<MessageId, Vec<GatewayName>>;

/// Returns which gateways each message must not go through. The ledger is asked only for messages that are
/// not the first of their verification.
pub(super) async fn passed_over<L: DeliveryLedger>(
    ledger: &L,
    mut messages: Vec<MessageId>,
) -> Result<PassedOver, LedgerError> {
    messages.retain(|id| VerificationId::number_of(*id).is_some_and(|number| number > 1));
    if messages.is_empty() { Ok(PassedOver::new()) } else { ledger.passed_over(&messages).await }
}

/// Returns the past of a message that was not called for yet.
pub(super) fn past_of(message: MessageId, passed_over: &PassedOver) -> Past {
    Past { passed_over: passed_over.get(&message).cloned().unwrap_or_default(), ..Past::default() }
}

/// A message and its step.
type Stepping<G> = (QueuedMessage, Step<G>);

/// How long a message is parked that must leave memory, or for which the retry budget has no room.
const AGAIN: Duration = Duration::from_secs(1);
/// The number of messages of one route that are parked in one round. It bounds the time that calls of the
/// same round wait.
const PARKED_TOGETHER: usize = 250;
/// The number of messages of one route that are passed over in a queue because the only gateway that may
/// be called for them has no room.
const PASSED_OVER: usize = 32;
/// How much longer a message is parked for each other parked message at most. So those that are parked
/// together do not come back together.
const SPREAD: Duration = Duration::from_millis(1);

impl<L: DeliveryLedger, G: SmsGateway, R: Rng + Send + 'static> DeliverMessages<L, G, R> {
    /// Selects messages whose calls may start with their admission: their phones have no open message,
    /// no other message of their route waits for room, and a gateway has room. Also returns the first
    /// message whose gateway works and has no room.
    pub(super) fn callable<'a>(
        &mut self,
        messages: impl Iterator<Item = &'a Incoming>,
        passed_over: &PassedOver,
    ) -> (HashMap<MessageId, Permit<G>>, Option<MessageId>) {
        let mut phones = HashSet::new();
        let mut without_room = HashSet::new();
        let mut permits = HashMap::new();
        let mut first_busy = None;
        for Incoming { message, .. } in messages {
            let route = self.router.route_of(&message.phone);
            let may_call = phones.insert(&message.phone) && self.lanes.is_free(&message.phone);
            if !may_call || self.blocked.has(route) || without_room.contains(&route) {
                continue;
            }
            let past = past_of(message.id, passed_over);
            let ask = Ask { id: message.id, phone: &message.phone, past: &past, load: &self.load };
            match self.router.choose(&ask) {
                // The cost of a call is reserved by `start` only.
                Choice::Call(permit) if !self.router.is_limited(permit.name()) => {
                    self.load.begin(permit.name());
                    permits.insert(message.id, permit);
                }
                choice => {
                    if matches!(choice, Choice::Busy(_)) {
                        first_busy.get_or_insert(message.id);
                    }
                    without_room.insert(route);
                }
            }
        }
        // `call` begins those that are granted again.
        for permit in permits.values() {
            self.load.end(permit.name());
        }
        (permits, first_busy)
    }

    /// Starts calls for messages that are ready, and parks those for which no gateway can be used.
    pub(super) async fn start(&mut self) -> Result<(), LedgerError> {
        let steps = self.steps();
        if steps.is_empty() {
            return Ok(());
        }
        let begun = Instant::now();
        let starts: Vec<Start> = steps.iter().filter_map(|step| self.start_of(step)).collect();
        let limit = call_limit(steps.iter().filter_map(|(_, step)| match step {
            Step::Call(permit) => Some(permit),
            _ => None,
        }));
        let started = if starts.is_empty() {
            Started::default()
        } else {
            match self.ledger.start(&self.lease, &starts, limit).await {
                Ok(started) => started,
                Err(error) => {
                    steps.into_iter().rev().for_each(|(message, _)| self.lanes.put_back(message));
                    return Err(error);
                }
            }
        };
        let ended: HashMap<MessageId, DeliveryState> =
            started.ended.iter().map(|recorded| (recorded.id, recorded.state)).collect();
        self.delivered.ended.extend(started.ended);
        let calls: HashMap<MessageId, Call> =
            started.calls.into_iter().map(|call| (call.id, call)).collect();
        let unaffordable: HashSet<MessageId> = started.unaffordable.into_iter().collect();
        let mut again = Vec::new();
        for (message, step) in steps {
            let call = calls.get(&message.message.id).copied();
            if let (Step::Call(permit), Some(_)) = (&step, call) {
                self.router.note_paid(permit.name(), &message.message.phone);
            }
            if let Some(state) = ended.get(&message.message.id) {
                if let (Step::Fail(FailureReason::BudgetExhausted), DeliveryState::Failed) =
                    (&step, state)
                {
                    self.delivered.unaffordable += 1;
                }
                self.lanes.done(&message.message.phone);
            } else if let Step::Call(permit) = &step
                && unaffordable.contains(&message.message.id)
            {
                self.router.note_used_up(permit.name(), &message.message.phone);
                again.push(message);
            } else {
                self.step(message, step, call, begun);
            }
        }
        // They choose again in the next round.
        again.into_iter().rev().for_each(|message| self.lanes.put_back(message));
        Ok(())
    }

    /// Carries out a step that the ledger has recorded. `call` is the call that it granted, if any.
    fn step(&mut self, message: QueuedMessage, step: Step<G>, call: Option<Call>, begun: Instant) {
        match (step, call) {
            (Step::Call(permit), Some(call)) => self.call(call, permit, message, begun),
            (Step::Interrupted, _) => {
                let outcome = CallOutcome {
                    id: message.message.id,
                    attempt: message.past.attempts,
                    class: OutcomeClass::Ambiguous,
                    verdict: Verdict::Unknown,
                    detail: "interrupted: the call may have been made".to_owned(),
                };
                self.ended.push(Ended {
                    phone: message.message.phone,
                    outcome,
                    trace: None,
                    goes_on: None,
                });
            }
            (Step::Wait(_), _) => {
                self.delivered.deferred += 1;
                self.lanes.park(&message.message.phone);
            }
            // Another consumer is calling, or the entry has ended. The ledger shows which.
            (Step::Call(_) | Step::Fail(_) | Step::Unknown(_) | Step::Stay(_), _) => {
                self.lanes.park(&message.message.phone);
            }
        }
    }

    /// Takes the messages that are ready and have a next step.
    fn steps(&mut self) -> Vec<Stepping<G>> {
        self.blocked.clear();
        let mut steps = Vec::new();
        let routes: Vec<RoutePlace> = self.lanes.ready().map(|(route, _)| route).collect();
        for route in routes {
            self.steps_of(route, &mut steps);
        }
        for (_, step) in &steps {
            if let Step::Call(permit) = step {
                // `call` begins it again.
                self.load.end(permit.name());
            }
        }
        self.make_room(&mut steps);
        steps
    }

    fn steps_of(&mut self, route: RoutePlace, steps: &mut Vec<Stepping<G>>) {
        let mut passed_over = 0;
        let mut parked = 0;
        let mut soonest = Duration::MAX;
        while let Some(first) = self.lanes.first(route, passed_over).cloned() {
            let step = match self.decide(&first) {
                // The same gateways may be called for the next message, so it would stay too.
                Step::Stay(wait) if first.past.is_new() => {
                    soonest = soonest.min(wait);
                    break;
                }
                Step::Stay(wait) if passed_over < PASSED_OVER => {
                    soonest = soonest.min(wait);
                    passed_over += 1;
                    continue;
                }
                Step::Stay(_) => self.park_for(AGAIN),
                step => step,
            };
            match &step {
                Step::Call(permit) => self.load.begin(permit.name()),
                _ => parked += 1,
            }
            let taken = self.lanes.take(route, passed_over);
            steps.push((taken.expect("it was just there"), step));
            if parked >= PARKED_TOGETHER {
                // The rest is next, in a moment.
                return;
            }
        }
        if self.lanes.first(route, 0).is_some() {
            self.blocked.insert(route, soonest);
        }
    }

    fn decide(&mut self, message: &QueuedMessage) -> Step<G> {
        let QueuedMessage { message, past, interrupted, expired, .. } = message;
        let ask = Ask { id: message.id, phone: &message.phone, past, load: &self.load };
        match self.router.choose(&ask) {
            Choice::Unknown if *interrupted => Step::Interrupted,
            // The ledger ends it.
            _ if *expired => Step::Wait(Duration::ZERO),
            Choice::Call(permit) => {
                let is_retry = past.tried.contains(permit.name());
                if is_retry && !self.budgets.spend(permit.name(), Instant::now()) {
                    self.delivered.held_back += 1;
                    return self.park_for(AGAIN);
                }
                Step::Call(permit)
            }
            Choice::Busy(wait) => Step::Stay(wait),
            Choice::Wait(wait) => self.park_for(wait),
            Choice::Unknown => Step::Unknown("not called: a gateway may have the message"),
            Choice::Refuse(reason) => Step::Fail(reason),
        }
    }

    /// Parks a message for at least `wait`, and longer if many others are parked.
    fn park_for(&mut self, wait: Duration) -> Step<G> {
        let others = u32::try_from(self.lanes.parked()).unwrap_or(u32::MAX);
        let fraction = f64::from(self.rng.next_u32()) / f64::from(u32::MAX);
        Step::Wait(wait + SPREAD.saturating_mul(others).mul_f64(fraction))
    }

    /// Returns what the ledger records of a step before it is carried out.
    fn start_of(&self, (message, step): &Stepping<G>) -> Option<Start> {
        let QueuedMessage { message, .. } = message;
        let next = match step {
            Step::Call(permit) => {
                let name = permit.name().clone();
                match self.router.cost(&name, &message.phone, || self.segments(message)) {
                    Some(cost) => Next::Buy(name, cost),
                    None => Next::Call(name),
                }
            }
            Step::Fail(reason) => Next::Fail(*reason),
            Step::Unknown(reason) => Next::Unknown(reason),
            Step::Wait(wait) => Next::Wait(*wait),
            Step::Stay(_) | Step::Interrupted => return None,
        };
        Some(Start { id: message.id, next })
    }

    /// Parks messages that wait for room if they would soon stop the reading of other routes.
    fn make_room(&mut self, steps: &mut Vec<Stepping<G>>) {
        if self.router.routes() < 2 {
            return;
        }
        for _ in 0..PARKED_TOGETHER {
            if self.lanes.waiting() <= self.settings.in_hand / 2 {
                return;
            }
            let blocked = self.lanes.ready().filter(|(route, _)| self.blocked.has(*route));
            let Some((route, phones)) = blocked.max_by_key(|(_, phones)| *phones) else { return };
            let Some(last) = self.lanes.take(route, phones - 1) else { return };
            let step = self.park_for(AGAIN);
            steps.push((last, step));
        }
    }
}

/// Returns how long the longest of these calls may last.
pub(super) fn call_limit<'a, G: 'a>(permits: impl Iterator<Item = &'a Permit<G>>) -> Duration {
    permits.map(Permit::call_limit).max().unwrap_or_default()
}
