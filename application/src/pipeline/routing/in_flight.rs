use std::{collections::BTreeMap, time::Duration};

use tokio::time::Instant;

/// The calls of one gateway that have begun and not ended.
#[derive(Debug, Default)]
pub(super) struct InFlight {
    begun: BTreeMap<u64, Instant>,
    last_answer: Option<Instant>,
}

/// How long a gateway may leave all calls without an answer until it is passed over.
const SILENCE: Duration = Duration::from_secs(3);

impl InFlight {
    pub(super) fn len(&self) -> usize {
        self.begun.len()
    }

    pub(super) fn begin(&mut self, call: u64, now: Instant) {
        self.begun.insert(call, now);
    }

    /// Ends a call. Returns whether it was in flight.
    pub(super) fn end(&mut self, call: u64, is_answered: bool, now: Instant) -> bool {
        let was_here = self.begun.remove(&call).is_some();
        if was_here && is_answered {
            self.last_answer = Some(now);
        }
        was_here
    }

    /// Removes a call that was not made. Returns whether it was in flight.
    pub(super) fn give_back(&mut self, call: u64) -> bool {
        self.begun.remove(&call).is_some()
    }

    /// Whether the gateway seems to hang: at least two calls are old, and none was answered lately. One old
    /// call may be the fault of its message.
    pub(super) fn is_silent(&self, now: Instant) -> bool {
        let is_long_ago = |at: Instant| now.saturating_duration_since(at) >= SILENCE;
        self.begun.values().nth(1).is_some_and(|begun| is_long_ago(*begun))
            && self.last_answer.is_none_or(is_long_ago)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_old_calls_without_any_answer_for_three_seconds_are_a_silence() {
        let begin = Instant::now();
        let soon = begin + SILENCE - Duration::from_millis(1);
        let mut calls = InFlight::default();
        calls.begin(1, begin);
        assert!(!calls.is_silent(begin + SILENCE), "one call may be slow");

        calls.begin(2, begin);
        assert!(!calls.is_silent(soon));
        assert!(calls.is_silent(begin + SILENCE));

        calls.begin(3, soon);
        calls.end(3, true, soon);
        assert!(!calls.is_silent(begin + SILENCE), "the gateway answers others");
        assert!(calls.is_silent(soon + SILENCE));

        calls.end(2, true, soon + SILENCE);
        assert!(!calls.is_silent(soon + 2 * SILENCE), "one is left");
    }

    #[test]
    fn calls_that_run_out_of_time_are_no_sign_of_life() {
        let begin = Instant::now();
        let mut calls = InFlight::default();
        (0..5).for_each(|number| calls.begin(number, begin));

        (0..3).for_each(|number| assert!(calls.end(number, false, begin + SILENCE)));

        assert!(calls.is_silent(begin + SILENCE));
    }

    #[test]
    fn new_calls_do_not_hide_a_silence() {
        let begin = Instant::now();
        let mut calls = InFlight::default();
        for number in 0..30 {
            calls.begin(number, begin + u32::try_from(number).unwrap() * SILENCE / 20);
        }

        assert!(calls.is_silent(begin + SILENCE + SILENCE / 20));
    }

    #[test]
    fn a_call_that_was_not_made_is_no_sign_of_life() {
        let begin = Instant::now();
        let mut calls = InFlight::default();
        (0..3).for_each(|number| calls.begin(number, begin));

        calls.give_back(2);

        assert_eq!(calls.len(), 2);
        assert!(calls.is_silent(begin + SILENCE));
    }
}
