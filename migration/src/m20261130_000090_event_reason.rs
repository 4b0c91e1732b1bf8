use sea_orm_migration::prelude::*;

/// Adds to an event why its message failed.
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
ALTER TABLE event ADD COLUMN reason text;
COMMENT ON COLUMN event.reason IS 'why a message failed without a call of a gateway';
";

const SQLITE_UP: &str = "ALTER TABLE event ADD COLUMN reason TEXT";

const DOWN: &str = "ALTER TABLE event DROP COLUMN reason";
