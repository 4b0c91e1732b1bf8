use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use sea_orm::{ConnectionTrait, DbErr, RuntimeErr, Value, sqlx};
use tokio::time::Instant;

use crate::database::{Database, Sql};

/// A part of the service, as the database knows it: by the role of `grants.sql`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    Api,
    Processor,
    Consumer,
    /// The embedded queue, of a processor or a consumer.
    Queue,
}

/// Why nothing can be stored, for an operator.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    #[error("the database role lacks {}: see docs/privileges.md", .missing.join(", "))]
    Privileges { missing: Vec<String> },
    /// The work of the service failed a moment ago.
    #[error("a statement failed: {0}")]
    Work(String),
    #[error("a write failed: {0}")]
    Probe(DbErr),
}

/// What the work of a process tells about its database. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Evidence(Arc<Mutex<Option<Failure>>>);

#[derive(Debug, Clone)]
struct Failure {
    at: Instant,
    reason: String,
}

/// How long a failure of real work outweighs writes of the probe, which are smaller than it.
const HOLD: Duration = Duration::from_secs(5);

/// What a probe writes after a failure, in bytes: as much as a large batch. A full disk often has
/// room for a small row.
const FILLER: usize = 256 * 1024;

/// Whether `part` can store what it has to: it has its privileges, its statements of the last
/// seconds did not fail for a reason that concerns all of them, and a row that is written now
/// becomes durable.
pub async fn check_storage(database: &Database, parts: &[Part]) -> Result<(), StorageError> {
    let missing = missing_privileges(database, parts).await.map_err(StorageError::Probe)?;
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
            // Next time it must prove more.
            database.evidence().note(&error);
            StorageError::Probe(error)
        })?;
    }
    if let Some(failure) = failure {
        database.evidence().forget(&failure);
    }
    Ok(())
}

async fn probe(database: &Database, part: Part, filler: usize) -> Result<(), DbErr> {
    // In PostgreSQL each session has one of 64 rows: its lock is held until the commit is durable,
    // so the processes of a large fleet would wait for each other on a single one.
    const WRITE: Sql = Sql {
        postgres: "
INSERT INTO write_probe (part, written_at, filler)
VALUES ($1 || ' ' || pg_backend_pid() % 64, (extract(epoch FROM clock_timestamp()) * 1000)::bigint, $2)
ON CONFLICT (part) DO UPDATE SET written_at = excluded.written_at, filler = excluded.filler",
        sqlite: "
INSERT INTO write_probe (part, written_at, filler)
VALUES ($1, CAST(unixepoch('subsec') * 1000 AS INTEGER), $2)
ON CONFLICT (part) DO UPDATE SET written_at = excluded.written_at, filler = excluded.filler",
    };
    let name = part.role();
    let write = |filler: usize| vec![Value::from(name), vec![0_u8; filler].into()];
    database.execute(WRITE, write(filler)).await?;
    if filler > 0 {
        // Gives the room back.
        database.execute(WRITE, write(0)).await?;
    }
    Ok(())
}

async fn missing_privileges(database: &Database, parts: &[Part]) -> Result<Vec<String>, DbErr> {
    const MISSING: &str = "
SELECT DISTINCT needed.privilege || ' on ' || needed.name AS missing
FROM unnest($1::text[], $2::text[]) AS needed (name, privilege)
WHERE NOT COALESCE(
    CASE WHEN needed.name LIKE 'SEQUENCE %'
        THEN has_sequence_privilege(to_regclass(substr(needed.name, 10)), needed.privilege)
        ELSE has_table_privilege(to_regclass(needed.name), needed.privilege) END,
    false)
ORDER BY missing";
    if !database.is_postgres() {
        return Ok(Vec::new());
    }
    let needed = || parts.iter().flat_map(|part| privileges(part.role()));
    let names = needed().map(|(table, _)| table.to_owned()).collect::<Vec<_>>();
    let privileges = needed().map(|(_, privilege)| privilege.to_owned()).collect::<Vec<_>>();
    let statement = database.as_written(MISSING, vec![names.into(), privileges.into()]);
    let rows = database.step(async |it| it.query_all_raw(statement).await).await?;
    rows.iter().map(|row| row.try_get("", "missing")).collect()
}

/// The tables and sequences of a role, each with a privilege on it.
fn privileges(role: &str) -> impl Iterator<Item = (&'static str, &'static str)> {
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

impl Evidence {
    /// Takes note of an error if it is about the database and not about one row or moment. Says
    /// whether it is.
    pub(crate) fn note(&self, error: &DbErr) -> bool {
        let concerns_all = concerns_all(error);
        if concerns_all {
            let failure = Failure { at: Instant::now(), reason: error.to_string() };
            *self.failure() = Some(failure);
        }
        concerns_all
    }

    /// Why a statement failed in the last seconds.
    pub fn recent(&self) -> Option<String> {
        let failure = self.latest()?;
        (failure.at.elapsed() < HOLD).then_some(failure.reason)
    }

    fn latest(&self) -> Option<Failure> {
        self.failure().clone()
    }

    /// Forgets this failure, unless there was another one since.
    fn forget(&self, failure: &Failure) {
        let mut latest = self.failure();
        if latest.as_ref().is_some_and(|it| it.at == failure.at) {
            *latest = None;
        }
    }

    fn failure(&self) -> std::sync::MutexGuard<'_, Option<Failure>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether an error of the database will meet other statements as well: a full or failing disk,
/// no memory, a file that may not be written or is locked, a role without a privilege, a server
/// that is read-only. An error about a row, a conflict or a lost connection is none of them.
fn concerns_all(error: &DbErr) -> bool {
    let (DbErr::Conn(RuntimeErr::SqlxError(cause))
    | DbErr::Exec(RuntimeErr::SqlxError(cause))
    | DbErr::Query(RuntimeErr::SqlxError(cause))) = error
    else {
        return false;
    };
    let sqlx::Error::Database(refusal) = &**cause else { return false };
    refusal.code().is_some_and(|code| match code.parse::<u32>() {
        // SQLite's result codes: PERM, BUSY, LOCKED, NOMEM, READONLY, IOERR, CORRUPT, FULL,
        // CANTOPEN, AUTH, NOTADB. Its extended codes have them in the low byte.
        Ok(number) if code.len() < 5 => {
            matches!(number & 0xff, 3 | 5 | 6 | 7 | 8 | 10 | 11 | 13 | 14 | 23 | 26)
        }
        // PostgreSQL's SQLSTATE: insufficient resources, system errors, corrupted data; no
        // privilege, read-only, no such table or column.
        _ => {
            ["53", "58", "XX"].iter().any(|class| code.starts_with(class))
                || ["42501", "25006", "42P01", "42703"].contains(&&*code)
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_part_has_privileges_of_its_own() {
        let of = |part: Part| privileges(part.role()).collect::<Vec<_>>();

        assert!(of(Part::Api).contains(&("outbox", "INSERT")));
        assert!(!of(Part::Api).contains(&("dead_letter", "INSERT")));
        assert!(of(Part::Processor).contains(&("outbox", "DELETE")));
        assert!(of(Part::Consumer).contains(&("dead_letter", "INSERT")));
        assert_eq!(of(Part::Queue).len(), 7);
    }
}
