use std::{collections::VecDeque, time::Duration};

use domain::PhoneNumber;
use tokio::time::Instant;

/// The circuit breaker of one gateway.
///
/// It is closed while the gateway works. It opens after [`IN_A_ROW`] failures in a row, or if more than
/// half of the last [`WINDOW`] calls failed, or at once if the gateway says that it is misconfigured.
/// Failed calls to one number count as one, because the number may be at fault: a provider limits the
/// SMS to a number, and a message that is repeated must not stop the gateway for all others. While it is open, no message is given to the gateway. Then it is half-open: one message is the
/// probe. If the gateway takes that, the breaker closes; otherwise it opens for twice as long, up to
/// [`LONGEST`].
#[derive(Debug)]
pub(super) struct Breaker {
    state: State,
    /// Changes with the state. The outcome of a call that began in an earlier state changes nothing.
    generation: u64,
    in_a_row: usize,
    /// The numbers of the failures in a row, while the breaker is closed.
    failing: Vec<PhoneNumber>,
    /// The last calls, the latest last. A failed call has its number, and only the first of a number is
    /// here.
    last: VecDeque<Option<PhoneNumber>>,
    /// Whether the gateway has said since the breaker opened that it is misconfigured.
    is_misconfigured: bool,
    /// How often the closed breaker has opened.
    openings: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Closed,
    Open {
        until: Instant,
        pause: Duration,
        since: Instant,
    },
    /// A probe is under way.
    HalfOpen {
        pause: Duration,
        since: Instant,
    },
}

/// The health of the gateway as an outcome shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Health {
    Works,
    /// It did not do its work. It may have said how long it wants no calls.
    Fails {
        pause: Option<Duration>,
    },
    /// It takes nothing until an operator changes a setting.
    Misconfigured,
}

/// Whether a call may begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Entry {
    Free,
    /// After this time, or a little later.
    Later(Duration),
}

/// A change of the state, for the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    Opened {
        misconfigured: bool,
        pause: Duration,
        in_a_row: usize,
        failed: usize,
        of: usize,
    },
    /// `misconfigured`: the probe was the first call since the opening to show that.
    StillFails {
        misconfigured: bool,
        pause: Duration,
        since: Instant,
    },
    /// A call from before the opening showed that the gateway is misconfigured.
    FoundMisconfigured {
        since: Instant,
    },
    Closed {
        since: Instant,
    },
}

const IN_A_ROW: usize = 5;
const WINDOW: usize = 20;
const SHORTEST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(15);
/// The longest pause that a gateway can ask for. A gateway that recovers earlier is used again within
/// a minute.
const LONGEST_ASKED: Duration = Duration::from_secs(30);
/// When to look again while a probe is under way.
const PROBING: Duration = Duration::from_millis(500);

impl Breaker {
    pub(super) fn new() -> Self {
        Self {
            state: State::Closed,
            generation: 0,
            in_a_row: 0,
            failing: Vec::with_capacity(IN_A_ROW),
            last: VecDeque::with_capacity(WINDOW),
            is_misconfigured: false,
            openings: 0,
        }
    }

    pub(super) fn state(&self) -> State {
        self.state
    }

    pub(super) fn openings(&self) -> u64 {
        self.openings
    }

    pub(super) fn failures_in_a_row(&self) -> usize {
        self.in_a_row
    }

    /// Whether the breaker is not closed, and the gateway has said that it is misconfigured.
    pub(super) fn is_misconfigured(&self) -> bool {
        self.is_misconfigured
    }

    /// Returns how many of the last calls failed, and how many calls that are.
    pub(super) fn failed_of_last(&self) -> (usize, usize) {
        (self.last.iter().flatten().count(), self.last.len())
    }

    pub(super) fn entry(&self, now: Instant) -> Entry {
        match self.state {
            State::Closed => Entry::Free,
            State::Open { until, .. } if until <= now => Entry::Free,
            State::Open { until, .. } => Entry::Later(until - now),
            State::HalfOpen { .. } => Entry::Later(PROBING),
        }
    }

    /// Begins a call that `entry` allows, and returns its generation. If the breaker is open, the call
    /// is the probe.
    pub(super) fn begin(&mut self) -> u64 {
        if let State::Open { pause, since, .. } = self.state {
            self.change(State::HalfOpen { pause, since });
        }
        self.generation
    }

    /// Ends a call that was not made. If it was the probe, the next call is.
    pub(super) fn give_back(&mut self, generation: u64, now: Instant) {
        if let State::HalfOpen { pause, since } = self.state
            && generation == self.generation
        {
            self.change(State::Open { until: now, pause, since });
        }
    }

    /// Records the outcome of a call to the number `to`.
    pub(super) fn record(
        &mut self,
        generation: u64,
        to: &PhoneNumber,
        health: Health,
        now: Instant,
    ) -> Option<Change> {
        if generation != self.generation {
            return self.record_late(health);
        }
        match self.state {
            State::Closed => self.count(to, health, now),
            State::HalfOpen { since, .. } if health == Health::Works => {
                self.in_a_row = 0;
                self.last.clear();
                self.is_misconfigured = false;
                self.change(State::Closed);
                Some(Change::Closed { since })
            }
            State::HalfOpen { pause, since } => {
                let pause = asked(health, (pause * 2).min(LONGEST));
                self.in_a_row += 1;
                self.change(State::Open { until: now + pause, pause, since });
                let misconfigured = self.turns_misconfigured(health);
                Some(Change::StillFails { misconfigured, pause, since })
            }
            State::Open { .. } => None,
        }
    }

    /// Records a call from before the last change of the state. It moves nothing. An operator must still
    /// learn of settings that are wrong.
    fn record_late(&mut self, health: Health) -> Option<Change> {
        match self.state {
            State::Open { since, .. } | State::HalfOpen { since, .. } => {
                self.turns_misconfigured(health).then_some(Change::FoundMisconfigured { since })
            }
            State::Closed => None,
        }
    }

    fn count(&mut self, to: &PhoneNumber, health: Health, now: Instant) -> Option<Change> {
        if health == Health::Works {
            self.in_a_row = 0;
            self.failing.clear();
            self.add(None);
            return None;
        }
        if !self.failing.contains(to) {
            self.failing.push(to.clone());
            self.in_a_row += 1;
        }
        if !self.last.iter().flatten().any(|failed| failed == to) {
            self.add(Some(to.clone()));
        }
        let (failed, of) = self.failed_of_last();
        let misconfigured = self.turns_misconfigured(health);
        if !misconfigured && self.in_a_row < IN_A_ROW && failed <= WINDOW / 2 {
            return None;
        }
        let pause = asked(health, SHORTEST);
        self.openings += 1;
        self.failing.clear();
        self.change(State::Open { until: now + pause, pause: pause.min(LONGEST), since: now });
        Some(Change::Opened { misconfigured, pause, in_a_row: self.in_a_row, failed, of })
    }

    /// Adds a call to the last ones.
    fn add(&mut self, failed: Option<PhoneNumber>) {
        if self.last.len() == WINDOW {
            self.last.pop_front();
        }
        self.last.push_back(failed);
    }

    /// Whether a call is the first to show that the gateway is misconfigured.
    fn turns_misconfigured(&mut self, health: Health) -> bool {
        health == Health::Misconfigured && !std::mem::replace(&mut self.is_misconfigured, true)
    }

    fn change(&mut self, state: State) {
        self.state = state;
        self.generation += 1;
    }
}

/// Returns the pause that the gateway asked for, within bounds.
fn asked(health: Health, least: Duration) -> Duration {
    match health {
        Health::Fails { pause: Some(pause) } => pause.clamp(least, LONGEST_ASKED),
        _ => least,
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use proptest::prelude::*;

    use super::*;

    const FAILS: Health = Health::Fails { pause: None };

    fn number(number: u64) -> PhoneNumber {
        (79_990_000_000 + number).to_string().parse().unwrap()
    }

    fn record_to(
        breaker: &mut Breaker,
        to: &PhoneNumber,
        health: Health,
        now: Instant,
    ) -> Option<Change> {
        assert_eq!(breaker.entry(now), Entry::Free);
        let generation = breaker.begin();
        breaker.record(generation, to, health, now)
    }

    /// Records a call to a number that no other call has.
    fn record(breaker: &mut Breaker, health: Health, now: Instant) -> Option<Change> {
        thread_local!(static CALLS: Cell<u64> = const { Cell::new(1_000_000) });
        CALLS.set(CALLS.get() + 1);
        record_to(breaker, &number(CALLS.get()), health, now)
    }

    /// A breaker that opened at `now`.
    fn open(now: Instant) -> Breaker {
        let mut breaker = Breaker::new();
        record(&mut breaker, Health::Misconfigured, now).unwrap();
        breaker
    }

    #[test]
    fn five_failures_in_a_row_open_and_four_do_not() {
        let now = Instant::now();
        let mut breaker = Breaker::new();
        for health in [FAILS, FAILS, FAILS, FAILS, Health::Works, FAILS, FAILS, FAILS, FAILS] {
            assert_eq!(record(&mut breaker, health, now), None);
        }

        let change = record(&mut breaker, FAILS, now);

        let pause = SHORTEST;
        let opened = Change::Opened { misconfigured: false, pause, in_a_row: 5, failed: 9, of: 10 };
        assert_eq!(change, Some(opened));
        assert_eq!(breaker.entry(now), Entry::Later(SHORTEST));
    }

    #[test]
    fn more_than_half_of_twenty_open_and_half_does_not() {
        let now = Instant::now();
        let mut breaker = Breaker::new();
        for number in 0..100 {
            let health = if number % 2 == 0 { FAILS } else { Health::Works };
            assert_eq!(record(&mut breaker, health, now), None);
        }

        assert_eq!(record(&mut breaker, FAILS, now), None, "ten of twenty");
        let change = record(&mut breaker, FAILS, now);

        assert!(matches!(change, Some(Change::Opened { failed: 11, of: 20, .. })), "{change:?}");
    }

    #[test]
    fn one_misconfigured_call_opens() {
        let now = Instant::now();
        let mut breaker = Breaker::new();

        let change = record(&mut breaker, Health::Misconfigured, now);

        assert!(matches!(change, Some(Change::Opened { misconfigured: true, .. })), "{change:?}");
        assert_eq!(breaker.entry(now), Entry::Later(SHORTEST));
    }

    #[test]
    fn the_pause_doubles_with_each_failed_probe_up_to_fifteen_seconds() {
        let mut now = Instant::now();
        let mut breaker = open(now);

        for seconds in [2, 4, 8, 15, 15] {
            let Entry::Later(pause) = breaker.entry(now) else { panic!("not open") };
            now += pause;
            let before = Duration::from_millis(1);
            assert_eq!(breaker.entry(now - before), Entry::Later(before));
            let change = record(&mut breaker, FAILS, now);

            let expected = Duration::from_secs(seconds);
            assert!(
                matches!(change, Some(Change::StillFails { pause, .. }) if pause == expected),
                "{change:?}"
            );
        }
    }

    #[test]
    fn one_message_is_the_probe_and_its_success_closes() {
        let opened = Instant::now();
        let mut breaker = open(opened);
        let now = opened + SHORTEST;

        let probe = breaker.begin();
        assert_eq!(breaker.entry(now), Entry::Later(PROBING));
        let change = breaker.record(probe, &number(0), Health::Works, now);

        assert_eq!(change, Some(Change::Closed { since: opened }));
        assert_eq!(breaker.entry(now), Entry::Free);
        // The failures from before are forgotten.
        for _ in 0..4 {
            assert_eq!(record(&mut breaker, FAILS, now), None);
        }
    }

    #[test]
    fn a_probe_that_is_not_made_leaves_its_place_to_the_next_message() {
        let now = Instant::now() + SHORTEST;
        let mut breaker = open(now - SHORTEST);

        let probe = breaker.begin();
        breaker.give_back(probe, now);

        assert_eq!(breaker.entry(now), Entry::Free);
        assert_eq!(breaker.record(probe, &number(0), Health::Works, now), None, "it is over");
    }

    #[test]
    fn outcomes_of_calls_from_before_the_opening_count_no_more() {
        let now = Instant::now();
        let mut breaker = Breaker::new();
        let earlier = breaker.begin();
        record(&mut breaker, Health::Misconfigured, now);

        assert_eq!(breaker.record(earlier, &number(0), Health::Works, now), None);
        assert_eq!(breaker.entry(now), Entry::Later(SHORTEST));
        let probe = breaker.begin();
        assert_eq!(breaker.record(earlier, &number(0), Health::Misconfigured, now), None);
        breaker.record(probe, &number(0), Health::Works, now).unwrap();
        assert_eq!(breaker.record(earlier, &number(0), Health::Misconfigured, now), None);
        assert_eq!(breaker.entry(now), Entry::Free);
    }

    #[test]
    fn an_opening_lasts_as_long_as_the_gateway_asks_for_up_to_half_a_minute() {
        for (asked, expected) in [(0, 1), (7, 7), (30, 30), (3_600, 30)] {
            let now = Instant::now();
            let mut breaker = Breaker::new();
            let fails = Health::Fails { pause: Some(Duration::from_secs(asked)) };

            let changes: Vec<_> = (0..5).map(|_| record(&mut breaker, fails, now)).collect();

            assert_eq!(changes[..4], [None; 4], "one number may be limited, not the gateway");
            assert_eq!(breaker.entry(now), Entry::Later(Duration::from_secs(expected)));
            // Then it doubles from a bounded pause.
            let now = now + Duration::from_secs(expected);
            let change = record(&mut breaker, FAILS, now);
            assert!(
                matches!(change, Some(Change::StillFails { pause, .. }) if pause <= LONGEST),
                "{change:?}"
            );
        }
    }

    #[test]
    fn failures_of_one_number_count_once_whether_in_a_row_or_not() {
        let now = Instant::now();
        let mut breaker = Breaker::new();
        for _ in 0..100 {
            assert_eq!(record_to(&mut breaker, &number(0), FAILS, now), None);
        }
        assert_eq!((breaker.failures_in_a_row(), breaker.failed_of_last()), (1, (1, 1)));

        for _ in 0..30 {
            assert_eq!(record(&mut breaker, Health::Works, now), None);
            assert_eq!(record_to(&mut breaker, &number(0), FAILS, now), None);
        }
        for _ in 0..3 {
            assert_eq!(record(&mut breaker, FAILS, now), None);
        }
        let change = record(&mut breaker, FAILS, now);

        assert!(matches!(change, Some(Change::Opened { in_a_row: 5, .. })), "{change:?}");
    }

    #[test]
    fn misconfigured_answers_while_open_are_told_once() {
        let opened = Instant::now();
        let mut breaker = Breaker::new();
        let earlier = breaker.begin();
        for _ in 0..5 {
            record(&mut breaker, FAILS, opened);
        }
        assert!(!breaker.is_misconfigured());

        let late = breaker.record(earlier, &number(0), Health::Misconfigured, opened);
        assert_eq!(late, Some(Change::FoundMisconfigured { since: opened }));
        assert_eq!(breaker.record(earlier, &number(0), Health::Misconfigured, opened), None);
        let now = opened + SHORTEST;
        let probed = record(&mut breaker, Health::Misconfigured, now);
        assert!(matches!(probed, Some(Change::StillFails { misconfigured: false, .. })));
        assert!(breaker.is_misconfigured());

        record(&mut breaker, Health::Works, now + 2 * SHORTEST).unwrap();
        assert!(!breaker.is_misconfigured());
        let again = record(&mut breaker, Health::Misconfigured, now);
        assert!(matches!(again, Some(Change::Opened { misconfigured: true, .. })), "{again:?}");
    }

    #[test]
    fn probe_may_be_the_first_to_show_that_the_gateway_is_misconfigured() {
        let opened = Instant::now();
        let mut breaker = Breaker::new();
        for _ in 0..5 {
            record(&mut breaker, FAILS, opened);
        }

        let change = record(&mut breaker, Health::Misconfigured, opened + SHORTEST);

        assert!(matches!(change, Some(Change::StillFails { misconfigured: true, .. })));
    }

    proptest! {
        #[test]
        fn four_numbers_that_fail_never_open_a_gateway(
            calls in prop::collection::vec((0_u64..4, any::<bool>()), 0..300),
        ) {
            let now = Instant::now();
            let mut breaker = Breaker::new();
            for (to, fails) in calls {
                let health = if fails { FAILS } else { Health::Works };
                prop_assert_eq!(record_to(&mut breaker, &number(to), health, now), None);
            }
        }

        #[test]
        fn five_other_numbers_that_fail_in_a_row_open_it_whatever_was_before(
            calls in prop::collection::vec((0_u64..4, any::<bool>()), 0..300),
        ) {
            let now = Instant::now();
            let mut breaker = Breaker::new();
            for (to, fails) in calls {
                let health = if fails { FAILS } else { Health::Works };
                record_to(&mut breaker, &number(to), health, now);
            }
            let opened = (10..15).any(|to| record_to(&mut breaker, &number(to), FAILS, now).is_some());
            prop_assert!(opened);
        }
    }
}
