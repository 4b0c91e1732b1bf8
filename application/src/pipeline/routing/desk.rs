use std::{num::NonZeroUsize, sync::Arc, time::Duration};

use domain::GatewayName;
use tokio::time::Instant;

use super::{
    breaker::{Breaker, Change, Entry, Health, State},
    in_flight::InFlight,
    permit::Permit,
    rate::RateLimit,
    status::{GatewayState, GatewayStatus},
    table::{GatewayLimits, RoutedGateway},
};
use crate::ports::{Accepted, OutcomeClass, SendError};

/// The state of one gateway: its breaker, its limits and its counts.
#[derive(Debug)]
pub(super) struct Desk<G> {
    pub(super) gateway: Arc<G>,
    pub(super) limits: GatewayLimits,
    pub(super) is_drained: bool,
    /// The number of consumers that share the limits.
    consumers: NonZeroUsize,
    breaker: Breaker,
    calls: InFlight,
    rate: Option<RateLimit>,
    outcomes: [u64; OutcomeClass::ALL.len()],
    pace: Pace,
}

/// Whether a call may begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Offer {
    /// A silent gateway is given messages only if no other gateway can take them.
    Free { is_silent: bool },
    /// The gateway works and has no room. Look again after this time, or when a call of the partition
    /// has ended.
    Busy(Duration),
    /// The gateway does not work, or must not be used. Look again after this time.
    Closed(Duration),
}

/// When to look for a slot again. Other partitions of the process may have given one back.
const SLOT: Duration = Duration::from_millis(20);
/// When to look again at a gateway that an operator has taken out.
const DRAINED: Duration = Duration::from_secs(5);

impl<G> Desk<G> {
    pub(super) fn new(of: RoutedGateway<G>, consumers: NonZeroUsize, now: Instant) -> Self {
        let mut desk = Self {
            gateway: of.gateway,
            limits: of.limits,
            is_drained: false,
            consumers,
            breaker: Breaker::new(),
            calls: InFlight::default(),
            rate: None,
            outcomes: [0; OutcomeClass::ALL.len()],
            pace: Pace::new(now),
        };
        desk.limit(now);
        desk
    }

    /// Takes new settings over. What is known of the gateway stays.
    pub(super) fn replace(&mut self, with: RoutedGateway<G>, now: Instant) {
        (self.gateway, self.limits) = (with.gateway, with.limits);
        self.limit(now);
    }

    pub(super) fn share(&mut self, consumers: NonZeroUsize, now: Instant) {
        self.consumers = consumers;
        self.limit(now);
    }

    /// Applies this process's share of the rate.
    fn limit(&mut self, now: Instant) {
        let consumers = u32::try_from(self.consumers.get()).unwrap_or(u32::MAX);
        let per_second =
            self.limits.per_second.map(|all| f64::from(all.get()) / f64::from(consumers));
        match (&mut self.rate, per_second) {
            (Some(rate), Some(per_second)) => rate.set(per_second, now),
            (rate, per_second) => *rate = per_second.map(|it| RateLimit::new(it, now)),
        }
    }

    /// Returns this process's share of the concurrent calls, which is at least one.
    fn in_flight_limit(&self) -> Option<usize> {
        let share = self.limits.in_flight.map(|all| all.get().div_ceil(self.consumers.get()));
        share.into_iter().chain(self.limits.in_process.map(NonZeroUsize::get)).min()
    }

    pub(super) fn offer(&self, now: Instant) -> Offer {
        if self.is_drained {
            return Offer::Closed(DRAINED);
        }
        if let Entry::Later(wait) = self.breaker.entry(now) {
            return Offer::Closed(wait);
        }
        let is_full = self.in_flight_limit().is_some_and(|limit| self.calls.len() >= limit);
        if is_full {
            return Offer::Busy(SLOT);
        }
        let wait = self.rate.as_ref().map(|rate| rate.wait(now)).unwrap_or_default();
        if !wait.is_zero() {
            return Offer::Busy(wait);
        }
        Offer::Free { is_silent: self.calls.is_silent(now) }
    }

    /// Begins a call that was offered, and returns its generation.
    pub(super) fn begin(&mut self, call: u64, now: Instant) -> u64 {
        self.calls.begin(call, now);
        if let Some(rate) = &mut self.rate {
            rate.take(now);
        }
        self.breaker.begin()
    }

    /// Ends a call that was not made.
    pub(super) fn give_back(&mut self, call: u64, generation: u64, now: Instant) {
        // A desk that was removed and came back does not know the call.
        if !self.calls.give_back(call) {
            return;
        }
        if let Some(rate) = &mut self.rate {
            rate.give_back();
        }
        self.breaker.give_back(generation, now);
    }

    pub(super) fn end(
        &mut self,
        permit: &Permit<G>,
        result: &Result<Accepted, SendError>,
        now: Instant,
    ) {
        let class = result.as_ref().err().map_or(OutcomeClass::Accepted, SendError::class);
        if !self.calls.end(permit.call, class != OutcomeClass::Ambiguous, now) {
            return;
        }
        self.pace.count(now);
        if let Some(place) = OutcomeClass::ALL.iter().position(|it| *it == class) {
            self.outcomes[place] += 1;
        }
        let health = match health(result) {
            // The route may be the fault, so a failure of this call is all that it says.
            Health::Misconfigured if permit.has_settings_of_its_route() => {
                Health::Fails { pause: None }
            }
            health => health,
        };
        if let Some(change) = self.breaker.record(permit.generation, &permit.to, health, now) {
            report(&permit.name, class, change, now);
        }
    }

    pub(super) fn status(&self, name: &GatewayName, now: Instant) -> GatewayStatus {
        let state = match self.breaker.state() {
            _ if self.is_drained => GatewayState::Drained,
            State::Open { .. } => GatewayState::Open,
            State::HalfOpen { .. } => GatewayState::HalfOpen,
            State::Closed if self.calls.is_silent(now) => GatewayState::Silent,
            State::Closed => GatewayState::Closed,
        };
        GatewayStatus {
            name: name.clone(),
            state,
            in_flight: self.calls.len(),
            in_flight_limit: self.in_flight_limit(),
            failed_of_last: self.breaker.failed_of_last(),
            failures_in_a_row: self.breaker.failures_in_a_row(),
            openings: self.breaker.openings(),
            is_misconfigured: self.breaker.is_misconfigured(),
            outcomes: OutcomeClass::ALL.into_iter().zip(self.outcomes).collect(),
            per_second: self.pace.per_second(now),
        }
    }
}

/// Returns what an outcome says about the gateway. A gateway that refuses a number works.
fn health(result: &Result<Accepted, SendError>) -> Health {
    match result {
        Ok(_) | Err(SendError::Rejected(_) | SendError::Unroutable(_)) => Health::Works,
        Err(SendError::Misconfigured(_)) => Health::Misconfigured,
        Err(
            SendError::Throttled { retry_after, .. } | SendError::Unavailable { retry_after, .. },
        ) => Health::Fails { pause: *retry_after },
        Err(SendError::Ambiguous(_)) => Health::Fails { pause: None },
    }
}

const REFUSED: &str = "the gateway refuses this account or its settings; correct the credentials, \
                       the sender, the credit or the URL. Messages take another gateway or wait";

/// Logs a change of the breaker.
fn report(gateway: &GatewayName, class: OutcomeClass, change: Change, now: Instant) {
    let seconds = |since: Instant| now.saturating_duration_since(since).as_secs();
    let outcome = class.as_str();
    match change {
        Change::Opened { misconfigured: true, pause, .. } => tracing::error!(
            %gateway,
            outcome,
            pause_ms = pause.as_millis(),
            "{REFUSED}"
        ),
        Change::Opened { pause, in_a_row, failed, of, .. } => tracing::warn!(
            %gateway,
            outcome,
            in_a_row,
            failed,
            of,
            pause_ms = pause.as_millis(),
            "the gateway fails; messages take another gateway or wait"
        ),
        Change::StillFails { misconfigured: true, pause, since } => tracing::error!(
            %gateway,
            outcome,
            pause_ms = pause.as_millis(),
            open_seconds = seconds(since),
            "{REFUSED}"
        ),
        Change::FoundMisconfigured { since } => tracing::error!(
            %gateway,
            outcome,
            open_seconds = seconds(since),
            "{REFUSED}"
        ),
        Change::StillFails { pause, since, .. } => tracing::warn!(
            %gateway,
            outcome,
            pause_ms = pause.as_millis(),
            open_seconds = seconds(since),
            "the gateway failed with the message that probed it"
        ),
        Change::Closed { since } => tracing::info!(
            %gateway,
            open_seconds = seconds(since),
            "the gateway works again and is given messages"
        ),
    }
}

/// The average number of events in a second. An event counts less the longer ago it was.
#[derive(Debug)]
struct Pace {
    per_second: f64,
    counted: Instant,
}

impl Pace {
    const OVER_SECONDS: f64 = 30.0;

    fn new(now: Instant) -> Self {
        Self { per_second: 0.0, counted: now }
    }

    fn count(&mut self, now: Instant) {
        self.per_second = self.per_second(now) + 1.0 / Self::OVER_SECONDS;
        self.counted = now;
    }

    fn per_second(&self, now: Instant) -> f64 {
        let passed = now.saturating_duration_since(self.counted).as_secs_f64();
        self.per_second * (-passed / Self::OVER_SECONDS).exp()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pace_follows_the_events_of_about_half_a_minute() {
        let begin = Instant::now();
        let mut pace = Pace::new(begin);
        for tenth in 0..1_200 {
            pace.count(begin + Duration::from_millis(100) * tenth);
        }
        let end = begin + Duration::from_secs(120);

        let busy = pace.per_second(end);
        let later = pace.per_second(end + Duration::from_secs(60));

        assert!((9.0..=11.0).contains(&busy), "{busy}");
        assert!((0.5..=2.0).contains(&later), "{later}");
    }
}
