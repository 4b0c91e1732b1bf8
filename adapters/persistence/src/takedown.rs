//! Taking migrations back: what that deletes, and whether anybody uses the database.

use std::collections::BTreeSet;

use migration::{MigrationStatus, Migrator, MigratorTrait};
use sea_orm::{ConnectionTrait, DbErr, TransactionTrait};

use crate::database::{Database, Sql};

/// What is lost when migrations are taken back.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Loss {
    /// Their names, the latest first.
    pub migrations: Vec<String>,
    /// The tables that go, and how many rows each has.
    pub tables: Vec<(String, i64)>,
    /// The columns that go from tables that stay, as `table.column`.
    pub columns: Vec<String>,
    /// The names of the keys that were drawn and go with their table.
    pub secrets: Vec<String>,
}

/// Says what taking back the latest `steps` migrations deletes: it does so in a transaction, looks,
/// and rolls back.
pub async fn loss(database: &Database, steps: u32) -> Result<Loss, DbErr> {
    let connection = database.connection();
    let mut migrations: Vec<String> = Migrator::get_migration_with_status_read_only(&connection)
        .await?
        .iter()
        .filter(|migration| migration.status() == MigrationStatus::Applied)
        .map(|migration| migration.name().to_owned())
        .collect();
    migrations.reverse();
    migrations.truncate(steps.try_into().unwrap_or(usize::MAX));
    if migrations.is_empty() {
        return Ok(Loss::default());
    }

    let transaction = connection.begin().await?;
    let before = columns(database, &transaction).await?;
    // Counted before they are gone; which ones go is known only afterwards.
    let mut rows = Vec::new();
    for table in before.iter().map(|(table, _)| table).collect::<BTreeSet<_>>() {
        let sql = format!("SELECT count(*) AS n FROM \"{table}\"");
        let row = transaction.query_one_raw(database.as_written(&sql, vec![])).await?;
        let row = row.ok_or_else(|| DbErr::RecordNotFound(table.clone()))?;
        rows.push((table.clone(), row.try_get::<i64>("", "n")?));
    }
    let secrets = if before.iter().any(|(table, _)| table == "secret") {
        let sql = database.as_written("SELECT name FROM secret ORDER BY name", vec![]);
        let rows = transaction.query_all_raw(sql).await?;
        rows.iter().map(|row| row.try_get("", "name")).collect::<Result<_, _>>()?
    } else {
        Vec::new()
    };
    Migrator::down(&transaction, Some(steps)).await?;
    let after = columns(database, &transaction).await?;
    transaction.rollback().await?;

    let tables_after: BTreeSet<&String> = after.iter().map(|(table, _)| table).collect();
    let columns = before
        .difference(&after)
        .filter(|(table, _)| tables_after.contains(table))
        .map(|(table, column)| format!("{table}.{column}"))
        .collect();
    let secrets = if tables_after.contains(&"secret".to_owned()) { Vec::new() } else { secrets };
    rows.retain(|(table, _)| !tables_after.contains(table));
    Ok(Loss { migrations, tables: rows, columns, secrets })
}

/// All columns of all tables of ours, each with its table.
async fn columns(
    database: &Database,
    connection: &impl ConnectionTrait,
) -> Result<BTreeSet<(String, String)>, DbErr> {
    const COLUMNS: Sql = Sql {
        postgres: "
SELECT relname::text AS its_table, attname::text AS its_column
FROM pg_class JOIN pg_attribute ON attrelid = pg_class.oid
WHERE relkind IN ('r', 'p') AND relnamespace = current_schema()::regnamespace
    AND attnum > 0 AND NOT attisdropped AND relname <> 'seaql_migrations'",
        sqlite: "
SELECT its.name AS its_table, col.name AS its_column
FROM sqlite_master AS its, pragma_table_info(its.name) AS col
WHERE its.type = 'table' AND its.name NOT LIKE 'sqlite_%' AND its.name <> 'seaql_migrations'",
    };
    let rows = connection.query_all_raw(database.statement(COLUMNS, vec![])).await?;
    rows.iter()
        .map(|row| Ok((row.try_get("", "its_table")?, row.try_get("", "its_column")?)))
        .collect()
}

/// Takes the database for this session alone, or says who uses it: no process can begin to use it
/// until this session ends. The pool must be one of [`Database::connect_to_migrate`].
pub async fn take_alone(database: &Database) -> Result<Vec<String>, DbErr> {
    if database.is_postgres() {
        database.lock_out_processes().await
    } else {
        lock_file(database).await
    }
}

/// Each process of ours that has the file open holds a lock that keeps others from leaving
/// SQLite's write-ahead mode.
async fn lock_file(database: &Database) -> Result<Vec<String>, DbErr> {
    let sql = "PRAGMA busy_timeout = 200; PRAGMA locking_mode = EXCLUSIVE; \
        PRAGMA journal_mode = DELETE; BEGIN EXCLUSIVE; COMMIT; PRAGMA busy_timeout = 5000";
    match database.connection().execute_unprepared(sql).await {
        Ok(_) => Ok(Vec::new()),
        Err(error) if is_locked(&error) => Ok(vec!["another process has the file open".to_owned()]),
        Err(error) => Err(error),
    }
}

/// SQLite's BUSY has no kind of its own in the library's errors.
fn is_locked(error: &DbErr) -> bool {
    error.to_string().contains("database is locked")
}
