use sea_orm_migration::prelude::*;

/// Adds the call during which a receipt came that is kept until the call ends.
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
ALTER TABLE gateway_receipt ADD COLUMN attempt integer;
COMMENT ON COLUMN gateway_receipt.attempt IS
    'the attempt of the call during which the receipt came; the receipt counts for that call only';
";

const SQLITE_UP: &str = "ALTER TABLE gateway_receipt ADD COLUMN attempt INTEGER";

const DOWN: &str = "ALTER TABLE gateway_receipt DROP COLUMN attempt";
