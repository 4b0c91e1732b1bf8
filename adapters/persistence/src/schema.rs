use std::collections::HashSet;

use migration::{Migrator, MigratorTrait};
use sea_orm::DbErr;

use crate::database::{AdmitError, Database, Sql};

#[derive(Debug, thiserror::Error)]
pub enum SchemaError {
    /// The tables are older than this program.
    #[error("the database schema is behind: run `messager migrate up` (missing: {})", .missing.join(", "))]
    Behind { missing: Vec<String> },
    /// The server, the database or what is before it cannot be used as it is.
    #[error("{0}")]
    Refused(String),
    #[error("the database is unavailable")]
    Unavailable(#[source] DbErr),
}

impl From<AdmitError> for SchemaError {
    fn from(error: AdmitError) -> Self {
        match error {
            AdmitError::Refused(why) => Self::Refused(why),
            AdmitError::Unavailable(error) => Self::Unavailable(error),
        }
    }
}

/// Whether the schema has all that this program knows of.
///
/// Migrations of a later version are no trouble: they suit the code before them.
pub async fn check_schema(database: &Database) -> Result<(), SchemaError> {
    const HAS_TABLE: Sql = Sql {
        postgres: "SELECT 1 WHERE to_regclass('seaql_migrations') IS NOT NULL",
        sqlite: "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'seaql_migrations'",
    };
    const APPLIED: &str = "SELECT version FROM seaql_migrations";

    const READ_ONLY: Sql = Sql {
        postgres: "SELECT 1 WHERE current_setting('transaction_read_only') = 'on'",
        sqlite: "SELECT 1 WHERE false",
    };

    database.admit().await?;
    // A primary that was demoted, say.
    let read_only = match database.rows(READ_ONLY, vec![]).await {
        Ok(rows) => rows,
        Err(error) => return Err(SchemaError::Unavailable(database.reason(error).await)),
    };
    if !read_only.is_empty() {
        return Err(SchemaError::Unavailable(DbErr::Custom("it is read-only".to_owned())));
    }
    let mut applied = HashSet::new();
    let rows = database.rows(HAS_TABLE, vec![]).await.map_err(SchemaError::Unavailable)?;
    if !rows.is_empty() {
        let sql = Sql { postgres: APPLIED, sqlite: APPLIED };
        for row in database.rows(sql, vec![]).await.map_err(SchemaError::Unavailable)? {
            applied.insert(row.try_get::<String>("", "version").map_err(SchemaError::Unavailable)?);
        }
    }
    let missing: Vec<String> = Migrator::migrations()
        .iter()
        .map(|migration| migration.name().to_owned())
        .filter(|name| !applied.contains(name))
        .collect();
    if missing.is_empty() { Ok(()) } else { Err(SchemaError::Behind { missing }) }
}
