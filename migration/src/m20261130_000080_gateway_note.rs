use sea_orm_migration::prelude::*;

/// Adds what gateways noted before they called a provider.
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
CREATE TABLE gateway_note (
    message_id uuid NOT NULL,
    gateway text NOT NULL,
    note text NOT NULL,
    expires_at timestamptz NOT NULL,
    PRIMARY KEY (message_id, gateway)
);
COMMENT ON TABLE gateway_note IS
    'what a gateway noted on a message before it called the provider, such as the id of the request';
";

const SQLITE_UP: &str = "
CREATE TABLE gateway_note (
    message_id TEXT NOT NULL,
    gateway TEXT NOT NULL,
    note TEXT NOT NULL,
    expires_at INTEGER NOT NULL,
    PRIMARY KEY (message_id, gateway)
) WITHOUT ROWID;
";

const DOWN: &str = "DROP TABLE gateway_note;";
