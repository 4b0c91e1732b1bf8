//! Chooses a gateway for each call: routes, failover, breakers, bulkheads and rate limits.
//!
//! Everything here is in memory and belongs to one process. What must survive is in the ledger: which
//! gateways a message has been given to, and which of them may have it.

mod breaker;
mod budgets;
mod desk;
mod factors;
mod in_flight;
mod load;
mod permit;
mod rate;
mod receipts;
mod spending;
mod status;
mod table;
mod tariff;
mod to;

use std::{
    collections::{BTreeSet, HashMap},
    fmt,
    num::NonZeroUsize,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use domain::{GatewayName, MessageId, PhoneNumber, Region};
use tokio::time::Instant;

pub use self::{
    budgets::{BudgetStatus, Budgets, Spent},
    status::{GatewayState, GatewayStatus},
    table::{
        AfterAmbiguous, GatewayLimits, Preference, ReceiptsInTime, Route, RoutedGateway,
        RoutingTable,
    },
    tariff::Tariff,
};
use self::{
    desk::{Desk, Offer},
    factors::Factors,
    spending::{Room, Spending},
    to::To,
};
pub(super) use self::{load::PartitionLoad, permit::Permit};
use crate::ports::{Accepted, FailureReason, Past, SendError, SmsGateway};

/// Chooses a gateway for each call.
///
/// All partitions of a process share it. A copy is the same router.
pub struct Router<G> {
    shared: Arc<Shared<G>>,
}

/// Returns the region of a number.
pub type RegionOf = Arc<dyn Fn(&PhoneNumber) -> Option<Region> + Send + Sync>;

/// A message that needs a gateway.
#[derive(Debug, Clone, Copy)]
pub struct Ask<'a> {
    pub id: MessageId,
    pub phone: &'a PhoneNumber,
    pub past: &'a Past,
    /// The calls of the partition that asks.
    pub load: &'a PartitionLoad,
}

/// The next step of a message.
#[derive(Debug)]
pub enum Choice<G> {
    Call(Permit<G>),
    /// A gateway works and has no room now. Ask again after this time, or when a call of the partition
    /// has ended.
    Busy(Duration),
    /// No gateway can be used now. Ask again after this time.
    Wait(Duration),
    /// A gateway may have the message, and no call is safe.
    Unknown,
    /// No gateway takes messages to this number.
    Refuse(FailureReason),
}

/// The step after a call that the gateway did not accept, or may not have accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FollowUp {
    /// Another gateway that was tried less can take the message now.
    AtOnce,
    /// A pause, and then another call. `alone`: only the same gateway may be called.
    Later { alone: bool },
    /// No call is safe.
    Unknown,
}

struct Shared<G> {
    region: RegionOf,
    spending: Spending,
    state: Mutex<State<G>>,
}

struct State<G> {
    desks: HashMap<GatewayName, Desk<G>>,
    routes: Vec<Route>,
    after_ambiguous: AfterAmbiguous,
    factors: Factors,
    receipts: Option<ReceiptsInTime>,
    consumers: NonZeroUsize,
    /// The number of permits so far.
    calls: u64,
}

/// The reason why no gateway may be called for a message, now and later.
enum Nowhere {
    Unknown,
    NoRoute,
    /// All gateways of the route had the code before.
    NoOther,
}

impl<G: SmsGateway> Router<G> {
    pub fn new(table: RoutingTable<G>, region: RegionOf) -> Self {
        let state = State {
            desks: HashMap::new(),
            routes: Vec::new(),
            after_ambiguous: AfterAmbiguous::default(),
            factors: Factors::default(),
            receipts: None,
            consumers: NonZeroUsize::MIN,
            calls: 0,
        };
        let router = Self {
            shared: Arc::new(Shared {
                region,
                spending: Spending::default(),
                state: Mutex::new(state),
            }),
        };
        router.replace(table);
        router
    }

    /// A router with one gateway for all numbers, whose calls last at most `call_limit`.
    pub fn single(gateway: G, call_limit: Duration) -> Self {
        let table = RoutingTable::single(gateway, GatewayLimits::none(call_limit));
        Self::new(table, Arc::new(|_| None))
    }

    /// Replaces the table. What is known of gateways whose name stays is kept. Calls in progress go on.
    pub fn replace(&self, table: RoutingTable<G>) {
        let now = Instant::now();
        let mut state = self.shared.state();
        let mut earlier = std::mem::take(&mut state.desks);
        for gateway in table.gateways {
            let name = gateway.name.clone();
            let desk = match earlier.remove(&name) {
                Some(mut desk) => {
                    desk.replace(gateway, now);
                    desk
                }
                None => Desk::new(gateway, state.consumers, now),
            };
            state.desks.insert(name, desk);
        }
        (state.routes, state.after_ambiguous) = (table.routes, table.after_ambiguous);
        state.receipts = table.receipts;
    }

    /// Gives the named gateways no more messages, and lets all others work.
    pub fn drain(&self, drained: &BTreeSet<GatewayName>) {
        for (name, desk) in &mut self.shared.state().desks {
            let is_drained = drained.contains(name);
            if desk.is_drained != is_drained {
                desk.is_drained = is_drained;
                tracing::warn!(gateway = %name, is_drained, "an operator drained a gateway, or lets it work again");
            }
        }
    }

    /// Sets the number of consumers that share the limits on calls. Each takes an equal part.
    pub fn share(&self, consumers: NonZeroUsize) {
        let now = Instant::now();
        let mut state = self.shared.state();
        if state.consumers != consumers {
            state.consumers = consumers;
            state.desks.values_mut().for_each(|desk| desk.share(consumers, now));
        }
    }

    /// Returns what is known of each gateway, by name.
    pub fn snapshot(&self) -> Vec<GatewayStatus> {
        let now = Instant::now();
        let state = self.shared.state();
        let mut all: Vec<_> =
            state.desks.iter().map(|(name, desk)| desk.status(name, now)).collect();
        all.sort_by(|left, right| left.name.cmp(&right.name));
        all
    }

    /// Returns the gateway of this name, if there is one.
    pub fn gateway(&self, name: &GatewayName) -> Option<Arc<G>> {
        self.shared.state().desks.get(name).map(|desk| Arc::clone(&desk.gateway))
    }

    /// Returns the names of the gateways, in no order.
    pub fn names(&self) -> Vec<GatewayName> {
        self.shared.state().desks.keys().cloned().collect()
    }

    /// Returns the number of routes.
    pub fn routes(&self) -> usize {
        self.shared.state().routes.len()
    }

    /// Returns the place of the route for a number. Messages of different routes do not wait for each
    /// other.
    pub fn route_of(&self, phone: &PhoneNumber) -> Option<usize> {
        let to = self.to(phone);
        self.shared.state().place_of(&to)
    }

    /// Chooses a gateway for a call, and takes a slot and a token of its rate.
    ///
    /// The gateways of the route are those that may be called, that are not drained, whose breaker is
    /// closed or needs a probe, and that have room. Of them, those that hang come last, then those that
    /// were tried more often; then the order of the route decides, from which factors take a part.
    pub fn choose(&self, ask: &Ask<'_>) -> Choice<G> {
        let now = Instant::now();
        let to = self.to(ask.phone);
        let room = self.rooms(ask, &to);
        let mut state = self.shared.state();
        let state = &mut *state;
        let place = state.place_of(&to);
        let route = place.map(|place| &state.routes[place]);
        let mut allowed = match state.allowed(route, ask) {
            Ok(allowed) => allowed,
            Err(Nowhere::Unknown) => return Choice::Unknown,
            Err(Nowhere::NoRoute) => return Choice::Refuse(FailureReason::NoRoute),
            Err(Nowhere::NoOther) => return Choice::Refuse(FailureReason::NoOtherGateway),
        };
        if !state.factors.is_empty() {
            state.factors.apply(&mut allowed, ask.id, to.region());
        }
        let mut free = Vec::new();
        let mut is_busy = false;
        let mut soonest = Duration::MAX;
        let mut is_over = true;
        for name in allowed {
            let room = room(name);
            is_over &= room == Room::Over;
            match room {
                Room::Some => {}
                Room::None(wait) => {
                    soonest = soonest.min(wait);
                    continue;
                }
                Room::Over => continue,
            }
            match state.offer(name, ask.load, now) {
                Offer::Free { is_silent } => free.push((is_silent, ask.past.tries(name), name)),
                Offer::Busy(wait) => (is_busy, soonest) = (true, soonest.min(wait)),
                Offer::Closed(wait) => soonest = soonest.min(wait),
            }
        }
        if is_over {
            return Choice::Refuse(FailureReason::BudgetExhausted);
        }
        let first = free.into_iter().min_by_key(|(is_silent, tries, _)| (*is_silent, *tries));
        let Some((_, _, name)) = first else {
            return if is_busy { Choice::Busy(soonest) } else { Choice::Wait(soonest) };
        };
        let name = name.clone();
        let sender = route.and_then(|route| route.sender.clone());
        let params = route.map(|route| Arc::clone(&route.params)).unwrap_or_default();
        state.calls += 1;
        let call = state.calls;
        let desk = state.desks.get_mut(&name).expect("an offer comes from a desk");
        Choice::Call(Permit {
            shared: Arc::clone(&self.shared),
            gateway: Arc::clone(&desk.gateway),
            to: ask.phone.clone(),
            call_limit: desk.limits.call_limit,
            sender,
            params,
            call,
            generation: desk.begin(call, now),
            is_open: true,
            name,
        })
    }

    /// Returns what the budget of each gateway has for a message. A gateway that may have the message is
    /// not paid again.
    fn rooms<'a>(
        &'a self,
        ask: &Ask<'a>,
        to: &To<'_>,
    ) -> impl Fn(&GatewayName) -> Room + use<'a, G> {
        let spending = &self.shared.spending;
        let ambiguous = &ask.past.ambiguous;
        let region = spending.is_limited().then(|| to.region());
        move |gateway| match region {
            Some(region) if !ambiguous.contains(gateway) => spending.room(gateway, region),
            _ => Room::Some,
        }
    }

    /// Looks the region of a number up if its route or a factor depends on it. The lookup is slow, so it
    /// is made while the state is not locked.
    fn to<'a>(&'a self, phone: &'a PhoneNumber) -> To<'a> {
        let to = To::new(phone, &self.shared.region);
        if self.shared.state().needs_region(phone) {
            to.region();
        }
        to
    }

    /// Decides what follows from a call of `called` that was not accepted, or may not have been. The
    /// past of `ask` includes the call.
    pub fn follow_up(&self, ask: &Ask<'_>, called: &GatewayName) -> FollowUp {
        let now = Instant::now();
        let to = self.to(ask.phone);
        let room = self.rooms(ask, &to);
        let state = self.shared.state();
        let place = state.place_of(&to);
        let allowed = match state.allowed(place.map(|place| &state.routes[place]), ask) {
            Ok(allowed) => allowed,
            Err(Nowhere::Unknown) => return FollowUp::Unknown,
            // The next `choose` refuses the message.
            Err(Nowhere::NoRoute | Nowhere::NoOther) => return FollowUp::Later { alone: true },
        };
        let tries = ask.past.tries(called);
        let mut others = allowed.iter().filter(|name| **name != called && room(name) != Room::Over);
        let is_free = |name: &&&GatewayName| {
            ask.past.tries(name) < tries
                && room(name) == Room::Some
                && matches!(state.offer(name, ask.load, now), Offer::Free { is_silent: false })
        };
        if others.clone().any(|name| is_free(&name)) {
            return FollowUp::AtOnce;
        }
        FollowUp::Later { alone: others.next().is_none() }
    }
}

impl<G: SmsGateway> State<G> {
    fn place_of(&self, to: &To<'_>) -> Option<usize> {
        self.routes.iter().position(|route| route.matches(to.phone, || to.region()))
    }

    /// Whether the route of a number, or a factor, depends on its region.
    fn needs_region(&self, phone: &PhoneNumber) -> bool {
        let mut is_asked = false;
        let mut ask = || {
            is_asked = true;
            None
        };
        let _ = self.routes.iter().find(|route| route.matches(phone, &mut ask));
        is_asked || !self.factors.is_empty()
    }

    /// Returns the gateways that may be called for a message, in the order of its route.
    fn allowed<'a>(
        &'a self,
        route: Option<&'a Route>,
        ask: &Ask<'a>,
    ) -> Result<Vec<&'a GatewayName>, Nowhere> {
        let ambiguous = &ask.past.ambiguous;
        let recognises = |name: &GatewayName| {
            self.desks.get(name).is_some_and(|desk| desk.gateway.deduplicates())
        };
        if !ambiguous.is_empty() && self.after_ambiguous == AfterAmbiguous::Same {
            return match ambiguous.as_slice() {
                [only] if recognises(only) => Ok(vec![only]),
                _ => Err(Nowhere::Unknown),
            };
        }
        let mut order = route.map(|route| route.gateways.order(ask.id)).unwrap_or_default();
        order.retain(|name| {
            self.desks.contains_key(*name)
                && !ask.past.unroutable.contains(name)
                && !ask.past.passed_over.contains(name)
                && (!ambiguous.contains(name) || recognises(name))
        });
        match order.is_empty() {
            false => Ok(order),
            true if !ambiguous.is_empty() => Err(Nowhere::Unknown),
            true if ask.past.passed_over.is_empty() => Err(Nowhere::NoRoute),
            true => Err(Nowhere::NoOther),
        }
    }

    fn offer(&self, name: &GatewayName, load: &PartitionLoad, now: Instant) -> Offer {
        let desk = self.desks.get(name).expect("only known gateways are allowed");
        match desk.offer(now) {
            // The end of a call of the partition makes room.
            Offer::Free { .. } if load.is_full(name) => Offer::Busy(Duration::MAX),
            offer => offer,
        }
    }
}

impl<G> Shared<G> {
    fn state(&self) -> MutexGuard<'_, State<G>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end(&self, permit: &Permit<G>, result: &Result<Accepted, SendError>) {
        let now = Instant::now();
        if let Some(desk) = self.state().desks.get_mut(&permit.name) {
            desk.end(permit, result, now);
        }
    }

    fn give_back(&self, name: &GatewayName, call: u64, generation: u64) {
        let now = Instant::now();
        if let Some(desk) = self.state().desks.get_mut(name) {
            desk.give_back(call, generation, now);
        }
    }
}

impl<G> Clone for Router<G> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

impl<G> fmt::Debug for Router<G> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.shared.state();
        let gateways: Vec<_> = state.desks.keys().map(GatewayName::as_str).collect();
        f.debug_struct("Router").field("gateways", &gateways).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
