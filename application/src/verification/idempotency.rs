use domain::{ApiKeyId, VerificationId, digest};

use crate::{
    BoxError, Vault,
    ports::{Answer, AnswerClaim, Answers, Begun, StoreError},
};

/// Lets a request that is repeated under one `Idempotency-Key` be done once.
#[derive(Debug)]
pub struct AnswerOnce<A> {
    answers: A,
    vault: Vault,
}

/// What makes two requests one.
#[derive(Debug, Clone, Copy)]
pub struct Repeatable<'a> {
    pub api_key: Option<ApiKeyId>,
    pub method: &'a str,
    pub path: &'a str,
    /// The value of `Idempotency-Key`.
    pub key: &'a str,
}

#[derive(Debug, thiserror::Error)]
pub enum AnswerError {
    #[error("too much work is waiting for the database")]
    Full,
    #[error("nothing is known of the request")]
    Unavailable(#[source] BoxError),
}

impl<A: Answers> AnswerOnce<A> {
    pub fn new(answers: A, vault: Vault) -> Self {
        Self { answers, vault }
    }

    /// Begins a request, or tells what is known of it. Whoever begins it must then [`Self::keep`],
    /// [`Self::forget`] or [`Self::give_up`].
    ///
    /// Of the body only a hash is kept, and that under the pepper: a body may hold a code. So with
    /// a new pepper a body counts as another one.
    pub async fn begin(&self, request: Repeatable<'_>, body: &[u8]) -> Result<Begun, AnswerError> {
        let Repeatable { api_key, method, path, key } = request;
        let whose = api_key.map_or_else(String::new, |id| id.to_string());
        let key = digest(&[whose.as_str(), method, path, key].map(str::as_bytes));
        let peppers = self.vault.peppers().map_err(|it| AnswerError::Unavailable(it.into()))?;
        let body = peppers.first().body_hash(body);
        self.answers.begin(key, body).await.map_err(AnswerError::from)
    }

    /// What those before the claim have done.
    pub async fn done(&self, claim: &AnswerClaim) -> Result<Option<VerificationId>, AnswerError> {
        self.answers.done(claim).await.map_err(AnswerError::from)
    }

    pub async fn keep(&self, claim: &AnswerClaim, answer: &Answer) -> Result<(), AnswerError> {
        self.answers.keep(claim, answer).await.map_err(AnswerError::from)
    }

    pub async fn forget(&self, claim: &AnswerClaim) -> Result<(), AnswerError> {
        self.answers.forget(claim).await.map_err(AnswerError::from)
    }

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

    /// Key and body as the store is asked for them.
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
    async fn one_request_is_one_and_every_other_is_another() {
        let key = domain::ApiKeyText::generate(&mut StdRng::seed_from_u64(1)).id();
        let others = [
            Repeatable { api_key: Some(key), ..REQUEST },
            Repeatable { method: "PUT", ..REQUEST },
            Repeatable { path: "/v1/verifications/check", ..REQUEST },
            Repeatable { key: "l", ..REQUEST },
            // What stands where is part of it.
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
    async fn of_the_body_a_hash_is_kept_that_needs_the_pepper() {
        let body = r#"{"code":"482915"}"#;

        let asked = asked(&[(REQUEST, body), (REQUEST, r#"{"code":"482916"}"#)]).await;

        assert_ne!(asked[0].1, asked[1].1);
        assert_ne!(asked[0].1, digest(&[body.as_bytes()]));
    }

    #[tokio::test]
    async fn nothing_is_begun_before_the_keys_are_there() {
        let once = AnswerOnce::new(MockAnswers::new(), Vault::default());

        let error = once.begin(REQUEST, b"{}").await.unwrap_err();

        assert!(matches!(error, AnswerError::Unavailable(_)));
    }
}
