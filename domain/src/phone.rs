use std::{fmt, str::FromStr};

/// A subscriber number in international form (ITU-T E.164): 11 to 15 digits, no leading `+`.
///
/// Holding one proves the text was checked, so nothing downstream checks it again.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PhoneNumber(String);

/// Why a text is not a phone number. Says nothing of the text itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidPhoneNumber {
    #[error("a phone number has only the digits 0 to 9, without a leading +")]
    NotDigits,
    #[error("a phone number has 11 to 15 digits, this one has {found}")]
    Length { found: usize },
}

impl PhoneNumber {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for PhoneNumber {
    type Err = InvalidPhoneNumber;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if !text.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(InvalidPhoneNumber::NotDigits);
        }
        match text.len() {
            11..=15 => Ok(Self(text.to_owned())),
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
    fn takes_eleven_to_fifteen_ascii_digits() {
        check("8999999999", Err(InvalidPhoneNumber::Length { found: 10 }));
        check("89999999999", Ok(()));
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

    proptest! {
        #[test]
        fn a_parsed_number_is_the_text_it_was_parsed_from(text in "[0-9]{11,15}") {
            let phone: PhoneNumber = text.parse().unwrap();

            prop_assert_eq!(phone.as_str(), text);
        }

        #[test]
        fn any_text_is_parsed_or_refused_without_a_panic(text in "\\PC*") {
            let digits = text.len() >= 11 && text.len() <= 15
                && text.bytes().all(|byte| byte.is_ascii_digit());

            prop_assert_eq!(text.parse::<PhoneNumber>().is_ok(), digits);
        }
    }
}
