//! The service refuses unusable servers, and recognises databases that are in use.

use std::time::Duration;

use migration::{Migrator, MigratorTrait};
use sea_orm::ConnectionTrait;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy},
    net::{TcpListener, TcpStream},
};

use super::support::{
    count, empty_postgres, in_time, new_postgres, new_postgres_as, postgres, sqlite, statement,
};
use crate::{
    AdmitError, Database, DatabaseSettings, Loss, PostgresSettings, SchemaError, check_schema,
    loss, take_alone,
};

fn lazily(settings: &PostgresSettings) -> Database {
    let settings = DatabaseSettings::Postgres(settings.clone());
    Database::connect_lazily(&settings, "messager test", 2)
}

fn to_migrate(database: &Database) -> Database {
    Database::connect_to_migrate(database.settings(), "messager migrate")
}

#[tokio::test]
async fn database_that_is_not_utf8_is_refused_with_its_encoding() {
    for encoding in ["LATIN1", "SQL_ASCII"] {
        let like = format!("ENCODING '{encoding}' LOCALE 'C' TEMPLATE template0");
        let Some(settings) = new_postgres_as(&like).await else { return };
        let database = lazily(&settings);

        let refused = check_schema(&database).await;

        let Err(SchemaError::Refused(why)) = refused else { panic!("{refused:?}") };
        assert!(why.contains(encoding) && why.contains(&settings.database), "{why}");
        let migrating = to_migrate(&database).admit().await;
        assert!(matches!(migrating, Err(AdmitError::Refused(_))), "{migrating:?}");
        // The pool also refuses it.
        assert!(database.connection().execute_unprepared("SELECT 1").await.is_err());
    }
}

/// A proxy that makes the server report version 14.
async fn as_postgres_14(settings: &PostgresSettings) -> PostgresSettings {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = (settings.host.clone(), settings.port);
    tokio::spawn(async move {
        loop {
            let (near, _) = listener.accept().await.unwrap();
            let far = TcpStream::connect(server.clone()).await.unwrap();
            let (mut from_near, mut to_near) = near.into_split();
            let (mut from_far, mut to_far) = far.into_split();
            tokio::spawn(async move { copy(&mut from_near, &mut to_far).await });
            tokio::spawn(async move {
                const SAYS: &[u8] = b"server_version\0";
                let mut buffer = vec![0; 65_536];
                while let Ok(length @ 1..) = from_far.read(&mut buffer).await {
                    let found = buffer[..length].windows(SAYS.len()).position(|it| it == SAYS);
                    if let Some(at) = found {
                        buffer[at + SAYS.len()..][..2].copy_from_slice(b"14");
                    }
                    if to_near.write_all(&buffer[..length]).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    PostgresSettings { host: "127.0.0.1".to_owned(), port, ..settings.clone() }
}

#[tokio::test]
async fn server_that_is_too_old_is_refused_with_its_version() {
    let Some(settings) = new_postgres().await else { return };

    let refused = check_schema(&lazily(&as_postgres_14(&settings).await)).await;

    let Err(SchemaError::Refused(why)) = refused else { panic!("{refused:?}") };
    assert!(why.contains("PostgreSQL 14.") && why.contains("15 or later"), "{why}");
}

#[tokio::test]
async fn role_defaults_do_not_change_session_settings() {
    let Some(settings) = new_postgres().await else { return };
    let database = lazily(&settings);
    for default in ["synchronous_commit = off", "statement_timeout = 0", "client_encoding = LATIN1"]
    {
        let sql = format!("ALTER DATABASE {} SET {default}", settings.database);
        database.connection().execute_unprepared(&sql).await.unwrap();
    }

    let fresh = lazily(&settings);

    let sql = "SELECT concat_ws(' ', current_setting('synchronous_commit'),
        current_setting('statement_timeout'), current_setting('client_encoding')) AS it";
    let row =
        fresh.connection().query_one_raw(statement(&fresh, sql, vec![])).await.unwrap().unwrap();
    assert_eq!(row.try_get::<String>("", "it").unwrap(), "on 10s UTF8");
}

async fn revert_lists_everything_that_it_deletes(database: Database) {
    Migrator::up(&database.connection(), None).await.unwrap();
    let all: u32 = Migrator::migrations().len().try_into().unwrap();
    let migrating = to_migrate_alone(database).await;

    let found = loss(&migrating, all).await.unwrap();

    assert_eq!(found.migrations.len(), Migrator::migrations().len());
    assert_eq!(found.migrations.last().unwrap(), "m20261122_000001_pipeline");
    for table in ["outbox", "delivery", "verification", "api_key", "secret"] {
        assert!(found.tables.contains(&(table.to_owned(), 0)), "{table}: {found:?}");
    }
    assert_eq!(found.columns, Vec::<String>::new(), "their tables are deleted");
    assert_eq!(count(&migrating, "outbox").await, 0, "the table still exists");

    // A revert of only the latest migration deletes no table of the first migrations.
    let latest = loss(&migrating, 1).await.unwrap();
    assert_eq!(latest.migrations.len(), 1);
    assert!(!latest.tables.iter().any(|(table, _)| table == "outbox"), "{latest:?}");

    Migrator::down(&migrating.connection(), None).await.unwrap();
    assert_eq!(loss(&migrating, 1).await.unwrap(), Loss::default());
}

/// Returns another pool of the same database, and closes the first one.
async fn to_migrate_alone(database: Database) -> Database {
    let migrating = to_migrate(&database);
    database.close().await.unwrap();
    migrating
}

#[tokio::test]
async fn revert_lists_everything_that_it_deletes_on_postgres() {
    if let Some(database) = empty_postgres().await {
        revert_lists_everything_that_it_deletes(database).await;
    }
}

#[tokio::test]
async fn revert_lists_everything_that_it_deletes_on_sqlite() {
    let (database, _folder) = sqlite().await;
    revert_lists_everything_that_it_deletes(database).await;
}

async fn database_is_reserved_only_when_it_is_unused(database: Database) {
    let other = Database::connect_lazily(database.settings(), "messager api", 1);
    other.connection().ping().await.unwrap();
    database.close().await.unwrap();
    let migrating = to_migrate(&other);

    let users = take_alone(&migrating).await.unwrap();
    assert_eq!(users.len(), 1, "{users:?}");

    other.close().await.unwrap();
    // The server notices the end of the session a moment later.
    in_time(async {
        while !take_alone(&migrating).await.unwrap().is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    let late = Database::connect_lazily(migrating.settings(), "messager api", 1);
    let began = tokio::time::timeout(Duration::from_secs(1), late.connection().ping()).await;
    assert!(!matches!(began, Ok(Ok(()))), "no process begins to use the database meanwhile");
}

#[tokio::test]
async fn database_in_use_cannot_be_reserved_on_postgres() {
    if let Some(database) = postgres().await {
        database_is_reserved_only_when_it_is_unused(database).await;
    }
}

#[tokio::test]
async fn database_in_use_cannot_be_reserved_on_sqlite() {
    let (database, _folder) = sqlite().await;
    database_is_reserved_only_when_it_is_unused(database).await;
}

/// A process may have no session between two checks of the database.
#[tokio::test]
async fn process_that_waits_for_a_session_uses_the_database() {
    let Some(database) = postgres().await else { return };
    let migrating = to_migrate_alone(database).await;
    let settings = migrating.settings().clone();
    let looking = tokio::spawn(async move {
        loop {
            // Its sessions have an empty name, as a role without the privilege sees them.
            let api = Database::connect_lazily(&settings, "", 1);
            let _ = api.connection().ping().await;
            let _ = api.close().await;
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    });

    let users = take_alone(&migrating).await.unwrap();

    looking.abort();
    assert_eq!(users.len(), 1, "{users:?}");
}
