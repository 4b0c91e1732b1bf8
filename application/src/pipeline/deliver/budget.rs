use std::time::Duration;

use tokio::time::Instant;

/// What retries may be made, so that a gateway in trouble is not buried under them.
///
/// Each call that the gateway accepts earns two retries, and some are free. While the gateway
/// accepts nothing, retries come down to the free ones, however many messages wait; once it
/// accepts again, each success pays for the next two, and so what waits comes back as fast as the
/// gateway can bear. Messages that were never tried need no budget: they are how it is found out
/// that the gateway is back.
#[derive(Debug)]
pub(super) struct RetryBudget {
    retries: f64,
    counted: Instant,
}

/// Retries that an accepted call earns.
const EARNED: f64 = 2.0;
/// Retries a second that are free.
const FREE: f64 = 2.0;
/// Retries that can be saved up: a short trouble of a few messages never meets the limit.
const SAVED: f64 = 50.0;

impl RetryBudget {
    pub(super) fn new(now: Instant) -> Self {
        Self { retries: SAVED, counted: now }
    }

    pub(super) fn earn(&mut self) {
        self.retries = (self.retries + EARNED).min(SAVED);
    }

    /// Takes one retry, if there is one.
    pub(super) fn spend(&mut self, now: Instant) -> bool {
        let passed: Duration = now.saturating_duration_since(self.counted);
        self.counted = now;
        self.retries = (self.retries + FREE * passed.as_secs_f64()).min(SAVED);
        let is_there = self.retries >= 1.0;
        if is_there {
            self.retries -= 1.0;
        }
        is_there
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spend_all(budget: &mut RetryBudget, now: Instant) -> usize {
        std::iter::from_fn(|| budget.spend(now).then_some(())).count()
    }

    #[test]
    fn a_gateway_that_accepts_nothing_gets_few_retries() {
        let begin = Instant::now();
        let mut budget = RetryBudget::new(begin);

        assert_eq!(spend_all(&mut budget, begin), 50);
        let minute: usize = (1..=60)
            .map(|second| spend_all(&mut budget, begin + Duration::from_secs(second)))
            .sum();
        assert_eq!(minute, 120);
    }

    #[test]
    fn one_that_accepts_again_gets_twice_as_many_each_time() {
        let now = Instant::now();
        let mut budget = RetryBudget::new(now);
        spend_all(&mut budget, now);
        budget.earn();

        let rounds: Vec<usize> = (0..4)
            .map(|_| {
                let retries = spend_all(&mut budget, now);
                (0..retries).for_each(|_| budget.earn());
                retries
            })
            .collect();

        assert_eq!(rounds, [2, 4, 8, 16]);
    }
}
