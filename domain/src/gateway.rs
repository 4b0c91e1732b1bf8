use std::{fmt, str::FromStr, sync::Arc};

/// The name of a configured gateway: 1 to 32 of `a`–`z`, `0`–`9`, `-` and `_`, and the first is a letter
/// or a digit.
///
/// It is stored with each call, so it must stay the same while messages of that gateway are open. The
/// default is the name of a gateway that is configured alone, and of the calls of earlier versions.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GatewayName(Arc<str>);

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the name of a gateway is 1 to {LONGEST} of a-z, 0-9, - and _, and begins with a letter or a digit"
)]
pub struct InvalidGatewayName;

const LONGEST: usize = 32;

impl GatewayName {
    /// The text of the default name.
    pub const DEFAULT: &'static str = "default";

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for GatewayName {
    fn default() -> Self {
        Self(Self::DEFAULT.into())
    }
}

impl FromStr for GatewayName {
    type Err = InvalidGatewayName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let is_word = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let begins_well = text.bytes().next().is_some_and(is_word);
        let is_name = text.bytes().all(|byte| is_word(byte) || matches!(byte, b'-' | b'_'));
        if begins_well && is_name && text.len() <= LONGEST {
            Ok(Self(text.into()))
        } else {
            Err(InvalidGatewayName)
        }
    }
}

impl fmt::Display for GatewayName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for GatewayName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GatewayName({})", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_short_and_of_plain_characters() {
        for text in ["a", "7", "main", "smsc-ru_2", "default", &"a".repeat(32)] {
            assert_eq!(text.parse::<GatewayName>().unwrap().as_str(), text);
        }
        let too_long = "a".repeat(33);
        for text in ["", "-a", "_a", "Main", "a b", "a.b", "a/b", "a,b", "é", "a\0", &too_long] {
            assert_eq!(text.parse::<GatewayName>(), Err(InvalidGatewayName), "{text:?}");
        }
    }

    #[test]
    fn the_default_name_is_a_name() {
        assert_eq!(GatewayName::DEFAULT.parse(), Ok(GatewayName::default()));
    }
}
