use std::fmt;

use crate::ports::StoreError;

/// Answers to requests that may be repeated, kept for a day.
#[cfg_attr(any(test, feature = "mocks"), mockall::automock)]
#[trait_variant::make(Send)]
pub trait Answers: Sync + 'static {
    /// Begins a request under `key`, or tells what is known of the one that was begun before.
    ///
    /// Of many that race, one begins it. Whoever does not come back within 30 seconds is given up,
    /// and then a repeat with the same `body` begins it again, under another claim.
    async fn begin(&self, key: [u8; 32], body: [u8; 32]) -> Result<Begun, StoreError>;

    /// Keeps the answer for those that repeat the request, unless the claim was given up.
    async fn keep(&self, claim: &AnswerClaim, answer: &Answer) -> Result<(), StoreError>;

    /// Gives the claim back without an answer: a repeat begins anew. Not ours any more is not an
    /// error.
    async fn forget(&self, claim: &AnswerClaim) -> Result<(), StoreError>;
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Begun {
    /// To be done, and then kept or forgotten.
    Ours(AnswerClaim),
    /// It was begun with another body.
    Other,
    /// Somebody is at it.
    Running,
    Answered(Answer),
}

/// A right to answer. `holder` fences it: whoever begins it again has another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AnswerClaim {
    pub key: [u8; 32],
    pub holder: [u8; 16],
}

#[derive(Clone, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    /// Those that belong to it, by name.
    pub headers: Vec<(String, String)>,
    pub body: String,
}

/// Leaves the body out: it is somebody's.
impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Answer").field("status", &self.status).finish_non_exhaustive()
    }
}
