use std::time::Duration;

use tokio::time::Instant;

/// The limit on the calls that begin in a second: a bucket of tokens, one for each call.
#[derive(Debug)]
pub(super) struct RateLimit {
    per_second: f64,
    tokens: f64,
    counted: Instant,
}

/// The share of a second whose calls may begin together. It lets a partition whose rounds are up to
/// 20 ms apart use the whole rate.
const TOGETHER: f64 = 0.05;

impl RateLimit {
    pub(super) fn new(per_second: f64, now: Instant) -> Self {
        Self { per_second, tokens: most(per_second), counted: now }
    }

    /// Changes the rate. Tokens in hand stay, up to the new size of the bucket.
    pub(super) fn set(&mut self, per_second: f64, now: Instant) {
        self.tokens = self.tokens_at(now).min(most(per_second));
        (self.per_second, self.counted) = (per_second, now);
    }

    /// Returns how long to wait for a token. Zero means that there is one.
    pub(super) fn wait(&self, now: Instant) -> Duration {
        let missing = (1.0 - self.tokens_at(now)).max(0.0);
        Duration::try_from_secs_f64(missing / self.per_second).unwrap_or(Duration::MAX)
    }

    pub(super) fn take(&mut self, now: Instant) {
        self.tokens = self.tokens_at(now) - 1.0;
        self.counted = now;
    }

    /// Returns the token of a call that was not made.
    pub(super) fn give_back(&mut self) {
        self.tokens = (self.tokens + 1.0).min(most(self.per_second));
    }

    fn tokens_at(&self, now: Instant) -> f64 {
        let passed = now.saturating_duration_since(self.counted).as_secs_f64();
        (self.tokens + passed * self.per_second).min(most(self.per_second))
    }
}

/// The size of the bucket.
fn most(per_second: f64) -> f64 {
    (per_second * TOGETHER).max(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes tokens for `seconds`, in rounds of 20 ms.
    fn taken(limit: &mut RateLimit, begin: Instant, seconds: u32) -> usize {
        let mut taken = 0;
        for round in 0..seconds * 50 {
            let now = begin + round * Duration::from_millis(20);
            while limit.wait(now).is_zero() {
                limit.take(now);
                taken += 1;
            }
        }
        taken
    }

    #[test]
    fn no_more_calls_begin_than_the_rate_allows_and_no_fewer() {
        let begin = Instant::now();
        for (per_second, least, most) in
            [(0.5, 5, 6), (1.0, 10, 11), (30.0, 299, 302), (1_000.0, 9_900, 10_060)]
        {
            let mut limit = RateLimit::new(per_second, begin);

            let calls = taken(&mut limit, begin, 10);

            assert!((least..=most).contains(&calls), "{per_second}: {calls}");
        }
    }

    #[test]
    fn a_quiet_minute_saves_up_a_twentieth_of_a_second() {
        let begin = Instant::now();
        let mut limit = RateLimit::new(100.0, begin);
        let now = begin + Duration::from_secs(60);

        let together = (0..).take_while(|_| {
            let is_free = limit.wait(now).is_zero();
            limit.take(now);
            is_free
        });

        assert_eq!(together.count(), 5);
    }

    #[test]
    fn the_wait_is_the_time_until_the_next_token() {
        let now = Instant::now();
        let mut limit = RateLimit::new(4.0, now);
        limit.take(now);

        assert_eq!(limit.wait(now), Duration::from_millis(250));
        assert_eq!(limit.wait(now + Duration::from_millis(250)), Duration::ZERO);

        limit.give_back();
        assert_eq!(limit.wait(now), Duration::ZERO);
    }

    #[test]
    fn a_new_rate_counts_from_now_on() {
        let now = Instant::now();
        let mut limit = RateLimit::new(1_000.0, now);

        limit.set(2.0, now);

        limit.take(now);
        assert_eq!(limit.wait(now), Duration::from_millis(500));
    }
}
