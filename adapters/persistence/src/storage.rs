use sea_orm::{DbErr, FromQueryResult};

use crate::database::{Database, DatabaseError, Sql};

/// A part of the service. Each part has its own database role in `grants.sql`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    Api,
    Processor,
    Consumer,
    /// The embedded queue of a processor or a consumer.
    Queue,
}

/// The reason why the service cannot store data, for an operator.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    #[error("the database role lacks {}: see docs/privileges.md", .missing.join(", "))]
    Privileges { missing: Vec<String> },
    /// A statement of the service failed a moment ago.
    #[error("a statement failed: {0}")]
    Work(String),
    #[error("a write failed: {0}")]
    Probe(DbErr),
}

/// The size of a probe after a failure, in bytes. It is that of a large batch, because a full disk
/// often has room for a small row.
const FILLER: usize = 256 * 1024;

/// Checks that each of `parts` can store its rows.
///
/// Each part must have its privileges. No statement of the last seconds may have failed for a
/// reason that concerns all statements. A row that is written now must become durable.
pub async fn check_storage(database: &Database, parts: &[Part]) -> Result<(), StorageError> {
    let probe_failed = |error: DatabaseError| StorageError::Probe(error.into());
    let missing = missing_privileges(database, parts).await.map_err(probe_failed)?;
    if !missing.is_empty() {
        return Err(StorageError::Privileges { missing });
    }
    if let Some(reason) = database.evidence().recent() {
        return Err(StorageError::Work(reason));
    }
    let failure = database.evidence().latest();
    let filler = if failure.is_some() { FILLER } else { 0 };
    if let Some(part) = parts.first() {
        probe(database, *part, filler).await.map_err(|error| {
            // The next probe writes more.
            database.evidence().note(&error);
            probe_failed(error)
        })?;
    }
    if let Some(failure) = failure {
        database.evidence().forget(&failure);
    }
    Ok(())
}

/// Commits a row with `filler` bytes, which are removed again.
pub(crate) async fn probe(
    database: &Database,
    part: Part,
    filler: usize,
) -> Result<(), DatabaseError> {
    // In PostgreSQL the sessions share 64 rows. The lock of a row is held until the commit is
    // durable, so the processes of a large fleet would wait for each other on a single row.
    static WRITE: Sql = Sql::pair(
        "
INSERT INTO write_probe (part, written_at, filler)
VALUES (:part || ' ' || pg_backend_pid() % 64, {millis({clock})}, :filler)
ON CONFLICT (part) DO UPDATE SET written_at = excluded.written_at, filler = excluded.filler
RETURNING part",
        "
INSERT INTO write_probe (part, written_at, filler)
VALUES (:part, {millis({clock})}, :filler)
ON CONFLICT (part) DO UPDATE SET written_at = excluded.written_at, filler = excluded.filler
RETURNING part",
    );
    static FREE_SPACE: Sql = Sql::new("UPDATE write_probe SET filler = :filler WHERE part = :part");

    #[derive(FromQueryResult)]
    struct Row {
        part: String,
    }

    let row = |part: &str, filler: usize| {
        database.parameters().with("part", part.to_owned()).with("filler", vec![0_u8; filler])
    };
    let written: Vec<Row> = database.rows(&WRITE, row(part.role(), filler)).await?;
    if filler > 0 {
        // By name: this may be another session.
        for Row { part } in written {
            database.execute(&FREE_SPACE, row(&part, 0)).await?;
        }
    }
    Ok(())
}

async fn missing_privileges(
    database: &Database,
    parts: &[Part],
) -> Result<Vec<String>, DatabaseError> {
    static MISSING: Sql = Sql::new(
        "
SELECT DISTINCT needed.privilege || ' on ' || needed.name AS missing
FROM :needed
WHERE NOT COALESCE(
    CASE WHEN needed.name LIKE 'SEQUENCE %'
        THEN has_sequence_privilege(to_regclass(substr(needed.name, 10)), needed.privilege)
        ELSE has_table_privilege(to_regclass(needed.name), needed.privilege) END,
    false)
ORDER BY missing",
    );

    #[derive(FromQueryResult)]
    struct Row {
        missing: String,
    }

    if !database.is_postgres() {
        return Ok(Vec::new());
    }
    let needed = parts.iter().flat_map(|part| privileges(part.role()));
    let parameters = database.parameters().rows("needed", needed, |needed| {
        needed
            .column("name", |(table, _)| table.to_owned())
            .column("privilege", |(_, privilege)| privilege.to_owned())
    });
    let rows: Vec<Row> = database.rows(&MISSING, parameters).await?;
    Ok(rows.into_iter().map(|row| row.missing).collect())
}

/// Returns the tables and sequences of a role, each with a privilege that it needs.
fn privileges(role: &str) -> impl Iterator<Item = (&'static str, &'static str)> + Clone {
    const GRANTS: &str = include_str!("grants.sql");
    let of_role = move |line: &'static str| {
        let (privileges, rest) = line.strip_prefix("GRANT ")?.split_once(" ON ")?;
        let (table, grantee) = rest.strip_suffix(';')?.split_once(" TO ")?;
        (grantee == role).then(|| privileges.split(", ").map(move |privilege| (table, privilege)))
    };
    GRANTS.lines().filter_map(of_role).flatten()
}

impl Part {
    fn role(self) -> &'static str {
        match self {
            Self::Api => "messager_api",
            Self::Processor => "messager_processor",
            Self::Consumer => "messager_consumer",
            Self::Queue => "messager_queue",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_part_has_its_own_privileges() {
        let of = |part: Part| privileges(part.role()).collect::<Vec<_>>();

        assert!(of(Part::Api).contains(&("outbox", "INSERT")));
        assert!(!of(Part::Api).contains(&("dead_letter", "INSERT")));
        assert!(of(Part::Processor).contains(&("outbox", "DELETE")));
        assert!(of(Part::Consumer).contains(&("dead_letter", "INSERT")));
        assert_eq!(of(Part::Queue).len(), 7);
    }
}
