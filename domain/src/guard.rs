use std::{fmt, str::FromStr, time::Duration};

/// When messages are taken for pumping, and what follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct GuardRule {
    pub test: GuardTest,
    pub mode: GuardMode,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum GuardTest {
    /// Many messages to one prefix or region, and hardly an approval.
    Share {
        scope: GuardScope,
        /// Below that, nothing is said of the share.
        min_sends: u64,
        /// Fewer approvals than that, of a hundred messages, and the rule fires.
        percent: u64,
    },
    /// More messages are without an approval than approvals pay for, at one of the levels (ADR 44).
    Adaptive,
}

/// What messages are counted by.
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

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum GuardMode {
    /// Only noted.
    Shadow,
    /// Nothing is sent.
    Enforce,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "a rule of the guard is adaptive, or prefix or region, the least number of sends and a \
     percentage, and may end in shadow or enforce: adaptive, prefix:50:10:enforce"
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

/// Messages and approvals.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct GuardCount {
    pub sends: u64,
    pub approvals: u64,
}

/// What is known of one prefix, range or region.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Activity {
    /// Of about the last window.
    pub window: GuardCount,
    /// Of about the last [`Activity::DAY`].
    pub day: GuardCount,
    /// An operator has said that no rule holds for it.
    pub allowed: bool,
}

/// What is known of all that a message belongs to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Levels {
    pub prefix: Activity,
    pub range: Activity,
    /// None: the number has no region.
    pub region: Option<Activity>,
}

/// Messages of all regions that their own approvals do not pay for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct World {
    unpaid: Unpaid,
    approvals: Unpaid,
}

/// Numbers of messages, of the window and of the day.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Unpaid {
    window: u64,
    day: u64,
}

/// So many unverified messages does one approval pay for: if a fifth of the
/// messages are approved, nothing is ever blocked. Honest services see 40 to 90 of a hundred.
const PAID_BY_APPROVAL: u64 = 4;
/// In a window, the approvals of a day pay for this part of their number: a burst begins before the
/// approvals of its own.
const DAY_IN_WINDOW: u64 = 4;
/// This part of all approvals is added to what the world may owe.
const APPROVALS_IN_WORLD: u64 = 20;

const PREFIX: Unpaid = Unpaid { window: 100, day: 300 };
const RANGE: Unpaid = Unpaid { window: 250, day: 750 };
const REGION: Unpaid = Unpaid { window: 500, day: 1_500 };
const WORLD: Unpaid = Unpaid { window: 500, day: 1_500 };
/// What each part may still owe of a whole that owes too much.
const PART: Unpaid = Unpaid { window: 3, day: 10 };

impl GuardRule {
    /// Reads `adaptive`, or `scope:min sends:percent`, with `:shadow` or `:enforce` behind it if it
    /// is not `mode`.
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

    /// Whether messages of a scope have to be counted for it.
    pub fn counts(&self, scope: GuardScope) -> bool {
        match self {
            Self::Share { scope: own, .. } => *own == scope,
            Self::Adaptive => scope != GuardScope::World,
        }
    }

    /// Half of the number of messages that it takes for a prefix, a range or a region to be blocked.
    pub fn near(&self, scope: GuardScope) -> u64 {
        match self {
            Self::Share { min_sends, .. } => min_sends.div_ceil(2),
            Self::Adaptive => scope.allowance().window / 2,
        }
    }

    /// Whether a next message to this is taken for pumping, and what it belongs to that is pumped.
    /// `world` is asked only if it matters.
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
    /// What is known of one of them.
    pub fn of(&self, scope: GuardScope) -> Option<Activity> {
        match scope {
            GuardScope::Prefix => Some(self.prefix),
            GuardScope::Range => Some(self.range),
            // A decision about the world is about a region, as part of it.
            GuardScope::Region | GuardScope::World => self.region,
        }
    }

    /// The adaptive rule.
    ///
    /// Each approval pays for [`PAID_BY_APPROVAL`] messages without one; so far, a service of any
    /// size passes. Beyond that, each level may owe a fixed number of messages. A prefix that owes
    /// more is blocked. A range, a region, or all regions together that owe more are not blocked as
    /// a whole: of each of their parts only [`PART`] is let through beyond what it pays for, so that
    /// parts from which approvals come go on.
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

    /// What its approvals do not pay for.
    fn unpaid(&self) -> Unpaid {
        let (window, day) = (self.window, self.day);
        let paid = (PAID_BY_APPROVAL * window.approvals).max(day.approvals / DAY_IN_WINDOW);
        Unpaid {
            window: window.unverified().saturating_sub(paid),
            day: day.unverified().saturating_sub(PAID_BY_APPROVAL * day.approvals),
        }
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
    /// Adds a region.
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

/// As it is read.
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
    /// What messages are counted under, the narrowest first.
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
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3_600);

    fn rule(text: &str) -> GuardRule {
        GuardRule::parse(text, GuardMode::Shadow).unwrap()
    }

    fn count(sends: u64, approvals: u64) -> GuardCount {
        GuardCount { sends, approvals }
    }

    /// The same in the window and in the day.
    fn activity(sends: u64, approvals: u64) -> Activity {
        let count = count(sends, approvals);
        Activity { window: count, day: count, allowed: false }
    }

    #[test]
    fn a_rule_is_read_as_it_is_written() {
        assert_eq!(rule("prefix:50:10").to_string(), "prefix:50:10:shadow");
        assert_eq!(rule("region:1000:5:enforce").to_string(), "region:1000:5:enforce");
        assert_eq!(rule("adaptive").to_string(), "adaptive:shadow");
        assert_eq!(rule("adaptive:enforce").to_string(), "adaptive:enforce");
        for bad in [
            "",
            "prefix",
            "prefix:50",
            "phone:50:10",
            "range:50:10",
            "world:50:10",
            "prefix:0:10",
            "prefix:50:0",
            "prefix:50:101",
            "prefix:50:10:off",
            "prefix:50:10:shadow:",
            "prefix:-1:10",
            "adaptive:off",
            "adaptive:50:10",
        ] {
            assert_eq!(GuardRule::parse(bad, GuardMode::Enforce), Err(InvalidGuardRule), "{bad}");
        }
    }

    #[test]
    fn a_share_fires_from_its_number_of_sends_on_and_below_its_percentage() {
        let test = rule("prefix:50:10").test;

        for (sends, approvals, fires) in [
            (49, 0, false),
            (50, 0, true),
            (50, 4, true),
            (50, 5, false),
            (1_000, 99, true),
            (1_000, 100, false),
            (50, u64::MAX, false),
        ] {
            let levels = Levels { prefix: activity(sends, approvals), ..Levels::default() };
            let fired = test.fires(&levels, World::default).is_some();
            assert_eq!(fired, fires, "{approvals} of {sends}");
        }
    }

    #[test]
    fn an_approval_pays_for_four_others() {
        for (sends, approvals, fires) in [
            (99, 0, false),
            (100, 0, true),
            (104, 1, false),
            (105, 1, true),
            (199, 20, false),
            (200, 20, true),
            (1_000_000, 200_000, false),
        ] {
            let prefix = activity(sends, approvals);
            let fired = Levels { prefix, ..Levels::default() }.fired(World::default).is_some();
            assert_eq!(fired, fires, "{approvals} of {sends}");
        }
    }

    #[test]
    fn a_whole_that_owes_too_much_lets_its_parts_through_that_pay() {
        let (idle, paying, owing) = (activity(0, 0), activity(14, 10), activity(3, 0));
        let range = activity(250, 0);
        let region = Some(activity(500, 0));
        for (levels, fires) in [
            (Levels { prefix: idle, range, region: None }, None),
            (Levels { prefix: paying, range, region: None }, None),
            (Levels { prefix: owing, range, region: None }, Some(GuardScope::Range)),
            (Levels { prefix: idle, range: idle, region }, None),
            (Levels { prefix: owing, range: paying, region }, None),
            (Levels { prefix: idle, range: owing, region }, Some(GuardScope::Region)),
        ] {
            assert_eq!(levels.fired(World::default), fires, "{levels:?}");
        }
    }

    #[test]
    fn many_regions_that_owe_a_little_owe_much_together() {
        let world = |regions: u64, approvals: u64| {
            let mut world = World::default();
            (0..regions).for_each(|_| world.add(&activity(10, 0)));
            world.add(&activity(approvals, approvals));
            move || world
        };
        let to = |region| Levels { region: Some(region), ..Levels::default() };
        let (owing, paying) = (to(activity(10, 0)), to(activity(10, 4)));

        assert_eq!(owing.fired(world(49, 0)), None);
        assert_eq!(owing.fired(world(50, 0)), Some(GuardScope::World));
        assert_eq!(paying.fired(world(50, 0)), None);
        assert_eq!(owing.fired(world(50, 400)), None, "a twentieth of 400 more");
        assert_eq!(owing.fired(world(52, 400)), Some(GuardScope::World));
    }

    #[test]
    fn a_day_holds_where_each_window_passes() {
        let slow = |sends| Activity { window: count(10, 0), day: count(sends, 0), allowed: false };

        for (sends, fires) in [(299, false), (300, true)] {
            let levels = Levels { prefix: slow(sends), ..Levels::default() };
            assert_eq!(levels.fired(World::default).is_some(), fires, "{sends}");
        }
    }

    #[test]
    fn the_approvals_of_a_day_pay_for_a_burst() {
        let burst = Activity { window: count(599, 0), day: count(1_000, 400), allowed: false };
        let region =
            |region| Levels { range: activity(9, 0), region: Some(region), ..<_>::default() };

        assert_eq!(region(burst).fired(World::default), None);
        let longer = Activity { window: count(600, 0), ..burst };
        assert_eq!(region(longer).fired(World::default), Some(GuardScope::Region));
    }

    #[test]
    fn no_rule_holds_for_what_an_operator_allows() {
        let allowed = Activity { allowed: true, ..activity(9_999, 0) };
        let levels = Levels { prefix: allowed, range: allowed, region: Some(allowed) };

        assert_eq!(levels.fired(World::default), None);
        assert_eq!(rule("region:1:100").test.fires(&levels, World::default), None);
    }

    #[test]
    fn two_buckets_roll() {
        let now = Rolling { sends: 10, approvals: 4, ..Rolling::default() };
        assert_eq!(now.over(HOUR), count(10, 4));

        let half = now.later(HOUR / 2, HOUR);
        assert_eq!(half.over(HOUR), count(10, 4), "the window still covers all");

        let next = half.later(HOUR, HOUR);
        assert_eq!((next.sends, next.sends_before, next.age), (0, 10, HOUR / 2));
        assert_eq!(next.over(HOUR), count(5, 2), "half of the bucket before");

        assert_eq!(next.later(HOUR / 2, HOUR).over(HOUR), count(0, 0));
        assert_eq!(now.later(3 * HOUR, HOUR), Rolling::default());
    }
}
