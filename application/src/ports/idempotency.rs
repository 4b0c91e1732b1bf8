use std::fmt;

use domain::VerificationId;

use crate::ports::StoreError;

/// Answers to requests with an `Idempotency-Key`, kept for a day.
#[cfg_attr(any(test, feature = "mocks"), mockall::automock)]
#[trait_variant::make(Send)]
pub trait Answers: Sync + 'static {
    /// Begins a request under `key`, or returns the state of the request that already began.
    ///
    /// If several requests race, one begins. A request that neither answers nor returns its claim
    /// within two minutes is given up. A repeat with the same `body` then takes it over under a new
    /// claim, which has what was done under the earlier claims.
    async fn begin(&self, key: [u8; 32], body: [u8; 32]) -> Result<Begun, StoreError>;

    /// Returns what was done under the claims before `claim`, as of now: an earlier holder may still
    /// have been at work when the claim was taken over. `None` if the caller no longer holds it.
    async fn done(&self, claim: &AnswerClaim) -> Result<Option<VerificationId>, StoreError>;

    /// Stores the answer for repeats of the request, unless the claim was given up.
    async fn keep(&self, claim: &AnswerClaim, answer: &Answer) -> Result<(), StoreError>;

    /// Returns the claim because nothing was done. A repeat begins anew. Does nothing if the caller no
    /// longer holds the claim.
    async fn forget(&self, claim: &AnswerClaim) -> Result<(), StoreError>;

    /// Returns the claim without knowing whether anything was done. A repeat takes the request over.
    /// Does nothing if the caller no longer holds the claim.
    async fn give_up(&self, claim: &AnswerClaim) -> Result<(), StoreError>;
}

/// The result of [`Answers::begin`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Begun {
    /// The caller must carry the request out, and then keep its answer, forget it or give it up.
    Ours(AnswerClaim),
    /// The request began with a different body.
    Other,
    /// The request is in flight.
    Running,
    /// The request was answered before.
    Answered(Answer),
}

/// The right to answer a request. `holder` is its fencing token: the next claim has another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AnswerClaim {
    pub key: [u8; 32],
    pub holder: [u8; 16],
    /// The first holder in the chain of take-overs: six bytes of time, then random bytes.
    pub first: [u8; 16],
    /// The verification that an earlier holder approved or sent a message of. See [`Resend::claim`]
    /// and [`Attempt::claim`].
    ///
    /// [`Resend::claim`]: crate::ports::Resend::claim
    /// [`Attempt::claim`]: crate::ports::Attempt::claim
    pub done: Option<VerificationId>,
}

/// An answer as it was sent.
#[derive(Clone, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    /// The headers that belong to the answer, by name.
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl AnswerClaim {
    /// Whether the request had another holder before, who may have done the work without answering.
    pub fn is_taken_over(&self) -> bool {
        self.holder != self.first
    }

    /// Returns the id of the verification that the request begins. It is the same for every holder.
    pub fn begins(&self) -> VerificationId {
        VerificationId::of_drawn(self.first)
    }
}

/// Hides the body, which is personal.
impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Answer").field("status", &self.status).finish_non_exhaustive()
    }
}
