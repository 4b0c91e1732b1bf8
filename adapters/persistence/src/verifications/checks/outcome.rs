//! Rows that describe an attempt.

use application::ports::{Approval, CheckOutcome};
use domain::{VerificationId, VerificationStatus};
use sea_orm::FromQueryResult;

use crate::database::{DatabaseError, lasting, parsed};

/// The verification that a code is right for.
#[derive(Debug, FromQueryResult)]
pub(super) struct ApprovalRow {
    id: String,
    origin: String,
    phone: String,
    region: Option<String>,
}

/// A known verification, before the attempt.
#[derive(Debug, FromQueryResult)]
pub(super) struct KnownRow {
    status: String,
    exhausted: bool,
    /// The remaining and the total lifetime, in milliseconds.
    good_for: i64,
    ttl: i64,
}

/// A verification that a wrong attempt was counted on.
#[derive(Debug, FromQueryResult)]
pub(super) struct WrongRow {
    attempts: i32,
    pepper_id: String,
}

impl ApprovalRow {
    pub(super) fn approval(self) -> Result<Approval, DatabaseError> {
        Ok(Approval {
            id: VerificationId::from_uuid(parsed(&self.id, "an id")?),
            origin: parsed(&self.origin, "an origin")?,
            phone: parsed(&self.phone, "a phone")?,
            region: self.region.map(|region| parsed(&region, "a region")).transpose()?,
        })
    }
}

impl KnownRow {
    /// Returns why it cannot be tried, as far as its own row says.
    pub(super) fn untried(&self) -> Result<Option<CheckOutcome>, DatabaseError> {
        let status = parsed(&self.status, "a status")?;
        Ok(match status {
            VerificationStatus::Approved => Some(CheckOutcome::Approved),
            VerificationStatus::Expired | VerificationStatus::Canceled => {
                Some(CheckOutcome::Gone(status))
            }
            VerificationStatus::Pending if self.exhausted => Some(CheckOutcome::Exhausted {
                retry_after: lasting(self.good_for),
                ttl: lasting(self.ttl),
            }),
            VerificationStatus::Pending => None,
        })
    }
}

impl WrongRow {
    pub(super) fn wrong(&self) -> Result<CheckOutcome, DatabaseError> {
        Ok(CheckOutcome::Wrong {
            attempts: u8::try_from(self.attempts).unwrap_or(u8::MAX),
            pepper: parsed(&self.pepper_id, "a key's name")?,
        })
    }
}
