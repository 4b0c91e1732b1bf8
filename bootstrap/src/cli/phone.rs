//! A phone on the command line.

use adapters_http::recipient;
use domain::{PhoneNumber, Recipient, Region};

/// A phone as the operator typed it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Phone {
    digits: PhoneNumber,
    /// A number with a `+` is always in international form.
    has_plus: bool,
}

impl Phone {
    /// Returns the number as it is stored. Without a `+` it is read as `/api` reads it.
    pub(super) fn number(&self, default_region: Option<Region>) -> PhoneNumber {
        self.recipient(default_region).phone().clone()
    }

    /// Returns the number as it is stored, and as it would be stored with no default region, if that
    /// differs: `/api` may have received it before the region was set.
    pub(crate) fn numbers(&self, default_region: Option<Region>) -> Vec<PhoneNumber> {
        let mut numbers = vec![self.number(default_region), self.number(None)];
        numbers.dedup();
        numbers
    }

    fn recipient(&self, default_region: Option<Region>) -> Recipient {
        recipient(&self.digits, default_region.filter(|_| !self.has_plus))
    }
}

/// Parses a phone. The error does not show the text, which is personal.
pub(crate) fn phone(text: &str) -> Result<Phone, &'static str> {
    let (digits, has_plus) = text.strip_prefix('+').map_or((text, false), |rest| (rest, true));
    let digits = digits.parse().map_err(|_| "7 to 15 digits, with or without a leading +")?;
    Ok(Phone { digits, has_plus })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_phone_is_digits_with_or_without_a_plus() {
        for text in ["+79991234567", "79991234567"] {
            assert_eq!(phone(text).unwrap().digits.as_str(), "79991234567");
        }
        for bad in ["", "+7 999", "phone"] {
            assert!(phone(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_phone_with_a_plus_is_not_read_as_dialled() {
        let number = |text: &str| phone(text).unwrap().number("RU".parse().ok());

        // As dialled in Russia it is +7 999 123-45-67. No country has the code 89.
        assert_eq!(number("89991234567").as_str(), "79991234567");
        assert_eq!(number("+89991234567").as_str(), "89991234567");
        assert_eq!(number("+79991234567").as_str(), "79991234567");
    }

    #[test]
    fn a_phone_as_dialled_is_looked_for_in_both_notations() {
        let numbers = |text: &str| -> Vec<String> {
            let numbers = phone(text).unwrap().numbers("RU".parse().ok());
            numbers.iter().map(|number| number.as_str().to_owned()).collect()
        };

        assert_eq!(numbers("89991234567"), ["79991234567", "89991234567"]);
        assert_eq!(numbers("+79991234567"), ["79991234567"]);
    }
}
