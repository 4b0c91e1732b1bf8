use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap},
    time::{Duration, SystemTime},
};

use autometrics::autometrics;
use domain::{
    Activity, GuardMode, GuardRule, GuardScope, Levels, Origin, Policy, Rolling, SendLimits, World,
};

use crate::ports::{GuardKey, GuardRecords, PastVerification, StoreError};

/// Computes what guard rules and limits by prefix and region would have blocked.
#[derive(Debug)]
pub struct ReplayGuard<G> {
    records: G,
}

/// The effect of a rule or a limit on one prefix, range or region.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replayed {
    /// The text of the rule, or the name of the limit.
    pub rule: String,
    pub key: String,
    /// The number of verifications in the whole period, and of approvals below.
    pub verifications: u64,
    pub approvals: u64,
    /// Verifications that would have been blocked.
    pub blocked: u64,
    /// Blocked verifications that were approved: honest users who would have been refused.
    pub wronged: u64,
}

/// The number of verifications in a page.
const PAGE: usize = 1_000;

/// The state of a replay.
#[derive(Debug)]
struct Past {
    rules: Vec<GuardRule>,
    limits: Vec<(GuardScope, Policy)>,
    window: Duration,
    counts: HashMap<GuardKey, Counted>,
    /// The region keys in `counts`.
    regions: BTreeSet<GuardKey>,
    /// The windows of limits, by index of the limit: the used quota and the end.
    windows: HashMap<(usize, GuardKey), (u64, SystemTime)>,
    /// Approvals that are still to be applied, by time.
    approvals: BinaryHeap<Reverse<(SystemTime, Vec<GuardKey>)>>,
    totals: BTreeMap<GuardKey, (u64, u64)>,
    /// Blocked and wronged verifications, by the index of the rule or, after the rules, of the limit.
    found: BTreeMap<(usize, GuardKey), (u64, u64)>,
}

#[derive(Debug, Clone, Copy)]
struct Counted {
    window: Rolling,
    day: Rolling,
    at: SystemTime,
}

impl<G: GuardRecords> ReplayGuard<G> {
    pub fn new(records: G) -> Self {
        Self { records }
    }

    /// Replays the verifications of the last `since` in order. For each, applies the rules as the guard
    /// does, and then the limits by prefix and region. A verification that a rule in enforce mode or a
    /// limit blocks is not counted; one that a rule in shadow mode would have blocked is.
    ///
    /// Resends are counted with the first message, because their times are not stored. Verifications
    /// that were blocked at the time are missing. The first window has little history. Returns what
    /// fired, in the order of the rules and limits; within each, the most blocked verifications first.
    #[autometrics(struct_name = "ReplayGuard")]
    pub async fn execute(
        &self,
        since: Duration,
        rules: &[GuardRule],
        limits: &SendLimits,
        window: Duration,
    ) -> Result<Vec<Replayed>, StoreError> {
        let mut past = Past::new(rules.to_vec(), limits, window);
        let mut after = None;
        loop {
            let page = self.records.past(since, after, PAGE).await?;
            after = page.last().map(|it| (it.created_at, it.id));
            let is_last = page.len() < PAGE;
            for verification in page {
                past.go_through(&verification);
            }
            if is_last {
                return Ok(past.into_replayed());
            }
        }
    }
}

impl Past {
    fn new(rules: Vec<GuardRule>, limits: &SendLimits, window: Duration) -> Self {
        let prefix = limits.prefix.policies("prefix").into_iter();
        let region = limits.region.policies("region").into_iter();
        let prefix = prefix.map(|policy| (GuardScope::Prefix, policy));
        Self {
            rules,
            limits: prefix.chain(region.map(|policy| (GuardScope::Region, policy))).collect(),
            window,
            counts: HashMap::new(),
            regions: BTreeSet::new(),
            windows: HashMap::new(),
            approvals: BinaryHeap::new(),
            totals: BTreeMap::new(),
            found: BTreeMap::new(),
        }
    }

    fn go_through(&mut self, verification: &PastVerification) {
        let PastVerification { phone, region, sends, created_at, approved_at, .. } = verification;
        self.approve_until(*created_at);
        let scopes = GuardScope::COUNTED.into_iter();
        let keys: Vec<GuardKey> =
            scopes.filter_map(|scope| GuardKey::of(scope, Origin::V1, phone, *region)).collect();
        for key in &keys {
            let total = self.totals.entry(key.clone()).or_default();
            total.0 += 1;
            total.1 += u64::from(approved_at.is_some());
        }
        let is_approved = approved_at.is_some();
        if self.is_blocked_by_rules(&keys, *created_at, is_approved)
            || self.is_blocked_by_limits(&keys, *created_at, u64::from(*sends), is_approved)
        {
            return;
        }
        for key in &keys {
            let counted = self.count(key, *created_at);
            counted.window.sends += u64::from(*sends);
            counted.day.sends += u64::from(*sends);
        }
        if let Some(at) = approved_at {
            self.approvals.push(Reverse((*at, keys)));
        }
    }

    fn is_blocked_by_rules(&mut self, keys: &[GuardKey], now: SystemTime, approved: bool) -> bool {
        let mut levels = Levels::default();
        for key in keys {
            let activity = self.activity(key, now);
            match key.scope {
                GuardScope::Prefix => levels.prefix = activity,
                GuardScope::Range => levels.range = activity,
                GuardScope::Region | GuardScope::World => levels.region = Some(activity),
            }
        }
        for (place, rule) in self.rules.clone().into_iter().enumerate() {
            let fired = rule.test.fires(&levels, || self.world(now));
            let Some(scope) = fired else { continue };
            let scope = if scope == GuardScope::World { GuardScope::Region } else { scope };
            if let Some(key) = keys.iter().find(|key| key.scope == scope) {
                self.find(place, key, approved);
            }
            if rule.mode == GuardMode::Enforce {
                return true;
            }
        }
        false
    }

    fn is_blocked_by_limits(
        &mut self,
        keys: &[GuardKey],
        now: SystemTime,
        sends: u64,
        approved: bool,
    ) -> bool {
        let mut places = Vec::new();
        for (place, (scope, policy)) in self.limits.iter().enumerate() {
            let Some(key) = keys.iter().find(|key| key.scope == *scope) else { continue };
            let fresh = (0, now + policy.window.period);
            let window = self.windows.entry((place, key.clone())).or_insert(fresh);
            if window.1 <= now {
                *window = fresh;
            }
            places.push((place, key, window.0 < u64::from(policy.window.quota)));
        }
        if let Some((place, key, _)) = places.iter().find(|(.., has_room)| !has_room) {
            self.find(self.rules.len() + place, key, approved);
            return true;
        }
        for (place, key, _) in places {
            self.windows.entry((place, key.clone())).and_modify(|window| window.0 += sends);
        }
        false
    }

    fn find(&mut self, place: usize, key: &GuardKey, approved: bool) {
        let found = self.found.entry((place, key.clone())).or_default();
        found.0 += 1;
        found.1 += u64::from(approved);
    }

    fn approve_until(&mut self, now: SystemTime) {
        while self.approvals.peek().is_some_and(|Reverse((at, _))| *at <= now) {
            let Some(Reverse((at, keys))) = self.approvals.pop() else { return };
            for key in keys {
                let counted = self.count(&key, at);
                counted.window.approvals += 1;
                counted.day.approvals += 1;
            }
        }
    }

    fn world(&self, now: SystemTime) -> World {
        let mut world = World::default();
        self.regions.iter().for_each(|key| world.add(&self.activity(key, now)));
        world
    }

    fn activity(&self, key: &GuardKey, now: SystemTime) -> Activity {
        let Some(counted) = self.counts.get(key) else { return Activity::default() };
        let Counted { window, day, .. } = counted.later(now, self.window);
        let (window, day) = (window.over(self.window), day.over(Activity::DAY));
        Activity { window, day, allowed: false }
    }

    fn count(&mut self, key: &GuardKey, now: SystemTime) -> &mut Counted {
        if !self.counts.contains_key(key) {
            let (window, day) = (Rolling::default(), Rolling::default());
            self.counts.insert(key.clone(), Counted { window, day, at: now });
            if key.scope == GuardScope::Region {
                self.regions.insert(key.clone());
            }
        }
        let counted = self.counts.get_mut(key).expect("it was put there");
        *counted = counted.later(now, self.window);
        counted
    }

    fn into_replayed(self) -> Vec<Replayed> {
        let mut replayed: Vec<(usize, Replayed)> = self
            .found
            .into_iter()
            .map(|((place, key), (blocked, wronged))| {
                let (verifications, approvals) = self.totals.get(&key).copied().unwrap_or_default();
                let rule = match self.rules.get(place) {
                    Some(rule) => rule.to_string(),
                    None => self.limits[place - self.rules.len()].1.name.as_str().to_owned(),
                };
                let key = key.key;
                (place, Replayed { rule, key, verifications, approvals, blocked, wronged })
            })
            .collect();
        replayed.sort_by_key(|(place, it)| (*place, Reverse(it.blocked)));
        replayed.into_iter().map(|(_, replayed)| replayed).collect()
    }
}

impl Counted {
    fn later(self, now: SystemTime, window: Duration) -> Self {
        let passed = now.duration_since(self.at).unwrap_or_default();
        Self {
            window: self.window.later(passed, window),
            day: self.day.later(passed, Activity::DAY),
            at: now.max(self.at),
        }
    }
}

#[cfg(test)]
mod tests;
