use std::{fmt, str::FromStr};

/// A subscriber number in international form (ITU-T E.164): 7 to 15 digits, no leading `+`.
///
/// The first may be 0, though no country's is: the Go predecessor took such numbers.
///
/// Holding one proves the text was checked, so nothing downstream checks it again.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PhoneNumber(String);

/// Why a text is not a phone number. Says nothing of the text itself.
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

    /// The number with its middle hidden, for whoever has it: `+7999*****67`.
    ///
    /// Five digits at least are hidden: of a short number, less is shown.
    pub fn masked(&self) -> String {
        let (first, rest) = self.0.split_at((self.0.len() - 7).min(4));
        let (hidden, last) = rest.split_at(rest.len() - 2);
        format!("+{first}{}{last}", "*".repeat(hidden.len()))
    }

    /// The number without its last four digits, which it shares with up to 9,999 others.
    pub fn prefix(&self) -> &str {
        &self.0[..self.0.len() - 4]
    }

    /// The number without its last six digits, but at least the first four or its prefix: what it
    /// shares with up to 999,999 others.
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

/// Shows the last two digits only: enough to tell two numbers apart, too few to call one.
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
    fn takes_seven_to_fifteen_ascii_digits() {
        check("899999", Err(InvalidPhoneNumber::Length { found: 6 }));
        check("8999999", Ok(()));
        check("00000000000", Ok(()));
        check("899999999999999", Ok(()));
        check("8999999999999999", Err(InvalidPhoneNumber::Length { found: 16 }));
        check("", Err(InvalidPhoneNumber::Length { found: 0 }));
    }

    #[test]
    fn refuses_every_other_character() {
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
    fn masked_shows_four_digits_and_two_at_most() {
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
    fn a_prefix_lacks_four_digits() {
        assert_eq!("79991234567".parse::<PhoneNumber>().unwrap().prefix(), "7999123");
        assert_eq!("1234567".parse::<PhoneNumber>().unwrap().prefix(), "123");
    }

    #[test]
    fn a_range_lacks_six_digits_and_is_no_shorter_than_four() {
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
        fn a_parsed_number_is_the_text_it_was_parsed_from(text in "[0-9]{7,15}") {
            let phone: PhoneNumber = text.parse().unwrap();

            prop_assert_eq!(phone.as_str(), text);
        }

        #[test]
        fn any_text_is_parsed_or_refused_without_a_panic(text in "\\PC*") {
            let digits = text.len() >= 7 && text.len() <= 15
                && text.bytes().all(|byte| byte.is_ascii_digit());

            prop_assert_eq!(text.parse::<PhoneNumber>().is_ok(), digits);
        }
    }
}
