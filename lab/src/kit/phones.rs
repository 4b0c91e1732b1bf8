//! The numbers that the lab sends to.

use rand::{RngExt, rngs::StdRng};

/// Draws each number once.
#[derive(Debug, Clone)]
pub struct Phones {
    next: u64,
    /// Spreads the numbers, so that they are not consecutive.
    offset: u64,
}

/// A number that names its message, so that a tally needs no other key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Numbered {
    /// The number of the only message to this phone.
    Quick(u64),
    /// A phone for which the gateway takes its time. It gets several messages.
    Slow(u64),
}

/// The end of the numbers that the gateway always refuses.
const REFUSED: &str = "13";

impl Phones {
    pub fn new(rng: &mut StdRng) -> Self {
        Self { next: 0, offset: rng.random_range(0..10_000_000_000) }
    }

    /// Draws a number of 11 to 15 digits that was not drawn before.
    pub fn draw(&mut self) -> String {
        // Coprime to ten, so that counting reaches all numbers of a length.
        const STEP: u64 = 7_654_321_987;
        let count = self.next;
        self.next += 1;
        let spread = (count / 5).wrapping_mul(STEP).wrapping_add(self.offset) % 10_000_000_000;
        // A first digit, ten digits that differ, and as many more as make up the length.
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

impl Numbered {
    pub fn parse(phone: &str) -> Option<Self> {
        let (quick, rest) = match phone.strip_prefix("790") {
            Some(rest) => (true, rest),
            None => (false, phone.strip_prefix("780")?),
        };
        let number = (rest.len() == 10).then(|| rest.parse().ok())??;
        Some(if quick { Self::Quick(number) } else { Self::Slow(number) })
    }

    pub fn is_slow(phone: &str) -> bool {
        matches!(Self::parse(phone), Some(Self::Slow(_)))
    }
}

impl std::fmt::Display for Numbered {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Quick(number) => write!(f, "790{number:010}"),
            Self::Slow(number) => write!(f, "780{number:010}"),
        }
    }
}

/// Whether the gateway refuses this number.
pub fn is_refused(phone: &str) -> bool {
    phone.ends_with(REFUSED)
}

/// Returns a number as it may be shown.
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
    fn no_number_is_drawn_twice() {
        let mut phones = Phones::new(&mut StdRng::seed_from_u64(1));

        let drawn: HashSet<String> = (0..100_000).map(|_| phones.draw()).collect();

        assert_eq!(drawn.len(), 100_000);
        assert!(drawn.iter().all(|phone| (11..=15).contains(&phone.len())));
        let refused = drawn.iter().filter(|phone| is_refused(phone)).count();
        assert!((500..2_000).contains(&refused), "{refused}");
    }

    #[test]
    fn a_numbered_phone_is_parsed_to_its_number() {
        for phone in [Numbered::Quick(1_234_567), Numbered::Slow(7)] {
            assert_eq!(Numbered::parse(&phone.to_string()), Some(phone));
        }
        assert_eq!(Numbered::parse("79991234567"), None);
    }
}
