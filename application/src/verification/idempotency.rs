use domain::{ApiKeyId, VerificationId, digest};

use crate::{
    BoxError, Vault,
    ports::{Answer, AnswerClaim, Answers, Begun, StoreError},
};

/// Makes requests with an `Idempotency-Key` idempotent.
#[derive(Debug)]
pub struct AnswerOnce<A> {
    answers: A,
    vault: Vault,
}

/// The properties that identify a repeated request.
#[derive(Debug, Clone, Copy)]
pub struct Repeatable<'a> {
    pub api_key: Option<ApiKeyId>,
    pub method: &'a str,
    pub path: &'a str,
    /// The value of the `Idempotency-Key` header.
    pub key: &'a str,
}

/// The reason why a request did not begin or its answer was not stored.
#[derive(Debug, thiserror::Error)]
pub enum AnswerError {
    #[error("too much work is waiting for the database")]
    Full,
    #[error("the state of the request is unknown")]
    Unavailable(#[source] BoxError),
}

impl<A: Answers> AnswerOnce<A> {
    pub fn new(answers: A, vault: Vault) -> Self {
        Self { answers, vault }
    }

    /// Begins a request, or returns its state. A caller that gets a claim must then call
    /// [`Self::keep`], [`Self::forget`] or [`Self::give_up`].
    ///
    /// Only a hash of the body is stored, keyed with the pepper, because a body may contain a code.
    /// With a new pepper, the same body therefore counts as a different one.
    pub async fn begin(&self, request: Repeatable<'_>, body: &[u8]) -> Result<Begun, AnswerError> {
        let Repeatable { api_key, method, path, key } = request;
        let whose = api_key.map_or_else(String::new, |id| id.to_string());
        let key = digest(&[whose.as_str(), method, path, key].map(str::as_bytes));
        let peppers = self.vault.peppers().map_err(|it| AnswerError::Unavailable(it.into()))?;
        let body = peppers.first().body_hash(body);
        self.answers.begin(key, body).await.map_err(AnswerError::from)
    }

    /// Returns what was done under earlier claims.
    pub async fn done(&self, claim: &AnswerClaim) -> Result<Option<VerificationId>, AnswerError> {
        self.answers.done(claim).await.map_err(AnswerError::from)
    }

    /// Stores the answer for repeats of the request.
    pub async fn keep(&self, claim: &AnswerClaim, answer: &Answer) -> Result<(), AnswerError> {
        self.answers.keep(claim, answer).await.map_err(AnswerError::from)
    }

    /// Returns the claim because nothing was done.
    pub async fn forget(&self, claim: &AnswerClaim) -> Result<(), AnswerError> {
        self.answers.forget(claim).await.map_err(AnswerError::from)
    }

    /// Returns the claim without knowing whether anything was done.
    pub async fn give_up(&self, claim: &AnswerClaim) -> Result<(), AnswerError> {
        self.answers.give_up(claim).await.map_err(AnswerError::from)
    }
}

impl From<StoreError> for AnswerError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Full => Self::Full,
            StoreError::Unavailable(_) => Self::Unavailable(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use rand::{SeedableRng, rngs::StdRng};

    use super::*;
    use crate::{ports::MockAnswers, testing::vault};

    const REQUEST: Repeatable<'_> =
        Repeatable { api_key: None, method: "POST", path: "/v1/verifications", key: "k" };

    /// The keys and hashes of bodies that the store is asked for.
    async fn asked(requests: &[(Repeatable<'_>, &str)]) -> Vec<([u8; 32], [u8; 32])> {
        let book = Arc::new(Mutex::new(Vec::new()));
        let entries = Arc::clone(&book);
        let mut answers = MockAnswers::new();
        answers.expect_begin().returning(move |key, body| {
            entries.lock().unwrap().push((key, body));
            Ok(Begun::Running)
        });
        let once = AnswerOnce::new(answers, vault());
        for (request, body) in requests {
            assert_eq!(once.begin(*request, body.as_bytes()).await.unwrap(), Begun::Running);
        }
        book.lock().unwrap().clone()
    }

    #[tokio::test]
    async fn a_request_is_identified_by_api_key_method_path_and_key() {
        let key = domain::ApiKeyText::generate(&mut StdRng::seed_from_u64(1)).id();
        let others = [
            Repeatable { api_key: Some(key), ..REQUEST },
            Repeatable { method: "PUT", ..REQUEST },
            Repeatable { path: "/v1/verifications/check", ..REQUEST },
            Repeatable { key: "l", ..REQUEST },
            // The boundary between two fields counts.
            Repeatable { path: "/v1/verification", key: "sk", ..REQUEST },
        ];
        let requests: Vec<_> = [REQUEST, REQUEST].into_iter().chain(others).collect();

        let asked = asked(&requests.iter().map(|it| (*it, "{}")).collect::<Vec<_>>()).await;

        assert_eq!(asked[0], asked[1]);
        for other in &asked[2..] {
            assert_ne!(other.0, asked[0].0);
            assert_eq!(other.1, asked[0].1);
        }
    }

    #[tokio::test]
    async fn the_stored_hash_of_the_body_is_keyed() {
        let body = r#"{"code":"482915"}"#;

        let asked = asked(&[(REQUEST, body), (REQUEST, r#"{"code":"482916"}"#)]).await;

        assert_ne!(asked[0].1, asked[1].1);
        assert_ne!(asked[0].1, digest(&[body.as_bytes()]));
    }

    #[tokio::test]
    async fn nothing_begins_before_the_keys_are_loaded() {
        let once = AnswerOnce::new(MockAnswers::new(), Vault::default());

        let error = once.begin(REQUEST, b"{}").await.unwrap_err();

        assert!(matches!(error, AnswerError::Unavailable(_)));
    }
}
