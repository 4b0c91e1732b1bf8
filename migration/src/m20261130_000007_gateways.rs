use sea_orm_migration::prelude::*;

/// Adds the gateway of a call, and the gateways that may have the message.
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

// Without defaults, so that no row is written. A call of an earlier version has no gateway: it counts
// for the one named `default`.
const POSTGRES_UP: &str = "
ALTER TABLE delivery
    ADD COLUMN gateway text,
    ADD COLUMN maybe_taken text;
COMMENT ON COLUMN delivery.gateway IS
    'the gateway of the call in progress, or of the last call of an entry that has ended';
COMMENT ON COLUMN delivery.maybe_taken IS
    'gateways that may have the message, separated by spaces: a call had no clear outcome';
COMMENT ON COLUMN delivery.attempts IS
    'a list of {attempt, gateway, outcome, detail, called_at, ended_at}: what came of each call';
";

const SQLITE_UP: &str = "
ALTER TABLE delivery ADD COLUMN gateway TEXT;
ALTER TABLE delivery ADD COLUMN maybe_taken TEXT;
";

const DOWN: &str = "
ALTER TABLE delivery DROP COLUMN maybe_taken;
ALTER TABLE delivery DROP COLUMN gateway;
";
