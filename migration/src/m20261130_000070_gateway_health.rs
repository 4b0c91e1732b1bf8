use sea_orm_migration::prelude::*;

/// Adds what became of the messages of each gateway, and the factors of gateways.
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
CREATE TABLE gateway_sample (
    minute bigint NOT NULL,
    gateway text NOT NULL,
    region text NOT NULL,
    sent integer NOT NULL,
    reported integer NOT NULL,
    in_time integer NOT NULL,
    approved integer NOT NULL,
    PRIMARY KEY (minute, gateway, region)
);
COMMENT ON TABLE gateway_sample IS 'what became of messages, by the minute in which they began';
COMMENT ON COLUMN gateway_sample.minute IS 'its number since 1970';
COMMENT ON COLUMN gateway_sample.gateway IS 'empty: a process has claimed the minute';
COMMENT ON COLUMN gateway_sample.region IS 'empty: numbers of no region';
CREATE TABLE gateway_factor (
    gateway text NOT NULL,
    region text NOT NULL,
    percent integer NOT NULL,
    changed_at timestamptz NOT NULL,
    PRIMARY KEY (gateway, region)
);
COMMENT ON TABLE gateway_factor IS 'the part of its messages that a gateway gets in a region';
";

const SQLITE_UP: &str = "
CREATE TABLE gateway_sample (
    minute INTEGER NOT NULL,
    gateway TEXT NOT NULL,
    region TEXT NOT NULL,
    sent INTEGER NOT NULL,
    reported INTEGER NOT NULL,
    in_time INTEGER NOT NULL,
    approved INTEGER NOT NULL,
    PRIMARY KEY (minute, gateway, region)
) WITHOUT ROWID;
CREATE TABLE gateway_factor (
    gateway TEXT NOT NULL,
    region TEXT NOT NULL,
    percent INTEGER NOT NULL,
    changed_at INTEGER NOT NULL,
    PRIMARY KEY (gateway, region)
) WITHOUT ROWID;
";

const DOWN: &str = "DROP TABLE gateway_factor; DROP TABLE gateway_sample;";
