mod flush;
mod replay;
#[cfg(test)]
mod simulation;
mod state;
#[cfg(test)]
mod tests;

use std::{
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use domain::{
    Activity, GuardCount, GuardMode, GuardRule, GuardScope, Origin, PhoneNumber, Region,
    VerificationId,
};
use tokio::time::Instant;

use self::state::{Count, SharedTotal, State};
pub use self::{
    flush::{FlushGuard, Flushed},
    replay::{ReplayGuard, Replayed},
};
use crate::ports::{GuardDecision, GuardDelta, GuardKey, GuardTotal, Storing};

/// The guard against pumping. It detects a prefix, a range or a region to which many codes are sent and
/// of which few are approved.
///
/// It counts the messages and approvals of this process in memory. [`FlushGuard`] adds them to the
/// shared counts and reads those of the other processes. A decision therefore lacks what other processes
/// did since the last flush, but not what this process did: a permitted message counts at once.
#[derive(Debug)]
pub struct Guard {
    rules: Vec<GuardRule>,
    window: Duration,
    state: Mutex<State>,
}

/// Whether a message may be sent.
#[derive(Debug, PartialEq, Eq)]
pub enum Admission {
    Passed(SendPermit),
    Blocked,
}

/// The right to send one message, with the decisions of rules in shadow mode. It counts as sent from the
/// start.
///
/// [`Self::sent`] makes the count permanent. Dropping the permit takes the count back, unless its
/// [`Storing`] says that the message may have been stored: if a caller hangs up while its message is
/// being committed, the message is sent.
#[must_use = "a message that is sent must be counted"]
#[derive(Debug)]
pub struct SendPermit {
    guard: Arc<Guard>,
    keys: Vec<GuardKey>,
    noted: Vec<GuardDecision>,
    /// `None` while nothing is being stored.
    storing: Option<Storing>,
}

/// The interval between two removals of old counts.
const SWEEP: Duration = Duration::from_secs(60);

/// The number of keys above which only keys close to a rule are kept.
const KEYS: usize = 50_000;

impl Guard {
    /// Without rules, every message passes and nothing is counted.
    pub fn new(rules: Vec<GuardRule>, window: Duration) -> Self {
        Self { rules, window, state: Mutex::default() }
    }

    /// Decides whether a message may be sent to a phone. A rule in enforce mode that fires blocks it.
    ///
    /// The decision to block is recorded here. Decisions of rules in shadow mode are recorded by
    /// [`SendPermit::sent`].
    ///
    /// Messages of `/api` are counted separately, so that they do not block callers of `/v1`. No rule
    /// applies to them until codes of `/api` are checked, because most of its clients never check one.
    pub fn decide(
        self: &Arc<Self>,
        origin: Origin,
        phone: &PhoneNumber,
        region: Option<Region>,
    ) -> Admission {
        let mut keys = self.keys(origin, phone, region);
        let now = Instant::now();
        let mut state = self.state();
        let mut rules = &self.rules[..];
        if origin == Origin::Api && !rules.is_empty() {
            if !state.is_api_checked(now, self.window) {
                (keys, rules) = (Vec::new(), &[]);
            }
            keys.push(GuardKey::all_of_api());
        }
        let levels = state.levels(&keys, now, self.window);
        let mut noted = Vec::new();
        for rule in rules {
            let world = || state.world(origin, now, self.window);
            let Some(scope) = rule.test.fires(&levels, world) else { continue };
            // A decision about the world names the region that is blocked for it.
            let counted = if scope == GuardScope::World { GuardScope::Region } else { scope };
            let key = keys.iter().find(|key| key.scope == counted);
            let GuardCount { sends, approvals } = levels.of(scope).unwrap_or_default().window;
            let decision = GuardDecision {
                rule: *rule,
                scope,
                key: key.map(|key| key.key.clone()).unwrap_or_default(),
                sends,
                approvals,
                verification: None,
                phone: phone.masked(),
            };
            if rule.mode == GuardMode::Enforce {
                state.note(decision);
                return Admission::Blocked;
            }
            noted.push(decision);
        }
        for key in &keys {
            state.permit(key);
        }
        Admission::Passed(SendPermit { guard: Arc::clone(self), keys, noted, storing: None })
    }

    /// Counts an approval.
    pub fn approved(&self, origin: Origin, phone: &PhoneNumber, region: Option<Region>) {
        let mut state = self.state();
        let of_all = (origin == Origin::Api && !self.rules.is_empty()).then(GuardKey::all_of_api);
        for key in self.keys(origin, phone, region).into_iter().chain(of_all) {
            state.unshared.entry(key).or_default().approvals += 1;
        }
    }

    /// Returns the keys of a phone in the scopes that rules use.
    fn keys(&self, origin: Origin, phone: &PhoneNumber, region: Option<Region>) -> Vec<GuardKey> {
        let scopes = GuardScope::COUNTED.into_iter();
        let counted = scopes.filter(|scope| self.rules.iter().any(|rule| rule.test.counts(*scope)));
        counted.filter_map(|scope| GuardKey::of(scope, origin, phone, region)).collect()
    }

    /// Whether a key has half of the messages that a rule needs, or is always kept.
    fn is_near(&self, key: &GuardKey, total: &SharedTotal, now: Instant) -> bool {
        let activity = total.activity(now, self.window);
        let mut rules = self.rules.iter().filter(|rule| rule.test.counts(key.scope));
        matches!(key.scope, GuardScope::Region | GuardScope::World)
            || total.allowed
            || rules.any(|rule| rule.test.is_near(key.scope, &activity))
    }

    /// Whether a key may still matter: because of its window, or because of its day while the day has
    /// unpaid messages. Regions and the key of all of `/api` are kept for the day, because they are
    /// few and stand for many keys.
    fn is_fresh(&self, key: &GuardKey, total: &SharedTotal, now: Instant) -> bool {
        let idle = now - total.at;
        idle < 2 * self.window
            || idle < 2 * Activity::DAY
                && (matches!(key.scope, GuardScope::Region | GuardScope::World)
                    || total.activity(now, self.window).owes_of_day())
    }

    /// Takes the counts and the decisions that no flush has stored yet.
    fn take(&self) -> (Vec<GuardDelta>, Vec<GuardDecision>) {
        let mut state = self.state();
        let unshared = mem::take(&mut state.unshared);
        for (key, count) in unshared {
            state.in_flight.entry(key).or_default().add(count);
        }
        for key in mem::take(&mut state.read) {
            // A delta of zero: only the counts of other processes are asked for.
            state.in_flight.entry(key).or_default();
        }
        let deltas = state.in_flight.iter().map(|(key, count)| {
            let Count { sends, approvals } = *count;
            GuardDelta { key: key.clone(), sends, approvals }
        });
        let mut deltas: Vec<GuardDelta> = deltas.collect();
        deltas.sort_unstable_by(|one, other| one.key.cmp(&other.key));
        (deltas, mem::take(&mut state.decisions).into())
    }

    /// Applies what a flush has read. Returns how many decisions were lost before it.
    fn apply(&self, totals: Vec<GuardTotal>) -> u64 {
        let now = Instant::now();
        let mut state = self.state();
        state.in_flight.clear();
        for GuardTotal { key, window, day, allowed } in totals {
            if key.scope == GuardScope::Region {
                state.regions.insert(key.clone());
            }
            state.totals.insert(key, SharedTotal { window, day, allowed, at: now });
        }
        if state.swept_at.is_none_or(|at| now - at >= SWEEP) {
            state.swept_at = Some(now);
            state.totals.retain(|key, total| self.is_fresh(key, total, now));
        }
        if state.totals.len() > KEYS {
            // A key that is dropped here comes back with the flush after the next message to it.
            state.totals.retain(|key, total| self.is_near(key, total, now));
        }
        mem::take(&mut state.lost)
    }

    /// Undoes [`Guard::take`] after a flush that failed.
    fn put_back(&self, decisions: Vec<GuardDecision>) {
        let mut state = self.state();
        for (key, count) in mem::take(&mut state.in_flight) {
            state.unshared.entry(key).or_default().add(count);
        }
        let later = mem::take(&mut state.decisions);
        for decision in decisions.into_iter().chain(later) {
            state.note(decision);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic in the middle of a step miscounts by one at most, so the state stays usable.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl SendPermit {
    /// Counts the message as sent, for verification `id`.
    pub fn sent(mut self, id: VerificationId) {
        self.count(Some(id));
    }

    /// Lets `storing` decide whether the message counts when the permit is dropped.
    pub(crate) fn stored_by(mut self, storing: &Storing) -> Self {
        self.storing = Some(storing.clone());
        self
    }

    fn count(&mut self, verification: Option<VerificationId>) {
        let (keys, noted) = (mem::take(&mut self.keys), mem::take(&mut self.noted));
        if keys.is_empty() && noted.is_empty() {
            return;
        }
        let mut state = self.guard.state();
        for key in keys {
            state.take_back(&key);
            state.unshared.entry(key).or_default().sends += 1;
        }
        for decision in noted {
            state.note(GuardDecision { verification, ..decision });
        }
    }
}

impl Drop for SendPermit {
    fn drop(&mut self) {
        if self.storing.as_ref().is_some_and(Storing::has_begun) {
            self.count(None);
        } else if !self.keys.is_empty() {
            let mut state = self.guard.state();
            self.keys.iter().for_each(|key| state.take_back(key));
        }
    }
}

impl PartialEq for SendPermit {
    fn eq(&self, other: &Self) -> bool {
        (&self.keys, &self.noted) == (&other.keys, &other.noted)
    }
}

impl Eq for SendPermit {}
