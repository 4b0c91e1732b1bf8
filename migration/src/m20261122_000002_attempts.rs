use sea_orm_migration::prelude::*;

/// What came of each call of a gateway, and which owner of the partition began the last one; since
/// when a message is in transit, and up to when each partition has been read.
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

// Neither rewrites the table.
const POSTGRES_UP: &str = "
ALTER TABLE delivery
    ADD COLUMN attempts jsonb NOT NULL DEFAULT '[]',
    ADD COLUMN epoch bigint;
COMMENT ON COLUMN delivery.attempts IS
    'a list of {attempt, outcome, detail, called_at, ended_at}: what came of each call';
COMMENT ON COLUMN delivery.epoch IS 'the lease under which the last call was begun';

ALTER TABLE in_transit ADD COLUMN published_at timestamptz NOT NULL DEFAULT now();

ALTER TABLE partition_lease ADD COLUMN seen_until timestamptz;
COMMENT ON COLUMN partition_lease.seen_until IS
    'all that was in the partition at that time has been read';
";

const SQLITE_UP: &str = "
ALTER TABLE delivery ADD COLUMN attempts TEXT NOT NULL DEFAULT '[]';
ALTER TABLE delivery ADD COLUMN epoch INTEGER;
ALTER TABLE in_transit ADD COLUMN published_at INTEGER NOT NULL DEFAULT 0;
ALTER TABLE partition_lease ADD COLUMN seen_until INTEGER;
";

const DOWN: &str = "
ALTER TABLE partition_lease DROP COLUMN seen_until;
ALTER TABLE in_transit DROP COLUMN published_at;
ALTER TABLE delivery DROP COLUMN epoch;
ALTER TABLE delivery DROP COLUMN attempts;
";
