use sea_orm_migration::prelude::*;

/// Adds what was reserved for a call, so that it can be given back.
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
ALTER TABLE delivery ADD COLUMN reserved text;
COMMENT ON COLUMN delivery.reserved IS
    'what the latest call with a budget reserved, as {gateway, scopes, day, amount}';
";

const SQLITE_UP: &str = "ALTER TABLE delivery ADD COLUMN reserved TEXT";

const DOWN: &str = "ALTER TABLE delivery DROP COLUMN reserved";
