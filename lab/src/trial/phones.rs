//! Numbers that tell which message they are of.

/// A phone of a trial.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phone {
    /// The only message to it has this number.
    Quick(u64),
    /// The gateway takes its time with it; it gets several messages.
    Slow(u64),
}

pub fn phone_of(number: u64) -> String {
    format!("790{number:010}")
}

pub fn slow_phone_of(number: u64) -> String {
    format!("780{number:010}")
}

impl Phone {
    pub fn parse(phone: &str) -> Option<Self> {
        let (quick, rest) = match phone.strip_prefix("790") {
            Some(rest) => (true, rest),
            None => (false, phone.strip_prefix("780")?),
        };
        let number = (rest.len() == 10).then(|| rest.parse().ok())??;
        Some(if quick { Self::Quick(number) } else { Self::Slow(number) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_phone_tells_its_number() {
        assert_eq!(Phone::parse(&phone_of(1_234_567)), Some(Phone::Quick(1_234_567)));
        assert_eq!(Phone::parse(&slow_phone_of(7)), Some(Phone::Slow(7)));
        assert_eq!(Phone::parse("79991234567"), None);
    }
}
