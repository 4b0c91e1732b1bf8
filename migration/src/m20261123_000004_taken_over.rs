use sea_orm_migration::prelude::*;

/// Adds the data that the next holder of an idempotency key needs after the first holder has died.
#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        crate::run(manager, POSTGRES_UP, SQLITE_UP).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        crate::run(manager, POSTGRES_DOWN, SQLITE_DOWN).await
    }
}

const POSTGRES_UP: &str = "
ALTER TABLE idempotency ADD COLUMN first_holder bytea, ADD COLUMN done uuid;
COMMENT ON COLUMN idempotency.first_holder IS 'NULL: the holder is the first';
COMMENT ON COLUMN idempotency.done IS
    'the verification that it sent a message of, or approved, by the same commit';
";

const SQLITE_UP: &str = "
ALTER TABLE idempotency ADD COLUMN first_holder BLOB;
ALTER TABLE idempotency ADD COLUMN done TEXT;
";

const POSTGRES_DOWN: &str = "
ALTER TABLE idempotency DROP COLUMN first_holder, DROP COLUMN done;
";

const SQLITE_DOWN: &str = "
ALTER TABLE idempotency DROP COLUMN first_holder;
ALTER TABLE idempotency DROP COLUMN done;
";
