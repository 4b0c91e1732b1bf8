use sea_orm_migration::prelude::*;

/// Adds the references that gateways gave to messages, and the receipts that came before them.
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

// Few receipts are kept, so their index stays small.
const POSTGRES_UP: &str = "
CREATE TABLE gateway_receipt (
    gateway text NOT NULL,
    reference text NOT NULL,
    message_id uuid,
    receipt text,
    expires_at timestamptz NOT NULL,
    PRIMARY KEY (gateway, reference)
);
CREATE INDEX gateway_receipt_kept ON gateway_receipt (expires_at) WHERE receipt IS NOT NULL;
COMMENT ON TABLE gateway_receipt IS
    'the message behind the reference of a gateway; and receipts that are kept until it is known';
";

const SQLITE_UP: &str = "
CREATE TABLE gateway_receipt (
    gateway TEXT NOT NULL,
    reference TEXT NOT NULL,
    message_id TEXT,
    receipt TEXT,
    expires_at INTEGER NOT NULL,
    PRIMARY KEY (gateway, reference)
) WITHOUT ROWID;
CREATE INDEX gateway_receipt_kept ON gateway_receipt (expires_at) WHERE receipt IS NOT NULL;
";

const DOWN: &str = "DROP TABLE gateway_receipt;";
