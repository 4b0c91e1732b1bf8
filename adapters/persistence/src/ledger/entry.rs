use application::ports::{Call, DeliveryState, Recorded};
use sea_orm::FromQueryResult;

use crate::database::{DatabaseError, Fragment, lasting, parsed, time};

/// The columns of an [`EntryRow`] of `delivery`, for `RETURNING` in SQLite.
pub(super) const ENTRY_COLUMNS: Fragment = Fragment::new(
    "entry_columns",
    "message_id AS id, state, attempt, expires_at, expires_at - {now} AS good_for,
    {now} - accepted_at AS age",
);

/// An entry that a statement changed.
#[derive(Debug, FromQueryResult)]
pub(super) struct RecordedRow {
    pub(super) id: String,
    pub(super) state: String,
    age: i64,
}

/// An entry that may be called.
#[derive(Debug, FromQueryResult)]
pub(super) struct EntryRow {
    #[sea_orm(nested)]
    pub(super) recorded: RecordedRow,
    attempt: i32,
    expires_at: i64,
    good_for: i64,
}

impl RecordedRow {
    pub(super) fn recorded(&self) -> Result<Recorded, DatabaseError> {
        let state = match &*self.state {
            "pending" => DeliveryState::Pending,
            "calling" => DeliveryState::Calling,
            "sent" => DeliveryState::Sent,
            "failed" => DeliveryState::Failed,
            "expired" => DeliveryState::Expired,
            "unknown" => DeliveryState::Unknown,
            _ => return Err(DatabaseError::not("a state of a delivery")),
        };
        Ok(Recorded { id: parsed(&self.id, "an id")?, state, age: lasting(self.age) })
    }

    pub(super) fn has_ended(&self) -> bool {
        !matches!(&*self.state, "pending" | "calling")
    }
}

impl EntryRow {
    pub(super) fn call(&self) -> Result<Call, DatabaseError> {
        Ok(Call {
            id: parsed(&self.recorded.id, "an id")?,
            attempt: self.attempt.cast_unsigned(),
            expires_at: time(self.expires_at),
            good_for: lasting(self.good_for),
        })
    }
}
