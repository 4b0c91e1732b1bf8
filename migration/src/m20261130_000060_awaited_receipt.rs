use sea_orm_migration::prelude::*;

/// Adds the messages whose receipt is awaited.
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
CREATE TABLE awaited_receipt (
    message_id uuid PRIMARY KEY,
    verification_id uuid NOT NULL,
    send smallint NOT NULL,
    gateway text NOT NULL,
    passed_over text NOT NULL,
    due_at timestamptz NOT NULL
);
CREATE INDEX awaited_receipt_due ON awaited_receipt (due_at);
COMMENT ON TABLE awaited_receipt IS
    'a message that a gateway accepted; without a receipt in time it is sent again through another';
COMMENT ON COLUMN awaited_receipt.passed_over IS
    'the gateways that the next message must not go through, separated by spaces';
";

const SQLITE_UP: &str = "
CREATE TABLE awaited_receipt (
    message_id TEXT PRIMARY KEY,
    verification_id TEXT NOT NULL,
    send INTEGER NOT NULL,
    gateway TEXT NOT NULL,
    passed_over TEXT NOT NULL,
    due_at INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX awaited_receipt_due ON awaited_receipt (due_at);
";

const DOWN: &str = "DROP TABLE awaited_receipt;";
