use std::{borrow::Cow, collections::BTreeSet, fmt, str::FromStr};

use crate::PhoneNumber;

/// The region of a number: a country, by its ISO 3166-1 code of two capital letters, or
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

/// The use of a number according to its numbering plan.
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

/// A number that exists in a numbering plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Number {
    /// The canonical form, however the number was written. Limits, the guard and checks use it.
    pub phone: PhoneNumber,
    /// [`Region::NON_GEOGRAPHIC`] if the number belongs to no country.
    pub region: Option<Region>,
    pub kind: NumberType,
}

/// The recipient of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Recipient {
    Number(Number),
    /// Digits that no numbering plan contains, without leading zeros: with them, each spelling would
    /// have counters of its own.
    Unreadable(PhoneNumber),
}

/// The rules for which numbers receive messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NumberRules {
    pub allowed: Regions,
    pub refused: BTreeSet<NumberType>,
}

/// The reason why a number receives no messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NumberRefused {
    #[error("numbers of this region are refused")]
    Region,
    #[error("numbers of this type are refused")]
    Type,
    #[error("digits that no numbering plan contains are refused")]
    Unreadable,
}

impl Recipient {
    /// Returns the number that limits, the guard and checks use.
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

    /// Returns the key of limits by prefix. Unreadable recipients and numbers never share a key.
    pub fn prefix_key(&self) -> Cow<'_, str> {
        match self {
            Self::Number(number) => number.phone.prefix().into(),
            Self::Unreadable(text) => format!("?{}", text.prefix()).into(),
        }
    }

    /// Returns the key of limits by region, or `None` if the recipient is not counted by region.
    pub fn region_key(&self) -> Option<&str> {
        match self {
            Self::Number(number) => number.region.as_ref().map(Region::as_str),
            Self::Unreadable(_) => Some("?"),
        }
    }
}

impl Region {
    /// The region of calling codes that belong to no country, such as satellite networks (+870,
    /// +881), international networks (+882, +883) and international premium rate (+979). UN M.49
    /// and the numbering plans use the same name.
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
    /// Every country. Does not include [`Region::NON_GEOGRAPHIC`].
    pub const EVERY_COUNTRY: Self =
        Self { every_country: true, non_geographic: false, countries: BTreeSet::new() };
    pub const NONE: Self =
        Self { every_country: false, non_geographic: false, countries: BTreeSet::new() };

    /// Returns the countries that are listed by code.
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

/// Parses `none` or a comma-separated list of regions. `*` stands for every country.
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
    /// Refuses no number.
    pub const NONE: Self = Self { allowed: Regions::ALL, refused: BTreeSet::new() };

    /// Checks whether a number may receive messages. No list of countries contains a number without
    /// a region.
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

/// Allows every country. Refuses types that cannot receive an SMS or that earn money for their owner.
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
    fn a_region_is_two_capital_letters_or_001() {
        assert_eq!("DE".parse::<Region>().unwrap().as_str(), "DE");
        assert_eq!("001".parse(), Ok(Region::NON_GEOGRAPHIC));
        assert_eq!(Region::NON_GEOGRAPHIC.as_str(), "001");
        for bad in ["", "D", "de", "DEU", "D1", "ы", "*", "002", "000", "1"] {
            assert_eq!(bad.parse::<Region>(), Err(InvalidRegion), "{bad}");
        }
    }

    #[test]
    fn each_number_type_parses_from_its_text() {
        for kind in NumberType::ALL {
            assert_eq!(kind.as_str().parse(), Ok(kind));
        }
        assert_eq!("Mobile".parse::<NumberType>(), Err(InvalidNumberType));
    }

    #[test]
    fn unlisted_regions_and_refused_types_are_refused() {
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
    fn non_geographic_numbers_are_refused_unless_001_is_listed() {
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
    fn premium_rate_shared_cost_and_fixed_line_are_refused_by_default() {
        let rules = NumberRules::default();

        assert_eq!(rules.check(None, NumberType::Mobile), Ok(()));
        assert_eq!(rules.check(Some(region("US")), NumberType::FixedLineOrMobile), Ok(()));
        for kind in [NumberType::PremiumRate, NumberType::SharedCost, NumberType::FixedLine] {
            assert_eq!(rules.check(Some(region("US")), kind), Err(NumberRefused::Type));
        }
    }
}
