//! What the tests of both brokers share.

use std::{
    sync::{
        LazyLock,
        atomic::{AtomicI64, Ordering},
    },
    time::{Duration, SystemTime},
};

use application::{
    Keys, Vault,
    ports::{Claim, Claimed, MessageStream, Record, StartFrom},
};
use domain::{CarriedCode, Code, Message, MessageId, PayloadKeys, PhoneNumber, Validity};
use rand::{
    SeedableRng,
    rngs::{StdRng, SysRng},
};

/// How long something may take that is sure to come.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

pub(crate) const TTL: Duration = Duration::from_secs(600);

/// The variable's value. Without it a test prints that it is skipped, or fails if services are
/// required.
pub(crate) fn service(name: &str) -> Option<String> {
    let value = variable(name);
    if value.is_none() {
        assert_ne!(variable("REQUIRE_SERVICES").as_deref(), Some("1"), "{name} is not set");
        println!("skipped: {name} is not set");
    }
    value
}

#[expect(clippy::disallowed_methods, reason = "tests learn from the environment where servers are")]
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// Opens what [`message_to`] seals.
pub(crate) fn vault() -> Vault {
    Vault::of(Keys { peppers: None, payload: Some(payload_keys()) })
}

fn payload_keys() -> PayloadKeys {
    "k1:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=".parse().unwrap()
}

/// A name that no other test has.
pub(crate) fn unique_name() -> String {
    let mut rng = StdRng::try_from_rng(&mut SysRng).unwrap();
    format!("test_{}", MessageId::generate(SystemTime::UNIX_EPOCH, &mut rng).as_uuid().simple())
}

/// So many messages to phones of these numbers, taking turns, none like another.
pub(crate) fn messages(count: usize, phones: std::ops::Range<u64>) -> Vec<Claimed> {
    phones.cycle().take(count).map(message_to).collect()
}

/// Every other one is sealed.
pub(crate) fn message_to(phone: u64) -> Claimed {
    static SEQUENCE: AtomicI64 = AtomicI64::new(1);
    let sequence = SEQUENCE.fetch_add(1, Ordering::Relaxed);
    let accepted_at = start_of_tests() + Duration::from_millis(u64::try_from(sequence).unwrap());
    let id = MessageId::of_record("test", 0, sequence, 0);
    let phone: PhoneNumber = format!("{}", 79_990_000_000 + phone).parse().unwrap();
    let code: Code = format!("{:06}", sequence % 1_000_000).parse().unwrap();
    let code = if sequence % 2 == 0 {
        payload_keys().seal(id, &phone, &code, None, [9; 24])
    } else {
        CarriedCode::from(code)
    };
    Claimed {
        claim: Claim { sequence, attempt: 1 },
        message: Message { id, phone, code },
        validity: Validity::starting_at(accepted_at, TTL),
        trace: format!("00-{:032x}-{sequence:016x}-01", sequence + 5).parse().unwrap(),
    }
}

/// Whole milliseconds, as records have them. Near to now, for Kafka soon deletes what is older than
/// it is to keep.
#[expect(clippy::disallowed_methods, reason = "no database is at hand whose clock could be read")]
fn start_of_tests() -> SystemTime {
    static START: LazyLock<Duration> =
        LazyLock::new(|| SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap());
    SystemTime::UNIX_EPOCH + Duration::from_secs(START.as_secs())
}

/// Does something, and fails the test if that does not end.
#[track_caller]
pub(crate) fn in_time<T>(call: impl Future<Output = T>) -> impl Future<Output = T> {
    let caller = std::panic::Location::caller();
    let limited = tokio::time::timeout(DEADLINE, Box::pin(call));
    async move { limited.await.unwrap_or_else(|_| panic!("not done by the deadline: {caller}")) }
}

/// What the partition has from `offset` to its end, and the offset of that end.
pub(crate) async fn read_from(
    stream: &impl MessageStream,
    partition: i32,
    mut offset: i64,
) -> (Vec<Record>, i64) {
    let mut records = Vec::new();
    in_time(async {
        let end = stream.first_offset(partition, StartFrom::Latest).await.unwrap();
        while offset < end {
            let fetched = stream.fetch(partition, offset).await.unwrap();
            assert!(fetched.records.iter().all(|record| record.offset >= offset), "{fetched:?}");
            assert!(fetched.next_offset > offset, "something is there: {fetched:?}");
            records.extend(fetched.records);
            offset = fetched.next_offset;
        }
    })
    .await;
    (records, offset)
}

/// All that the topic has, partition by partition.
pub(crate) async fn read_all(stream: &impl MessageStream) -> Vec<Vec<Record>> {
    let mut all = Vec::new();
    for partition in stream.partitions().await.unwrap() {
        let first = stream.first_offset(partition, StartFrom::Earliest).await.unwrap();
        all.push(read_from(stream, partition, first).await.0);
    }
    all
}
