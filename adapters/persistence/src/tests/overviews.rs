//! The state of the service in one look.

use std::time::Duration;

use application::ports::{DeliveryLedger, PartitionLeases};
use sea_orm::ConnectionTrait;

use super::{
    on_both_databases,
    support::{LONG, accepted, batch, calls, enqueue, id_of, ledger, phone, published, start},
};
use crate::{Database, Many, SqlPartitionLeases, overview};

on_both_databases!(
    overview_of_an_empty_database_is_empty,
    overview_follows_messages_and_leases,
    latest_bad_ends_are_shown,
);

async fn overview_of_an_empty_database_is_empty(database: Database) {
    let seen = overview(&database).await.unwrap();

    assert_eq!((seen.accepted, seen.taken_over, seen.consumers, seen.calling), (0, 0, 0, 0));
    assert_eq!((seen.dead_letters, seen.newest_dead_letter), (0, Duration::ZERO));
    for many in [seen.waiting, seen.in_transit, seen.open, seen.events] {
        assert_eq!(many, Many::default());
    }
    assert!(seen.partitions.is_empty() && seen.errors.is_empty());
}

async fn overview_follows_messages_and_leases(database: Database) {
    let leases =
        SqlPartitionLeases::new(database.clone(), "2".into(), "message".into(), "m".into());
    leases.register(&[0]).await.unwrap();
    let (ledger, lease) = ledger(&database, "1").await;
    let send = start(&phone(1));
    accepted(&enqueue(&database, &send).await);
    let seen = overview(&database).await.unwrap();
    assert_eq!((seen.accepted, seen.waiting.count), (1, 1));

    let record = published(&database).await.remove(0);
    ledger.admit(&lease, &batch(&[record])).await.unwrap();
    let id = id_of(&send).message(1);
    ledger.start(&lease, &calls(&[id]), LONG).await.unwrap();

    let seen = overview(&database).await.unwrap();
    assert_eq!((seen.accepted, seen.taken_over), (1, 1));
    assert_eq!((seen.waiting.count, seen.open.count, seen.calling), (0, 1, 1));
    let states: Vec<(&str, Option<&str>, Option<i64>)> = seen
        .partitions
        .iter()
        .map(|it| (it.group.as_str(), it.owner.as_deref(), it.next_offset))
        .collect();
    assert_eq!(states, [("1", Some("member"), Some(1)), ("2", None, None)]);
    assert!(!seen.partitions[0].lease.is_zero() && seen.partitions[0].lag.is_none());
}

async fn latest_bad_ends_are_shown(database: Database) {
    let group = ledger(&database, "1").await;
    accepted(&enqueue(&database, &start(&phone(1))).await);
    let record = published(&database).await.remove(0);
    let id = record.message.id;
    group.0.admit(&group.1, &batch(&[record])).await.unwrap();
    let now = if database.is_postgres() { "now()" } else { "unixepoch() * 1000" };
    for state in ["failed", "unknown", "expired"] {
        let sql = format!(
            "UPDATE delivery SET state = '{state}', code = NULL, ended_at = {now}, gateway = 'main',
                 detail = 'rejected: HTTP 400'"
        );
        database.connection().execute_unprepared(&sql).await.unwrap();

        let seen = overview(&database).await.unwrap();

        let end = &seen.errors[0];
        assert_eq!((end.message, &*end.state, end.gateway.as_deref()), (id, state, Some("main")));
        assert_eq!(end.detail, "rejected: HTTP 400");
        assert_eq!(seen.open.count, 0);
    }
}
