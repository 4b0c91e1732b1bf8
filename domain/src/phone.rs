use std::{fmt, str::FromStr};

/// A subscriber number in international form (ITU-T E.164): 7 to 15 digits, no leading `+`.
///
/// The first digit may be 0, although no country code begins with 0, because the Go service accepts
/// such numbers.
///
/// A value of this type is already checked, so later code does not check it again.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PhoneNumber(String);

/// The reason why a text is not a phone number. The error does not contain the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidPhoneNumber {
    #[error("a phone number has only the digits 0 to 9, without a leading +")]
    NotDigits,
    #[error("a phone number has 7 to 15 digits, this one has {found}")]
    Length { found: usize },
}

impl PhoneNumber {
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the number with its middle hidden: `+7999*****67`. Only someone who knows the number
    /// recognises it.
    ///
    /// At least five digits are hidden, so a short number shows fewer digits.
    pub fn masked(&self) -> String {
        let (first, rest) = self.0.split_at((self.0.len() - 7).min(4));
        let (hidden, last) = rest.split_at(rest.len() - 2);
        format!("+{first}{}{last}", "*".repeat(hidden.len()))
    }

    /// Returns the number without its last four digits. Up to 10,000 numbers share a prefix.
    pub fn prefix(&self) -> &str {
        &self.0[..self.0.len() - 4]
    }

    /// Returns the number without its last six digits, but never fewer than four digits, and never
    /// more than the prefix. Up to 1,000,000 numbers share a range.
    pub fn range(&self) -> &str {
        let prefix = self.prefix();
        let digits = (self.0.len() - 6).max(4).min(prefix.len());
        &prefix[..digits]
    }
}

impl FromStr for PhoneNumber {
    type Err = InvalidPhoneNumber;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if !text.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(InvalidPhoneNumber::NotDigits);
        }
        match text.len() {
            7..=15 => Ok(Self(text.to_owned())),
            found => Err(InvalidPhoneNumber::Length { found }),
        }
    }
}

/// Shows only the last two digits: enough to tell two numbers apart, too few to identify one.
impl fmt::Debug for PhoneNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PhoneNumber(…{})", &self.0[self.0.len() - 2..])
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn check(text: &str, expected: Result<(), InvalidPhoneNumber>) {
        assert_eq!(text.parse::<PhoneNumber>().map(|_| ()), expected, "{text:?}");
    }

    #[test]
    fn a_number_has_seven_to_fifteen_ascii_digits() {
        check("899999", Err(InvalidPhoneNumber::Length { found: 6 }));
        check("8999999", Ok(()));
        check("00000000000", Ok(()));
        check("899999999999999", Ok(()));
        check("8999999999999999", Err(InvalidPhoneNumber::Length { found: 16 }));
        check("", Err(InvalidPhoneNumber::Length { found: 0 }));
    }

    #[test]
    fn any_other_character_is_refused() {
        for text in
            ["+79991234567", "7 9991234567", "7999123456a", "７９９９１２３４５６７", "٧٩٩٩١٢٣٤٥٦٧"]
        {
            check(text, Err(InvalidPhoneNumber::NotDigits));
        }
    }

    #[test]
    fn debug_hides_the_number() {
        let phone: PhoneNumber = "79991234567".parse().unwrap();

        assert_eq!(format!("{phone:?}"), "PhoneNumber(…67)");
    }

    #[test]
    fn masked_shows_at_most_four_leading_and_two_trailing_digits() {
        for (phone, masked) in [
            ("79991234567", "+7999*****67"),
            ("1234567", "+*****67"),
            ("123456789", "+12*****89"),
            ("899999999999999", "+8999*********99"),
        ] {
            assert_eq!(phone.parse::<PhoneNumber>().unwrap().masked(), masked);
        }
    }

    #[test]
    fn a_prefix_omits_the_last_four_digits() {
        assert_eq!("79991234567".parse::<PhoneNumber>().unwrap().prefix(), "7999123");
        assert_eq!("1234567".parse::<PhoneNumber>().unwrap().prefix(), "123");
    }

    #[test]
    fn a_range_omits_the_last_six_digits_but_keeps_four_or_the_prefix() {
        for (phone, range) in [
            ("79991234567", "79991"),
            ("3546112345", "3546"),
            ("29022345", "2902"),
            ("1234567", "123"),
        ] {
            assert_eq!(phone.parse::<PhoneNumber>().unwrap().range(), range);
        }
    }

    proptest! {
        #[test]
        fn a_parsed_number_equals_its_text(text in "[0-9]{7,15}") {
            let phone: PhoneNumber = text.parse().unwrap();

            prop_assert_eq!(phone.as_str(), text);
        }

        #[test]
        fn no_text_causes_a_panic(text in "\\PC*") {
            let digits = text.len() >= 7 && text.len() <= 15
                && text.bytes().all(|byte| byte.is_ascii_digit());

            prop_assert_eq!(text.parse::<PhoneNumber>().is_ok(), digits);
        }
    }
}
