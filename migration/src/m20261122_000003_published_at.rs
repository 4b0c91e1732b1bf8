use sea_orm_migration::prelude::*;

/// Adds the time since which a message has been in transit.
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
ALTER TABLE in_transit ADD COLUMN published_at timestamptz NOT NULL DEFAULT now();
";

const SQLITE_UP: &str = "
ALTER TABLE in_transit ADD COLUMN published_at INTEGER NOT NULL DEFAULT 0;
UPDATE in_transit SET published_at = CAST(round(unixepoch('subsec') * 1000) AS INTEGER);
";

const DOWN: &str = "
ALTER TABLE in_transit DROP COLUMN published_at;
";
