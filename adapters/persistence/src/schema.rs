use std::collections::HashSet;

use migration::{Migrator, MigratorTrait};
use sea_orm::{DbErr, FromQueryResult};

use crate::database::{AdmitError, Database, DatabaseError, Sql};

#[derive(Debug, thiserror::Error)]
pub enum SchemaError {
    /// The tables are older than this program.
    #[error("the database schema is behind: run `messager migrate up` (missing: {})", .missing.join(", "))]
    Behind { missing: Vec<String> },
    /// The server, the database or the pooler cannot be used: the operator must change something.
    #[error("{0}")]
    Refused(String),
    #[error("the database is unavailable")]
    Unavailable(#[source] DbErr),
}

impl From<DatabaseError> for SchemaError {
    fn from(error: DatabaseError) -> Self {
        Self::Unavailable(error.into())
    }
}

impl From<AdmitError> for SchemaError {
    fn from(error: AdmitError) -> Self {
        match error {
            AdmitError::Refused(why) => Self::Refused(why),
            AdmitError::Unavailable(error) => Self::Unavailable(error),
        }
    }
}

/// Checks that the schema has all migrations that this program knows.
///
/// Migrations of a later version are accepted: they suit the code before them.
pub async fn check_schema(database: &Database) -> Result<(), SchemaError> {
    database.admit().await?;
    // A primary that was demoted is read-only.
    let read_only = match database.finds(&READ_ONLY, database.parameters()).await {
        Ok(read_only) => read_only,
        Err(error) => return Err(SchemaError::Unavailable(database.reason(error.into()).await)),
    };
    if read_only {
        return Err(SchemaError::Unavailable(DbErr::Custom("it is read-only".to_owned())));
    }
    let mut applied = HashSet::new();
    if database.finds(&HAS_TABLE, database.parameters()).await? {
        let rows: Vec<Applied> = database.rows(&APPLIED, database.parameters()).await?;
        applied.extend(rows.into_iter().map(|row| row.version));
    }
    let missing: Vec<String> = Migrator::migrations()
        .iter()
        .map(|migration| migration.name().to_owned())
        .filter(|name| !applied.contains(name))
        .collect();
    if missing.is_empty() { Ok(()) } else { Err(SchemaError::Behind { missing }) }
}

static READ_ONLY: Sql = Sql::pair(
    "SELECT 1 WHERE current_setting('transaction_read_only') = 'on'",
    "SELECT 1 WHERE false",
);

static HAS_TABLE: Sql = Sql::pair(
    "SELECT 1 WHERE to_regclass('seaql_migrations') IS NOT NULL",
    "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'seaql_migrations'",
);

static APPLIED: Sql = Sql::new("SELECT version FROM seaql_migrations");

#[derive(FromQueryResult)]
struct Applied {
    version: String,
}
