use sea_orm_migration::prelude::*;

/// Adds what the calls of each gateway cost on a day.
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

// `fillfactor` leaves room to update a row in place: there are few rows, and each is updated often.
const POSTGRES_UP: &str = "
CREATE TABLE gateway_spending (
    gateway text NOT NULL,
    scope text NOT NULL,
    day integer NOT NULL,
    spent bigint NOT NULL,
    PRIMARY KEY (gateway, scope, day)
) WITH (fillfactor = 20, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500);
COMMENT ON TABLE gateway_spending IS 'what the calls of a gateway cost on a day';
COMMENT ON COLUMN gateway_spending.scope IS 'the region that a budget is for; empty: all regions';
COMMENT ON COLUMN gateway_spending.day IS 'days since 1970, in UTC';
COMMENT ON COLUMN gateway_spending.spent IS
    'millionths of the currency: calls that were accepted, that may have been, or that are in progress';
";

const SQLITE_UP: &str = "
CREATE TABLE gateway_spending (
    gateway TEXT NOT NULL,
    scope TEXT NOT NULL,
    day INTEGER NOT NULL,
    spent INTEGER NOT NULL,
    PRIMARY KEY (gateway, scope, day)
) WITHOUT ROWID;
";

const DOWN: &str = "DROP TABLE gateway_spending";
