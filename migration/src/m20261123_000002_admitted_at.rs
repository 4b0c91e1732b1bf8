use sea_orm_migration::prelude::*;

/// Since when a message is in a ledger: what is known of it in the days after its publication.
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

const POSTGRES_UP: &str = "
ALTER TABLE delivery ADD COLUMN admitted_at timestamptz DEFAULT now();
";

// SQLite adds no column whose default changes; the statements name it.
const SQLITE_UP: &str = "
ALTER TABLE delivery ADD COLUMN admitted_at INTEGER;
";

const DOWN: &str = "
ALTER TABLE delivery DROP COLUMN admitted_at;
";
