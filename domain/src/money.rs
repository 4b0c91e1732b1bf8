use std::{collections::BTreeMap, fmt, str::FromStr};

use crate::Region;

/// An amount of money in the operator's currency, in whole millionths.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Amount(u64);

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an amount is a decimal number from 0 to 1000000000 with at most six decimals")]
pub struct InvalidAmount;

/// The prices of a segment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Prices {
    /// The price in regions without a price of their own.
    pub default: Option<Amount>,
    pub by_region: BTreeMap<Region, Amount>,
}

/// The limits on the daily cost of a gateway. A limit that is `None` does not exist.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Budget {
    pub total: Option<Amount>,
    /// The limit for all regions other than the operator's own.
    pub international: Option<Amount>,
    pub by_region: BTreeMap<Region, Amount>,
}

const MILLION: u64 = 1_000_000;
const LARGEST: u64 = 1_000_000_000 * MILLION;

impl Amount {
    pub const ZERO: Self = Self(0);

    pub const fn from_millionths(millionths: u64) -> Self {
        Self(millionths)
    }

    pub const fn millionths(self) -> u64 {
        self.0
    }
}

impl Prices {
    /// Returns the price of one segment to a region, or `None` if it is not known.
    pub fn of(&self, region: Option<Region>) -> Option<Amount> {
        region.and_then(|region| self.by_region.get(&region).copied()).or(self.default)
    }
}

impl FromStr for Amount {
    type Err = InvalidAmount;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (whole, decimals) = text.split_once('.').unwrap_or((text, "0"));
        let are_digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
        if whole.is_empty() || !are_digits(whole) || !are_digits(decimals) {
            return Err(InvalidAmount);
        }
        if !(1..=6).contains(&decimals.len()) {
            return Err(InvalidAmount);
        }
        let whole: u64 = whole.parse().map_err(|_| InvalidAmount)?;
        let parts: u64 = format!("{decimals:0<6}").parse().map_err(|_| InvalidAmount)?;
        let amount = whole.checked_mul(MILLION).and_then(|it| it.checked_add(parts));
        amount.filter(|it| *it <= LARGEST).map(Self).ok_or(InvalidAmount)
    }
}

/// Shows the amount with the decimals that it needs: `0.05`, `100`.
impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0 / MILLION)?;
        match self.0 % MILLION {
            0 => Ok(()),
            parts => write!(f, ".{}", format!("{parts:06}").trim_end_matches('0')),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn check(text: &str, expected: Option<u64>) {
        assert_eq!(text.parse().ok().map(Amount::millionths), expected, "{text:?}");
    }

    #[test]
    fn amount_is_a_decimal_number_with_up_to_six_decimals() {
        check("0", Some(0));
        check("0.05", Some(50_000));
        check("100.0", Some(100_000_000));
        check("0.000001", Some(1));
        check("1000000000", Some(LARGEST));
        check("1000000000.000001", None);
        check("99999999999999999999", None);
        check("0.0000001", None);
        check("1e-7", None);
        for text in ["", ".", "1.", ".5", "-1", "+1", "1,5", "1.5.2", " 1", "٣"] {
            check(text, None);
        }
    }

    #[test]
    fn price_of_a_region_comes_before_the_default() {
        let amount = |text: &str| text.parse::<Amount>().unwrap();
        let region = |text: &str| text.parse::<Region>().ok();
        let by_region = [(region("RU").unwrap(), amount("0.03"))].into();
        let prices = Prices { default: Some(amount("0.05")), by_region };

        assert_eq!(prices.of(region("RU")), Some(amount("0.03")));
        assert_eq!(prices.of(region("KZ")), Some(amount("0.05")));
        assert_eq!(prices.of(None), Some(amount("0.05")));
        assert_eq!(Prices::default().of(region("RU")), None);
    }

    proptest! {
        #[test]
        fn shown_amount_is_read_as_the_same(millionths in 0..=LARGEST) {
            let amount = Amount::from_millionths(millionths);

            prop_assert_eq!(amount.to_string().parse(), Ok(amount));
        }
    }
}
