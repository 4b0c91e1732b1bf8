use std::{collections::HashMap, time::Duration};

use domain::GatewayName;
use tokio::time::Instant;

/// The budgets of one partition, one for each gateway.
#[derive(Debug, Default)]
pub(super) struct RetryBudgets(HashMap<GatewayName, RetryBudget>);

/// The budget of retries at one gateway. It keeps a failing gateway from being overloaded by retries.
///
/// Each call that the gateway accepts earns two retries, and a few retries are free. While the gateway
/// accepts nothing, only the free retries are made, however many messages wait. Once it accepts again,
/// each success pays for two more, so the waiting messages come back as fast as the gateway can take
/// them. The first call of a message at a gateway needs no budget.
#[derive(Debug)]
struct RetryBudget {
    retries: f64,
    counted: Instant,
}

/// The number of retries that an accepted call earns.
const EARNED: f64 = 2.0;
/// The number of free retries per second.
const FREE: f64 = 2.0;
/// The number of retries that can be saved up, so that a short failure of a few messages never reaches
/// the limit.
const SAVED: f64 = 50.0;

impl RetryBudgets {
    /// Counts a call that the gateway accepted.
    pub(super) fn earn(&mut self, gateway: &GatewayName) {
        // A full budget needs no place.
        if let Some(budget) = self.0.get_mut(gateway) {
            budget.earn();
        }
    }

    /// Takes one retry from the budget of a gateway. Returns whether there was one.
    pub(super) fn spend(&mut self, gateway: &GatewayName, now: Instant) -> bool {
        self.0.entry(gateway.clone()).or_insert_with(|| RetryBudget::new(now)).spend(now)
    }
}

impl RetryBudget {
    fn new(now: Instant) -> Self {
        Self { retries: SAVED, counted: now }
    }

    fn earn(&mut self) {
        self.retries = (self.retries + EARNED).min(SAVED);
    }

    fn spend(&mut self, now: Instant) -> bool {
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
    fn each_gateway_has_a_budget_of_its_own() {
        let (now, one, other) = (Instant::now(), GatewayName::default(), "other".parse().unwrap());
        let mut budgets = RetryBudgets::default();

        let retries = (0..100).filter(|_| budgets.spend(&one, now)).count();
        budgets.earn(&other);

        assert_eq!(retries, 50);
        assert!(budgets.spend(&other, now));
        assert!(!budgets.spend(&one, now));
        budgets.earn(&one);
        assert!(budgets.spend(&one, now));
    }

    #[test]
    fn a_gateway_that_accepts_nothing_gets_two_retries_a_second() {
        let begin = Instant::now();
        let mut budget = RetryBudget::new(begin);

        assert_eq!(spend_all(&mut budget, begin), 50);
        let minute: usize = (1..=60)
            .map(|second| spend_all(&mut budget, begin + Duration::from_secs(second)))
            .sum();
        assert_eq!(minute, 120);
    }

    #[test]
    fn retries_double_each_round_once_a_gateway_accepts_again() {
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
