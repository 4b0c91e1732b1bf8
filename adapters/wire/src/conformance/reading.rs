//! Reading a topic with a deadline.

use std::{panic::Location, time::Duration};

use application::ports::{Fetched, MessageStream, Record, StartFrom};

/// The time after which a test fails that waits for something.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// Waits for `call`, and panics after [`DEADLINE`].
#[track_caller]
pub fn in_time<T>(call: impl Future<Output = T>) -> impl Future<Output = T> {
    let caller = Location::caller();
    let limited = tokio::time::timeout(DEADLINE, Box::pin(call));
    async move { limited.await.unwrap_or_else(|_| panic!("not done by the deadline: {caller}")) }
}

/// Reads a partition from `offset` to its end, and returns the records and the end.
pub async fn read_from(
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
            assert!(fetched.next_offset > offset, "a fetch before the end advances: {fetched:?}");
            records.extend(fetched.records);
            offset = fetched.next_offset;
        }
    })
    .await;
    (records, offset)
}

/// Reads the whole topic and returns the records of each partition.
pub async fn read_all(stream: &impl MessageStream) -> Vec<Vec<Record>> {
    let mut all = Vec::new();
    for partition in stream.partitions().await.unwrap() {
        let first = stream.first_offset(partition, StartFrom::Earliest).await.unwrap();
        all.push(read_from(stream, partition, first).await.0);
    }
    all
}

/// Returns the first partition that has records, and its end.
pub async fn partition_with_records(stream: &impl MessageStream) -> (i32, i64) {
    for partition in stream.partitions().await.unwrap() {
        let end = stream.first_offset(partition, StartFrom::Latest).await.unwrap();
        if end > 0 {
            return (partition, end);
        }
    }
    panic!("no partition has records");
}

/// Fetches at `offset` until there are records.
pub(super) async fn fetch_some(
    stream: &impl MessageStream,
    partition: i32,
    offset: i64,
) -> Fetched {
    loop {
        let fetched = stream.fetch(partition, offset).await.unwrap();
        if !fetched.records.is_empty() {
            return fetched;
        }
        assert_eq!(fetched.next_offset, offset);
    }
}
