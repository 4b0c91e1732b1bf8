use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use sea_orm::{DbErr, RuntimeErr, sqlx};
use tokio::time::Instant;

use super::DatabaseError;

/// What the work of a process shows about its database. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Evidence(Arc<Mutex<Option<Failure>>>);

#[derive(Debug, Clone)]
pub(crate) struct Failure {
    at: Instant,
    reason: String,
}

/// How long a failed statement outweighs a successful write of the probe, which is smaller.
const HOLD: Duration = Duration::from_secs(5);

impl Evidence {
    /// Notes an error if it concerns the whole database, and not only one row or moment. Returns
    /// whether it does.
    pub(crate) fn note(&self, error: &DatabaseError) -> bool {
        let concerns_all = concerns_all(error.cause());
        if concerns_all {
            let failure = Failure { at: Instant::now(), reason: error.to_string() };
            *self.failure() = Some(failure);
        }
        concerns_all
    }

    /// Returns why a statement failed in the last seconds.
    pub fn recent(&self) -> Option<String> {
        let failure = self.latest()?;
        (failure.at.elapsed() < HOLD).then_some(failure.reason)
    }

    pub(crate) fn latest(&self) -> Option<Failure> {
        self.failure().clone()
    }

    /// Forgets this failure, unless another one followed it.
    pub(crate) fn forget(&self, failure: &Failure) {
        let mut latest = self.failure();
        if latest.as_ref().is_some_and(|it| it.at == failure.at) {
            *latest = None;
        }
    }

    fn failure(&self) -> MutexGuard<'_, Option<Failure>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether other statements will fail for the same reason: a full or failing disk, no memory, a
/// file that is locked or may not be written, a role without a privilege, a read-only server. Errors
/// about a row, a conflict or a lost connection do not count.
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
        // CANTOPEN, AUTH, NOTADB. Extended codes have them in the low byte.
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
