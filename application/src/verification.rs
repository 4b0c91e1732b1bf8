use std::sync::Arc;

use autometrics::autometrics;
use domain::{MessageId, VerificationId, VerificationStatus};

use crate::{
    BoxError,
    ports::{History, Receipt, StoreError, Verifications},
};

/// Looks at a verification.
#[derive(Debug)]
pub struct FindVerification<V> {
    verifications: Arc<V>,
}

/// Gives a verification up.
#[derive(Debug)]
pub struct CancelVerification<V> {
    verifications: Arc<V>,
}

/// Notes what a gateway tells later of a message.
#[derive(Debug)]
pub struct NoteReceipt<V> {
    verifications: Arc<V>,
}

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
    /// The verification may be canceled all the same.
    #[error("the verification was not canceled")]
    Unavailable(#[source] BoxError),
}

impl<V: Verifications> FindVerification<V> {
    pub fn new(verifications: Arc<V>) -> Self {
        Self { verifications }
    }

    /// The verification with what has happened to it, if there is one.
    #[autometrics(struct_name = "FindVerification")]
    pub async fn execute(&self, id: VerificationId) -> Result<Option<History>, StoreError> {
        self.verifications.history(id).await
    }
}

impl<V: Verifications> NoteReceipt<V> {
    pub fn new(verifications: Arc<V>) -> Self {
        Self { verifications }
    }

    /// Says whether there is such a message: one that a gateway was called for. Twice is as good
    /// as once.
    #[autometrics(struct_name = "NoteReceipt")]
    pub async fn execute(&self, message: MessageId, receipt: Receipt) -> Result<bool, StoreError> {
        self.verifications.note_receipt(message, receipt).await
    }
}

impl<V: Verifications> CancelVerification<V> {
    pub fn new(verifications: Arc<V>) -> Self {
        Self { verifications }
    }

    /// Ends a pending verification: its code is no good any more. Twice is as good as once.
    ///
    /// What was guessed at its phone stays counted.
    #[autometrics(struct_name = "CancelVerification")]
    pub async fn execute(&self, id: VerificationId) -> Result<History, CancelError> {
        let canceled = self.verifications.cancel(id).await.map_err(|error| match error {
            StoreError::Full => CancelError::Full,
            StoreError::Unavailable(_) => CancelError::Unavailable(error.into()),
        })?;
        let history = canceled.ok_or(CancelError::Unknown)?;
        match history.verification.status {
            VerificationStatus::Canceled => Ok(history),
            VerificationStatus::Approved => Err(CancelError::AlreadyApproved),
            VerificationStatus::Expired => Err(CancelError::Expired),
            VerificationStatus::Pending => {
                Err(CancelError::Unavailable("it is pending all the same".into()))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        ports::{MockVerifications, Verification},
        testing::pending,
    };

    fn history(status: VerificationStatus) -> History {
        let verification = Verification { status, ..pending() };
        History { verification, events: Vec::new() }
    }

    async fn cancel(answer: Option<History>) -> Result<History, CancelError> {
        let mut verifications = MockVerifications::new();
        verifications.expect_cancel().once().returning(move |_| Ok(answer.clone()));
        CancelVerification::new(Arc::new(verifications)).execute(pending().id).await
    }

    #[tokio::test]
    async fn finds_what_there_is() {
        let expected = history(VerificationStatus::Expired);
        let found = expected.clone();
        let mut verifications = MockVerifications::new();
        verifications
            .expect_history()
            .returning(move |id| Ok((id == pending().id).then(|| found.clone())));
        let find = FindVerification::new(Arc::new(verifications));

        assert_eq!(find.execute(pending().id).await.unwrap(), Some(expected));
        assert_eq!(find.execute(VerificationId::NIL).await.unwrap(), None);
    }

    #[tokio::test]
    async fn what_is_canceled_is_canceled() {
        let canceled = history(VerificationStatus::Canceled);

        assert_eq!(cancel(Some(canceled.clone())).await.unwrap(), canceled);
    }

    #[tokio::test]
    async fn what_has_ended_otherwise_is_not_canceled() {
        let approved = cancel(Some(history(VerificationStatus::Approved))).await;
        let expired = cancel(Some(history(VerificationStatus::Expired))).await;

        assert!(matches!(approved, Err(CancelError::AlreadyApproved)));
        assert!(matches!(expired, Err(CancelError::Expired)));
        assert!(matches!(cancel(None).await, Err(CancelError::Unknown)));
    }
}
