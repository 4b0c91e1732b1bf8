use sea_orm_migration::prelude::*;

/// Adds the newest verification of `/api` to a phone, so that a send through `/api` does not replace
/// the verification that `/v1` began.
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
ALTER TABLE phone
    ADD COLUMN api_newest uuid,
    ADD COLUMN api_newest_until timestamptz NOT NULL DEFAULT '-infinity';
COMMENT ON COLUMN phone.phone IS
    'digits; and behind api: what is counted of messages that came through an open /api';
COMMENT ON COLUMN phone.api_newest IS 'the newest verification that /api began';
";

const SQLITE_UP: &str = "
ALTER TABLE phone ADD COLUMN api_newest TEXT;
ALTER TABLE phone ADD COLUMN api_newest_until INTEGER NOT NULL DEFAULT 0;
";

const DOWN: &str = "
ALTER TABLE phone DROP COLUMN api_newest;
ALTER TABLE phone DROP COLUMN api_newest_until;
";
