//! Shared by both nemeses: drawing a fault, choosing a process, keeping a fault up for a while.

use std::{ops::Range, sync::Arc, time::Duration};

use rand::{RngExt, rngs::StdRng, seq::SliceRandom};
use tokio::{sync::OwnedMutexGuard, time::sleep};
use tokio_util::sync::CancellationToken;

use crate::kit::process::Process;

/// Faults to draw from: each comes once before any comes again.
#[derive(Debug)]
pub struct Deck<F> {
    all: Vec<F>,
    left: Vec<F>,
}

impl<F: Copy> Deck<F> {
    pub fn new(all: Vec<F>) -> Self {
        Self { all, left: Vec::new() }
    }

    /// Draws the next fault for which `reserve` returns something, together with that.
    pub fn draw<T>(
        &mut self,
        rng: &mut StdRng,
        mut reserve: impl FnMut(F) -> Option<T>,
    ) -> Option<(F, T)> {
        if self.left.is_empty() {
            self.left.clone_from(&self.all);
            self.left.shuffle(rng);
        }
        for place in (0..self.left.len()).rev() {
            if let Some(reserved) = reserve(self.left[place]) {
                return Some((self.left.remove(place), reserved));
            }
        }
        None
    }
}

/// Whether one of these words begins a fault's name. Without words every fault is meant.
pub fn is_meant(fault: &impl ToString, words: &[String]) -> bool {
    let name = fault.to_string();
    words.is_empty() || words.iter().any(|word| name.starts_with(word))
}

/// Reserves one of the processes, at random, that no other fault has reserved.
pub fn pick<'a>(
    processes: impl Iterator<Item = &'a Arc<Process>>,
    rng: &mut StdRng,
) -> Option<(Arc<Process>, OwnedMutexGuard<()>)> {
    let mut processes: Vec<_> = processes.cloned().collect();
    processes.shuffle(rng);
    processes.into_iter().find_map(|process| {
        let reserved = process.try_reserve()?;
        Some((process, reserved))
    })
}

/// Waits for a random number of seconds, or until `stop`. Returns whether it was not stopped.
pub async fn hold(rng: &mut StdRng, seconds: Range<f64>, stop: &CancellationToken) -> bool {
    let pause = Duration::from_secs_f64(rng.random_range(seconds));
    stop.run_until_cancelled(sleep(pause)).await.is_some()
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    #[test]
    fn every_fault_is_drawn_once_before_any_is_drawn_again() {
        let mut rng = StdRng::seed_from_u64(1);
        let mut deck = Deck::new(vec![1, 2, 3]);

        let mut draw = || deck.draw(&mut rng, |_| Some(())).unwrap().0;
        let mut drawn = [draw(), draw(), draw()];
        drawn.sort_unstable();

        assert_eq!(drawn, [1, 2, 3]);
        assert!(drawn.contains(&draw()));
    }

    #[test]
    fn a_fault_that_cannot_be_reserved_stays_in_the_deck() {
        let mut rng = StdRng::seed_from_u64(1);
        let mut deck = Deck::new(vec![1, 2]);

        let (first, ()) = deck.draw(&mut rng, |fault| (fault != 1).then_some(())).unwrap();
        let none = deck.draw(&mut rng, |fault| (fault != 1).then_some(()));
        let (second, ()) = deck.draw(&mut rng, |_| Some(())).unwrap();

        assert_eq!((first, none, second), (2, None, 1));
    }
}
