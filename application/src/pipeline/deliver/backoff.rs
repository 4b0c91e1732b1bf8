use std::time::Duration;

use rand_core::Rng;

/// Returns the wait before the next call: capped exponential back-off with full jitter.
///
/// The wait is between zero and a ceiling of 0.5, 1, 2, … up to 30 seconds after the first, second,
/// third, … call. The jitter prevents the messages of one outage from coming back together.
pub(super) fn backoff(calls: u32, rng: &mut impl Rng) -> Duration {
    const FIRST: Duration = Duration::from_millis(500);
    const CAP: Duration = Duration::from_secs(30);
    let ceiling = FIRST.saturating_mul(1 << calls.saturating_sub(1).min(16)).min(CAP);
    let fraction = f64::from(rng.next_u32()) / f64::from(u32::MAX);
    ceiling.mul_f64(fraction)
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;

    #[test]
    fn waits_are_uniform_up_to_a_ceiling_that_doubles_to_30_seconds() {
        let mut rng = StdRng::seed_from_u64(1);

        for (calls, ceiling) in [(1, 0.5), (2, 1.0), (3, 2.0), (7, 30.0), (u32::MAX, 30.0)] {
            let waits: Vec<f64> =
                (0..1000).map(|_| backoff(calls, &mut rng).as_secs_f64()).collect();

            let longest = waits.iter().copied().fold(0.0, f64::max);
            let mean = waits.iter().sum::<f64>() / 1000.0;
            assert!(longest <= ceiling && longest > 0.95 * ceiling, "{calls}: {longest}");
            assert!((mean / ceiling - 0.5).abs() < 0.05, "{calls}: {mean}");
        }
    }
}
