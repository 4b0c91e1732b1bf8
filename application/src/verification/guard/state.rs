use std::{
    collections::{BTreeSet, HashMap, HashSet, VecDeque},
    time::Duration,
};

use domain::{Activity, GuardCount, GuardScope, Levels, Origin, Rolling, World};
use tokio::time::Instant;

use crate::ports::{GuardDecision, GuardKey};

/// The counts of this process, and the counts of all processes that it has read.
#[derive(Debug, Default)]
pub(super) struct State {
    /// The counts of all processes at the last flush.
    pub(super) totals: HashMap<GuardKey, SharedTotal>,
    /// Messages that were permitted and are not sent yet.
    pub(super) permits: HashMap<GuardKey, u64>,
    /// Every region that has counts. There are few regions.
    pub(super) regions: BTreeSet<GuardKey>,
    /// Counts of this process that no flush has taken yet.
    pub(super) unshared: HashMap<GuardKey, Count>,
    /// Counts that a flush is storing now.
    pub(super) in_flight: HashMap<GuardKey, Count>,
    /// Keys of `totals` that were read since the last flush. Other processes may count for them, so
    /// the next flush reads them again.
    pub(super) read: HashSet<GuardKey>,
    pub(super) decisions: VecDeque<GuardDecision>,
    /// Decisions that did not fit into `decisions`.
    pub(super) lost: u64,
    /// When old entries were last removed from `totals`.
    pub(super) swept_at: Option<Instant>,
}

/// The shared counts of a key when they were read.
#[derive(Debug, Clone, Copy)]
pub(super) struct SharedTotal {
    pub(super) window: Rolling,
    pub(super) day: Rolling,
    pub(super) allowed: bool,
    pub(super) at: Instant,
}

/// Counts of this process.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Count {
    pub(super) sends: u64,
    pub(super) approvals: u64,
}

/// Decisions that wait for a flush at most. A flood makes one for each request; when the database is
/// away, they must not fill the memory.
pub(super) const DECISIONS: usize = 10_000;

impl State {
    /// Whether codes of `/api` are checked: in about the last day, at least 20 approvals and a fifth of
    /// the messages. With this share no rule blocks usual traffic.
    pub(super) fn is_api_checked(&self, now: Instant, window: Duration) -> bool {
        const LEAST: u64 = 20;
        let key = GuardKey::all_of_api();
        let GuardCount { sends, approvals } = self.activity(&key, now, window).day;
        approvals >= LEAST && approvals * 5 >= sends
    }

    /// Returns the counts of keys. The next flush reads them again.
    pub(super) fn levels(&mut self, keys: &[GuardKey], now: Instant, window: Duration) -> Levels {
        let mut levels = Levels::default();
        for key in keys {
            let activity = self.activity(key, now, window);
            match key.scope {
                GuardScope::Prefix => levels.prefix = activity,
                GuardScope::Range => levels.range = activity,
                GuardScope::Region => levels.region = Some(activity),
                // The key of all of `/api`. No rule uses it.
                GuardScope::World => {}
            }
            if self.totals.contains_key(key) {
                self.read.insert(key.clone());
            }
        }
        levels
    }

    /// Sums the regions of one origin.
    pub(super) fn world(&self, origin: Origin, now: Instant, window: Duration) -> World {
        let is_of_origin = |key: &&GuardKey| key.is_of_api() == (origin == Origin::Api);
        let mut world = World::default();
        for key in self.regions.iter().filter(is_of_origin) {
            world.add(&self.activity(key, now, window));
        }
        world
    }

    pub(super) fn activity(&self, key: &GuardKey, now: Instant, window: Duration) -> Activity {
        let mut own = Count::default();
        for counted in [&self.in_flight, &self.unshared] {
            own.add(counted.get(key).copied().unwrap_or_default());
        }
        own.sends += self.permits.get(key).copied().unwrap_or_default();
        let total = self.totals.get(key);
        let mut activity =
            total.map_or_else(Activity::default, |total| total.activity(now, window));
        for count in [&mut activity.window, &mut activity.day] {
            count.sends += own.sends;
            count.approvals += own.approvals;
        }
        activity
    }

    pub(super) fn permit(&mut self, key: &GuardKey) {
        *self.permits.entry(key.clone()).or_default() += 1;
        if key.scope == GuardScope::Region && !self.regions.contains(key) {
            self.regions.insert(key.clone());
        }
    }

    pub(super) fn take_back(&mut self, key: &GuardKey) {
        if let Some(number) = self.permits.get_mut(key) {
            *number -= 1;
            if *number == 0 {
                self.permits.remove(key);
            }
        }
    }

    pub(super) fn note(&mut self, decision: GuardDecision) {
        if self.decisions.len() == DECISIONS {
            self.lost += 1;
        } else {
            self.decisions.push_back(decision);
        }
    }
}

impl SharedTotal {
    /// The counts of all processes by now.
    pub(super) fn activity(&self, now: Instant, window: Duration) -> Activity {
        let passed = now - self.at;
        let over = |rolling: Rolling, window| rolling.later(passed, window).over(window);
        Activity {
            window: over(self.window, window),
            day: over(self.day, Activity::DAY),
            allowed: self.allowed,
        }
    }
}

impl Count {
    pub(super) fn add(&mut self, other: Self) {
        self.sends += other.sends;
        self.approvals += other.approvals;
    }
}
