//! The promises of [`MessageBroker`] and [`MessageStream`] as tests.
//!
//! Each crate that implements a broker runs all of them with [`broker_conformance!`]. They are here
//! because this crate is the only one that all brokers share, and because the records that the
//! promises compare are those of this crate.
//!
//! [`broker_conformance!`]: crate::broker_conformance

mod reading;
mod samples;

use std::{
    collections::{HashMap, HashSet},
    future::poll_fn,
    sync::Arc,
    task::Poll,
    time::Instant,
};

use application::ports::{
    Incoming, MessageBroker, MessageStream, Outgoing, StartFrom, StreamError,
};

use self::{reading::fetch_some, samples::as_received};
pub use self::{
    reading::{DEADLINE, in_time, partition_with_records, read_all, read_from},
    samples::{TTL, message_to, messages, vault},
};

/// The ends of one topic that does not exist yet.
#[derive(Debug)]
pub struct Rig<B, S> {
    pub broker: B,
    /// Reads in the process of `broker`, with the keys of [`vault`].
    pub stream: S,
    /// Publishes as another process does.
    pub other_broker: B,
    /// Reads as a process does whose vault is still closed.
    pub locked_stream: S,
}

impl<B: MessageBroker, S> Rig<B, S> {
    async fn publish(&self, messages: &[Outgoing]) {
        publish(&self.broker, messages).await;
    }
}

/// Declares a test for each promise.
///
/// The argument is an async function that returns a `Rig` and something that is kept until the end
/// of the test, or none to skip the test.
#[macro_export]
macro_rules! broker_conformance {
    ($new_rig:path) => {
        $crate::broker_conformance! { $new_rig:
            messages_arrive_complete_and_in_order_for_each_phone
            phones_are_spread_over_all_partitions
            missing_topic_has_no_partitions_until_a_broker_is_ready
            first_offsets_are_those_of_the_records
            broker_publishes_nothing_and_publishes_before_it_is_ready
            fetch_at_the_end_waits_for_new_records
            fetch_at_the_end_returns_after_a_short_while
            consecutive_fetches_neither_skip_nor_repeat
            offset_beyond_the_end_is_out_of_range
            nothing_is_read_before_the_vault_is_open
            concurrent_publishers_leave_no_gaps
            dropped_publication_does_not_disturb_the_next_one
        }
    };
    ($new_rig:path: $($promise:ident)*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $promise() {
                if let Some((rig, _kept)) = $new_rig().await {
                    $crate::conformance::$promise(rig).await;
                }
            }
        )*
    };
}

async fn publish(broker: &impl MessageBroker, messages: &[Outgoing]) {
    in_time(broker.ready()).await.unwrap();
    let answers = in_time(broker.publish(messages)).await;
    assert_eq!(answers.len(), messages.len());
    answers.into_iter().for_each(Result::unwrap);
}

pub async fn messages_arrive_complete_and_in_order_for_each_phone<B, S>(rig: Rig<B, S>)
where
    B: MessageBroker + Send,
    S: MessageStream + Send,
{
    let sent = messages(1_000, 0..50);

    for batch in sent.chunks(300) {
        rig.publish(batch).await;
    }

    let mut partition_of = HashMap::new();
    let mut received: HashMap<_, Vec<Incoming>> = HashMap::new();
    for (partition, records) in read_all(&rig.stream).await.into_iter().enumerate() {
        for (offset, record) in (0..).zip(records) {
            assert_eq!(record.offset, offset, "offsets have no gaps");
            let incoming = record.content.unwrap();
            let phone = incoming.message.phone.clone();
            let seen_in = *partition_of.entry(phone.clone()).or_insert(partition);
            assert_eq!(seen_in, partition, "each phone has one partition");
            received.entry(phone).or_default().push(incoming);
        }
    }
    let mut wanted: HashMap<_, Vec<Incoming>> = HashMap::new();
    for outgoing in &sent {
        wanted.entry(outgoing.message.phone.clone()).or_default().push(as_received(outgoing));
    }
    assert_eq!(received, wanted);
}

pub async fn phones_are_spread_over_all_partitions<B, S>(rig: Rig<B, S>)
where
    B: MessageBroker + Send,
    S: MessageStream + Send,
{
    rig.publish(&messages(400, 0..400)).await;

    let counts: Vec<usize> = read_all(&rig.stream).await.iter().map(Vec::len).collect();

    assert_eq!(counts.len(), 4);
    assert!(counts.iter().all(|count| (60..=140).contains(count)), "{counts:?}");
}

pub async fn missing_topic_has_no_partitions_until_a_broker_is_ready<B, S>(rig: Rig<B, S>)
where
    B: MessageBroker + Send,
    S: MessageStream + Send,
{
    assert_eq!(in_time(rig.stream.partitions()).await.unwrap(), Vec::<i32>::new());
    let fetched = in_time(rig.stream.fetch(0, 0)).await;
    assert!(matches!(fetched, Err(StreamError::Unavailable(_))), "{fetched:?}");

    // Both may try to create the topic.
    let ready = in_time(async { tokio::join!(rig.broker.ready(), rig.other_broker.ready()) }).await;
    assert!(matches!(ready, (Ok(()), Ok(()))), "{ready:?}");

    in_time(async { while rig.stream.partitions().await.unwrap() != [0, 1, 2, 3] {} }).await;
}

pub async fn first_offsets_are_those_of_the_records<B, S>(rig: Rig<B, S>)
where
    B: MessageBroker + Send,
    S: MessageStream + Send,
{
    use StartFrom::{Earliest, Latest};
    rig.publish(&messages(3, 7..8)).await;

    let mut ends = Vec::new();
    for partition in rig.stream.partitions().await.unwrap() {
        assert_eq!(rig.stream.first_offset(partition, Earliest).await.unwrap(), 0);
        ends.push(rig.stream.first_offset(partition, Latest).await.unwrap());
    }

    ends.sort_unstable();
    assert_eq!(ends, [0, 0, 0, 3]);
}

pub async fn broker_publishes_nothing_and_publishes_before_it_is_ready<B, S>(rig: Rig<B, S>)
where
    B: MessageBroker + Send,
    S: MessageStream + Send,
{
    assert!(rig.broker.publish(&[]).await.is_empty());

    let answers = in_time(rig.broker.publish(&messages(2, 0..2))).await;

    assert!(answers.iter().all(Result::is_ok), "{answers:?}");
}

pub async fn fetch_at_the_end_waits_for_new_records<B, S>(rig: Rig<B, S>)
where
    B: MessageBroker + Send,
    S: MessageStream + Send,
{
    rig.publish(&[message_to(7)]).await;
    in_time(rig.other_broker.ready()).await.unwrap();
    let (partition, mut offset) = partition_with_records(&rig.stream).await;

    for broker in [&rig.broker, &rig.other_broker] {
        let message = message_to(7);
        let (fetched, ()) = in_time(async {
            tokio::join!(
                fetch_some(&rig.stream, partition, offset),
                publish(broker, std::slice::from_ref(&message))
            )
        })
        .await;

        assert_eq!(fetched.records.len(), 1);
        assert_eq!(fetched.records[0].content, Ok(as_received(&message)));
        assert_eq!((fetched.records[0].offset, fetched.next_offset), (offset, offset + 1));
        assert_eq!(fetched.lag, 0);
        offset = fetched.next_offset;
    }
}

pub async fn fetch_at_the_end_returns_after_a_short_while<B, S>(rig: Rig<B, S>)
where
    B: MessageBroker + Send,
    S: MessageStream + Send,
{
    rig.publish(&[message_to(7)]).await;
    let (partition, end) = partition_with_records(&rig.stream).await;

    let begun = Instant::now();
    let fetched = in_time(rig.stream.fetch(partition, end)).await.unwrap();

    assert_eq!((fetched.records.len(), fetched.next_offset, fetched.lag), (0, end, 0));
    let took = begun.elapsed();
    assert!((400..5_000).contains(&took.as_millis()), "{took:?}");
}

pub async fn consecutive_fetches_neither_skip_nor_repeat<B, S>(rig: Rig<B, S>)
where
    B: MessageBroker + Send,
    S: MessageStream + Send,
{
    for _ in 0..3 {
        rig.publish(&messages(500, 7..8)).await;
    }
    let (partition, end) = partition_with_records(&rig.stream).await;

    for start in [0, 1, 499, 500, 777, 1_499] {
        let (records, next_offset) = read_from(&rig.stream, partition, start).await;

        let offsets: Vec<i64> = records.iter().map(|record| record.offset).collect();
        assert_eq!(offsets, (start..1_500).collect::<Vec<_>>());
        assert_eq!((next_offset, end), (1_500, 1_500));
    }
    let fetched = rig.stream.fetch(partition, 300).await.unwrap();
    assert_eq!(fetched.lag, end - fetched.next_offset);
}

pub async fn offset_beyond_the_end_is_out_of_range<B, S>(rig: Rig<B, S>)
where
    B: MessageBroker + Send,
    S: MessageStream + Send,
{
    rig.publish(&[message_to(7)]).await;
    let (partition, end) = partition_with_records(&rig.stream).await;

    let fetched = in_time(rig.stream.fetch(partition, end + 1)).await;

    assert!(
        matches!(fetched, Err(StreamError::OutOfRange { offset }) if offset == end + 1),
        "{fetched:?}"
    );
    assert_eq!(rig.stream.fetch(partition, 0).await.unwrap().records.len(), 1);
}

/// Sealed records would be unreadable without their key.
pub async fn nothing_is_read_before_the_vault_is_open<B, S>(rig: Rig<B, S>)
where
    B: MessageBroker + Send,
    S: MessageStream + Send,
{
    rig.publish(&[message_to(7)]).await;
    let (partition, _) = partition_with_records(&rig.stream).await;

    let fetched = in_time(rig.locked_stream.fetch(partition, 0)).await;

    assert!(matches!(fetched, Err(StreamError::Unavailable(_))), "{fetched:?}");
    assert_eq!(in_time(rig.locked_stream.partitions()).await.unwrap(), [0, 1, 2, 3]);
}

pub async fn concurrent_publishers_leave_no_gaps<B, S>(rig: Rig<B, S>)
where
    B: MessageBroker + Send,
    S: MessageStream + Send,
{
    let rig = Arc::new(rig);
    in_time(rig.broker.ready()).await.unwrap();
    let publishers = [0_u64, 1, 2, 3].map(|publisher| {
        let rig = Arc::clone(&rig);
        tokio::spawn(async move {
            let broker = if publisher < 2 { &rig.broker } else { &rig.other_broker };
            for _ in 0..10 {
                publish(broker, &messages(20, publisher * 100..publisher * 100 + 10)).await;
            }
        })
    });

    for publisher in publishers {
        in_time(publisher).await.unwrap();
    }

    let mut ids = HashSet::new();
    for records in read_all(&rig.stream).await {
        for (offset, record) in (0..).zip(records) {
            assert_eq!(record.offset, offset);
            assert!(ids.insert(record.content.unwrap().message.id), "no record is there twice");
        }
    }
    assert_eq!(ids.len(), 800);
}

/// It is not known whether a dropped publication took place.
pub async fn dropped_publication_does_not_disturb_the_next_one<B, S>(rig: Rig<B, S>)
where
    B: MessageBroker + Send,
    S: MessageStream + Send,
{
    in_time(rig.broker.ready()).await.unwrap();
    for steps in 0..20 {
        let batch = messages(40, 0..40);
        let mut publication = Box::pin(rig.broker.publish(&batch));
        for _ in 0..steps {
            let polled = poll_fn(|cx| Poll::Ready(publication.as_mut().poll(cx))).await;
            if polled.is_ready() {
                break;
            }
            tokio::task::yield_now().await;
        }
    }

    let sent = messages(40, 0..40);
    rig.publish(&sent).await;

    let mut received = HashSet::new();
    for records in read_all(&rig.stream).await {
        for (offset, record) in (0..).zip(records) {
            assert_eq!(record.offset, offset);
            received.insert(record.content.unwrap().message.id);
        }
    }
    assert!(sent.iter().all(|outgoing| received.contains(&outgoing.message.id)));
}
