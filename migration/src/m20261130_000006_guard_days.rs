use sea_orm_migration::prelude::*;

/// Adds the counts of the guard by day and by range of numbers, and the keys that an operator
/// allows.
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

// The day begins with the counts of the windows, because their approvals pay for a burst.
const POSTGRES_UP: &str = "
ALTER TABLE guard_count
    DROP CONSTRAINT guard_count_scope_check,
    ADD CONSTRAINT guard_count_scope_check CHECK (scope IN ('prefix', 'range', 'region', 'world')),
    ADD COLUMN day_began_at timestamptz NOT NULL DEFAULT now(),
    ADD COLUMN day_sends bigint NOT NULL DEFAULT 0,
    ADD COLUMN day_approvals bigint NOT NULL DEFAULT 0,
    ADD COLUMN day_sends_before bigint NOT NULL DEFAULT 0,
    ADD COLUMN day_approvals_before bigint NOT NULL DEFAULT 0,
    ADD COLUMN allowed_until timestamptz;
UPDATE guard_count
SET day_sends = sends + sends_before, day_approvals = approvals + approvals_before
WHERE began_at > now() - interval '1 day';
COMMENT ON COLUMN guard_count.allowed_until IS 'until then no rule of the guard holds for the key';
";

const SQLITE_UP: &str = "
CREATE TABLE guard_count_new (
    scope TEXT NOT NULL CHECK (scope IN ('prefix', 'range', 'region', 'world')),
    key TEXT NOT NULL,
    began_at INTEGER NOT NULL,
    sends INTEGER NOT NULL,
    approvals INTEGER NOT NULL,
    sends_before INTEGER NOT NULL DEFAULT 0,
    approvals_before INTEGER NOT NULL DEFAULT 0,
    day_began_at INTEGER NOT NULL
        DEFAULT (CAST(round(unixepoch('subsec') * 1000) AS INTEGER)),
    day_sends INTEGER NOT NULL DEFAULT 0,
    day_approvals INTEGER NOT NULL DEFAULT 0,
    day_sends_before INTEGER NOT NULL DEFAULT 0,
    day_approvals_before INTEGER NOT NULL DEFAULT 0,
    allowed_until INTEGER,
    PRIMARY KEY (scope, key)
) WITHOUT ROWID;
INSERT INTO guard_count_new (scope, key, began_at, sends, approvals, sends_before,
    approvals_before, day_sends, day_approvals)
SELECT scope, key, began_at, sends, approvals, sends_before, approvals_before,
    iif(is_fresh, sends + sends_before, 0), iif(is_fresh, approvals + approvals_before, 0)
FROM (
    SELECT *,
        began_at > CAST(round(unixepoch('subsec') * 1000) AS INTEGER) - 86400000 AS is_fresh
    FROM guard_count
);
DROP TABLE guard_count;
ALTER TABLE guard_count_new RENAME TO guard_count;
";

const POSTGRES_DOWN: &str = "
DELETE FROM guard_count WHERE scope IN ('range', 'world');
ALTER TABLE guard_count
    DROP COLUMN allowed_until,
    DROP COLUMN day_approvals_before,
    DROP COLUMN day_sends_before,
    DROP COLUMN day_approvals,
    DROP COLUMN day_sends,
    DROP COLUMN day_began_at,
    DROP CONSTRAINT guard_count_scope_check,
    ADD CONSTRAINT guard_count_scope_check CHECK (scope IN ('prefix', 'region'));
";

const SQLITE_DOWN: &str = "
CREATE TABLE guard_count_old (
    scope TEXT NOT NULL CHECK (scope IN ('prefix', 'region')),
    key TEXT NOT NULL,
    began_at INTEGER NOT NULL,
    sends INTEGER NOT NULL,
    approvals INTEGER NOT NULL,
    sends_before INTEGER NOT NULL DEFAULT 0,
    approvals_before INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (scope, key)
) WITHOUT ROWID;
INSERT INTO guard_count_old
SELECT scope, key, began_at, sends, approvals, sends_before, approvals_before
FROM guard_count
WHERE scope NOT IN ('range', 'world');
DROP TABLE guard_count;
ALTER TABLE guard_count_old RENAME TO guard_count;
";
