use std::time::Duration;

use application::ports::{Batch, DeliveryLedger, Lease, PartitionLeases};
use tokio::task::JoinSet;

use super::on_both_databases;
use crate::{Database, SqlDeliveryLedger, SqlPartitionLeases};

on_both_databases!(
    partition_has_one_owner,
    ended_lease_goes_to_another_consumer_with_a_higher_epoch,
    ended_lease_that_was_not_taken_can_be_renewed,
    released_partition_is_free_at_once,
    renewal_counts_the_living_members,
    lease_says_whether_its_partition_was_added_later,
    groups_are_independent,
    lease_says_whether_its_group_is_the_first_to_read_the_topic,
);

const LONG: Duration = Duration::from_secs(60);
const NONE: Duration = Duration::ZERO;

fn consumer(database: &Database, member: &str) -> SqlPartitionLeases {
    SqlPartitionLeases::new(database.clone(), "1".into(), "message".into(), member.into())
}

fn partitions(leases: &[Lease]) -> Vec<i32> {
    let mut partitions: Vec<_> = leases.iter().map(|lease| lease.partition).collect();
    partitions.sort_unstable();
    partitions
}

async fn partition_has_one_owner(database: Database) {
    consumer(&database, "a").register(&(0..12).collect::<Vec<_>>()).await.unwrap();

    let mut consumers = JoinSet::new();
    for member in ["a", "b", "c", "d"] {
        let consumer = consumer(&database, member);
        consumers.spawn(async move {
            let mut mine = Vec::new();
            loop {
                let more = consumer.acquire(2, LONG).await.unwrap();
                if more.is_empty() {
                    return mine;
                }
                assert!(more.len() <= 2);
                mine.extend(more);
            }
        });
    }
    let all = consumers.join_all().await.concat();

    assert_eq!(partitions(&all), (0..12).collect::<Vec<_>>());
}

async fn ended_lease_goes_to_another_consumer_with_a_higher_epoch(database: Database) {
    let (a, b) = (consumer(&database, "a"), consumer(&database, "b"));
    a.register(&[0]).await.unwrap();

    let first = a.acquire(1, NONE).await.unwrap();
    let second = b.acquire(1, LONG).await.unwrap();

    assert!(second[0].epoch > first[0].epoch);
    assert!(a.renew(&first, LONG).await.unwrap().held.is_empty());
    assert_eq!(b.renew(&second, LONG).await.unwrap().held, [0]);
    a.release(&first[0]).await.unwrap();
    assert_eq!(a.acquire(1, LONG).await.unwrap(), [], "released by one who did not own it");
}

async fn ended_lease_that_was_not_taken_can_be_renewed(database: Database) {
    let (a, b) = (consumer(&database, "a"), consumer(&database, "b"));
    a.register(&[0]).await.unwrap();
    let lease = a.acquire(1, NONE).await.unwrap();

    assert_eq!(a.renew(&lease, LONG).await.unwrap().held, [0]);
    assert_eq!(b.acquire(1, LONG).await.unwrap(), []);
}

async fn released_partition_is_free_at_once(database: Database) {
    let (a, b) = (consumer(&database, "a"), consumer(&database, "b"));
    a.register(&[0, 1]).await.unwrap();
    let leases = a.acquire(2, LONG).await.unwrap();
    assert_eq!(b.acquire(2, LONG).await.unwrap(), []);

    a.release(&leases[1]).await.unwrap();

    assert_eq!(partitions(&b.acquire(2, LONG).await.unwrap()), [leases[1].partition]);
}

async fn renewal_counts_the_living_members(database: Database) {
    let (a, b) = (consumer(&database, "a"), consumer(&database, "b"));
    a.register(&[0, 1, 2]).await.unwrap();

    assert_eq!(a.renew(&[], LONG).await.unwrap().members, 1);
    assert_eq!(b.renew(&[], LONG).await.unwrap().members, 2);
    assert_eq!(b.renew(&[], LONG).await.unwrap().partitions, 3);
    a.leave().await.unwrap();
    assert_eq!(b.renew(&[], LONG).await.unwrap().members, 1);
    assert_eq!(a.renew(&[], NONE).await.unwrap().members, 1, "one who has died does not count");
}

async fn lease_says_whether_its_partition_was_added_later(database: Database) {
    let a = consumer(&database, "a");

    a.register(&[0, 1]).await.unwrap();
    a.register(&[0, 1, 2]).await.unwrap();

    let mut leases = a.acquire(9, LONG).await.unwrap();
    leases.sort_unstable_by_key(|lease| lease.partition);
    let later: Vec<_> = leases.iter().map(|lease| lease.added_later).collect();
    assert_eq!(later, [false, false, true]);
    assert!(leases.iter().all(|lease| lease.next_offset.is_none()));
}

async fn groups_are_independent(database: Database) {
    let one = consumer(&database, "a");
    let two = SqlPartitionLeases::new(database, "2".into(), "message".into(), "a".into());
    one.register(&[0]).await.unwrap();
    two.register(&[0]).await.unwrap();

    assert_eq!(one.acquire(1, LONG).await.unwrap().len(), 1);
    assert_eq!(two.acquire(1, LONG).await.unwrap().len(), 1);
    assert_eq!(one.renew(&[], LONG).await.unwrap().members, 1);
}

async fn lease_says_whether_its_group_is_the_first_to_read_the_topic(database: Database) {
    let group = |group: &str, topic: &str| {
        SqlPartitionLeases::new(database.clone(), group.into(), topic.into(), "a".into())
    };
    let acquire = async |group: &SqlPartitionLeases| {
        group.register(&[0]).await.unwrap();
        group.acquire(1, NONE).await.unwrap().remove(0)
    };
    let (one, two) = (group("1", "message"), group("2", "message"));

    let lease = acquire(&one).await;
    assert!(lease.first_at.is_some());
    assert!(acquire(&two).await.first_at.is_some(), "the other one has not begun either");

    let ledger = SqlDeliveryLedger::new(database.clone(), "1".into(), "message".into(), "a".into());
    ledger.admit(&lease, &Batch { next_offset: 7, ..Batch::default() }).await.unwrap();
    assert_eq!(acquire(&one).await.first_at, None, "it has read the partition");
    assert_eq!(acquire(&two).await.first_at, None, "another group has read the topic");
    assert!(acquire(&group("2", "other")).await.first_at.is_some());
}
