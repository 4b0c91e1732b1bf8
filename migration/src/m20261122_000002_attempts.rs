use sea_orm_migration::prelude::*;

/// Adds the outcome of each gateway call, and the owner of the partition that began the last one.
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
    ADD COLUMN attempts jsonb NOT NULL DEFAULT '[]',
    ADD COLUMN epoch bigint,
    ADD COLUMN turn bigint NOT NULL DEFAULT 0;
COMMENT ON COLUMN delivery.attempts IS
    'a list of {attempt, outcome, detail, called_at, ended_at}: what came of each call';
COMMENT ON COLUMN delivery.epoch IS 'the lease under which the last call was begun';
COMMENT ON COLUMN delivery.turn IS 'the number, within the epoch, of the statement that began it';
";

const SQLITE_UP: &str = "
ALTER TABLE delivery ADD COLUMN attempts TEXT NOT NULL DEFAULT '[]';
ALTER TABLE delivery ADD COLUMN epoch INTEGER;
ALTER TABLE delivery ADD COLUMN turn INTEGER NOT NULL DEFAULT 0;
";

const DOWN: &str = "
ALTER TABLE delivery DROP COLUMN turn;
ALTER TABLE delivery DROP COLUMN epoch;
ALTER TABLE delivery DROP COLUMN attempts;
";
