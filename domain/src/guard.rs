use std::{fmt, str::FromStr, time::Duration};

/// A rule of the guard: the test that detects pumping, and what follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct GuardRule {
    pub test: GuardTest,
    pub mode: GuardMode,
}

/// The test of a guard rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum GuardTest {
    /// Fires if one prefix or region has many messages and few approvals.
    Share {
        scope: GuardScope,
        /// The rule does not fire below this number of messages.
        min_sends: u64,
        /// The rule fires if fewer than this percentage of the messages are approved.
        percent: u64,
    },
    /// Fires if, at one of the levels, more messages lack an approval than approvals pay for (ADR 44).
    Adaptive,
}

/// The scope in which messages are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum GuardScope {
    /// The number without its last four digits.
    Prefix,
    /// The number without its last six digits.
    Range,
    Region,
    /// All regions together.
    World,
}

/// The effect of a rule that fires.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum GuardMode {
    /// Records the decision and sends the message.
    Shadow,
    /// Blocks the message.
    Enforce,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "a guard rule is adaptive, or scope:sends:percent with the scope prefix or region, and may end \
     in :shadow or :enforce: adaptive, prefix:50:10:enforce"
)]
pub struct InvalidGuardRule;

/// Messages and approvals of about the last window, in two buckets of one window each.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rolling {
    pub sends: u64,
    pub approvals: u64,
    /// Messages in the bucket before.
    pub sends_before: u64,
    /// Approvals in the bucket before.
    pub approvals_before: u64,
    /// The age of the current bucket.
    pub age: Duration,
}

/// A number of messages and of approvals.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct GuardCount {
    pub sends: u64,
    pub approvals: u64,
}

/// The counts of one prefix, range or region.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Activity {
    /// The counts of about the last window.
    pub window: GuardCount,
    /// The counts of about the last [`Activity::DAY`].
    pub day: GuardCount,
    /// Whether an operator has exempted it from all rules.
    pub allowed: bool,
}

/// The counts of the prefix, the range and the region of a message.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Levels {
    pub prefix: Activity,
    pub range: Activity,
    /// `None` if the number has no region.
    pub region: Option<Activity>,
}

/// The unpaid messages of all regions. A message is unpaid if no approval of its region pays for
/// it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct World {
    unpaid: Unpaid,
    approvals: Unpaid,
}

/// Numbers of unpaid messages in the window and in the day.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Unpaid {
    window: u64,
    day: u64,
}

/// The number of unverified messages that one approval pays for. If a fifth of the messages are
/// approved, nothing is ever blocked. Honest services see 40 to 90 approvals per hundred messages.
const PAID_BY_APPROVAL: u64 = 4;
/// In a window, the approvals of the day also pay for this fraction of their number, because a burst
/// begins before its own approvals arrive.
const DAY_IN_WINDOW: u64 = 4;
/// This fraction of all approvals is added to the number of unpaid messages that the world may have.
const APPROVALS_IN_WORLD: u64 = 20;

const PREFIX: Unpaid = Unpaid { window: 100, day: 300 };
const RANGE: Unpaid = Unpaid { window: 250, day: 750 };
const REGION: Unpaid = Unpaid { window: 500, day: 1_500 };
const WORLD: Unpaid = Unpaid { window: 500, day: 1_500 };
/// The number of unpaid messages that each part may have while its whole has too many.
const PART: Unpaid = Unpaid { window: 3, day: 10 };

impl GuardRule {
    /// Parses `adaptive` or `scope:min_sends:percent`. `:shadow` or `:enforce` may follow; otherwise
    /// the rule has mode `mode`.
    pub fn parse(text: &str, mode: GuardMode) -> Result<Self, InvalidGuardRule> {
        let fields: Vec<&str> = text.trim().split(':').collect();
        let read = |mode: &str| mode.parse().map_err(|_| InvalidGuardRule);
        Ok(match fields[..] {
            ["adaptive"] => Self { test: GuardTest::Adaptive, mode },
            ["adaptive", mode] => Self { test: GuardTest::Adaptive, mode: read(mode)? },
            [scope, min_sends, percent] => {
                Self { test: GuardTest::share(scope, min_sends, percent)?, mode }
            }
            [scope, min_sends, percent, mode] => {
                Self { test: GuardTest::share(scope, min_sends, percent)?, mode: read(mode)? }
            }
            _ => return Err(InvalidGuardRule),
        })
    }
}

impl GuardTest {
    fn share(scope: &str, min_sends: &str, percent: &str) -> Result<Self, InvalidGuardRule> {
        let number = |text: &str, most: u64| {
            let number = text.parse::<u64>().ok().filter(|number| (1..=most).contains(number));
            number.ok_or(InvalidGuardRule)
        };
        let scope = scope.parse()?;
        if !matches!(scope, GuardScope::Prefix | GuardScope::Region) {
            return Err(InvalidGuardRule);
        }
        let (min_sends, percent) = (number(min_sends, 1_000_000_000)?, number(percent, 100)?);
        Ok(Self::Share { scope, min_sends, percent })
    }

    /// Whether this test needs the counts of a scope.
    pub fn counts(&self, scope: GuardScope) -> bool {
        match self {
            Self::Share { scope: own, .. } => *own == scope,
            Self::Adaptive => scope != GuardScope::World,
        }
    }

    /// Whether a prefix, a range or a region is half way to being blocked.
    pub fn is_near(&self, scope: GuardScope, activity: &Activity) -> bool {
        let sends = activity.window.sends;
        match self {
            Self::Share { min_sends, .. } => sends >= min_sends.div_ceil(2),
            Self::Adaptive => {
                let Unpaid { window, day } = scope.allowance();
                sends >= window / 2 || activity.unpaid().day >= day / 2
            }
        }
    }

    /// Decides whether the next message is pumping. Returns the scope that is pumped.
    ///
    /// Calls `world` only if the decision depends on it.
    pub fn fires(&self, levels: &Levels, world: impl FnOnce() -> World) -> Option<GuardScope> {
        match *self {
            Self::Share { scope, min_sends, percent } => {
                let activity = levels.of(scope)?;
                let GuardCount { sends, approvals } = activity.window;
                let fires = !activity.allowed
                    && sends >= min_sends
                    && approvals.saturating_mul(100) < percent * sends;
                fires.then_some(scope)
            }
            Self::Adaptive => levels.fired(world),
        }
    }
}

impl Levels {
    /// Returns the counts in a scope.
    pub fn of(&self, scope: GuardScope) -> Option<Activity> {
        match scope {
            GuardScope::Prefix => Some(self.prefix),
            GuardScope::Range => Some(self.range),
            // A decision about the world blocks a region, as a part of the world.
            GuardScope::Region | GuardScope::World => self.region,
        }
    }

    /// Applies the adaptive rule.
    ///
    /// Each approval pays for [`PAID_BY_APPROVAL`] messages without one, so a service of any size
    /// passes. In addition, each level may have a fixed number of unpaid messages. A prefix with more
    /// is blocked. A range, a region, or all regions together with more are not blocked as a whole:
    /// each of their parts may still have [`PART`] unpaid messages, so parts with approvals go on.
    fn fired(&self, world: impl FnOnce() -> World) -> Option<GuardScope> {
        let Self { prefix, range, region } = self;
        if prefix.owes(PREFIX) {
            return Some(GuardScope::Prefix);
        }
        if range.owes(RANGE) && prefix.owes(PART) {
            return Some(GuardScope::Range);
        }
        let region = region.as_ref()?;
        if region.owes(REGION) && range.owes(PART) {
            return Some(GuardScope::Region);
        }
        (region.owes(PART) && world().owes()).then_some(GuardScope::World)
    }
}

impl Activity {
    pub const DAY: Duration = Duration::from_secs(86_400);

    /// Returns the messages that the approvals do not pay for.
    fn unpaid(&self) -> Unpaid {
        let (window, day) = (self.window, self.day);
        let paid = (PAID_BY_APPROVAL * window.approvals).max(day.approvals / DAY_IN_WINDOW);
        Unpaid {
            window: window.unverified().saturating_sub(paid),
            day: day.unverified().saturating_sub(PAID_BY_APPROVAL * day.approvals),
        }
    }

    /// Whether messages of the day are without an approval that pays for them.
    pub fn owes_of_day(&self) -> bool {
        self.unpaid().day > 0
    }

    fn owes(&self, most: Unpaid) -> bool {
        !self.allowed && self.unpaid().reaches(most)
    }
}

impl GuardCount {
    fn unverified(self) -> u64 {
        self.sends.saturating_sub(self.approvals)
    }
}

impl World {
    /// Adds the counts of a region.
    pub fn add(&mut self, region: &Activity) {
        if !region.allowed {
            let Unpaid { window, day } = region.unpaid();
            self.unpaid.window += window;
            self.unpaid.day += day;
        }
        self.approvals.window += region.window.approvals;
        self.approvals.day += region.day.approvals;
    }

    fn owes(&self) -> bool {
        self.unpaid.reaches(Unpaid {
            window: WORLD.window + self.approvals.window / APPROVALS_IN_WORLD,
            day: WORLD.day + self.approvals.day / APPROVALS_IN_WORLD,
        })
    }
}

impl Unpaid {
    const fn reaches(self, most: Self) -> bool {
        self.window >= most.window || self.day >= most.day
    }
}

/// Writes the form that [`GuardRule::parse`] reads.
impl fmt::Display for GuardRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mode = self.mode.as_str();
        match self.test {
            GuardTest::Share { scope, min_sends, percent } => {
                write!(f, "{}:{min_sends}:{percent}:{mode}", scope.as_str())
            }
            GuardTest::Adaptive => write!(f, "adaptive:{mode}"),
        }
    }
}

impl GuardScope {
    /// The scopes in which messages are counted, the narrowest first.
    pub const COUNTED: [Self; 3] = [Self::Prefix, Self::Range, Self::Region];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Prefix => "prefix",
            Self::Range => "range",
            Self::Region => "region",
            Self::World => "world",
        }
    }

    const fn allowance(self) -> Unpaid {
        match self {
            Self::Prefix => PREFIX,
            Self::Range => RANGE,
            Self::Region => REGION,
            Self::World => WORLD,
        }
    }
}

impl FromStr for GuardScope {
    type Err = InvalidGuardRule;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        [Self::Prefix, Self::Range, Self::Region, Self::World]
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
    /// Returns the counts after `passed` more time.
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

    /// Returns the messages and approvals of about the last window: the current bucket, and the share
    /// of the bucket before that the window still covers.
    pub fn over(&self, window: Duration) -> GuardCount {
        let (window, age) = (window.as_millis().max(1), self.age.as_millis());
        let covered = window.saturating_sub(age);
        let share =
            |before: u64| u64::try_from(u128::from(before) * covered / window).unwrap_or(before);
        GuardCount {
            sends: self.sends + share(self.sends_before),
            approvals: self.approvals + share(self.approvals_before),
        }
    }
}

#[cfg(test)]
mod tests;
