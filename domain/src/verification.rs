use std::{
    fmt,
    str::FromStr,
    time::{Duration, SystemTime},
};

use rand_core::CryptoRng;
use uuid::Uuid;

use crate::MessageId;

/// The number of codes that may be tried against one verification.
pub const ATTEMPTS: u8 = 5;

/// The id of a verification: a UUID that begins with the time and whose last byte is 0.
///
/// Its n-th message has the same UUID with n as the last byte. Each id can therefore be computed from
/// the other. As text it is `ver_` and 32 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VerificationId(Uuid);

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not the id of a verification")]
pub struct InvalidVerificationId;

/// The state of a verification. All states except `Pending` are final.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum VerificationStatus {
    Pending,
    Approved,
    Expired,
    Canceled,
}

/// The API through which a verification began.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Origin {
    V1,
    Api,
    /// A test number. Nothing is sent to it.
    Test,
}

/// The reason why a text is not a variant of an enum.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("unknown value")]
pub struct UnknownWord;

/// The waits before each resend. Their number limits the resends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pacing {
    waits: Vec<Duration>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("1 to 9 comma-separated whole numbers of seconds from 1 to 3600")]
pub struct InvalidPacing;

/// Data that the caller stores with a verification: a JSON object of strings, as the caller wrote it.
///
/// It may be personal, so `Debug` hides it.
#[derive(Clone, PartialEq, Eq)]
pub struct Metadata(String);

const LAST_BYTE: u128 = 0xff;

impl VerificationId {
    /// The nil id, which no verification has.
    pub const NIL: Self = Self(Uuid::nil());

    /// Generates an id, as [`MessageId::generate`] does.
    pub fn generate(now: SystemTime, rng: &mut impl CryptoRng) -> Self {
        Self::of(MessageId::generate(now, rng))
    }

    /// Makes the id of 16 given bytes, of which the first six are the milliseconds since 1970. The
    /// same bytes always give the same id.
    pub fn of_drawn(bytes: [u8; 16]) -> Self {
        let builder = uuid::Builder::from_bytes(bytes);
        let builder = builder.with_variant(uuid::Variant::RFC4122);
        Self::from_uuid(builder.with_version(uuid::Version::SortRand).into_uuid())
    }

    /// Returns the verification that a message belongs to.
    pub const fn of(message: MessageId) -> Self {
        Self::from_uuid(message.as_uuid())
    }

    /// Returns the id of the n-th message, counted from 1.
    pub const fn message(self, send: u8) -> MessageId {
        MessageId::from_uuid(Uuid::from_u128(self.0.as_u128() | send as u128))
    }

    /// Returns which message of its verification a message is, counted from 1. `None` if its id shows
    /// that it belongs to no verification, because another producer wrote it.
    pub fn number_of(message: MessageId) -> Option<u8> {
        let uuid = message.as_uuid();
        let number = uuid.as_bytes()[15];
        let is_ours = uuid.get_version() == Some(uuid::Version::SortRand) && number > 0;
        is_ours.then_some(number)
    }

    pub const fn as_uuid(self) -> Uuid {
        self.0
    }

    /// Makes an id of a UUID. The last byte, which numbers a message, is cleared.
    pub const fn from_uuid(uuid: Uuid) -> Self {
        Self(Uuid::from_u128(uuid.as_u128() & !LAST_BYTE))
    }
}

impl FromStr for VerificationId {
    type Err = InvalidVerificationId;

    /// Parses exactly the text that `Display` writes: an id has one text only.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digits = text.strip_prefix("ver_").ok_or(InvalidVerificationId)?;
        let plain = digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        if !plain || digits.len() != 32 || !digits.ends_with("00") {
            return Err(InvalidVerificationId);
        }
        Uuid::try_parse(digits).map(Self).map_err(|_| InvalidVerificationId)
    }
}

impl fmt::Display for VerificationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ver_{}", self.0.simple())
    }
}

impl fmt::Debug for VerificationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VerificationId({self})")
    }
}

impl VerificationStatus {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Approved => "approved",
            Self::Expired => "expired",
            Self::Canceled => "canceled",
        }
    }
}

impl FromStr for VerificationStatus {
    type Err = UnknownWord;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        [Self::Pending, Self::Approved, Self::Expired, Self::Canceled]
            .into_iter()
            .find(|status| status.as_str() == text)
            .ok_or(UnknownWord)
    }
}

impl Origin {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::V1 => "v1",
            Self::Api => "api",
            Self::Test => "test",
        }
    }
}

impl FromStr for Origin {
    type Err = UnknownWord;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        [Self::V1, Self::Api, Self::Test]
            .into_iter()
            .find(|origin| origin.as_str() == text)
            .ok_or(UnknownWord)
    }
}

impl Pacing {
    /// Returns how many messages a verification may have, including the first.
    pub fn sends_max(&self) -> u8 {
        u8::try_from(self.waits.len() + 1).unwrap_or(u8::MAX)
    }

    /// Returns how long after the latest of `sends` messages the next one may be sent, or `None` if
    /// no more may be sent.
    pub fn wait_after(&self, sends: u8) -> Option<Duration> {
        self.waits.get(usize::from(sends.max(1)) - 1).copied()
    }

    pub fn sends_left(&self, sends: u8) -> u8 {
        self.sends_max().saturating_sub(sends)
    }
}

impl Default for Pacing {
    fn default() -> Self {
        Self { waits: [60, 90, 120].map(Duration::from_secs).into() }
    }
}

impl FromStr for Pacing {
    type Err = InvalidPacing;

    /// Parses a comma-separated list of seconds: `60,90,120`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wait = |text: &str| {
            let seconds = text.trim().parse::<u32>().ok().filter(|it| (1..=3600).contains(it))?;
            Some(Duration::from_secs(seconds.into()))
        };
        let waits: Option<Vec<Duration>> = text.split(',').map(wait).collect();
        waits.filter(|waits| waits.len() <= 9).map(|waits| Self { waits }).ok_or(InvalidPacing)
    }
}

impl Metadata {
    /// Takes `text` without a check. The code that parses a request has checked it.
    pub const fn new(text: String) -> Self {
        Self(text)
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Metadata {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Metadata(…)")
    }
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;

    #[test]
    fn a_message_id_gives_its_verification_id_and_back() {
        let at = SystemTime::UNIX_EPOCH + Duration::from_millis(0x0123_4567_89ab);
        let id = VerificationId::generate(at, &mut StdRng::seed_from_u64(1));

        let (first, ninth) = (id.message(1), id.message(9));

        assert_ne!(first, ninth);
        assert_eq!(VerificationId::of(first), id);
        assert_eq!(VerificationId::of(ninth), id);
        assert_eq!(first.as_uuid().as_bytes()[..15], id.as_uuid().as_bytes()[..15]);
        assert_eq!(ninth.as_uuid().as_bytes()[15], 9);
        assert_eq!(first.as_uuid().get_version_num(), 7);
        assert!(id.to_string().starts_with("ver_0123456789ab7"), "{id}");
    }

    #[test]
    fn a_message_of_a_verification_has_a_number() {
        let id = VerificationId::of_drawn([7; 16]);

        assert_eq!(VerificationId::number_of(id.message(1)), Some(1));
        assert_eq!(VerificationId::number_of(id.message(12)), Some(12));
        assert_eq!(VerificationId::number_of(MessageId::from_uuid(id.as_uuid())), None);
        assert_eq!(VerificationId::number_of(MessageId::of_record("message", 0, 1, 0)), None);
    }

    #[test]
    fn an_id_of_given_bytes_is_a_valid_id() {
        let id = VerificationId::of_drawn([0xff; 16]);

        assert_eq!(id.to_string(), "ver_ffffffffffff7fffbfffffffffffff00");
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_ne!(VerificationId::of_drawn([0xfe; 16]), id);
    }

    #[test]
    fn only_the_canonical_text_of_an_id_parses() {
        let text = "ver_6f2c1a529d3f4f0e8a550d2f6f3b9c00";
        let id: VerificationId = text.parse().unwrap();
        assert_eq!(id.to_string(), text);

        for bad in [
            "",
            "ver_",
            "6f2c1a529d3f4f0e8a550d2f6f3b9c00",
            "ver_6f2c1a529d3f4f0e8a550d2f6f3b9c01",
            "ver_6F2C1A529D3F4F0E8A550D2F6F3B9C00",
            "ver_6f2c1a52-9d3f-4f0e-8a55-0d2f6f3b9c00",
            "ver_6f2c1a529d3f4f0e8a550d2f6f3b9c000",
            "ver_6f2c1a529d3f4f0e8a550d2f6f3bыы00",
        ] {
            assert_eq!(bad.parse::<VerificationId>(), Err(InvalidVerificationId), "{bad}");
        }
    }

    #[test]
    fn statuses_and_origins_parse_from_their_texts() {
        for word in ["pending", "approved", "expired", "canceled"] {
            assert_eq!(word.parse::<VerificationStatus>().unwrap().as_str(), word);
        }
        for word in ["v1", "api", "test"] {
            assert_eq!(word.parse::<Origin>().unwrap().as_str(), word);
        }
        assert_eq!("Pending".parse::<VerificationStatus>(), Err(UnknownWord));
        assert_eq!("v2".parse::<Origin>(), Err(UnknownWord));
    }

    #[test]
    fn pacing_gives_each_wait_and_the_number_of_sends() {
        let pacing: Pacing = "60, 90,120".parse().unwrap();

        assert_eq!(pacing, Pacing::default());
        assert_eq!(pacing.sends_max(), 4);
        assert_eq!(
            [0, 1, 2, 3, 4, 255].map(|sends| pacing.wait_after(sends).map(|it| it.as_secs())),
            [Some(60), Some(60), Some(90), Some(120), None, None]
        );
        assert_eq!([0, 1, 4, 9].map(|sends| pacing.sends_left(sends)), [4, 3, 0, 0]);
    }

    #[test]
    fn pacing_has_one_to_nine_waits_of_up_to_an_hour() {
        for good in ["1", "3600", "1,1,1,1,1,1,1,1,1"] {
            assert!(good.parse::<Pacing>().is_ok(), "{good}");
        }
        for bad in ["", "0", "3601", "60,", "-1", "1,1,1,1,1,1,1,1,1,1", "one"] {
            assert_eq!(bad.parse::<Pacing>(), Err(InvalidPacing), "{bad}");
        }
    }

    #[test]
    fn debug_hides_metadata() {
        let metadata = Metadata::new(r#"{"user":"42"}"#.to_owned());

        assert_eq!(format!("{metadata:?}"), "Metadata(…)");
    }
}
