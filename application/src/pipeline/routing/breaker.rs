use std::{collections::VecDeque, time::Duration};

use tokio::time::Instant;

/// The circuit breaker of one gateway.
///
/// It is closed while the gateway works. It opens after [`IN_A_ROW`] failures in a row, or if more than
/// half of the last [`WINDOW`] calls failed, or at once if the gateway says that it is misconfigured.
/// While it is open, no message is given to the gateway. Then it is half-open: one message is the
/// probe. If the gateway takes that, the breaker closes; otherwise it opens for twice as long, up to
/// [`LONGEST`].
#[derive(Debug)]
pub(super) struct Breaker {
    state: State,
    /// Changes with the state. The outcome of a call that began in an earlier state changes nothing.
    generation: u64,
    in_a_row: usize,
    /// Whether each of the last calls failed, the latest last.
    last: VecDeque<bool>,
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
    Opened { misconfigured: bool, pause: Duration, in_a_row: usize, failed: usize, of: usize },
    StillFails { pause: Duration, since: Instant },
    Closed { since: Instant },
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
            last: VecDeque::with_capacity(WINDOW),
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

    /// Returns how many of the last calls failed, and how many calls that are.
    pub(super) fn failed_of_last(&self) -> (usize, usize) {
        (self.last.iter().filter(|failed| **failed).count(), self.last.len())
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

    pub(super) fn record(
        &mut self,
        generation: u64,
        health: Health,
        now: Instant,
    ) -> Option<Change> {
        if generation != self.generation {
            return None;
        }
        match self.state {
            State::Closed => self.count(health, now),
            State::HalfOpen { since, .. } if health == Health::Works => {
                self.in_a_row = 0;
                self.last.clear();
                self.change(State::Closed);
                Some(Change::Closed { since })
            }
            State::HalfOpen { pause, since } => {
                let pause = asked(health, (pause * 2).min(LONGEST));
                self.in_a_row += 1;
                self.change(State::Open { until: now + pause, pause, since });
                Some(Change::StillFails { pause, since })
            }
            State::Open { .. } => None,
        }
    }

    fn count(&mut self, health: Health, now: Instant) -> Option<Change> {
        let is_failure = health != Health::Works;
        self.in_a_row = if is_failure { self.in_a_row + 1 } else { 0 };
        if self.last.len() == WINDOW {
            self.last.pop_front();
        }
        self.last.push_back(is_failure);
        let (failed, of) = self.failed_of_last();
        let misconfigured = health == Health::Misconfigured;
        let opens = misconfigured || self.in_a_row >= IN_A_ROW || failed > WINDOW / 2;
        if !is_failure || !opens {
            return None;
        }
        let pause = asked(health, SHORTEST);
        self.openings += 1;
        self.change(State::Open { until: now + pause, pause: pause.min(LONGEST), since: now });
        Some(Change::Opened { misconfigured, pause, in_a_row: self.in_a_row, failed, of })
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
    use super::*;

    const FAILS: Health = Health::Fails { pause: None };

    fn record(breaker: &mut Breaker, health: Health, now: Instant) -> Option<Change> {
        assert_eq!(breaker.entry(now), Entry::Free);
        let generation = breaker.begin();
        breaker.record(generation, health, now)
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
        let change = breaker.record(probe, Health::Works, now);

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
        assert_eq!(breaker.record(probe, Health::Works, now), None, "it is over");
    }

    #[test]
    fn outcomes_of_calls_from_before_the_opening_count_no_more() {
        let now = Instant::now();
        let mut breaker = Breaker::new();
        let earlier = breaker.begin();
        record(&mut breaker, Health::Misconfigured, now);

        assert_eq!(breaker.record(earlier, Health::Works, now), None);
        assert_eq!(breaker.entry(now), Entry::Later(SHORTEST));
        let probe = breaker.begin();
        assert_eq!(breaker.record(earlier, Health::Misconfigured, now), None);
        breaker.record(probe, Health::Works, now).unwrap();
        assert_eq!(breaker.record(earlier, Health::Misconfigured, now), None);
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
}
