use std::{borrow::Cow, collections::BTreeSet, fmt, str::FromStr};

use crate::PhoneNumber;

/// Where a number belongs: a country by its ISO 3166-1 code of two capital letters, or
/// [`Region::NON_GEOGRAPHIC`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Region([u8; 3]);

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a region is a code of two capital letters, or 001")]
pub struct InvalidRegion;

/// The regions that messages are sent to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Regions {
    every_country: bool,
    non_geographic: bool,
    countries: BTreeSet<Region>,
}

/// What a number is used for, as its numbering plan says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum NumberType {
    Mobile,
    FixedLineOrMobile,
    FixedLine,
    TollFree,
    PremiumRate,
    SharedCost,
    Voip,
    PersonalNumber,
    Pager,
    Uan,
    Voicemail,
    Unknown,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a type of number")]
pub struct InvalidNumberType;

/// A number that a numbering plan has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Number {
    /// Its one form, however it was written: limits, the guard and checks go by it.
    pub phone: PhoneNumber,
    /// [`Region::NON_GEOGRAPHIC`]: it belongs to no country.
    pub region: Option<Region>,
    pub kind: NumberType,
}

/// Where a message goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Recipient {
    Number(Number),
    /// A text of digits that no numbering plan has. It stands for itself only.
    Unreadable(PhoneNumber),
}

/// Which numbers anything is sent to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NumberRules {
    pub allowed: Regions,
    pub refused: BTreeSet<NumberType>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NumberRefused {
    #[error("nothing is sent to numbers of this region")]
    Region,
    #[error("nothing is sent to numbers of this type")]
    Type,
    #[error("nothing is sent to what is not a number of a numbering plan")]
    Unreadable,
}

impl Recipient {
    /// What limits, the guard and checks know the recipient by.
    pub const fn phone(&self) -> &PhoneNumber {
        match self {
            Self::Number(number) => &number.phone,
            Self::Unreadable(text) => text,
        }
    }

    pub const fn region(&self) -> Option<Region> {
        match self {
            Self::Number(number) => number.region,
            Self::Unreadable(_) => None,
        }
    }

    /// What a limit by prefix counts it under. Texts that are no numbers share none with numbers.
    pub fn prefix_key(&self) -> Cow<'_, str> {
        match self {
            Self::Number(number) => number.phone.prefix().into(),
            Self::Unreadable(text) => format!("?{}", text.prefix()).into(),
        }
    }

    /// What a limit by region counts it under; none: it is not counted.
    pub fn region_key(&self) -> Option<&str> {
        match self {
            Self::Number(number) => number.region.as_ref().map(Region::as_str),
            Self::Unreadable(_) => Some("?"),
        }
    }
}

impl Region {
    /// The region of calling codes that belong to no country: satellite networks (+870, +881),
    /// international networks (+882, +883), international premium rate (+979) and the like. Named
    /// as in UN M.49 and in the numbering plans.
    pub const NON_GEOGRAPHIC: Self = Self(*b"001");

    pub fn as_str(&self) -> &str {
        str::from_utf8(&self.0).unwrap_or_default().trim_end_matches('\0')
    }
}

impl FromStr for Region {
    type Err = InvalidRegion;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.as_bytes() {
            [first @ b'A'..=b'Z', second @ b'A'..=b'Z'] => Ok(Self([*first, *second, 0])),
            b"001" => Ok(Self::NON_GEOGRAPHIC),
            _ => Err(InvalidRegion),
        }
    }
}

impl fmt::Debug for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Region({})", self.as_str())
    }
}

impl Regions {
    pub const ALL: Self =
        Self { every_country: true, non_geographic: true, countries: BTreeSet::new() };
    /// [`Region::NON_GEOGRAPHIC`] is no country.
    pub const EVERY_COUNTRY: Self =
        Self { every_country: true, non_geographic: false, countries: BTreeSet::new() };
    pub const NONE: Self =
        Self { every_country: false, non_geographic: false, countries: BTreeSet::new() };

    /// The countries that are listed by their codes.
    pub fn countries(&self) -> impl Iterator<Item = &Region> {
        self.countries.iter()
    }

    fn contains(&self, region: Option<Region>) -> bool {
        match region {
            Some(Region::NON_GEOGRAPHIC) => self.non_geographic,
            Some(country) => self.every_country || self.countries.contains(&country),
            None => self.every_country,
        }
    }
}

/// Reads `none`, or regions by comma; `*` stands for every country.
impl FromStr for Regions {
    type Err = InvalidRegion;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut regions = Self::NONE;
        if text == "none" {
            return Ok(regions);
        }
        for word in text.split(',').map(str::trim) {
            if word == "*" {
                regions.every_country = true;
                continue;
            }
            match word.parse()? {
                Region::NON_GEOGRAPHIC => regions.non_geographic = true,
                country => {
                    regions.countries.insert(country);
                }
            }
        }
        Ok(regions)
    }
}

impl NumberType {
    pub const ALL: [Self; 12] = [
        Self::Mobile,
        Self::FixedLineOrMobile,
        Self::FixedLine,
        Self::TollFree,
        Self::PremiumRate,
        Self::SharedCost,
        Self::Voip,
        Self::PersonalNumber,
        Self::Pager,
        Self::Uan,
        Self::Voicemail,
        Self::Unknown,
    ];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Mobile => "mobile",
            Self::FixedLineOrMobile => "fixed_line_or_mobile",
            Self::FixedLine => "fixed_line",
            Self::TollFree => "toll_free",
            Self::PremiumRate => "premium_rate",
            Self::SharedCost => "shared_cost",
            Self::Voip => "voip",
            Self::PersonalNumber => "personal_number",
            Self::Pager => "pager",
            Self::Uan => "uan",
            Self::Voicemail => "voicemail",
            Self::Unknown => "unknown",
        }
    }
}

impl FromStr for NumberType {
    type Err = InvalidNumberType;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|it| it.as_str() == text).ok_or(InvalidNumberType)
    }
}

impl NumberRules {
    /// No number is refused.
    pub const NONE: Self = Self { allowed: Regions::ALL, refused: BTreeSet::new() };

    /// Whether anything is sent to a number. One without a region is in no list of countries.
    pub fn check(&self, region: Option<Region>, kind: NumberType) -> Result<(), NumberRefused> {
        if !self.allowed.contains(region) {
            return Err(NumberRefused::Region);
        }
        if self.refused.contains(&kind) {
            return Err(NumberRefused::Type);
        }
        Ok(())
    }
}

/// Every country, and no number that cannot take an SMS or that pays its owner.
impl Default for NumberRules {
    fn default() -> Self {
        let kept = [NumberType::Mobile, NumberType::FixedLineOrMobile, NumberType::Unknown];
        let refused = NumberType::ALL.into_iter().filter(|kind| !kept.contains(kind));
        Self { allowed: Regions::EVERY_COUNTRY, refused: refused.collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn region(text: &str) -> Region {
        text.parse().unwrap()
    }

    #[test]
    fn a_region_is_two_capital_letters() {
        assert_eq!("DE".parse::<Region>().unwrap().as_str(), "DE");
        assert_eq!("001".parse(), Ok(Region::NON_GEOGRAPHIC));
        assert_eq!(Region::NON_GEOGRAPHIC.as_str(), "001");
        for bad in ["", "D", "de", "DEU", "D1", "ы", "*", "002", "000", "1"] {
            assert_eq!(bad.parse::<Region>(), Err(InvalidRegion), "{bad}");
        }
    }

    #[test]
    fn types_are_read_as_they_are_written() {
        for kind in NumberType::ALL {
            assert_eq!(kind.as_str().parse(), Ok(kind));
        }
        assert_eq!("Mobile".parse::<NumberType>(), Err(InvalidNumberType));
    }

    #[test]
    fn only_listed_regions_and_types_that_are_not_refused() {
        let rules = NumberRules {
            allowed: "DE,AT".parse().unwrap(),
            refused: BTreeSet::from([NumberType::PremiumRate]),
        };

        assert_eq!(rules.check(Some(region("DE")), NumberType::Mobile), Ok(()));
        assert_eq!(rules.check(Some(region("AT")), NumberType::FixedLine), Ok(()));
        assert_eq!(rules.check(Some(region("CH")), NumberType::Mobile), Err(NumberRefused::Region));
        assert_eq!(rules.check(None, NumberType::Mobile), Err(NumberRefused::Region));
        assert_eq!(
            rules.check(Some(region("DE")), NumberType::PremiumRate),
            Err(NumberRefused::Type)
        );
    }

    #[test]
    fn numbers_of_no_country_are_refused_unless_their_region_is_listed() {
        for (allowed, country, other) in [
            ("*", true, false),
            ("*,001", true, true),
            ("DE,001", true, true),
            ("001", false, true),
            ("AT", false, false),
            ("none", false, false),
        ] {
            let rules = NumberRules { allowed: allowed.parse().unwrap(), ..NumberRules::default() };
            let takes = |region| rules.check(Some(region), NumberType::Mobile).is_ok();

            assert_eq!(takes(region("DE")), country, "{allowed}");
            assert_eq!(takes(Region::NON_GEOGRAPHIC), other, "{allowed}");
        }
        assert_eq!("DE,".parse::<Regions>(), Err(InvalidRegion));
    }

    #[test]
    fn by_default_premium_rate_and_the_like_are_refused_everywhere() {
        let rules = NumberRules::default();

        assert_eq!(rules.check(None, NumberType::Mobile), Ok(()));
        assert_eq!(rules.check(Some(region("US")), NumberType::FixedLineOrMobile), Ok(()));
        for kind in [NumberType::PremiumRate, NumberType::SharedCost, NumberType::FixedLine] {
            assert_eq!(rules.check(Some(region("US")), kind), Err(NumberRefused::Type));
        }
    }
}
