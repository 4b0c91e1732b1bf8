use sea_orm_migration::prelude::*;

/// Adds how many messages of a verification no caller asked for.
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
ALTER TABLE verification ADD COLUMN extra_sends smallint NOT NULL DEFAULT 0;
COMMENT ON COLUMN verification.extra_sends IS
    'messages among its sends that were sent because a receipt was missing';
";

const SQLITE_UP: &str =
    "ALTER TABLE verification ADD COLUMN extra_sends INTEGER NOT NULL DEFAULT 0";

const DOWN: &str = "ALTER TABLE verification DROP COLUMN extra_sends";
