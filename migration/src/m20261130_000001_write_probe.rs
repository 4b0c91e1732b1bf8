use sea_orm_migration::prelude::*;

/// Adds the rows that each part of the service writes to check that it can store data.
#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        crate::run(manager, POSTGRES_UP, SQLITE_UP).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        crate::run(manager, DOWN, DOWN).await
    }
}

// Not compressed: the filler must take up its full size.
const POSTGRES_UP: &str = "
CREATE TABLE write_probe (
    part text PRIMARY KEY,
    written_at bigint NOT NULL,
    filler bytea NOT NULL
);
ALTER TABLE write_probe ALTER COLUMN filler SET STORAGE EXTERNAL;
COMMENT ON TABLE write_probe IS 'written to see whether the database can store anything';
";

const SQLITE_UP: &str = "
CREATE TABLE write_probe (
    part TEXT NOT NULL PRIMARY KEY,
    written_at INTEGER NOT NULL,
    filler BLOB NOT NULL
);
";

const DOWN: &str = "DROP TABLE write_probe;";
