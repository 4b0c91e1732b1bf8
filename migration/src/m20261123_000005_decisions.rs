use sea_orm_migration::prelude::*;

/// Stores many decisions of one rule about one key in one row, because a flood causes one for each
/// request.
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
ALTER TABLE guard_decision ADD COLUMN others json;
COMMENT ON COLUMN guard_decision.others IS
    'what the rule said next of the key, in the same flush: [[sends, approvals, verification], ...]';
";

const SQLITE_UP: &str = "
ALTER TABLE guard_decision ADD COLUMN others TEXT;
";

// The decisions that are taken out of a row get the highest numbers, and are listed first.
const POSTGRES_DOWN: &str = "
INSERT INTO guard_decision
    (decided_at, rule, mode, scope, key, sends, approvals, verification)
SELECT decided_at, rule, mode, scope, key, (other ->> 0)::bigint, (other ->> 1)::bigint,
    (other ->> 2)::uuid
FROM guard_decision, json_array_elements(others) WITH ORDINALITY AS decision (other, place)
ORDER BY id, place;
ALTER TABLE guard_decision DROP COLUMN others;
";

const SQLITE_DOWN: &str = "
INSERT INTO guard_decision
    (decided_at, rule, mode, scope, key, sends, approvals, verification)
SELECT decided_at, rule, mode, scope, run.key, other.value ->> 0, other.value ->> 1,
    other.value ->> 2
FROM guard_decision AS run, json_each(run.others) AS other
ORDER BY run.id, other.key;
ALTER TABLE guard_decision DROP COLUMN others;
";
