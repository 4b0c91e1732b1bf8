use sea_orm_migration::prelude::*;

/// Adds the time up to which each partition has been read.
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
ALTER TABLE partition_lease ADD COLUMN seen_until timestamptz;
COMMENT ON COLUMN partition_lease.seen_until IS
    'all that was in the partition at that time has been read';
";

const SQLITE_UP: &str = "
ALTER TABLE partition_lease ADD COLUMN seen_until INTEGER;
";

const DOWN: &str = "
ALTER TABLE partition_lease DROP COLUMN seen_until;
";
