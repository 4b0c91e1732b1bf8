use std::os::unix::fs::PermissionsExt;

use migration::{Migrator, MigratorTrait};

use super::support::{empty_postgres, empty_sqlite};
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
