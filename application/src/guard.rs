use std::{
    collections::{HashMap, HashSet, VecDeque},
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use autometrics::autometrics;
use domain::{
    GuardMode, GuardRule, GuardScope, Origin, PhoneNumber, Region, Rolling, VerificationId,
};
use tokio::time::Instant;

use crate::ports::{Decision, GuardCounts, GuardKey, Moved, StoreError, Total};

/// Notices that codes go out to a prefix or a region and hardly one comes back.
///
/// Counts in memory, what this process sends and sees approved; [`FlushGuard`] adds that to what
/// the others count and brings their part back. So a decision is late by what others did since the
/// last flush, and never by what this process did.
#[derive(Debug)]
pub struct Guard {
    rules: Vec<GuardRule>,
    window: Duration,
    state: Mutex<State>,
}

/// Whether something may be sent.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    Passed(Passed),
    Blocked,
}

/// A right to send, with what rules in shadow mode have to say of it.
#[must_use = "what is sent must be counted"]
#[derive(Debug, PartialEq, Eq)]
pub struct Passed {
    keys: Vec<GuardKey>,
    pub(crate) noted: Vec<Decision>,
}

/// Adds what this process has counted to what all have, and learns what all have.
#[derive(Debug)]
pub struct FlushGuard<C> {
    guard: Arc<Guard>,
    counts: C,
    /// One flush at a time.
    turn: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default, PartialEq, Eq)]
pub struct Flushed {
    pub keys: usize,
    pub decisions: usize,
    /// Decisions that were too many to be kept.
    pub lost: u64,
}

#[derive(Debug, Default)]
struct State {
    /// What all processes have counted.
    totals: HashMap<GuardKey, Known>,
    /// Not flushed yet.
    moved: HashMap<GuardKey, Count>,
    /// Being flushed.
    leaving: HashMap<GuardKey, Count>,
    /// Keys of `totals` that were decided on since the last flush: others may count for them too.
    asked: HashSet<GuardKey>,
    decisions: VecDeque<Decision>,
    lost: u64,
    /// When codes of `/api` were last known to be checked.
    api_checked_at: Option<Instant>,
}

#[derive(Debug, Clone, Copy)]
struct Known {
    count: Rolling,
    at: Instant,
}

#[derive(Debug, Clone, Copy, Default)]
struct Count {
    sends: u64,
    approvals: u64,
}

/// Decisions that wait for a flush. A flood makes one for each request; when the database is away,
/// they must not fill the memory.
const DECISIONS: usize = 10_000;

/// What the keys of `/api` begin with.
const API: &str = "api:";

/// Keys that are remembered between two flushes, whatever they have counted.
const KNOWN: usize = 50_000;

impl Guard {
    /// Without rules, everything passes and nothing is counted.
    pub fn new(rules: Vec<GuardRule>, window: Duration) -> Self {
        Self { rules, window, state: Mutex::default() }
    }

    /// Asks whether something may be sent to a phone: not if a rule in enforce mode fires for it.
    ///
    /// What is blocked is noted as a decision here, what passes once it was [`Guard::sent`].
    ///
    /// What comes through `/api` is counted apart, so that it blocks nobody else; and not at all
    /// before codes of `/api` are approved, as most of its clients never check one.
    pub fn decide(&self, origin: Origin, phone: &PhoneNumber, region: Option<Region>) -> Verdict {
        let now = Instant::now();
        let mut state = self.state();
        if origin == Origin::Api && !self.is_api_checked(&mut state, now) {
            return Verdict::Passed(Passed { keys: Vec::new(), noted: Vec::new() });
        }
        let keys = self.keys(origin, phone, region);
        let mut noted = Vec::new();
        for rule in &self.rules {
            let Some(key) = keys.iter().find(|key| key.scope == rule.scope) else { continue };
            let (sends, approvals) = state.count(key, now, self.window);
            if !rule.fires(sends, approvals) {
                continue;
            }
            let (rule, phone) = (*rule, phone.masked());
            let key = key.key.clone();
            let decision = Decision { rule, key, sends, approvals, verification: None, phone };
            if rule.mode == GuardMode::Enforce {
                state.note(decision);
                return Verdict::Blocked;
            }
            noted.push(decision);
        }
        Verdict::Passed(Passed { keys, noted })
    }

    /// Counts what passed and was sent.
    pub fn sent(&self, passed: Passed, id: VerificationId) {
        let mut state = self.state();
        for key in passed.keys {
            state.moved.entry(key).or_default().sends += 1;
        }
        for decision in passed.noted {
            state.note(Decision { verification: Some(id), ..decision });
        }
    }

    /// Counts an approval.
    pub fn approved(&self, origin: Origin, phone: &PhoneNumber, region: Option<Region>) {
        let mut state = self.state();
        let of_all = (origin == Origin::Api && !self.rules.is_empty()).then(all_of_api);
        for key in self.keys(origin, phone, region).into_iter().chain(of_all) {
            state.moved.entry(key).or_default().approvals += 1;
        }
    }

    /// Whether codes of `/api` are being checked: one was approved within a day, as far as this
    /// process has seen, or else within about two windows. With a rule, other processes are asked.
    fn is_api_checked(&self, state: &mut State, now: Instant) -> bool {
        const DAY: Duration = Duration::from_secs(86_400);
        if self.rules.is_empty() {
            return false;
        }
        let key = all_of_api();
        let known = state.totals.get(&key).is_some_and(|known| {
            let count = known.count.later(now - known.at, self.window);
            count.approvals + count.approvals_before > 0
        });
        let counted = [&state.leaving, &state.moved]
            .iter()
            .any(|counts| counts.get(&key).is_some_and(|count| count.approvals > 0));
        state.asked.insert(key);
        if known || counted {
            state.api_checked_at = Some(now);
        }
        state.api_checked_at.is_some_and(|at| now - at < DAY.max(2 * self.window))
    }

    /// What a phone is counted under, as far as there are rules for it.
    fn keys(&self, origin: Origin, phone: &PhoneNumber, region: Option<Region>) -> Vec<GuardKey> {
        let of_door = if origin == Origin::Api { API } else { "" };
        let prefix = (GuardScope::Prefix, Some(format!("{of_door}{}", phone.prefix())));
        let region = region.map(|region| format!("{of_door}{}", region.as_str()));
        let region = (GuardScope::Region, region);
        [prefix, region]
            .into_iter()
            .filter(|(scope, _)| self.rules.iter().any(|rule| rule.scope == *scope))
            .filter_map(|(scope, key)| Some(GuardKey { scope, key: key? }))
            .collect()
    }

    /// Whether a key is on its way to some rule's number of sends.
    fn is_near(&self, key: &GuardKey, sends: u64) -> bool {
        let mut rules = self.rules.iter().filter(|rule| rule.scope == key.scope);
        rules.any(|rule| 2 * sends >= rule.min_sends)
    }

    fn take(&self) -> (Vec<Moved>, Vec<Decision>) {
        let mut state = self.state();
        let moved = mem::take(&mut state.moved);
        for (key, count) in moved {
            state.leaving.entry(key).or_default().add(count);
        }
        for key in mem::take(&mut state.asked) {
            // By nothing: what the others counted is asked for.
            state.leaving.entry(key).or_default();
        }
        let moved = state.leaving.iter().map(|(key, count)| {
            let Count { sends, approvals } = *count;
            Moved { key: key.clone(), sends, approvals }
        });
        let mut moved: Vec<Moved> = moved.collect();
        moved.sort_unstable_by(|one, other| one.key.cmp(&other.key));
        (moved, mem::take(&mut state.decisions).into())
    }

    /// Returns how many decisions were lost before.
    fn told(&self, totals: Vec<Total>) -> u64 {
        let now = Instant::now();
        let mut state = self.state();
        state.leaving.clear();
        for Total { key, count } in totals {
            state.totals.insert(key, Known { count, at: now });
        }
        let window = self.window;
        state.totals.retain(|_, known| now - known.at < 2 * window);
        if state.totals.len() > KNOWN {
            // What is left out here lets half of some rule's number through that did not count.
            state.totals.retain(|key, known| self.is_near(key, known.count.over(window).0));
        }
        mem::take(&mut state.lost)
    }

    fn put_back(&self, decisions: Vec<Decision>) {
        let mut state = self.state();
        for (key, count) in mem::take(&mut state.leaving) {
            state.moved.entry(key).or_default().add(count);
        }
        let later = mem::take(&mut state.decisions);
        for decision in decisions.into_iter().chain(later) {
            state.note(decision);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Whole between two steps, and the worst that half a step does is to miscount by one.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What approvals of `/api` are counted under, whatever their phones.
fn all_of_api() -> GuardKey {
    GuardKey { scope: GuardScope::Region, key: format!("{API}*") }
}

impl State {
    fn count(&mut self, key: &GuardKey, now: Instant, window: Duration) -> (u64, u64) {
        let mut sum = Count::default();
        if let Some(known) = self.totals.get(key) {
            let (sends, approvals) = known.count.later(now - known.at, window).over(window);
            sum.add(Count { sends, approvals });
            self.asked.insert(key.clone());
        }
        for counted in [&self.leaving, &self.moved] {
            sum.add(counted.get(key).copied().unwrap_or_default());
        }
        (sum.sends, sum.approvals)
    }

    fn note(&mut self, decision: Decision) {
        if self.decisions.len() == DECISIONS {
            self.lost += 1;
        } else {
            self.decisions.push_back(decision);
        }
    }
}

impl Count {
    fn add(&mut self, other: Self) {
        self.sends += other.sends;
        self.approvals += other.approvals;
    }
}

impl<C: GuardCounts> FlushGuard<C> {
    pub fn new(guard: Arc<Guard>, counts: C) -> Self {
        Self { guard, counts, turn: tokio::sync::Mutex::default() }
    }

    /// Flushes once. After an error the next flush has what this one had, and it may then count
    /// twice: what was stored without our hearing of it errs to the strict side with sends and to
    /// the other with approvals.
    #[autometrics(struct_name = "FlushGuard")]
    pub async fn execute(&self) -> Result<Flushed, StoreError> {
        let _turn = self.turn.lock().await;
        let (moved, decisions) = self.guard.take();
        if moved.is_empty() && decisions.is_empty() {
            return Ok(Flushed::default());
        }
        match self.counts.add(&moved, &decisions, self.guard.window).await {
            Ok(totals) => {
                let lost = self.guard.told(totals);
                if lost > 0 {
                    tracing::warn!(lost, "decisions of the guard were too many to be stored");
                }
                Ok(Flushed { keys: moved.len(), decisions: decisions.len(), lost })
            }
            Err(error) => {
                self.guard.put_back(decisions);
                Err(error)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ports::MockGuardCounts;

    const WINDOW: Duration = Duration::from_secs(3_600);

    fn rule(text: &str) -> GuardRule {
        GuardRule::parse(text, GuardMode::Shadow).unwrap()
    }

    fn guard(rules: &[&str]) -> Arc<Guard> {
        Arc::new(Guard::new(rules.iter().map(|text| rule(text)).collect(), WINDOW))
    }

    fn phone(number: u16) -> PhoneNumber {
        format!("7999123{number:04}").parse().unwrap()
    }

    fn id() -> VerificationId {
        "ver_6f2c1a529d3f4f0e8a550d2f6f3b9c00".parse().unwrap()
    }

    fn region() -> Option<Region> {
        "RU".parse().ok()
    }

    /// Sends until it is blocked, at most `most` times.
    fn flood(guard: &Guard, most: u16) -> u16 {
        for number in 0..most {
            match guard.decide(Origin::V1, &phone(number), region()) {
                Verdict::Passed(passed) => guard.sent(passed, id()),
                Verdict::Blocked => return number,
            }
        }
        most
    }

    fn prefix_key() -> GuardKey {
        GuardKey { scope: GuardScope::Prefix, key: "7999123".to_owned() }
    }

    fn total(sends: u64, approvals: u64) -> Vec<Total> {
        let count = Rolling { sends, approvals, ..Rolling::default() };
        vec![Total { key: prefix_key(), count }]
    }

    #[tokio::test]
    async fn enforce_stops_a_prefix_flood_and_no_other_prefix() {
        let guard = guard(&["prefix:50:10:enforce"]);

        assert_eq!(flood(&guard, 1_000), 50);

        let other = "79981234567".parse().unwrap();
        assert!(matches!(guard.decide(Origin::V1, &other, region()), Verdict::Passed(_)));
        let state = guard.state();
        let blocked = &state.decisions[0];
        assert_eq!((blocked.sends, blocked.approvals, blocked.verification), (50, 0, None));
        assert_eq!((blocked.key.as_str(), blocked.phone.as_str()), ("7999123", "+7999*****50"));
    }

    #[tokio::test]
    async fn shadow_lets_all_pass_and_notes_what_went_through() {
        let guard = guard(&["prefix:50:10"]);

        assert_eq!(flood(&guard, 60), 60);

        let state = guard.state();
        assert_eq!(state.decisions.len(), 10);
        assert!(state.decisions.iter().all(|it| it.verification == Some(id())));
    }

    #[tokio::test]
    async fn approvals_keep_a_prefix_open() {
        let guard = guard(&["prefix:50:10:enforce"]);
        for number in 0..100 {
            guard.approved(Origin::V1, &phone(number), region());
        }

        assert_eq!(flood(&guard, 1_000), 1_000);
        assert_eq!(flood(&guard, 1_000), 1, "below a tenth");
    }

    #[tokio::test]
    async fn what_others_count_is_known_after_a_flush() {
        let guard = guard(&["prefix:50:10:enforce"]);
        assert_eq!(flood(&guard, 1), 1);
        let mut counts = MockGuardCounts::new();
        counts
            .expect_add()
            .withf(|moved, decisions, window| {
                let moved: Vec<_> = moved.iter().map(|it| (&it.key, it.sends)).collect();
                moved == [(&prefix_key(), 1)] && decisions.is_empty() && *window == WINDOW
            })
            .once()
            .returning(|_, _, _| Ok(total(50, 0)));
        let flush = FlushGuard::new(Arc::clone(&guard), counts);

        flush.execute().await.unwrap();

        assert_eq!(guard.decide(Origin::V1, &phone(1), region()), Verdict::Blocked);
    }

    #[tokio::test]
    async fn a_blocked_key_is_asked_for_and_opens_when_others_approve() {
        let guard = guard(&["prefix:50:10:enforce"]);
        assert_eq!(flood(&guard, 1_000), 50);
        let mut counts = MockGuardCounts::new();
        let mut rounds = mockall::Sequence::new();
        counts
            .expect_add()
            .withf(|moved, decisions, _| moved[0].sends == 50 && decisions.len() == 1)
            .once()
            .in_sequence(&mut rounds)
            .returning(|_, _, _| Ok(total(50, 0)));
        counts
            .expect_add()
            .withf(|moved, _, _| (moved[0].sends, moved[0].approvals) == (0, 0))
            .once()
            .in_sequence(&mut rounds)
            .returning(|_, _, _| Ok(total(50, 5)));
        let flush = FlushGuard::new(Arc::clone(&guard), counts);

        flush.execute().await.unwrap();
        assert_eq!(guard.decide(Origin::V1, &phone(1), region()), Verdict::Blocked);
        flush.execute().await.unwrap();

        assert!(matches!(guard.decide(Origin::V1, &phone(1), region()), Verdict::Passed(_)));
    }

    #[tokio::test(start_paused = true)]
    async fn time_opens_a_blocked_key() {
        let guard = guard(&["prefix:50:10:enforce"]);
        assert_eq!(flood(&guard, 1_000), 50);
        let mut counts = MockGuardCounts::new();
        counts.expect_add().returning(|_, _, _| Ok(total(50, 0)));
        FlushGuard::new(Arc::clone(&guard), counts).execute().await.unwrap();
        assert_eq!(guard.decide(Origin::V1, &phone(1), region()), Verdict::Blocked);

        tokio::time::advance(WINDOW + WINDOW / 10).await;

        assert!(matches!(guard.decide(Origin::V1, &phone(1), region()), Verdict::Passed(_)));
    }

    #[tokio::test]
    async fn nothing_is_lost_or_unseen_when_a_flush_fails() {
        let guard = guard(&["prefix:50:10:enforce"]);
        assert_eq!(flood(&guard, 1_000), 50);
        let during = Arc::clone(&guard);
        let mut counts = MockGuardCounts::new();
        counts.expect_add().once().returning(move |_, _, _| {
            assert_eq!(
                during.decide(Origin::V1, &phone(1), region()),
                Verdict::Blocked,
                "while it leaves"
            );
            Err(StoreError::Unavailable("down".into()))
        });
        let flush = FlushGuard::new(Arc::clone(&guard), counts);

        flush.execute().await.unwrap_err();

        assert_eq!(guard.decide(Origin::V1, &phone(1), region()), Verdict::Blocked);
        let (moved, decisions) = guard.take();
        assert_eq!((moved[0].sends, decisions.len()), (50, 3));
    }

    #[tokio::test]
    async fn without_rules_nothing_is_counted() {
        let guard = guard(&[]);

        assert_eq!(flood(&guard, 1_000), 1_000);

        assert!(guard.state().moved.is_empty());
        FlushGuard::new(guard, MockGuardCounts::new()).execute().await.unwrap();
    }

    #[tokio::test]
    async fn a_flood_fills_no_memory() {
        let guard = guard(&["prefix:50:10:enforce"]);
        flood(&guard, 1_000);

        for _ in 0..20_000 {
            assert_eq!(guard.decide(Origin::V1, &phone(1), region()), Verdict::Blocked);
        }

        let state = guard.state();
        assert_eq!((state.decisions.len(), state.lost), (DECISIONS, 10_001));
    }

    #[tokio::test]
    async fn keys_far_from_every_rule_are_not_kept_when_they_are_many() {
        let guard = guard(&["prefix:50:10:enforce"]);
        let totals = |keys: usize| {
            let counted = |number: usize| {
                let sends = if number == 0 { 25 } else { 24 };
                let key = GuardKey { scope: GuardScope::Prefix, key: number.to_string() };
                Total { key, count: Rolling { sends, ..Rolling::default() } }
            };
            (0..keys).map(counted).collect::<Vec<_>>()
        };

        guard.told(totals(KNOWN));
        assert_eq!(guard.state().totals.len(), KNOWN);
        guard.told(totals(KNOWN + 1));

        assert_eq!(guard.state().totals.len(), 1);
    }
}
