use sea_orm_migration::prelude::*;

/// Adds the messages that were sent because the receipt of an earlier one was missing.
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
CREATE TABLE extra_send (
    message_id uuid PRIMARY KEY,
    gateway text NOT NULL,
    passed_over text NOT NULL,
    reason text NOT NULL,
    sent_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE extra_send IS
    'a message that was sent because the one before it got no receipt, and its gateways to pass over';
COMMENT ON COLUMN extra_send.gateway IS 'the gateway of the message before it';
";

const SQLITE_UP: &str = "
CREATE TABLE extra_send (
    message_id TEXT PRIMARY KEY,
    gateway TEXT NOT NULL,
    passed_over TEXT NOT NULL,
    reason TEXT NOT NULL,
    sent_at INTEGER NOT NULL
) WITHOUT ROWID;
";

const DOWN: &str = "DROP TABLE extra_send;";
