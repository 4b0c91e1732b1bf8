//! The numbers that the lab sends to.

use rand::{RngExt, rngs::StdRng};

/// Gives each number once.
#[derive(Debug, Clone)]
pub struct Phones {
    next: u64,
    /// Spreads the numbers, so that they look like none that are counted.
    offset: u64,
}

/// Numbers that end so are refused by the gateway, always.
const REFUSED: &str = "13";

impl Phones {
    pub fn new(rng: &mut StdRng) -> Self {
        Self { next: 0, offset: rng.random_range(0..10_000_000_000) }
    }

    /// A number of 11 to 15 digits that was not given before.
    pub fn draw(&mut self) -> String {
        // Prime to ten, so that counting on walks through all of a length's numbers.
        const STEP: u64 = 7_654_321_987;
        let count = self.next;
        self.next += 1;
        let spread = (count / 5).wrapping_mul(STEP).wrapping_add(self.offset) % 10_000_000_000;
        // A first digit and ten that differ, and as many more as make up the length.
        let more = match count % 5 {
            0 => "",
            1 => "4",
            2 => "49",
            3 => "493",
            _ => "4930",
        };
        format!("7{more}{spread:010}")
    }
}

/// Whether the gateway refuses this number.
pub fn is_refused(phone: &str) -> bool {
    phone.ends_with(REFUSED)
}

/// A number as it may be shown.
pub fn masked(phone: &str) -> String {
    let shown = phone.get(phone.len().saturating_sub(4)..).unwrap_or_default();
    format!("…{shown}")
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use rand::SeedableRng;

    use super::*;

    #[test]
    fn gives_no_number_twice() {
        let mut phones = Phones::new(&mut StdRng::seed_from_u64(1));

        let drawn: HashSet<String> = (0..100_000).map(|_| phones.draw()).collect();

        assert_eq!(drawn.len(), 100_000);
        assert!(drawn.iter().all(|phone| (11..=15).contains(&phone.len())));
        let refused = drawn.iter().filter(|phone| is_refused(phone)).count();
        assert!((500..2_000).contains(&refused), "{refused}");
    }
}
