use std::fmt;

use domain::VerificationId;

use crate::ports::StoreError;

/// Answers to requests that may be repeated, kept for a day.
#[cfg_attr(any(test, feature = "mocks"), mockall::automock)]
#[trait_variant::make(Send)]
pub trait Answers: Sync + 'static {
    /// Begins a request under `key`, or tells what is known of the one that was begun before.
    ///
    /// Of many that race, one begins it. Whoever does not come back within two minutes is given up,
    /// and then a repeat with the same `body` takes it over, under another claim, which knows what
    /// was done under those before it.
    async fn begin(&self, key: [u8; 32], body: [u8; 32]) -> Result<Begun, StoreError>;

    /// What was done under those before a claim, as it is now: one of them may have been at it still
    /// when it was taken over. None also where it is not ours any more.
    async fn done(&self, claim: &AnswerClaim) -> Result<Option<VerificationId>, StoreError>;

    /// Keeps the answer for those that repeat the request, unless the claim was given up.
    async fn keep(&self, claim: &AnswerClaim, answer: &Answer) -> Result<(), StoreError>;

    /// Gives the claim back, as nothing was done: a repeat begins anew. Not ours any more is not an
    /// error.
    async fn forget(&self, claim: &AnswerClaim) -> Result<(), StoreError>;

    /// Gives the claim back without knowing whether anything was done: a repeat takes it over. Not
    /// ours any more is not an error.
    async fn give_up(&self, claim: &AnswerClaim) -> Result<(), StoreError>;
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Begun {
    /// To be done, and then kept, forgotten or given up.
    Ours(AnswerClaim),
    /// It was begun with another body.
    Other,
    /// Somebody is at it.
    Running,
    Answered(Answer),
}

/// A right to answer. `holder` fences it: whoever takes it over has another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AnswerClaim {
    pub key: [u8; 32],
    pub holder: [u8; 16],
    /// Of those that took it over one after the other, the first holder: drawn, behind six bytes of
    /// time.
    pub first: [u8; 16],
    /// The verification that one of them sent a message of, or approved, as [`Resend::claim`] and
    /// [`Attempt::claim`] have it.
    ///
    /// [`Resend::claim`]: crate::ports::Resend::claim
    /// [`Attempt::claim`]: crate::ports::Attempt::claim
    pub done: Option<VerificationId>,
}

#[derive(Clone, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    /// Those that belong to it, by name.
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl AnswerClaim {
    /// Whether others have held it before, who may have done their work and never answered.
    pub fn is_taken_over(&self) -> bool {
        self.holder != self.first
    }

    /// What a verification is called that the request begins, whoever of its holders begins it.
    pub fn begins(&self) -> VerificationId {
        VerificationId::of_drawn(self.first)
    }
}

/// Leaves the body out: it is somebody's.
impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Answer").field("status", &self.status).finish_non_exhaustive()
    }
}
