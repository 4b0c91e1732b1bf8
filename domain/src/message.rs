use std::{
    fmt,
    str::FromStr,
    time::{Duration, SystemTime},
};

use rand_core::CryptoRng;
use uuid::Uuid;

use crate::{CarriedCode, PhoneNumber};

/// A message: one SMS that carries a code to a phone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    pub id: MessageId,
    pub phone: PhoneNumber,
    pub code: CarriedCode,
}

/// The id of a message, from its acceptance to its delivery. The gateway receives it as the
/// idempotency key.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MessageId(Uuid);

/// The period in which a message may be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    pub accepted_at: SystemTime,
    pub expires_at: SystemTime,
}

impl MessageId {
    /// Generates an id that begins with the time (UUID version 7, RFC 9562 §5.7). Rows that are
    /// written at about the same time are therefore neighbours in an index.
    ///
    /// Ids are not an order of messages, because clocks of different machines differ.
    pub fn generate(now: SystemTime, rng: &mut impl CryptoRng) -> Self {
        let mut random = [0; 10];
        rng.fill_bytes(&mut random);
        let since = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let millis = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
        Self(uuid::Builder::from_unix_timestamp_millis(millis, &random).into_uuid())
    }

    /// Returns the id of a record that carries no id. It is the same each time the record is read.
    ///
    /// `written_at` is the time in the record, in milliseconds since 1970. It distinguishes the
    /// record from a record at the same offset of an earlier topic of the same name.
    pub fn of_record(topic: &str, partition: i32, offset: i64, written_at: i64) -> Self {
        /// A namespace of this service, so that no other version 5 UUID equals one of these ids.
        const NAMESPACE: Uuid = Uuid::from_u128(0x6d65_7373_6167_6572_8000_6f66_6673_6574);
        let name = format!("{topic}/{partition}/{offset}/{written_at}");
        Self(Uuid::new_v5(&NAMESPACE, name.as_bytes()))
    }

    /// Returns the id of a message that the Go service stored in the row `row` of its table
    /// `message`. It is the same each time the row is read.
    ///
    /// `created_at` is the time in the row, in microseconds. It distinguishes the row from a row of
    /// the same number in an earlier table.
    pub fn of_go_row(row: i64, created_at: i64) -> Self {
        /// Like that of [`of_record`](Self::of_record).
        const NAMESPACE: Uuid = Uuid::from_u128(0x6d65_7373_6167_6572_8000_676f_2074_6162);
        Self(Uuid::new_v5(&NAMESPACE, format!("{row}/{created_at}").as_bytes()))
    }

    pub const fn from_uuid(uuid: Uuid) -> Self {
        Self(uuid)
    }

    pub const fn as_uuid(self) -> Uuid {
        self.0
    }
}

impl FromStr for MessageId {
    type Err = uuid::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self)
    }
}

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MessageId({})", self.0)
    }
}

impl Validity {
    /// Returns the validity of a message that may be sent for `ttl` after `accepted_at`.
    pub fn starting_at(accepted_at: SystemTime, ttl: Duration) -> Self {
        Self { accepted_at, expires_at: accepted_at + ttl }
    }
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;

    #[test]
    fn the_id_of_a_record_is_stable_and_unique() {
        let id = MessageId::of_record("message", 1, 42, 1_700_000_000_000);

        assert_eq!(id, MessageId::of_record("message", 1, 42, 1_700_000_000_000));
        assert_ne!(id, MessageId::of_record("message", 1, 43, 1_700_000_000_000));
        assert_ne!(id, MessageId::of_record("message", 2, 42, 1_700_000_000_000));
        assert_ne!(id, MessageId::of_record("massage", 1, 42, 1_700_000_000_000));
        assert_ne!(id, MessageId::of_record("message", 1, 42, 1_700_000_000_001));
    }

    #[test]
    fn the_id_of_a_row_of_the_go_service_is_stable_and_unique() {
        let id = MessageId::of_go_row(17, 1_700_000_000_000_000);

        assert_eq!(id, MessageId::of_go_row(17, 1_700_000_000_000_000));
        assert_ne!(id, MessageId::of_go_row(18, 1_700_000_000_000_000));
        assert_ne!(id, MessageId::of_go_row(17, 1_700_000_000_000_001));
    }

    #[test]
    fn an_id_parses_from_its_text() {
        let id = MessageId::generate(SystemTime::UNIX_EPOCH, &mut StdRng::seed_from_u64(7));

        assert_eq!(id.to_string().parse(), Ok(id));
    }

    #[test]
    fn debug_of_a_message_hides_phone_and_code() {
        let message = Message {
            id: MessageId::generate(SystemTime::UNIX_EPOCH, &mut StdRng::seed_from_u64(7)),
            phone: "79991234567".parse().unwrap(),
            code: "482915".parse().unwrap(),
        };

        let shown = format!("{message:?}");

        assert!(!shown.contains("482915") && !shown.contains("79991234567"), "{shown}");
    }
}
