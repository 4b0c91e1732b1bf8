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

/// Tells what rules of the guard, and limits by prefix and region, would have blocked.
#[derive(Debug)]
pub struct ReplayGuard<G> {
    records: G,
}

/// What a rule or a limit would have done to one prefix, range or region.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replayed {
    /// As a rule is shown, or the name of a limit.
    pub rule: String,
    pub key: String,
    /// Verifications and approvals of the whole time.
    pub verifications: u64,
    pub approvals: u64,
    /// Verifications that would not have been begun.
    pub blocked: u64,
    /// Of these, how many were approved: people who would have been turned away.
    pub wronged: u64,
}

/// Verifications read at a time.
const PAGE: usize = 1_000;

/// The past as far as it has been gone through.
#[derive(Debug)]
struct Past {
    rules: Vec<GuardRule>,
    limits: Vec<(GuardScope, Policy)>,
    window: Duration,
    counts: HashMap<GuardKey, Counted>,
    /// The keys of regions in `counts`.
    regions: BTreeSet<GuardKey>,
    /// Windows of limits, by the limit's place in the list: what was used, and when they end.
    windows: HashMap<(usize, GuardKey), (u64, SystemTime)>,
    /// Approvals that are still to come, by their time.
    approvals: BinaryHeap<Reverse<(SystemTime, Vec<GuardKey>)>>,
    totals: BTreeMap<GuardKey, (u64, u64)>,
    /// By the place of the rule, or behind the rules of the limit, in its list.
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

    /// Goes through the verifications of the last `since` in their order and asks the rules before
    /// each, as the guard does, and then the limits by prefix and region. What a rule in enforce
    /// mode or a limit blocks counts nowhere; what a rule in shadow mode would have blocked counts
    /// all the same.
    ///
    /// Resends are counted with the first message: when they went is not kept. What was blocked in
    /// its time is not there to be replayed. The first window has little behind it. Returns what
    /// fired, in the order of the rules and limits, and where it would have blocked most first.
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
mod tests {
    use std::sync::Arc;

    use domain::VerificationId;

    use super::*;
    use crate::{Admission, Guard, ports::MockGuardRecords, testing::START};

    const WINDOW: Duration = Duration::from_secs(3_600);

    fn rules(texts: &[&str]) -> Vec<GuardRule> {
        texts.iter().map(|text| GuardRule::parse(text, GuardMode::Shadow).unwrap()).collect()
    }

    fn off() -> SendLimits {
        SendLimits { prefix: domain::Windows::OFF, ..SendLimits::default() }
    }

    fn verification(seconds: u64, prefix: &str, approved: bool) -> PastVerification {
        let created_at = START + Duration::from_secs(seconds);
        PastVerification {
            id: VerificationId::NIL,
            phone: format!("{prefix}{:04}", seconds % 10_000).parse().unwrap(),
            region: "RU".parse().ok(),
            sends: 1,
            created_at,
            approved_at: approved.then(|| created_at + Duration::from_secs(30)),
        }
    }

    async fn replay(past: Vec<PastVerification>, rules: &[GuardRule]) -> Vec<Replayed> {
        replay_with(past, rules, &off()).await
    }

    async fn replay_with(
        past: Vec<PastVerification>,
        rules: &[GuardRule],
        limits: &SendLimits,
    ) -> Vec<Replayed> {
        let mut records = MockGuardRecords::new();
        records.expect_past().returning(move |_, after, limit| {
            let from = after.map_or(0, |(at, _)| {
                past.iter().position(|it| it.created_at > at).unwrap_or(past.len())
            });
            Ok(past[from..].iter().take(limit).cloned().collect())
        });
        ReplayGuard::new(records).execute(7 * 24 * WINDOW, rules, limits, WINDOW).await.unwrap()
    }

    #[tokio::test]
    async fn tells_what_a_rule_would_have_blocked_and_whom_it_wronged() {
        let flood = (0..100).map(|second| verification(second, "7999123", second == 99));
        let good = (0..100).map(|second| verification(second, "7998123", true));
        let mut past: Vec<_> = flood.chain(good).collect();
        past.sort_by_key(|it| it.created_at);
        // Distinct times, for the pages.
        for (place, it) in past.iter_mut().enumerate() {
            it.created_at += Duration::from_millis(u64::try_from(place).unwrap());
        }

        let replayed = replay(past, &rules(&["prefix:50:10", "region:1000:5"])).await;

        let [flooded] = &replayed[..] else { panic!("{replayed:?}") };
        assert_eq!((&*flooded.key, &*flooded.rule), ("7999123", "prefix:50:10:shadow"));
        assert_eq!((flooded.verifications, flooded.approvals), (100, 1));
        assert_eq!((flooded.blocked, flooded.wronged), (50, 1));
    }

    #[tokio::test]
    async fn goes_through_page_after_page() {
        let flood = (0..2_500).map(|second| verification(second, "7999123", false)).collect();

        let replayed = replay(flood, &rules(&["prefix:50:10"])).await;

        assert_eq!(replayed[0].verifications, 2_500);
        assert_eq!(replayed[0].blocked, 2_450);
    }

    /// The same flood through the guard itself.
    #[tokio::test(start_paused = true)]
    async fn replay_says_what_was_noted() {
        let rules = rules(&["prefix:50:10", "region:70:5"]);
        let guard = Arc::new(Guard::new(rules.clone(), WINDOW));
        let mut noted = [0_u64; 2];
        let mut past = Vec::new();
        for second in 0..200_u64 {
            let approved = second % 20 == 0;
            past.push(verification(second, "7999123", approved));
            let phone = format!("7999123{second:04}").parse().unwrap();
            let Admission::Passed(permit) =
                guard.decide(domain::Origin::V1, &phone, "RU".parse().ok())
            else {
                panic!()
            };
            for decision in &permit.noted {
                noted[usize::from(decision.rule == rules[1])] += 1;
            }
            permit.sent(VerificationId::NIL);
            if let Some(before) = second.checked_sub(29)
                && before % 20 == 0
            {
                let phone = format!("7999123{before:04}").parse().unwrap();
                guard.approved(domain::Origin::V1, &phone, "RU".parse().ok());
            }
        }

        let replayed = replay(past, &rules).await;

        let blocked: Vec<u64> = replayed.iter().map(|it| it.blocked).collect();
        assert_eq!(blocked, noted);
        assert!(noted.iter().all(|noted| *noted > 0), "{noted:?}");
    }

    #[tokio::test]
    async fn what_a_rule_in_enforce_mode_blocks_counts_nowhere() {
        let rules = vec![GuardRule::parse("adaptive", GuardMode::Enforce).unwrap()];
        let flood = (0..3_000).map(|second| verification(second, "2327612", false)).collect();

        let replayed = replay(flood, &rules).await;

        let [flooded] = &replayed[..] else { panic!("{replayed:?}") };
        assert_eq!((&*flooded.rule, &*flooded.key), ("adaptive:enforce", "2327612"));
        assert_eq!((flooded.verifications, flooded.blocked), (3_000, 2_900));
    }

    #[tokio::test]
    async fn limits_by_prefix_and_region_are_replayed_behind_the_rules() {
        let limits = SendLimits {
            prefix: "10/1m".parse().unwrap(),
            region: "25/1h".parse().unwrap(),
            ..SendLimits::default()
        };
        // Two minutes, a message a second.
        let past =
            (0..120).map(|second| verification(second, "7999123", second % 2 == 0)).collect();

        let replayed = replay_with(past, &rules(&["prefix:200:10"]), &limits).await;

        let found: Vec<_> =
            replayed.iter().map(|it| (&*it.rule, &*it.key, it.blocked, it.wronged)).collect();
        assert_eq!(found, [("prefix-1m", "7999123", 100, 50)]);
        let limits = SendLimits { prefix: domain::Windows::OFF, ..limits };
        let past = (0..120).map(|second| verification(second, "7999123", false)).collect();
        let replayed = replay_with(past, &[], &limits).await;
        assert_eq!((&*replayed[0].rule, replayed[0].blocked), ("region-1h", 95));
    }
}
