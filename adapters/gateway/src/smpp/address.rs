//! The numbers and names of senders and recipients, with their type and plan.

/// An address of `submit_sm`.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Address {
    /// Type of number (SMPP 3.4 §5.2.5).
    pub(super) ton: u8,
    /// Numbering plan (SMPP 3.4 §5.2.6).
    pub(super) npi: u8,
    pub(super) text: String,
}

/// Type and plan that the settings give, which replace those that the content suggests.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Numbering {
    pub(crate) ton: Option<u8>,
    pub(crate) npi: Option<u8>,
}

const INTERNATIONAL: u8 = 1;
const NETWORK_SPECIFIC: u8 = 3;
const ALPHANUMERIC: u8 = 5;

/// The plan of telephone numbers, E.164.
const ISDN: u8 = 1;
const UNKNOWN: u8 = 0;

/// A number of up to this many digits is a short code. An international number has at least 7, but
/// a sender of 7 or 8 digits is a short code much more often.
const SHORT_CODE: usize = 8;

/// The longest alphanumeric sender (3GPP TS 23.040 §9.1.2.5) and the longest number in `source_addr`
/// (SMPP 3.4 §5.2.8).
const LONGEST_NAME: usize = 11;
const LONGEST_NUMBER: usize = 20;

/// Returns the address of a sender, or `None` if the text is neither a number nor a name. An empty
/// text leaves the choice to the SMSC.
pub(super) fn sender(text: &str, numbering: Numbering) -> Option<Address> {
    let digits = text.strip_prefix('+').unwrap_or(text);
    let number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    let (ton, npi, text) = if text.is_empty() {
        (UNKNOWN, UNKNOWN, text)
    } else if number && digits.len() <= SHORT_CODE {
        (NETWORK_SPECIFIC, UNKNOWN, digits)
    } else if number && digits.len() <= LONGEST_NUMBER {
        (INTERNATIONAL, ISDN, digits)
    } else if !number && text.len() <= LONGEST_NAME && text.bytes().all(is_printable) {
        (ALPHANUMERIC, UNKNOWN, text)
    } else {
        return None;
    };
    Some(numbering.apply(ton, npi, text))
}

/// Returns the address of a subscriber.
pub(super) fn recipient(digits: &str, numbering: Numbering) -> Address {
    numbering.apply(INTERNATIONAL, ISDN, digits)
}

impl Numbering {
    fn apply(self, ton: u8, npi: u8, text: &str) -> Address {
        Address {
            ton: self.ton.unwrap_or(ton),
            npi: self.npi.unwrap_or(npi),
            text: text.to_owned(),
        }
    }
}

fn is_printable(byte: u8) -> bool {
    byte == b' ' || byte.is_ascii_graphic()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: Option<(u8, u8, &str)>) {
        let address = sender(text, Numbering::default());
        let found = address.as_ref().map(|it| (it.ton, it.npi, it.text.as_str()));
        assert_eq!(found, expected, "{text}");
    }

    #[test]
    fn type_and_plan_of_a_sender_follow_from_its_content() {
        check("Shop", Some((5, 0, "Shop")));
        check("Shop 24-7", Some((5, 0, "Shop 24-7")));
        check("+79991234567", Some((1, 1, "79991234567")));
        check("79991234567", Some((1, 1, "79991234567")));
        check("1234", Some((3, 0, "1234")));
        check("12345678", Some((3, 0, "12345678")));
        check("123456789", Some((1, 1, "123456789")));
        check("", Some((0, 0, "")));
    }

    #[test]
    fn a_sender_that_no_sms_can_carry_is_refused() {
        check("TwelveLetter", None);
        check("Магазин", None);
        check("Shop\n", None);
        check("123456789012345678901", None);
        check("+", Some((5, 0, "+")));
    }

    #[test]
    fn settings_replace_type_and_plan() {
        let numbering = Numbering { ton: Some(0), npi: Some(9) };

        let sender = sender("Shop", numbering).unwrap();
        let recipient = recipient("79991234567", Numbering { ton: Some(2), npi: None });

        assert_eq!((sender.ton, sender.npi), (0, 9));
        assert_eq!((recipient.ton, recipient.npi, recipient.text.as_str()), (2, 1, "79991234567"));
    }
}
