//! Undecodable records, each kind for a reason of its own.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use anyhow::Context;
use rskafka::{
    chrono::DateTime,
    client::{
        ClientBuilder,
        partition::{Compression, PartitionClient, UnknownTopicHandling},
    },
    record::Record,
};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::kit::{
    clock::now,
    tally::Tally,
    testbed::{PARTITIONS, Testbed},
};

/// A kind of undecodable record.
#[derive(Debug, Clone)]
pub struct Kind {
    pub name: &'static str,
    value: Option<Vec<u8>>,
    headers: &'static [(&'static str, &'static str)],
}

/// The kind of record at each place: partition and offset.
pub type Places = BTreeMap<(i32, i64), &'static str>;

const GOOD: &str = r#"{"phone":"79991234567","code":"1234"}"#;

/// Returns all kinds.
pub fn kinds() -> Vec<Kind> {
    let of = |name, value: &[u8], headers| Kind { name, value: Some(value.to_vec()), headers };
    let value = |name, value: &str| of(name, value.as_bytes(), &[]);
    let with = |name, headers| of(name, GOOD.as_bytes(), headers);
    let deep = format!("{{\"x\":{}1{}}}", "[".repeat(20_000), "]".repeat(20_000));
    let junk: Vec<u8> = (0..512 * 1024_u32).map(|place| (place * 31 % 251) as u8).collect();
    let huge = format!("{{\"phone\":\"{}\",\"code\":\"1234\"}}", "7".repeat(60_000));
    vec![
        Kind { name: "no value", value: None, headers: &[] },
        value("empty value", ""),
        value("not JSON", "hello"),
        value("cut JSON", &GOOD[..GOOD.len() - 1]),
        value("JSON of another shape", r#"{"to":"79991234567","text":"1234"}"#),
        value("an array", r#"["79991234567","1234"]"#),
        of("invalid UTF-8", b"{\"phone\":\"7999123456\xff\",\"code\":\"1234\"}", &[]),
        value("half a surrogate", r#"{"phone":"7999123456\ud800","code":"1234"}"#),
        value("a NUL", r#"{"phone":"7999123456\u0000","code":"1234"}"#),
        value("a field twice, once no text", r#"{"phone":7,"phone":"79991234567","code":"1234"}"#),
        value("nested 20,000 deep", &deep),
        of("512 KiB of junk", &junk, &[]),
        value("a phone of 60,000 digits", &huge),
        value("phone with letters", r#"{"phone":"7999l234567","code":"1234"}"#),
        value("code with letters", r#"{"phone":"79991234567","code":"12e4"}"#),
        value("a huge number as phone", r#"{"phone":1e400,"code":"1234"}"#),
        with("specversion 2.0", &[("ce_specversion", "2.0")]),
        with("another type", &[("ce_specversion", "1.0"), ("ce_type", "something.else")]),
        with("type v2", &[("ce_type", "messager.message.accepted.v2")]),
        with("id that is no UUID", &[("ce_id", "42")]),
    ]
}

/// Produces each kind into every partition, again and again until `stop`. Returns the places.
pub async fn poison(testbed: &Testbed<Tally>, stop: &CancellationToken) -> anyhow::Result<Places> {
    let client = ClientBuilder::new(vec![testbed.kafka.address().to_owned()]).build().await?;
    let mut partitions = Vec::new();
    for partition in 0..i32::try_from(PARTITIONS)? {
        let handling = UnknownTopicHandling::Retry;
        let writer = client.partition_client(&testbed.topic.name, partition, handling).await?;
        partitions.push((partition, writer));
    }
    let kinds = kinds();
    let mut places = Places::new();
    while !stop.is_cancelled() {
        for (partition, writer) in &partitions {
            for kind in &kinds {
                let offset = produce(writer, kind).await.context(kind.name)?;
                places.insert((*partition, offset), kind.name);
            }
        }
        stop.run_until_cancelled(sleep(Duration::from_millis(500))).await;
    }
    Ok(places)
}

async fn produce(writer: &PartitionClient, kind: &Kind) -> anyhow::Result<i64> {
    let headers = kind.headers.iter();
    let record = Record {
        key: None,
        value: kind.value.clone(),
        headers: headers
            .map(|(name, text)| ((*name).to_owned(), text.as_bytes().to_vec()))
            .collect(),
        timestamp: DateTime::from_timestamp_millis(now()).context("a time")?,
    };
    let offsets = writer.produce(vec![record], Compression::NoCompression).await?;
    offsets.first().copied().context("no offset")
}

/// The dead letters of a run.
#[derive(Debug, Default)]
pub struct DeadLetters {
    /// The reasons of each kind.
    pub reasons: BTreeMap<&'static str, BTreeSet<String>>,
    /// Undecodable records without a row.
    pub missing: usize,
    /// Rows of other records, and second rows.
    pub surplus: usize,
}

/// Compares the rows of `dead_letter` with the places of the undecodable records.
pub async fn dead_letters(
    testbed: &Testbed<Tally>,
    places: &Places,
) -> anyhow::Result<DeadLetters> {
    let rows: Vec<(i32, i64, String)> =
        sqlx::query_as("SELECT partition, record_offset, reason FROM dead_letter WHERE topic = $1")
            .bind(&testbed.topic.name)
            .fetch_all(&testbed.database)
            .await?;
    let mut found = BTreeSet::new();
    let mut letters = DeadLetters::default();
    for (partition, offset, reason) in rows {
        match places.get(&(partition, offset)) {
            Some(kind) if found.insert((partition, offset)) && !reason.is_empty() => {
                letters.reasons.entry(kind).or_default().insert(reason);
            }
            _ => letters.surplus += 1,
        }
    }
    letters.missing = places.len() - found.len();
    Ok(letters)
}
