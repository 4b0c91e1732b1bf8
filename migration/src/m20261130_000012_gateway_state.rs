use sea_orm_migration::prelude::*;

/// Adds the gateways that the operator has drained, and what each process says of its gateways.
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

// Both tables are new, so this migration waits for no lock.
const POSTGRES_UP: &str = "
CREATE TABLE gateway_control (
    gateway text PRIMARY KEY,
    drained_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE gateway_control IS 'gateways that the operator has drained: no process calls them';
CREATE TABLE gateway_state (
    gateway text NOT NULL,
    process text NOT NULL,
    provider text NOT NULL,
    state text NOT NULL,
    reason text NOT NULL,
    in_flight bigint NOT NULL,
    accepted bigint NOT NULL,
    refused bigint NOT NULL,
    unclear bigint NOT NULL,
    reported_at timestamptz NOT NULL,
    PRIMARY KEY (gateway, process)
);
COMMENT ON TABLE gateway_state IS 'what each process says of its gateways, for `messager gateways`';
";

const SQLITE_UP: &str = "
CREATE TABLE gateway_control (
    gateway TEXT NOT NULL PRIMARY KEY,
    drained_at INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE gateway_state (
    gateway TEXT NOT NULL,
    process TEXT NOT NULL,
    provider TEXT NOT NULL,
    state TEXT NOT NULL,
    reason TEXT NOT NULL,
    in_flight INTEGER NOT NULL,
    accepted INTEGER NOT NULL,
    refused INTEGER NOT NULL,
    unclear INTEGER NOT NULL,
    reported_at INTEGER NOT NULL,
    PRIMARY KEY (gateway, process)
) WITHOUT ROWID;
";

const DOWN: &str = "DROP TABLE gateway_state; DROP TABLE gateway_control;";
