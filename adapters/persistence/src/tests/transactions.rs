//! A transaction that did not end well changes nothing, and its connection is not used again.

use std::time::Duration;

use application::ports::{Backlog, DeliveryLedger, NewSend, Outbox, Reached, StoreError};
use sea_orm::ConnectionTrait;
use tokio::time::timeout;

use super::{
    on_both_databases,
    support::{
        Folder, LONG, backlog, batch, empty_sqlite, enqueue, ledger, new_message, new_postgres,
        one_writer, phone, published, sqlite, statement,
    },
};
use crate::{
    CoalescingOutbox, Database, DatabaseSettings, Evidence,
    database::{Sql, begin},
};
use migration::{Migrator, MigratorTrait};

on_both_databases!(transaction_with_a_failed_statement_cannot_commit);

async fn write(database: &Database, topic: &str) -> Result<(), sea_orm::DbErr> {
    let sql = "INSERT INTO queue_partition (topic, partition, next_offset) VALUES ($1, 0, 0)";
    let statement = statement(database, sql, vec![topic.into()]);
    database.connection().execute_raw(statement).await.map(|_| ())
}

/// The rows of `write` that a connection of its own reads, as another process would.
async fn written(database: &Database) -> Vec<String> {
    let other = Database::connect_lazily(database.settings(), "other", 1);
    let sql = "SELECT topic FROM queue_partition ORDER BY topic";
    let rows = other.connection().query_all_raw(statement(&other, sql, vec![])).await.unwrap();
    other.close().await.unwrap();
    rows.iter().map(|row| row.try_get("", "topic").unwrap()).collect()
}

async fn transaction_with_a_failed_statement_cannot_commit(database: Database) {
    static INSERT: Sql = Sql::new(
        "INSERT INTO queue_partition (topic, partition, next_offset) VALUES (:topic, 0, 0)",
    );
    let named = |topic: &str| database.parameters().with("topic", topic);
    write(&database, "taken").await.unwrap();

    let transaction = begin(&database.connection()).await.unwrap();
    transaction.execute(&INSERT, named("before")).await.unwrap();
    transaction.execute(&INSERT, named("taken")).await.unwrap_err();
    transaction.execute(&INSERT, named("after")).await.unwrap_err();
    transaction.commit().await.unwrap_err();

    assert_eq!(written(&database).await, ["taken"]);
    write(&database, "then").await.unwrap();
    assert_eq!(written(&database).await, ["taken", "then"]);
}

#[tokio::test]
async fn dropped_begin_leaves_no_transaction_open() {
    let Some(settings) = new_postgres().await else { return };
    let database = Database::connect_lazily(&DatabaseSettings::Postgres(settings), "test", 1);
    Migrator::up(&database.connection(), None).await.unwrap();

    let mut expected = Vec::new();
    for round in 0..40_u64 {
        let _ = timeout(Duration::from_micros(50 * round), begin(&database.connection())).await;
        expected.push(format!("{round:02}"));
        write(&database, &expected[expected.len() - 1]).await.unwrap();
    }

    assert_eq!(written(&database).await, expected);
}

/// What a full disk leads to: SQLite ends the transaction by itself. Then an error that it leaves
/// to the driver, and then all is well.
#[tokio::test]
async fn acknowledged_messages_are_stored_after_sqlite_rolled_back_by_itself() {
    let (database, _folder) = sqlite().await;
    for (number, way) in [(1, "ROLLBACK"), (2, "ABORT")] {
        let trigger = format!(
            "CREATE TRIGGER refuse_{number} BEFORE INSERT ON outbox WHEN new.phone = '{}'
             BEGIN SELECT RAISE({way}, 'refused'); END",
            phone(number)
        );
        database.connection().execute_unprepared(&trigger).await.unwrap();
    }
    let (outbox, _writers) = CoalescingOutbox::start(&database, one_writer());

    for number in 1..=2 {
        let refused = outbox.enqueue(new_message(&phone(number))).await;
        assert!(matches!(refused, Err(StoreError::Unavailable(_))), "{refused:?}");
    }
    for number in 3..10 {
        outbox.enqueue(new_message(&phone(number))).await.unwrap();
    }

    let other = Database::connect_lazily(database.settings(), "other", 1);
    let backlog = backlog(&other);
    assert_eq!(backlog.size().await.unwrap().waiting, 7);
}

#[tokio::test]
async fn connection_that_was_left_in_a_transaction_is_closed() {
    let (database, _folder) = sqlite().await;
    for statement in ["BEGIN", "BEGIN IMMEDIATE", "SAVEPOINT one"] {
        database.connection().execute_unprepared(statement).await.unwrap();
        write(&database, statement).await.unwrap();
    }

    assert_eq!(written(&database).await, ["BEGIN", "BEGIN IMMEDIATE", "SAVEPOINT one"]);
}

#[tokio::test]
async fn nothing_is_stored_in_a_file_that_was_moved() {
    for replaced in [false, true] {
        let (database, folder): (Database, Folder) = empty_sqlite();
        Migrator::up(&database.connection(), None).await.unwrap();
        let path = folder.path().join("messager.db");
        std::fs::rename(&path, folder.path().join("moved.db")).unwrap();
        if replaced {
            std::fs::write(&path, []).unwrap();
        }

        // A file that was replaced is looked for until the time for a connection is up.
        let answer = timeout(Duration::from_secs(1), write(&database, "lost")).await;

        assert!(!matches!(answer, Ok(Ok(()))), "{answer:?}");
        assert_eq!(path.exists(), replaced, "a new file was made");
    }
}

/// SQLite opens a file that it may not write to as read-only, and that connection stays so.
#[tokio::test]
async fn connection_that_was_opened_read_only_is_replaced() {
    static WRITE: Sql = Sql::new("UPDATE queue_partition SET next_offset = 0");

    let (database, _folder) = sqlite().await;
    database.connection().execute_unprepared("PRAGMA query_only = on").await.unwrap();

    database.execute(&WRITE, database.parameters()).await.unwrap_err();

    database.execute(&WRITE, database.parameters()).await.unwrap();
}

/// SQLite answers READONLY, as it does while the file system takes no writes.
#[tokio::test]
async fn failed_writes_of_the_ledger_and_the_backlog_are_evidence() {
    let (database, _folder) = sqlite().await;
    let evidence = Evidence::default();
    let database = database.with_evidence(evidence.clone());
    let sends = [1, 2].map(|number| new_message(&phone(number)));
    enqueue(&database, &sends[0]).await;
    enqueue(&database, &NewSend { ttl: Duration::ZERO, ..sends[1].clone() }).await;
    let messages = published(&database).await;
    let tenure = backlog(&database).acquire(LONG).await.unwrap().unwrap();
    let (ledger, lease) = ledger(&database, "group").await;
    let backlog = backlog(&database);
    let becomes_read_only = async || {
        assert!(evidence.latest().is_none());
        // The pool replaces the connection that failed, at the latest when this releases it.
        database.connection().execute_unprepared("SELECT 1").await.unwrap();
        database.connection().execute_unprepared("PRAGMA query_only = on").await.unwrap();
    };
    let is_noted = || {
        let noted = evidence.latest().expect("evidence");
        evidence.forget(&noted);
    };

    becomes_read_only().await;
    ledger.admit(&lease, &batch(&messages)).await.unwrap_err();
    is_noted();
    becomes_read_only().await;
    backlog.renew(&tenure, Reached::default(), LONG).await.unwrap_err();
    is_noted();
    becomes_read_only().await;
    backlog.end_expired().await.unwrap_err();
    is_noted();
}
