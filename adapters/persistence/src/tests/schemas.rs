use std::os::unix::fs::PermissionsExt;

use migration::{Migrator, MigratorTrait};
use sea_orm::ConnectionTrait;

use super::support::{count, empty_postgres, empty_sqlite};
use crate::{Database, SchemaError, check_schema};

async fn goes_up_and_down_and_says_where_it_is(database: Database) {
    let behind = check_schema(&database).await;
    assert!(matches!(behind, Err(SchemaError::Behind { missing }) if !missing.is_empty()));

    for _ in 0..2 {
        Migrator::up(&database.connection(), None).await.unwrap();
        check_schema(&database).await.unwrap();

        Migrator::down(&database.connection(), None).await.unwrap();
        let behind = check_schema(&database).await;
        assert!(matches!(behind, Err(SchemaError::Behind { .. })));
    }
}

#[tokio::test]
async fn on_postgres() {
    if let Some(database) = empty_postgres().await {
        goes_up_and_down_and_says_where_it_is(database).await;
    }
}

#[tokio::test]
async fn new_sqlite_file_is_readable_by_its_owner_only() {
    let (database, folder) = empty_sqlite();
    Migrator::up(&database.connection(), None).await.unwrap();

    let files: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(Result::unwrap).collect();

    assert_eq!(files.len(), 3, "with -wal and -shm");
    for file in files {
        let mode = file.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{:?}", file.file_name());
    }
}

#[tokio::test]
async fn on_sqlite() {
    let (database, _folder) = empty_sqlite();
    goes_up_and_down_and_says_where_it_is(database).await;
}

/// Message 5 is in transit and message 7 in the outbox. Both are in the outbox after the way up, and
/// after the way back.
async fn messages_in_transit_return_to_the_outbox(database: Database) {
    let all = Migrator::migrations();
    let before = all.iter().position(|it| it.name() == "m20261201_200081_transit_ends").unwrap();
    let before = u32::try_from(before).unwrap();
    let now = if database.is_postgres() { "now()" } else { "0" };
    let connection = database.connection();
    Migrator::up(&connection, Some(before)).await.unwrap();
    for (table, number, more, due_at) in
        [("outbox", 7, "", ""), ("in_transit", 5, ", due_at", ", now()")]
    {
        let due_at = due_at.replace("now()", now);
        let sql = format!(
            "INSERT INTO {table} (sequence, id, phone, code, trace, accepted_at, expires_at, attempt,
                 publications{more})
             VALUES ({number}, '00000000-0000-0000-0000-00000000000{number}', '7', '1', '', {now},
                 {now}, 1, 1{due_at})"
        );
        connection.execute_unprepared(&sql).await.unwrap();
    }
    let in_outbox = async |numbers: &str| {
        assert_eq!(count(&database, "in_transit").await, 0);
        assert_eq!(count(&database, "outbox").await, 2);
        count(&database, &format!("outbox WHERE sequence IN ({numbers})")).await == 2
    };

    Migrator::up(&connection, None).await.unwrap();
    assert!(in_outbox("5, 7").await);

    if database.is_postgres() {
        // A processor of the version before settles message 7.
        let settle = "WITH published AS (DELETE FROM outbox WHERE sequence = 7 RETURNING *)
            INSERT INTO in_transit (sequence, id, phone, code, trace, accepted_at, expires_at, attempt,
                publications, due_at)
            SELECT sequence, id, phone, code, trace, accepted_at, expires_at, attempt,
                publications + 1, now()
            FROM published ON CONFLICT DO NOTHING";
        connection.execute_unprepared(settle).await.unwrap();
        assert!(in_outbox("5, 7").await);
        assert_eq!(count(&database, "outbox WHERE claimable_at > now()").await, 1);
    }

    let back = u32::try_from(all.len()).unwrap() - before;
    Migrator::down(&connection, Some(back)).await.unwrap();
    assert!(in_outbox("5, 7").await);
}

#[tokio::test]
async fn messages_in_transit_return_to_the_outbox_of_postgres() {
    if let Some(database) = empty_postgres().await {
        messages_in_transit_return_to_the_outbox(database).await;
    }
}

#[tokio::test]
async fn messages_in_transit_return_to_the_outbox_of_sqlite() {
    let (database, _folder) = empty_sqlite();
    messages_in_transit_return_to_the_outbox(database).await;
}
