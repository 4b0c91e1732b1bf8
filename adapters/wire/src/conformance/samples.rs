//! Messages to publish, and the keys that open them.

use std::{
    ops::Range,
    sync::{
        LazyLock,
        atomic::{AtomicI64, Ordering},
    },
    time::{Duration, SystemTime},
};

use application::{
    Keys, Vault,
    ports::{Incoming, Outgoing},
};
use domain::{CarriedCode, Code, Message, MessageId, PayloadKeys, PhoneNumber, Validity};

/// The validity of every sample.
pub const TTL: Duration = Duration::from_secs(600);

/// Returns an open vault, whose key opens the sealed samples.
pub fn vault() -> Vault {
    Vault::of(Keys { peppers: None, payload: Some(payload_keys()) })
}

fn payload_keys() -> PayloadKeys {
    "k1:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=".parse().expect("the key is valid")
}

/// Returns `count` different messages, to the phones of this range in turn.
pub fn messages(count: usize, phones: Range<u64>) -> Vec<Outgoing> {
    phones.cycle().take(count).map(message_to).collect()
}

/// Returns a new message to a phone. Every second message is sealed.
pub fn message_to(phone: u64) -> Outgoing {
    static SEQUENCE: AtomicI64 = AtomicI64::new(1);
    let sequence = SEQUENCE.fetch_add(1, Ordering::Relaxed);
    let accepted_at = start_of_tests() + Duration::from_millis(sequence.unsigned_abs());
    let id = MessageId::of_record("test", 0, sequence, 0);
    let phone: PhoneNumber = format!("{}", 79_990_000_000 + phone).parse().unwrap();
    let code: Code = format!("{:06}", sequence % 1_000_000).parse().unwrap();
    let code = if sequence % 2 == 0 {
        payload_keys().seal(id, &phone, &code, None, [9; 24])
    } else {
        CarriedCode::from(code)
    };
    Outgoing {
        sequence,
        message: Message { id, phone, code },
        validity: Validity::starting_at(accepted_at, TTL),
        trace: format!("00-{:032x}-{sequence:016x}-01", sequence + 5).parse().unwrap(),
        age: Duration::ZERO,
    }
}

/// Returns the message as a consumer receives it.
pub(super) fn as_received(outgoing: &Outgoing) -> Incoming {
    Incoming {
        message: outgoing.message.clone(),
        validity: Some(outgoing.validity),
        trace: Some(outgoing.trace.clone()),
        sequence: Some(outgoing.sequence),
    }
}

/// Whole seconds, because records have milliseconds. Close to now, because Kafka deletes records
/// that are older than its retention.
#[expect(clippy::disallowed_methods, reason = "no database is at hand whose clock could be read")]
fn start_of_tests() -> SystemTime {
    static START: LazyLock<Duration> =
        LazyLock::new(|| SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap());
    SystemTime::UNIX_EPOCH + Duration::from_secs(START.as_secs())
}
