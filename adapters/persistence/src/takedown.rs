//! What reverting migrations deletes, and whether a process uses the database.

use std::collections::BTreeSet;

use migration::{MigrationStatus, Migrator, MigratorTrait};
use sea_orm::{ConnectionTrait, DbErr, FromQueryResult, Statement, TransactionTrait};

use crate::database::{Database, Sql};

/// What is lost when migrations are reverted.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Loss {
    /// The names of the migrations, the latest first.
    pub migrations: Vec<String>,
    /// The tables that go, with their number of rows.
    pub tables: Vec<(String, i64)>,
    /// The columns that go from tables that stay, as `table.column`.
    pub columns: Vec<String>,
    /// The names of the drawn keys that go with their table.
    pub secrets: Vec<String>,
}

/// Returns what reverting the latest `steps` migrations deletes. It reverts them in a transaction,
/// compares, and rolls back.
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
    // Counted while they exist; which tables go is known only afterwards.
    let mut rows = Vec::new();
    for table in before.iter().map(|(table, _)| table).collect::<BTreeSet<_>>() {
        let count = format!("SELECT count(*) AS rows FROM \"{table}\"");
        let count = Statement::from_string(transaction.get_database_backend(), count);
        let count: Count = all(&transaction, count)
            .await?
            .pop()
            .ok_or_else(|| DbErr::RecordNotFound(table.clone()))?;
        rows.push((table.clone(), count.rows));
    }
    let secrets: Vec<Secret> = if before.iter().any(|(table, _)| table == "secret") {
        all(&transaction, SECRETS.statement(database.parameters())?).await?
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
    let secrets = if tables_after.contains(&"secret".to_owned()) {
        Vec::new()
    } else {
        secrets.into_iter().map(|secret| secret.name).collect()
    };
    rows.retain(|(table, _)| !tables_after.contains(table));
    Ok(Loss { migrations, tables: rows, columns, secrets })
}

#[cfg(test)]
pub(crate) async fn all_columns(database: &Database) -> Result<BTreeSet<(String, String)>, DbErr> {
    columns(database, &database.connection()).await
}

/// Returns all columns of the service's tables, as pairs of table and column.
async fn columns(
    database: &Database,
    connection: &impl ConnectionTrait,
) -> Result<BTreeSet<(String, String)>, DbErr> {
    let rows: Vec<Column> = all(connection, COLUMNS.statement(database.parameters())?).await?;
    Ok(rows.into_iter().map(|row| (row.its_table, row.its_column)).collect())
}

async fn all<R: FromQueryResult>(
    connection: &impl ConnectionTrait,
    statement: Statement,
) -> Result<Vec<R>, DbErr> {
    let rows = connection.query_all_raw(statement).await?;
    rows.iter().map(|row| R::from_query_result(row, "")).collect()
}

static SECRETS: Sql = Sql::new("SELECT name FROM secret ORDER BY name");

static COLUMNS: Sql = Sql::pair(
    "
SELECT relname::text AS its_table, attname::text AS its_column
FROM pg_class JOIN pg_attribute ON attrelid = pg_class.oid
WHERE relkind IN ('r', 'p') AND relnamespace = current_schema()::regnamespace
  AND attnum > 0 AND NOT attisdropped AND relname <> 'seaql_migrations'",
    "
SELECT its.name AS its_table, col.name AS its_column
FROM sqlite_master AS its, pragma_table_info(its.name) AS col
WHERE its.type = 'table' AND its.name NOT LIKE 'sqlite_%' AND its.name <> 'seaql_migrations'",
);

#[derive(FromQueryResult)]
struct Count {
    rows: i64,
}

#[derive(FromQueryResult)]
struct Secret {
    name: String,
}

#[derive(FromQueryResult)]
struct Column {
    its_table: String,
    its_column: String,
}

/// Takes the database for this session alone, or returns the processes that use it. No process can
/// begin to use it until this session ends. The pool must be one of
/// [`Database::connect_to_migrate`].
pub async fn take_alone(database: &Database) -> Result<Vec<String>, DbErr> {
    if database.is_postgres() {
        Ok(database.lock_out_processes().await?)
    } else {
        lock_file(database).await
    }
}

/// Leaves SQLite's write-ahead mode for a moment, which fails while another process has the file
/// open.
async fn lock_file(database: &Database) -> Result<Vec<String>, DbErr> {
    let sql = "PRAGMA busy_timeout = 200; PRAGMA locking_mode = EXCLUSIVE; \
        PRAGMA journal_mode = DELETE; BEGIN EXCLUSIVE; COMMIT; PRAGMA busy_timeout = 5000";
    match database.connection().execute_unprepared(sql).await {
        Ok(_) => Ok(Vec::new()),
        Err(error) if is_locked(&error) => Ok(vec!["another process has the file open".to_owned()]),
        Err(error) => Err(error),
    }
}

/// SQLite's BUSY has no variant in sea-orm's errors.
fn is_locked(error: &DbErr) -> bool {
    error.to_string().contains("database is locked")
}
