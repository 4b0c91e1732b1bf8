use sea_orm_migration::prelude::*;

/// Adds the time since which a message has been in a ledger. It remains known for days after the
/// publication.
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

// SQLite cannot add a column with a changing default, so the statements set it.
const SQLITE_UP: &str = "
ALTER TABLE delivery ADD COLUMN admitted_at INTEGER;
";

const DOWN: &str = "
ALTER TABLE delivery DROP COLUMN admitted_at;
";
