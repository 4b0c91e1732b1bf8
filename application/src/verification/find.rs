use std::sync::Arc;

use autometrics::autometrics;
use domain::VerificationId;

use crate::ports::{History, StoreError, Verifications};

/// Finds a verification.
#[derive(Debug)]
pub struct FindVerification<V> {
    verifications: Arc<V>,
}

impl<V: Verifications> FindVerification<V> {
    pub fn new(verifications: Arc<V>) -> Self {
        Self { verifications }
    }

    /// Returns the verification with its events, if it exists.
    #[autometrics(struct_name = "FindVerification")]
    pub async fn execute(&self, id: VerificationId) -> Result<Option<History>, StoreError> {
        self.verifications.history(id).await
    }
}

#[cfg(test)]
mod tests {
    use domain::VerificationStatus;

    use super::*;
    use crate::{
        ports::MockVerifications,
        testing::{history, pending},
    };

    #[tokio::test]
    async fn an_unknown_verification_is_none() {
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
}
