use application::ports::{BrokerError, LedgerError, StoreError, StreamError};
use sea_orm::DbErr;

use crate::coalesce::Unserved;

/// A statement failed, or a row cannot be read.
///
/// Its text contains its causes, so it has no `source`.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct DatabaseError(DbErr);

impl DatabaseError {
    /// Returns the error for a value of a row that this service does not write.
    pub(crate) fn not(what: &str) -> Self {
        Self(DbErr::Type(format!("not {what}")))
    }

    /// Returns the error for a statement that did not return the row that it always returns.
    pub(crate) fn missing(what: &str) -> Self {
        Self(DbErr::RecordNotFound(what.to_owned()))
    }

    pub(crate) fn cause(&self) -> &DbErr {
        &self.0
    }

    /// Returns whether the pool had no free connection. The statement did not run.
    pub(crate) fn is_no_connection(&self) -> bool {
        matches!(self.0, DbErr::ConnectionAcquire(_))
    }
}

impl From<DbErr> for DatabaseError {
    fn from(error: DbErr) -> Self {
        Self(error)
    }
}

impl From<DatabaseError> for DbErr {
    fn from(error: DatabaseError) -> Self {
        error.0
    }
}

impl From<DatabaseError> for StoreError {
    fn from(error: DatabaseError) -> Self {
        Self::Unavailable(error.into())
    }
}

impl From<Unserved> for StoreError {
    fn from(unserved: Unserved) -> Self {
        match unserved {
            Unserved::QueueFull => Self::Full,
            unserved => Self::Unavailable(unserved.into()),
        }
    }
}

impl From<Unserved> for LedgerError {
    fn from(unserved: Unserved) -> Self {
        Self::Unavailable(unserved.into())
    }
}

impl From<DatabaseError> for LedgerError {
    fn from(error: DatabaseError) -> Self {
        Self::Unavailable(error.into())
    }
}

impl From<DatabaseError> for BrokerError {
    fn from(error: DatabaseError) -> Self {
        Self::Unavailable(error.into())
    }
}

impl From<DatabaseError> for StreamError {
    fn from(error: DatabaseError) -> Self {
        Self::Unavailable(error.into())
    }
}
