use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap, HashMap},
    time::{Duration, SystemTime},
};

use autometrics::autometrics;
use domain::{GuardRule, GuardScope, Rolling};

use crate::ports::{GuardKey, GuardRecords, PastVerification, StoreError};

/// Tells what rules of the guard would have blocked.
#[derive(Debug)]
pub struct ReplayGuard<G> {
    records: G,
}

/// What a rule would have done to one prefix or region.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replayed {
    pub rule: GuardRule,
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
    window: Duration,
    counts: HashMap<GuardKey, (Rolling, SystemTime)>,
    /// Approvals that are still to come, by their time; with it the verification's place.
    approvals: BinaryHeap<Reverse<(SystemTime, Vec<GuardKey>)>>,
    totals: BTreeMap<GuardKey, (u64, u64)>,
    /// By the rule's place in the list.
    found: BTreeMap<(usize, GuardKey), (u64, u64)>,
}

impl<G: GuardRecords> ReplayGuard<G> {
    pub fn new(records: G) -> Self {
        Self { records }
    }

    /// Goes through the verifications of the last `since` in their order and asks the rules before
    /// each, as the guard does in shadow mode: what would have been blocked counts all the same.
    ///
    /// Resends are counted with the first message: when they went is not kept. What was blocked in
    /// its time is not there to be replayed. The first window has little behind it. Returns what
    /// fired, in the order of the rules, and where it would have blocked most first.
    #[autometrics(struct_name = "ReplayGuard")]
    pub async fn execute(
        &self,
        since: Duration,
        rules: &[GuardRule],
        window: Duration,
    ) -> Result<Vec<Replayed>, StoreError> {
        let mut past = Past::new(rules.to_vec(), window);
        let mut after = None;
        loop {
            let page = self.records.past(since, after, PAGE).await?;
            after = page.last().map(|it| (it.created_at, it.id));
            let is_last = page.len() < PAGE;
            for verification in page {
                past.go_through(verification);
            }
            if is_last {
                return Ok(past.told());
            }
        }
    }
}

impl Past {
    fn new(rules: Vec<GuardRule>, window: Duration) -> Self {
        Self {
            rules,
            window,
            counts: HashMap::new(),
            approvals: BinaryHeap::new(),
            totals: BTreeMap::new(),
            found: BTreeMap::new(),
        }
    }

    fn go_through(&mut self, verification: PastVerification) {
        let PastVerification { prefix, region, sends, created_at, approved_at, .. } = verification;
        self.approve_until(created_at);
        let region = region.map(|region| region.as_str().to_owned());
        let keys: Vec<GuardKey> =
            [(GuardScope::Prefix, Some(prefix)), (GuardScope::Region, region)]
                .into_iter()
                .filter_map(|(scope, key)| Some(GuardKey { scope, key: key? }))
                .collect();
        let window = self.window;
        for key in &keys {
            let (sends_so_far, approvals) = self.count(key, created_at).over(window);
            for (place, rule) in self.rules.iter().enumerate() {
                if rule.scope == key.scope && rule.fires(sends_so_far, approvals) {
                    let found = self.found.entry((place, key.clone())).or_default();
                    found.0 += 1;
                    found.1 += u64::from(approved_at.is_some());
                }
            }
            self.count(key, created_at).sends += u64::from(sends);
            let total = self.totals.entry(key.clone()).or_default();
            total.0 += 1;
            total.1 += u64::from(approved_at.is_some());
        }
        if let Some(at) = approved_at {
            self.approvals.push(Reverse((at, keys)));
        }
    }

    fn approve_until(&mut self, now: SystemTime) {
        while self.approvals.peek().is_some_and(|Reverse((at, _))| *at <= now) {
            let Some(Reverse((at, keys))) = self.approvals.pop() else { return };
            for key in keys {
                self.count(&key, at).approvals += 1;
            }
        }
    }

    fn count(&mut self, key: &GuardKey, now: SystemTime) -> &mut Rolling {
        let window = self.window;
        if !self.counts.contains_key(key) {
            self.counts.insert(key.clone(), (Rolling::default(), now));
        }
        let (count, at) = self.counts.get_mut(key).expect("it was put there");
        *count = count.later(now.duration_since(*at).unwrap_or_default(), window);
        *at = now.max(*at);
        count
    }

    fn told(self) -> Vec<Replayed> {
        let mut told: Vec<(usize, Replayed)> = self
            .found
            .into_iter()
            .map(|((place, key), (blocked, wronged))| {
                let (verifications, approvals) = self.totals.get(&key).copied().unwrap_or_default();
                let (rule, key) = (self.rules[place], key.key);
                (place, Replayed { rule, key, verifications, approvals, blocked, wronged })
            })
            .collect();
        told.sort_by_key(|(place, it)| (*place, Reverse(it.blocked)));
        told.into_iter().map(|(_, replayed)| replayed).collect()
    }
}

#[cfg(test)]
mod tests {
    use domain::{GuardMode, VerificationId};

    use super::*;
    use crate::{Guard, Verdict, ports::MockGuardRecords, testing::START};

    const WINDOW: Duration = Duration::from_secs(3_600);

    fn rules(texts: &[&str]) -> Vec<GuardRule> {
        texts.iter().map(|text| GuardRule::parse(text, GuardMode::Shadow).unwrap()).collect()
    }

    fn verification(seconds: u64, prefix: &str, approved: bool) -> PastVerification {
        let created_at = START + Duration::from_secs(seconds);
        PastVerification {
            id: VerificationId::NIL,
            prefix: prefix.to_owned(),
            region: "RU".parse().ok(),
            sends: 1,
            created_at,
            approved_at: approved.then(|| created_at + Duration::from_secs(30)),
        }
    }

    async fn replay(past: Vec<PastVerification>, rules: &[GuardRule]) -> Vec<Replayed> {
        let mut records = MockGuardRecords::new();
        records.expect_past().returning(move |_, after, limit| {
            let from = after.map_or(0, |(at, _)| {
                past.iter().position(|it| it.created_at > at).unwrap_or(past.len())
            });
            Ok(past[from..].iter().take(limit).cloned().collect())
        });
        ReplayGuard::new(records).execute(7 * 24 * WINDOW, rules, WINDOW).await.unwrap()
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
        assert_eq!((flooded.key.as_str(), flooded.rule), ("7999123", rules(&["prefix:50:10"])[0]));
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
        let guard = Guard::new(rules.clone(), WINDOW);
        let mut noted = [0_u64; 2];
        let mut past = Vec::new();
        for second in 0..200_u64 {
            let approved = second % 20 == 0;
            past.push(verification(second, "7999123", approved));
            let phone = format!("7999123{second:04}").parse().unwrap();
            let Verdict::Passed(passed) =
                guard.decide(domain::Origin::V1, &phone, "RU".parse().ok())
            else {
                panic!()
            };
            for decision in &passed.noted {
                noted[usize::from(decision.rule == rules[1])] += 1;
            }
            guard.sent(passed, VerificationId::NIL);
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
}
