use std::time::Duration;

use application::ports::PartitionLeases;
use sea_orm::ConnectionTrait;

use super::on_both_databases;
use crate::{Database, Pipeline, SqlPartitionLeases, examine};

on_both_databases!(examination_counts_what_waits_and_who_reads);

async fn examination_counts_what_waits_and_who_reads(database: Database) {
    let examined = examine(&database, "1", "message").await.unwrap();
    let empty = Pipeline {
        waiting: 0,
        oldest_waiting: Duration::ZERO,
        consumers: 0,
        partitions: 0,
        without_consumer: 0,
        dead_letters: 0,
        events: 0,
        oldest_event: Duration::ZERO,
    };
    assert_eq!(examined.pipeline, empty);
    assert_eq!(examined.server.is_some(), database.is_postgres());
    if let Some(server) = examined.server {
        assert!(server.connections >= 1 && server.most_connections > server.connections);
    }

    let leases =
        SqlPartitionLeases::new(database.clone(), "1".into(), "message".into(), "m".into());
    leases.register(&[0, 1, 2]).await.unwrap();
    leases.renew(&[], Duration::from_secs(60)).await.unwrap();
    leases.acquire(2, Duration::from_secs(60)).await.unwrap();
    let time = if database.is_postgres() {
        "now() - interval '1 hour'"
    } else {
        "unixepoch('subsec') * 1000 - 3600000"
    };
    let id = "'00000000-0000-0000-0000-000000000001'";
    for sql in [
        format!(
            "INSERT INTO outbox (id, phone, code, trace, accepted_at, expires_at)
             VALUES ({id}, '79990000000', 'x', '', {time}, {time})"
        ),
        format!(
            "INSERT INTO dead_letter
                 (group_id, topic, partition, record_offset, reason, recorded_at)
             VALUES ('1', 'message', 0, 1, 'x', {time})"
        ),
        format!("INSERT INTO event (id, kind, at, due_at) VALUES ({id}, 'sent', {time}, {time})"),
    ] {
        database.connection().execute_unprepared(&sql).await.unwrap();
    }

    let found = examine(&database, "1", "message").await.unwrap().pipeline;

    let hour = Duration::from_secs(3_600)..Duration::from_secs(3_700);
    assert!(
        hour.contains(&found.oldest_waiting) && hour.contains(&found.oldest_event),
        "{found:?}"
    );
    assert_eq!((found.waiting, found.dead_letters, found.events), (1, 1, 1));
    assert_eq!((found.consumers, found.partitions, found.without_consumer), (1, 3, 1));
    let other = examine(&database, "2", "message").await.unwrap().pipeline;
    assert_eq!((other.consumers, other.partitions), (0, 0));
}
