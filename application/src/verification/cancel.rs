use std::sync::Arc;

use autometrics::autometrics;
use domain::{VerificationId, VerificationStatus};

use crate::{
    BoxError,
    ports::{History, StoreError, Verifications},
};

/// Cancels a verification.
#[derive(Debug)]
pub struct CancelVerification<V> {
    verifications: Arc<V>,
}

/// The reason why a verification was not canceled.
#[derive(Debug, thiserror::Error)]
pub enum CancelError {
    #[error("no such verification")]
    Unknown,
    #[error("the verification is approved")]
    AlreadyApproved,
    #[error("the verification has expired")]
    Expired,
    #[error("too much work is waiting for the database")]
    Full,
    /// The verification may have been canceled.
    #[error("the verification was not canceled")]
    Unavailable(#[source] BoxError),
}

impl<V: Verifications> CancelVerification<V> {
    pub fn new(verifications: Arc<V>) -> Self {
        Self { verifications }
    }

    /// Cancels a pending verification, which invalidates its code. Safe to repeat.
    ///
    /// Guesses at its phone stay counted.
    #[autometrics(struct_name = "CancelVerification")]
    pub async fn execute(&self, id: VerificationId) -> Result<History, CancelError> {
        let canceled = self.verifications.cancel(id).await?;
        let history = canceled.ok_or(CancelError::Unknown)?;
        match history.verification.status {
            VerificationStatus::Canceled => Ok(history),
            VerificationStatus::Approved => Err(CancelError::AlreadyApproved),
            VerificationStatus::Expired => Err(CancelError::Expired),
            VerificationStatus::Pending => {
                Err(CancelError::Unavailable("it is still pending".into()))
            }
        }
    }
}

impl From<StoreError> for CancelError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Full => Self::Full,
            StoreError::Unavailable(_) => Self::Unavailable(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        ports::MockVerifications,
        testing::{history, pending},
    };

    async fn cancel(answer: Option<History>) -> Result<History, CancelError> {
        let mut verifications = MockVerifications::new();
        verifications.expect_cancel().once().returning(move |_| Ok(answer.clone()));
        CancelVerification::new(Arc::new(verifications)).execute(pending().id).await
    }

    #[tokio::test]
    async fn a_canceled_verification_is_returned() {
        let canceled = history(VerificationStatus::Canceled);

        assert_eq!(cancel(Some(canceled.clone())).await.unwrap(), canceled);
    }

    #[tokio::test]
    async fn a_verification_that_ended_otherwise_is_not_canceled() {
        let approved = cancel(Some(history(VerificationStatus::Approved))).await;
        let expired = cancel(Some(history(VerificationStatus::Expired))).await;

        assert!(matches!(approved, Err(CancelError::AlreadyApproved)));
        assert!(matches!(expired, Err(CancelError::Expired)));
        assert!(matches!(cancel(None).await, Err(CancelError::Unknown)));
    }
}
