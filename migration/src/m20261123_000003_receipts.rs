use sea_orm_migration::prelude::*;

/// Adds delivery receipts.
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
ALTER TABLE delivery
    ADD COLUMN delivered_at timestamptz,
    ADD COLUMN undelivered_at timestamptz;
COMMENT ON COLUMN delivery.delivered_at IS 'when the gateway told that the handset has it';
COMMENT ON COLUMN delivery.undelivered_at IS 'when the gateway told that it will not arrive';
";

const SQLITE_UP: &str = "
ALTER TABLE delivery ADD COLUMN delivered_at INTEGER;
ALTER TABLE delivery ADD COLUMN undelivered_at INTEGER;
";

const DOWN: &str = "
ALTER TABLE delivery DROP COLUMN undelivered_at;
ALTER TABLE delivery DROP COLUMN delivered_at;
";
