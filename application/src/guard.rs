use std::{
    collections::{BTreeSet, HashMap, HashSet, VecDeque},
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use autometrics::autometrics;
use domain::{
    Activity, GuardCount, GuardMode, GuardRule, GuardScope, Levels, Origin, PhoneNumber, Region,
    Rolling, VerificationId, World,
};
use tokio::time::Instant;

use crate::ports::{Decision, GuardCounts, GuardKey, Moved, StoreError, Total};

/// Notices that codes go out to a prefix, a range or a region and hardly one comes back.
///
/// Counts in memory what this process sends and sees approved; [`FlushGuard`] adds that to what
/// the others count and brings their part back. So a decision is late by what others did since the
/// last flush, and never by what this process did: what has passed counts at once.
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

/// A right to send, with what rules in shadow mode have to say of it. It counts as sent until it
/// is dropped, and once it is given to [`Guard::sent`] for good.
#[must_use = "what is sent must be counted"]
#[derive(Debug)]
pub struct Passed {
    guard: Arc<Guard>,
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
    /// What has passed and is not sent yet.
    passed: HashMap<GuardKey, u64>,
    /// Every region that something is known of. They are few.
    regions: BTreeSet<GuardKey>,
    /// Not flushed yet.
    moved: HashMap<GuardKey, Count>,
    /// Being flushed.
    leaving: HashMap<GuardKey, Count>,
    /// Keys of `totals` that were decided on since the last flush: others may count for them too.
    asked: HashSet<GuardKey>,
    decisions: VecDeque<Decision>,
    lost: u64,
    /// When `totals` was last rid of what has not moved for long.
    swept_at: Option<Instant>,
}

#[derive(Debug, Clone, Copy)]
struct Known {
    window: Rolling,
    day: Rolling,
    allowed: bool,
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

/// Between two looks at all that is known.
const SWEEP: Duration = Duration::from_secs(60);

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
    /// What comes through `/api` is counted apart, so that it blocks nobody else; and no rule is
    /// asked before codes of `/api` are checked, as most of its clients never check one.
    pub fn decide(
        self: &Arc<Self>,
        origin: Origin,
        phone: &PhoneNumber,
        region: Option<Region>,
    ) -> Verdict {
        let mut keys = self.keys(origin, phone, region);
        let now = Instant::now();
        let mut state = self.state();
        let mut rules = &self.rules[..];
        if origin == Origin::Api && !rules.is_empty() {
            if !state.is_api_checked(now, self.window) {
                (keys, rules) = (Vec::new(), &[]);
            }
            keys.push(all_of_api());
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
            let decision = Decision {
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
                return Verdict::Blocked;
            }
            noted.push(decision);
        }
        for key in &keys {
            state.pass(key);
        }
        Verdict::Passed(Passed { guard: Arc::clone(self), keys, noted })
    }

    /// Counts what passed and was sent.
    pub fn sent(&self, mut passed: Passed, id: VerificationId) {
        let (keys, noted) = (mem::take(&mut passed.keys), mem::take(&mut passed.noted));
        let mut state = self.state();
        for key in keys {
            state.take_back(&key);
            state.moved.entry(key).or_default().sends += 1;
        }
        for decision in noted {
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

    /// What a phone is counted under, as far as there are rules for it.
    fn keys(&self, origin: Origin, phone: &PhoneNumber, region: Option<Region>) -> Vec<GuardKey> {
        let scopes = GuardScope::COUNTED.into_iter();
        let counted = scopes.filter(|scope| self.rules.iter().any(|rule| rule.test.counts(*scope)));
        counted.filter_map(|scope| GuardKey::of(scope, origin, phone, region)).collect()
    }

    /// Whether a key is on its way to some rule's number of sends, or is kept in any case.
    fn is_near(&self, key: &GuardKey, known: &Known) -> bool {
        let sends = known.window.over(self.window).sends;
        let mut rules = self.rules.iter().filter(|rule| rule.test.counts(key.scope));
        matches!(key.scope, GuardScope::Region | GuardScope::World)
            || known.allowed
            || rules.any(|rule| sends >= rule.test.near(key.scope))
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
        for Total { key, window, day, allowed } in totals {
            if key.scope == GuardScope::Region {
                state.regions.insert(key.clone());
            }
            state.totals.insert(key, Known { window, day, allowed, at: now });
        }
        let window = self.window;
        if state.swept_at.is_none_or(|at| now - at >= SWEEP) {
            state.swept_at = Some(now);
            state.totals.retain(|_, known| now - known.at < 2 * window);
        }
        if state.totals.len() > KNOWN {
            // What is left out here is known again at the flush after the next message to it.
            state.totals.retain(|key, known| self.is_near(key, known));
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

/// What messages and approvals of `/api` are counted under, whatever their phones.
fn all_of_api() -> GuardKey {
    GuardKey { scope: GuardScope::World, key: API.to_owned() }
}

/// What was given up does not count.
impl Drop for Passed {
    fn drop(&mut self) {
        if !self.keys.is_empty() {
            let mut state = self.guard.state();
            self.keys.iter().for_each(|key| state.take_back(key));
        }
    }
}

impl PartialEq for Passed {
    fn eq(&self, other: &Self) -> bool {
        (&self.keys, &self.noted) == (&other.keys, &other.noted)
    }
}

impl Eq for Passed {}

impl GuardKey {
    /// What a phone is counted under in a scope; none: it has no region, or the scope is the world.
    pub(crate) fn of(
        scope: GuardScope,
        origin: Origin,
        phone: &PhoneNumber,
        region: Option<Region>,
    ) -> Option<Self> {
        let of_door = if origin == Origin::Api { API } else { "" };
        let key = match scope {
            GuardScope::Prefix => phone.prefix(),
            GuardScope::Range => phone.range(),
            GuardScope::Region => region.as_ref()?.as_str(),
            GuardScope::World => return None,
        };
        Some(Self { scope, key: format!("{of_door}{key}") })
    }
}

impl State {
    /// Whether codes of `/api` are being checked: in about the last day, at least 20 and a fifth of
    /// all. By then no rule would block what is checked as usual.
    fn is_api_checked(&self, now: Instant, window: Duration) -> bool {
        const LEAST: u64 = 20;
        let key = all_of_api();
        let GuardCount { sends, approvals } = self.activity(&key, now, window).day;
        approvals >= LEAST && approvals * 5 >= sends
    }

    /// What is known of keys, which are then asked for at the next flush.
    fn levels(&mut self, keys: &[GuardKey], now: Instant, window: Duration) -> Levels {
        let mut levels = Levels::default();
        for key in keys {
            let activity = self.activity(key, now, window);
            match key.scope {
                GuardScope::Prefix => levels.prefix = activity,
                GuardScope::Range => levels.range = activity,
                GuardScope::Region => levels.region = Some(activity),
                // All of `/api`, which no rule asks for.
                GuardScope::World => {}
            }
            if self.totals.contains_key(key) {
                self.asked.insert(key.clone());
            }
        }
        levels
    }

    /// The regions of one door.
    fn world(&self, origin: Origin, now: Instant, window: Duration) -> World {
        let is_of_door = |key: &&GuardKey| key.key.starts_with(API) == (origin == Origin::Api);
        let mut world = World::default();
        for key in self.regions.iter().filter(is_of_door) {
            world.add(&self.activity(key, now, window));
        }
        world
    }

    fn activity(&self, key: &GuardKey, now: Instant, window: Duration) -> Activity {
        let mut own = Count::default();
        for counted in [&self.leaving, &self.moved] {
            own.add(counted.get(key).copied().unwrap_or_default());
        }
        own.sends += self.passed.get(key).copied().unwrap_or_default();
        let with_own = |rolling: Rolling, passed, window| {
            let GuardCount { sends, approvals } = rolling.later(passed, window).over(window);
            GuardCount { sends: sends + own.sends, approvals: approvals + own.approvals }
        };
        let known = self.totals.get(key);
        let (passed, of_window, of_day) =
            known.map_or_else(Default::default, |known| (now - known.at, known.window, known.day));
        Activity {
            window: with_own(of_window, passed, window),
            day: with_own(of_day, passed, Activity::DAY),
            allowed: known.is_some_and(|known| known.allowed),
        }
    }

    fn pass(&mut self, key: &GuardKey) {
        *self.passed.entry(key.clone()).or_default() += 1;
        if key.scope == GuardScope::Region && !self.regions.contains(key) {
            self.regions.insert(key.clone());
        }
    }

    fn take_back(&mut self, key: &GuardKey) {
        if let Some(number) = self.passed.get_mut(key) {
            *number -= 1;
            if *number == 0 {
                self.passed.remove(key);
            }
        }
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
mod simulation;

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
    fn flood(guard: &Arc<Guard>, most: u16) -> u16 {
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
        vec![Total { key: prefix_key(), window: count, day: count, allowed: false }]
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
                let count = Rolling { sends, ..Rolling::default() };
                Total { key, window: count, day: count, allowed: false }
            };
            (0..keys).map(counted).collect::<Vec<_>>()
        };

        guard.told(totals(KNOWN));
        assert_eq!(guard.state().totals.len(), KNOWN);
        guard.told(totals(KNOWN + 1));

        assert_eq!(guard.state().totals.len(), 1);
    }

    #[tokio::test]
    async fn what_has_passed_counts_before_it_is_sent() {
        let guard = guard(&["prefix:50:10:enforce"]);
        let pass = || match guard.decide(Origin::V1, &phone(1), region()) {
            Verdict::Passed(passed) => Some(passed),
            Verdict::Blocked => None,
        };

        let mut under_way: Vec<Passed> = (0..50).map(|_| pass().unwrap()).collect();
        assert!(pass().is_none());

        // One was refused by a limit.
        under_way.pop();
        under_way.push(pass().unwrap());
        for passed in under_way {
            guard.sent(passed, id());
        }
        assert!(pass().is_none());
        assert_eq!(guard.state().moved[&prefix_key()].sends, 50);
        assert!(guard.state().passed.is_empty());
    }

    #[tokio::test]
    async fn what_an_operator_allows_passes_from_the_next_flush_on() {
        let guard = guard(&["adaptive:enforce"]);
        assert_eq!(flood(&guard, 1_000), 100);
        let mut counts = MockGuardCounts::new();
        counts.expect_add().returning(|moved, _, _| {
            let told = |it: &Moved| {
                let count = Rolling { sends: 9_999, ..Rolling::default() };
                let allowed = it.key.scope == GuardScope::Prefix;
                Total { key: it.key.clone(), window: count, day: count, allowed }
            };
            Ok(moved.iter().map(told).collect())
        });

        FlushGuard::new(Arc::clone(&guard), counts).execute().await.unwrap();

        let verdict = guard.decide(Origin::V1, &phone(1), None);
        assert!(matches!(verdict, Verdict::Passed(_)), "{verdict:?}");
    }
}
