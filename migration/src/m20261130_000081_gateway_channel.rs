use sea_orm_migration::prelude::*;

/// Adds the channel of each gateway, for processes that do not know the gateway.
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
CREATE TABLE gateway_channel (
    gateway text PRIMARY KEY,
    channel text NOT NULL
);
COMMENT ON TABLE gateway_channel IS 'how each gateway brings a code to the user';
";

const SQLITE_UP: &str = "
CREATE TABLE gateway_channel (
    gateway TEXT NOT NULL PRIMARY KEY,
    channel TEXT NOT NULL
) WITHOUT ROWID;
";

const DOWN: &str = "DROP TABLE gateway_channel;";
