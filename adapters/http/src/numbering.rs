//! Parses phone numbers by the numbering plans of the world.

use domain::{Number, NumberType, PhoneNumber, Recipient, Region};
use rlibphonenumber::{PHONE_NUMBER_UTIL, PhoneNumberFormat, PhoneNumberType};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum InvalidNumber {
    Form,
    Unassigned,
}

impl InvalidNumber {
    pub(crate) const fn detail(self) -> &'static str {
        match self {
            Self::Form => {
                "must be a number in international form: an optional +, then 7 to 15 digits that do \
                 not begin with 0"
            }
            Self::Unassigned => "must be a valid number of a numbering plan",
        }
    }
}

/// Returns whether a region has a numbering plan. A region without one is most likely a typo.
pub fn has_numbers(region: Region) -> bool {
    let mut regions = PHONE_NUMBER_UTIL.get_supported_regions();
    regions.any(|known| known.as_region_str().as_str() == region.as_str())
}

/// Parses a number in international form, with or without `+`.
///
/// With a default region, digits without `+` are first read as dialled there, unless they begin
/// with the country code of that region.
pub(crate) fn number(text: &str, default: Option<Region>) -> Result<Number, InvalidNumber> {
    let international = is_international(text);
    let national = default.filter(|_| is_national(text));
    if !international && national.is_none() {
        return Err(InvalidNumber::Form);
    }
    let dialled = || national.and_then(|region| look_up(text, Some(region)));
    let in_full = international.then(|| look_up(&with_plus(text), None)).flatten();
    // Digits with the region's own country code are international, even if the plan also has them
    // as a national number.
    let at_home = in_full.as_ref().is_some_and(|it| it.region.is_some() && it.region == default);
    let number = if at_home { in_full } else { dialled().or(in_full) };
    number.ok_or(InvalidNumber::Unassigned)
}

/// Parses a number that may have received a code. `/api` also sends to numbers outside of every
/// plan.
pub(crate) fn sent_to(text: &str, default: Option<Region>) -> Result<PhoneNumber, InvalidNumber> {
    match number(text, default) {
        Ok(number) => Ok(number.phone),
        Err(InvalidNumber::Unassigned) if is_international(text) => {
            as_written(text).ok_or(InvalidNumber::Form)
        }
        Err(error) => Err(error),
    }
}

/// Reads digits that a client of `/api` wrote. They may be in international form, also after zeros,
/// or as dialled in the default region.
///
/// If both readings give a number, the international form counts, as in the contract of `/api` and
/// at the gateway. Digits that begin with 0 are first read as dialled, because no country code
/// begins with 0.
pub fn recipient(written: &PhoneNumber, default: Option<Region>) -> Recipient {
    let digits = written.as_str();
    let significant = digits.trim_start_matches('0');
    let international = || (significant.len() >= 7).then(|| look_up(&with_plus(significant), None));
    let national = |digits| default.and_then(|region| look_up(digits, Some(region)));
    let dialled = if digits.starts_with('0') { national(digits) } else { None };
    let number = dialled
        .or_else(|| international().flatten())
        .or_else(|| national(digits))
        .or_else(|| national(significant));
    // A text of only zeros is kept.
    let unreadable = || significant.parse().unwrap_or_else(|_| written.clone());
    number.map_or_else(|| Recipient::Unreadable(unreadable()), Recipient::Number)
}

/// Returns the digits of a number in international form, even if it is in no plan.
pub(crate) fn as_written(text: &str) -> Option<PhoneNumber> {
    if !is_international(text) {
        return None;
    }
    text.strip_prefix('+').unwrap_or(text).parse().ok()
}

/// Returns whether a text may go to the library: an optional `+` and 7 to 15 digits. The library
/// also accepts letters, extensions and more digits, and some of them change the number.
fn is_international(text: &str) -> bool {
    let digits = text.strip_prefix('+').unwrap_or(text);
    (7..=15).contains(&digits.len()) && !digits.starts_with('0') && is_digits(digits)
}

/// Returns whether a text may be a number as dialled in its country: `^0?[0-9]{4,14}$`.
fn is_national(text: &str) -> bool {
    let short = (4..=14).contains(&text.len());
    (short || text.len() == 15 && text.starts_with('0')) && is_digits(text)
}

fn is_digits(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_digit())
}

fn with_plus(text: &str) -> String {
    if text.starts_with('+') { text.to_owned() } else { format!("+{text}") }
}

/// Looks up a number in the library. This is the only call of it.
fn look_up(text: &str, region: Option<Region>) -> Option<Number> {
    let region = match region {
        Some(region) => Some(region.as_str().parse().ok()?),
        None => None,
    };
    let number = PHONE_NUMBER_UTIL.parse(text, region).ok()?;
    // A number with a type is valid. `is_valid_number` would determine the type once more.
    let kind = kind(PHONE_NUMBER_UTIL.get_number_type(&number));
    if kind == NumberType::Unknown {
        return None;
    }
    let phone = PHONE_NUMBER_UTIL.format(&number, PhoneNumberFormat::E164);
    let region = PHONE_NUMBER_UTIL.get_region_for_number(&number);
    Some(Number {
        phone: phone.strip_prefix('+')?.parse().ok()?,
        region: region.and_then(|region| region.as_region_str().as_str().parse().ok()),
        kind,
    })
}

const fn kind(kind: PhoneNumberType) -> NumberType {
    match kind {
        PhoneNumberType::FixedLine => NumberType::FixedLine,
        PhoneNumberType::Mobile => NumberType::Mobile,
        PhoneNumberType::FixedLineOrMobile => NumberType::FixedLineOrMobile,
        PhoneNumberType::TollFree => NumberType::TollFree,
        PhoneNumberType::PremiumRate => NumberType::PremiumRate,
        PhoneNumberType::SharedCost => NumberType::SharedCost,
        PhoneNumberType::VoIP => NumberType::Voip,
        PhoneNumberType::PersonalNumber => NumberType::PersonalNumber,
        PhoneNumberType::Pager => NumberType::Pager,
        PhoneNumberType::UAN => NumberType::Uan,
        PhoneNumberType::VoiceMail => NumberType::Voicemail,
        PhoneNumberType::Unknown => NumberType::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use domain::{NumberRefused, NumberRules};
    use proptest::prelude::*;

    use super::*;

    fn region(code: &str) -> Region {
        code.parse().unwrap()
    }

    #[test]
    fn numbers_are_parsed_as_in_the_table() {
        #[track_caller]
        fn check(text: &str, expected: Result<(&str, &str, NumberType), InvalidNumber>) {
            let found = number(text, None);
            let expected = expected.map(|(phone, code, kind)| Number {
                phone: phone.parse().unwrap(),
                region: Some(region(code)),
                kind,
            });
            assert_eq!(found, expected, "{text}");
        }

        check("+79991234567", Ok(("79991234567", "RU", NumberType::Mobile)));
        check("79991234567", Ok(("79991234567", "RU", NumberType::Mobile)));
        check("+390612345678", Ok(("390612345678", "IT", NumberType::FixedLine)));
        check("+447911123456", Ok(("447911123456", "GG", NumberType::Mobile)));
        check("+19005551234", Ok(("19005551234", "US", NumberType::PremiumRate)));
        check("+16502530000", Ok(("16502530000", "US", NumberType::FixedLineOrMobile)));
        for unassigned in
            ["+97233142764978", "+89999999999", "+447700900123", "+7999123456", "1234567"]
        {
            check(unassigned, Err(InvalidNumber::Unassigned));
        }
        for form in [
            "",
            "+",
            "+3367a829916",
            "+8801712345678;ext=5",
            "tel:+79991234567",
            "+7 999 123 45 67",
            "+7(999)1234567",
            " +79991234567",
            "+79991234567\n",
            "++79991234567",
            "79991234567+",
            "+0999123456",
            "0999123456",
            "+799912",
            "+7999123456789012",
            "٧٩٩٩١٢٣٤٥٦٧",
            "+７９９９１２３４５６７",
            "+1800FLOWERS",
        ] {
            check(form, Err(InvalidNumber::Form));
        }
    }

    #[test]
    fn premium_numbers_are_refused_by_default() {
        let rules = NumberRules::default();
        let check = |text| {
            let number = number(text, None).unwrap();
            rules.check(number.region, number.kind)
        };

        assert_eq!(check("+79991234567"), Ok(()));
        assert_eq!(check("+16502530000"), Ok(()));
        assert_eq!(check("+19005551234"), Err(NumberRefused::Type));
        assert_eq!(check("+18002530000"), Err(NumberRefused::Type));
        assert_eq!(check("+390612345678"), Err(NumberRefused::Type));
    }

    #[test]
    fn numbers_of_no_country_have_the_non_geographic_region() {
        for text in [
            "+80012345678",
            "+80812345678",
            "+870301234567",
            "+878101234567890",
            "+881612345678",
            "+8823421234",
            "+883510012345",
            "+88812345678901",
            "+979123456789",
        ] {
            let number = number(text, None).unwrap();

            assert_eq!(number.region, Some(Region::NON_GEOGRAPHIC), "{text}");
            let refused = NumberRules::default().check(number.region, number.kind);
            assert_eq!(refused, Err(NumberRefused::Region), "{text}");
        }
    }

    #[test]
    fn national_numbers_are_accepted_in_the_default_region() {
        #[track_caller]
        fn check(text: &str, code: &str, expected: Result<&str, InvalidNumber>) {
            let found = number(text, Some(region(code))).map(|number| number.phone);
            assert_eq!(found, expected.map(|phone| phone.parse().unwrap()), "{text} in {code}");
        }

        check("89991234567", "RU", Ok("79991234567"));
        check("9991234567", "RU", Ok("79991234567"));
        check("79991234567", "RU", Ok("79991234567"));
        check("+79991234567", "RU", Ok("79991234567"));
        check("89999999999", "RU", Ok("79999999999"));
        check("015123456789", "DE", Ok("4915123456789"));
        check("4915123456789", "DE", Ok("4915123456789"));
        // An E.164 number of another country is still read as such without its plus.
        check("79991234567", "DE", Ok("79991234567"));
        check("+79991234567", "DE", Ok("79991234567"));
        check("123", "RU", Err(InvalidNumber::Form));
        check("1234", "RU", Err(InvalidNumber::Unassigned));
        check("8 999 123 45 67", "RU", Err(InvalidNumber::Form));
        check("8999123456a", "RU", Err(InvalidNumber::Form));
        check("1123456789012345", "RU", Err(InvalidNumber::Form));
    }

    #[test]
    fn all_spellings_of_a_number_are_one_recipient() {
        #[track_caller]
        fn check(default: Option<&str>, phone: &str, code: &str, spellings: &[&str]) {
            let default = default.map(region);
            for text in spellings {
                let Recipient::Number(found) = recipient(&text.parse().unwrap(), default) else {
                    panic!("{text} cannot be read")
                };
                assert_eq!((found.phone.as_str(), found.region), (phone, Some(region(code))));
            }
        }

        let russian =
            ["79991234567", "079991234567", "0079991234567", "00079991234567", "000079991234567"];
        check(None, "79991234567", "RU", &russian);
        check(Some("DE"), "79991234567", "RU", &russian);
        check(Some("RU"), "79991234567", "RU", &russian);
        check(
            Some("RU"),
            "79991234567",
            "RU",
            &["89991234567", "81079991234567", "089991234567", "0089991234567"],
        );
        check(Some("RU"), "74951234567", "RU", &["74951234567"]);
        check(Some("US"), "12025550123", "US", &["12025550123", "0012025550123"]);
        check(Some("DE"), "15123456789", "US", &["15123456789"]);
        let german = ["4915123456789", "004915123456789", "49015123456789"];
        check(None, "4915123456789", "DE", &german);
        check(Some("DE"), "4915123456789", "DE", &["015123456789", "4915123456789"]);
    }

    #[test]
    fn digits_that_can_be_read_in_both_ways_are_in_international_form() {
        for (default, text, code) in
            [("BR", "51987654321", "PE"), ("CN", "13152345678", "US"), ("RU", "84951234567", "VN")]
        {
            let written: PhoneNumber = text.parse().unwrap();
            assert!(number(text, Some(region(default))).unwrap().phone != written, "as dialled");

            let Recipient::Number(found) = recipient(&written, Some(region(default))) else {
                panic!("{text} cannot be read")
            };
            assert_eq!((found.phone, found.region), (written, Some(region(code))), "{text}");
        }
    }

    #[test]
    fn digits_outside_of_every_plan_are_one_recipient_with_any_leading_zeros() {
        for text in ["89991234567", "089991234567", "0089991234567", "000089991234567"] {
            let found = recipient(&text.parse().unwrap(), None);
            assert_eq!(found, Recipient::Unreadable("89991234567".parse().unwrap()), "{text}");
        }
        let zeros: PhoneNumber = "00000000000".parse().unwrap();
        assert_eq!(recipient(&zeros, None), Recipient::Unreadable(zeros));
    }

    #[test]
    fn digits_outside_of_every_plan_are_unreadable() {
        for (text, default) in
            [("89999999999", None), ("00000000000", Some("RU")), ("99999999999", Some("DE"))]
        {
            let written: PhoneNumber = text.parse().unwrap();
            let found = recipient(&written, default.map(region));
            assert_eq!(found, Recipient::Unreadable(written), "{text}");
        }
    }

    #[test]
    fn only_regions_with_a_plan_have_numbers() {
        for region in ["RU", "DE", "US", "XK", "TA"] {
            assert!(has_numbers(region.parse().unwrap()), "{region}");
        }
        for none in ["XX", "UK", "SU", "ZZ", "EU"] {
            assert!(!has_numbers(none.parse().unwrap()), "{none}");
        }
    }

    #[test]
    fn numbers_that_api_sent_to_can_be_checked() {
        let check = |text: &str| sent_to(text, None).map(|phone| phone.as_str().to_owned());

        assert_eq!(check("+79991234567").as_deref(), Ok("79991234567"));
        assert_eq!(check("89999999999").as_deref(), Ok("89999999999"));
        assert_eq!(check("+89999999999").as_deref(), Ok("89999999999"));
        assert_eq!(check("0999999999"), Err(InvalidNumber::Form));
        assert_eq!(check("8999999999a"), Err(InvalidNumber::Form));
    }

    proptest! {
        #[test]
        fn number_with_a_type_is_valid(
            text in "[+](7[3489]|44[127]|1[2-9]|49[13]|39|88|[1-9])[0-9]{5,10}",
        ) {
            let valid = PHONE_NUMBER_UTIL
                .parse(&text, None)
                .is_ok_and(|number| PHONE_NUMBER_UTIL.is_valid_number(&number));
            prop_assert_eq!(look_up(&text, None).is_some(), valid);
        }

        #[test]
        fn parsing_is_idempotent(
            text in "[+]?[0-9]{3,16}|.{0,20}",
            default in proptest::option::of(Just("RU".parse::<Region>().unwrap())),
        ) {
            if let Ok(found) = number(&text, default) {
                let again = number(&format!("+{}", found.phone.as_str()), default);
                prop_assert_eq!(again, Ok(found));
            }
        }
    }
}
