use std::{fmt, str::FromStr, time::Duration};

/// When sends to one prefix or region are taken for pumping: many of them, and hardly an approval.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct GuardRule {
    pub scope: GuardScope,
    /// Below that, nothing is said of the share.
    pub min_sends: u64,
    /// Fewer approvals than that, of a hundred sends, and the rule fires.
    pub percent: u64,
    pub mode: GuardMode,
}

/// What sends are counted by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum GuardScope {
    /// The number without its last four digits.
    Prefix,
    Region,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum GuardMode {
    /// Only noted.
    Shadow,
    /// Nothing is sent.
    Enforce,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "a rule of the guard is prefix or region, the least number of sends and a percentage, \
     and may end in shadow or enforce: prefix:50:10:enforce"
)]
pub struct InvalidGuardRule;

/// Sends and approvals of about the last window, in two buckets that are each as long as it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rolling {
    pub sends: u64,
    pub approvals: u64,
    /// In the bucket before.
    pub sends_before: u64,
    pub approvals_before: u64,
    /// Of the current bucket.
    pub age: Duration,
}

impl GuardRule {
    /// Reads `scope:min sends:percent`, with `:shadow` or `:enforce` behind it where it is not
    /// `mode`.
    pub fn parse(text: &str, mode: GuardMode) -> Result<Self, InvalidGuardRule> {
        let fields: Vec<&str> = text.trim().split(':').collect();
        let (scope, min_sends, percent, mode) = match fields[..] {
            [scope, min_sends, percent] => (scope, min_sends, percent, mode),
            [scope, min_sends, percent, mode] => {
                (scope, min_sends, percent, mode.parse().map_err(|_| InvalidGuardRule)?)
            }
            _ => return Err(InvalidGuardRule),
        };
        let number = |text: &str, most: u64| {
            text.parse::<u64>().ok().filter(|number| (1..=most).contains(number))
        };
        Ok(Self {
            scope: scope.parse().map_err(|_| InvalidGuardRule)?,
            min_sends: number(min_sends, 1_000_000_000).ok_or(InvalidGuardRule)?,
            percent: number(percent, 100).ok_or(InvalidGuardRule)?,
            mode,
        })
    }

    pub const fn fires(&self, sends: u64, approvals: u64) -> bool {
        sends >= self.min_sends && approvals.saturating_mul(100) < self.percent * sends
    }
}

/// As it is read.
impl fmt::Display for GuardRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { scope, min_sends, percent, mode } = self;
        write!(f, "{}:{min_sends}:{percent}:{}", scope.as_str(), mode.as_str())
    }
}

impl GuardScope {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Prefix => "prefix",
            Self::Region => "region",
        }
    }
}

impl FromStr for GuardScope {
    type Err = InvalidGuardRule;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        [Self::Prefix, Self::Region]
            .into_iter()
            .find(|scope| scope.as_str() == text)
            .ok_or(InvalidGuardRule)
    }
}

impl GuardMode {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Shadow => "shadow",
            Self::Enforce => "enforce",
        }
    }
}

impl FromStr for GuardMode {
    type Err = InvalidGuardRule;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        [Self::Shadow, Self::Enforce]
            .into_iter()
            .find(|mode| mode.as_str() == text)
            .ok_or(InvalidGuardRule)
    }
}

impl Rolling {
    /// The same, `passed` later.
    #[must_use]
    pub fn later(self, passed: Duration, window: Duration) -> Self {
        let age = self.age + passed;
        if age < window {
            Self { age, ..self }
        } else if age < 2 * window {
            let (sends_before, approvals_before) = (self.sends, self.approvals);
            let age = age.saturating_sub(window);
            Self { sends: 0, approvals: 0, sends_before, approvals_before, age }
        } else {
            Self::default()
        }
    }

    /// Sends and approvals in about the last window: the current bucket, and of the one before
    /// the share that the window still covers.
    pub fn over(&self, window: Duration) -> (u64, u64) {
        let (window, age) = (window.as_millis().max(1), self.age.as_millis());
        let covered = window.saturating_sub(age);
        let share =
            |before: u64| u64::try_from(u128::from(before) * covered / window).unwrap_or(before);
        (self.sends + share(self.sends_before), self.approvals + share(self.approvals_before))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3_600);

    fn rule(text: &str) -> GuardRule {
        GuardRule::parse(text, GuardMode::Shadow).unwrap()
    }

    #[test]
    fn a_rule_is_read_as_it_is_written() {
        assert_eq!(rule("prefix:50:10").to_string(), "prefix:50:10:shadow");
        assert_eq!(rule("region:1000:5:enforce").to_string(), "region:1000:5:enforce");
        for bad in [
            "",
            "prefix",
            "prefix:50",
            "phone:50:10",
            "prefix:0:10",
            "prefix:50:0",
            "prefix:50:101",
            "prefix:50:10:off",
            "prefix:50:10:shadow:",
            "prefix:-1:10",
        ] {
            assert_eq!(GuardRule::parse(bad, GuardMode::Enforce), Err(InvalidGuardRule), "{bad}");
        }
    }

    #[test]
    fn a_rule_fires_from_its_number_of_sends_on_and_below_its_share() {
        let rule = rule("prefix:50:10");

        for (sends, approvals, fires) in [
            (49, 0, false),
            (50, 0, true),
            (50, 4, true),
            (50, 5, false),
            (1_000, 99, true),
            (1_000, 100, false),
            (50, u64::MAX, false),
        ] {
            assert_eq!(rule.fires(sends, approvals), fires, "{approvals} of {sends}");
        }
    }

    #[test]
    fn two_buckets_roll() {
        let now = Rolling { sends: 10, approvals: 4, ..Rolling::default() };
        assert_eq!(now.over(HOUR), (10, 4));

        let half = now.later(HOUR / 2, HOUR);
        assert_eq!(half.over(HOUR), (10, 4), "the window still covers all");

        let next = half.later(HOUR, HOUR);
        assert_eq!((next.sends, next.sends_before, next.age), (0, 10, HOUR / 2));
        assert_eq!(next.over(HOUR), (5, 2), "half of the bucket before");

        assert_eq!(next.later(HOUR / 2, HOUR).over(HOUR), (0, 0));
        assert_eq!(now.later(3 * HOUR, HOUR), Rolling::default());
    }
}
