//! How a gateway compares with the others in a region, and which part of its messages it gets for that.

use std::{ops::AddAssign, time::Duration};

use crate::{GatewayName, Region};

/// A gateway, as it is used for the numbers of one region.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RegionalGateway {
    pub gateway: GatewayName,
    /// `None`: numbers of no region.
    pub region: Option<Region>,
}

/// What became of messages that a gateway accepted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HealthCounts {
    pub sent: u32,
    /// Messages of which a receipt came.
    pub reported: u32,
    /// Messages that a receipt reported as delivered in time.
    pub in_time: u32,
    /// Messages whose code was approved without a resend.
    pub approved: u32,
}

/// How a gateway compares with the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Comparison {
    Worse(Lack),
    NotWorse,
    /// There are too few messages, or nothing to compare them by.
    Unknown,
}

/// A share that is clearly lower than that of the other gateways.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lack {
    /// Of codes that were approved.
    Approvals,
    /// Of receipts in time.
    Receipts,
}

/// The part of its messages that a gateway gets in a region. The rest goes to the other gateways first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Factor(u8);

/// A share is compared only if both sides have at least this many messages.
const ENOUGH: u32 = 50;
/// A share is lower if it is less than this part of the other one. GOV.UK Notify began with a tenth and
/// went up to three tenths, because its weights flapped.
const LOWER: f64 = 0.8;
/// How many standard errors the shares must be apart. Chance alone does that once in 700 looks.
const CLEAR: f64 = 3.0;
/// Receipts count against a gateway only if its share of approved codes is below this part of the
/// others': a receipt may be late or lost, and a code that came back did arrive.
const AS_OFTEN: f64 = 0.9;

/// The time between two changes of a factor.
pub const FACTOR_PAUSE: Duration = Duration::from_secs(600);
/// The time after which a lower factor rises although nothing is known of the gateway.
const FORGOTTEN: Duration = Duration::from_secs(1_800);

impl HealthCounts {
    /// Compares with the other gateways of the same region in the same time.
    pub fn compare(&self, others: &[Self]) -> Comparison {
        let all: Self = others.iter().sum();
        let approvals = Shares::of((self.approved, self.sent), (all.approved, all.sent))
            // If no code is approved at any gateway, the callers do not check codes here.
            .filter(|_| self.approved + all.approved > 0);
        // A gateway without receipts may be one that reports none.
        let reporting: Self = others.iter().filter(|it| it.reported > 0).sum();
        let receipts = Shares::of((self.in_time, self.sent), (reporting.in_time, reporting.sent))
            .filter(|_| self.reported > 0);
        let come_back = approvals.is_some_and(|it| it.own >= AS_OFTEN * it.others);
        match (approvals, receipts) {
            (None, None) => Comparison::Unknown,
            (Some(it), _) if it.is_clearly_lower() => Comparison::Worse(Lack::Approvals),
            (_, Some(it)) if it.is_clearly_lower() && !come_back => {
                Comparison::Worse(Lack::Receipts)
            }
            _ => Comparison::NotWorse,
        }
    }
}

/// Two shares to compare.
#[derive(Debug, Clone, Copy)]
struct Shares {
    own: f64,
    others: f64,
    standard_error: f64,
}

impl Shares {
    /// Makes shares of counts and their totals; `None` if there are too few.
    fn of(own: (u32, u32), others: (u32, u32)) -> Option<Self> {
        if own.1.min(others.1) < ENOUGH {
            return None;
        }
        let share = |(part, of): (u32, u32)| f64::from(part) / f64::from(of);
        // Of all messages, as if the gateways were alike.
        let pooled =
            (f64::from(own.0) + f64::from(others.0)) / (f64::from(own.1) + f64::from(others.1));
        let variance = pooled * (1.0 - pooled);
        let standard_error = (variance / f64::from(own.1) + variance / f64::from(others.1)).sqrt();
        Some(Self { own: share(own), others: share(others), standard_error })
    }

    fn is_clearly_lower(&self) -> bool {
        self.own < LOWER * self.others && self.others - self.own >= CLEAR * self.standard_error
    }
}

impl AddAssign for HealthCounts {
    fn add_assign(&mut self, other: Self) {
        self.sent = self.sent.saturating_add(other.sent);
        self.reported = self.reported.saturating_add(other.reported);
        self.in_time = self.in_time.saturating_add(other.in_time);
        self.approved = self.approved.saturating_add(other.approved);
    }
}

impl<'a> std::iter::Sum<&'a Self> for HealthCounts {
    fn sum<I: Iterator<Item = &'a Self>>(counts: I) -> Self {
        counts.fold(Self::default(), |mut sum, it| {
            sum += *it;
            sum
        })
    }
}

impl Lack {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Approvals => "approved codes",
            Self::Receipts => "receipts in time",
        }
    }
}

impl Factor {
    /// The factor of a gateway that is given all of its messages.
    pub const FULL: Self = Self(100);
    /// The lowest factor. It lets the gateway prove itself.
    pub const LOWEST: Self = Self(10);
    const STEPS: [Self; 4] = [Self::LOWEST, Self(25), Self(50), Self::FULL];

    /// Returns the factor that is this percentage, if there is one.
    pub fn from_percent(percent: u8) -> Option<Self> {
        Self::STEPS.into_iter().find(|it| it.0 == percent)
    }

    pub const fn percent(self) -> u8 {
        self.0
    }

    /// Returns the factor as a number between 0 and 1.
    pub fn share(self) -> f64 {
        f64::from(self.0) / 100.0
    }

    /// Returns the factor after a comparison. `unchanged` is how long this one has held; `None` if it has
    /// always held.
    #[must_use]
    pub fn after(self, comparison: Comparison, unchanged: Option<Duration>) -> Self {
        let is_over = |pause| unchanged.is_none_or(|it| it >= pause);
        match comparison {
            _ if !is_over(FACTOR_PAUSE) => self,
            Comparison::Worse(_) => self.lower(),
            Comparison::NotWorse => self.higher(),
            Comparison::Unknown if is_over(FORGOTTEN) => self.higher(),
            Comparison::Unknown => self,
        }
    }

    fn lower(self) -> Self {
        Self::STEPS.into_iter().rev().find(|it| *it < self).unwrap_or(self)
    }

    fn higher(self) -> Self {
        Self::STEPS.into_iter().find(|it| *it > self).unwrap_or(self)
    }
}

#[cfg(test)]
mod tests;
