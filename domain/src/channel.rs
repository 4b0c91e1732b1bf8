use std::str::FromStr;

use crate::UnknownWord;

/// The channel by which a gateway brings a code to the user.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Channel {
    #[default]
    Sms,
    Telegram,
}

impl Channel {
    pub const ALL: [Self; 2] = [Self::Sms, Self::Telegram];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Sms => "sms",
            Self::Telegram => "telegram",
        }
    }
}

impl FromStr for Channel {
    type Err = UnknownWord;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|channel| channel.as_str() == text).ok_or(UnknownWord)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_channel_is_read_as_it_is_written() {
        for channel in Channel::ALL {
            assert_eq!(channel.as_str().parse(), Ok(channel));
        }
        for text in ["", "SMS", "sms ", "mail"] {
            assert_eq!(text.parse::<Channel>(), Err(UnknownWord), "{text:?}");
        }
        assert_eq!(Channel::default(), Channel::Sms);
    }
}
