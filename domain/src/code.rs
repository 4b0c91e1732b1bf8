use std::{fmt, str::FromStr};

use rand_core::CryptoRng;

/// A verification code: 4 to 10 decimal digits. Leading zeros are kept.
///
/// It is secret: it has no `Display`, and `Debug` hides it.
#[derive(Clone, PartialEq, Eq)]
pub struct Code(String);

/// The number of digits of a code: 4 to 10.
///
/// NIST SP 800-63B-4 and OWASP ASVS 6.5.4 require at least six digits (19.93 bits).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CodeLength(usize);

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a code has 4 to 10 digits, not {found}")]
pub struct InvalidCodeLength {
    pub found: usize,
}

/// The reason why a text is not a code. The error does not contain the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidCode {
    #[error("a code has only the digits 0 to 9")]
    NotDigits,
    #[error(transparent)]
    Length(InvalidCodeLength),
}

impl CodeLength {
    pub const fn get(self) -> usize {
        self.0
    }
}

impl TryFrom<usize> for CodeLength {
    type Error = InvalidCodeLength;

    fn try_from(digits: usize) -> Result<Self, Self::Error> {
        match digits {
            4..=10 => Ok(Self(digits)),
            found => Err(InvalidCodeLength { found }),
        }
    }
}

impl Code {
    /// Draws a code. Each of the `10^length` codes is equally likely.
    pub fn generate(length: CodeLength, rng: &mut impl CryptoRng) -> Self {
        Self::from_digits((0..length.get()).map(|_| uniform_digit(rng)))
    }

    /// Makes a code of 4 to 10 digits, each from 0 to 9.
    pub(crate) fn from_digits(digits: impl Iterator<Item = u8>) -> Self {
        Self(digits.map(|digit| char::from(b'0' + digit)).collect())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Code {
    type Err = InvalidCode;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if !text.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(InvalidCode::NotDigits);
        }
        CodeLength::try_from(text.len()).map_err(InvalidCode::Length)?;
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Debug for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Code(…)")
    }
}

/// Draws a digit from 0 to 9. Each is equally likely.
///
/// 250 is the largest multiple of ten in a byte. Reducing larger bytes modulo ten would favour the
/// digits 0 to 5, so they are discarded.
fn uniform_digit(rng: &mut impl CryptoRng) -> u8 {
    let mut byte = [0];
    loop {
        rng.fill_bytes(&mut byte);
        if byte[0] < 250 {
            return byte[0] % 10;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;

    #[test]
    fn a_length_is_four_to_ten() {
        for digits in [0, 3, 11, usize::MAX] {
            assert_eq!(CodeLength::try_from(digits), Err(InvalidCodeLength { found: digits }));
        }
        for digits in 4..=10 {
            assert_eq!(CodeLength::try_from(digits).unwrap().get(), digits);
        }
    }

    #[test]
    fn every_digit_is_equally_likely_at_every_position() {
        const DRAWS: usize = 40_000;
        let length = CodeLength::try_from(6).unwrap();
        let mut rng = StdRng::seed_from_u64(1);
        let mut seen = [[0_u32; 10]; 6];

        for _ in 0..DRAWS {
            let code = Code::generate(length, &mut rng);
            for (place, digit) in code.as_str().bytes().enumerate() {
                seen[place][usize::from(digit - b'0')] += 1;
            }
        }

        // The expected count is 4,000, with a standard deviation of 60. Reducing all bytes modulo ten
        // would give 4,063 and 3,906, which the sums over all positions reveal.
        for digit in 0..10 {
            let total: u32 = seen.iter().map(|place| place[digit]).sum();
            assert!((23_400..24_600).contains(&total), "digit {digit}: {total} of 240,000");
        }
        for place in seen {
            for count in place {
                assert!((3_700..4_300).contains(&count), "{count} of 40,000");
            }
        }
    }

    #[test]
    fn a_code_parses_from_digits_only() {
        assert_eq!("000123".parse::<Code>().unwrap().as_str(), "000123");
        assert_eq!("12345a".parse::<Code>(), Err(InvalidCode::NotDigits));
        assert_eq!("١٢٣٤٥٦".parse::<Code>(), Err(InvalidCode::NotDigits));
        assert_eq!("123".parse::<Code>(), Err(InvalidCode::Length(InvalidCodeLength { found: 3 })));
    }

    #[test]
    fn debug_hides_the_code() {
        assert_eq!(format!("{:?}", "123456".parse::<Code>().unwrap()), "Code(…)");
    }

    proptest! {
        #[test]
        fn a_drawn_code_has_the_requested_length_and_parses(digits in 4_usize..=10, seed: u64) {
            let length = CodeLength::try_from(digits).unwrap();

            let code = Code::generate(length, &mut StdRng::seed_from_u64(seed));

            prop_assert_eq!(code.as_str().len(), digits);
            prop_assert_eq!(code.as_str().parse::<Code>(), Ok(code.clone()));
        }
    }
}
