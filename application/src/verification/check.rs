use std::sync::Arc;

use crate::{
    BoxError, Guard, Vault,
    ports::{
        AnswerClaim, Approval, Attempt, CheckOutcome, StoreError, Target, Verifications, Violation,
    },
};
use autometrics::autometrics;
use domain::{
    ATTEMPTS, Code, Origin, Peppers, PhoneNumber, Policy, Region, VerificationId,
    VerificationStatus, Window, Windows,
};

/// Checks a code.
#[derive(Debug)]
pub struct CheckCode<V> {
    verifications: Arc<V>,
    vault: Vault,
    guard: Arc<Guard>,
    guesses: Vec<Policy>,
}

/// The verification whose code is checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CodeOf {
    Verification(VerificationId),
    /// The newest verification of the phone from each origin.
    Phone(PhoneNumber),
}

/// The result of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checked {
    /// `None` if an earlier holder of the claim had the code approved.
    Approved(Option<Approved>),
    /// By phone, `attempts_left` is `None`: the answer must not reveal whether a verification exists.
    Wrong { attempts_left: Option<u8> },
}

/// The verification whose code was right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Approved {
    pub origin: Origin,
    /// The region of the number, if it is known.
    pub region: Option<Region>,
}

/// The reason why a code was not checked.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    #[error("no such verification")]
    Unknown,
    #[error("the verification is approved")]
    AlreadyApproved,
    #[error("the verification has ended")]
    Gone(VerificationStatus),
    /// The limits that are reached: at least one.
    #[error("a limit is reached")]
    Limited(Vec<Violation>),
    #[error("too much work is waiting for the database")]
    Full,
    /// The attempt may have been counted.
    #[error("the code was not checked")]
    Unavailable(#[source] BoxError),
}

/// How often a check is repeated if the target changes in between.
const TRIES: usize = 3;

impl<V: Verifications> CheckCode<V> {
    /// `guesses` limits the guesses at the codes of one phone, over all its verifications.
    pub fn new(verifications: Arc<V>, vault: Vault, guard: Arc<Guard>, guesses: &Windows) -> Self {
        Self { verifications, vault, guard, guesses: guesses.policies("check") }
    }

    /// Checks `code` against a verification, or against the newest verification of a phone from each
    /// origin.
    ///
    /// The attempt is counted in the commit that decides it. A code is right once, and again for a
    /// caller that takes over the claim of that check. By phone, every result except a right code has
    /// the same answer and takes the same work.
    #[autometrics(struct_name = "CheckCode")]
    pub async fn execute(
        &self,
        of: CodeOf,
        code: &Code,
        claim: Option<&AnswerClaim>,
    ) -> Result<Checked, CheckError> {
        if claim.is_some_and(|claim| claim.done.is_some()) {
            return Ok(Checked::Approved(None));
        }
        let peppers = self.vault.peppers().map_err(|it| CheckError::Unavailable(it.into()))?;
        for _ in 0..TRIES {
            let target = self.target(&of).await?;
            // Without a verification, hashes are made for the nil id, so that the work is the same.
            let hashes = |id: Option<VerificationId>| {
                peppers.hashes(id.unwrap_or(VerificationId::NIL), code)
            };
            let (hashes, api_hashes) = match &target {
                Target::Id(id) => (hashes(Some(*id)), Vec::new()),
                Target::Newest { of, .. } => (hashes(of.v1), hashes(of.api)),
            };
            let target_is = target.clone();
            let attempt = Attempt { target, hashes, api_hashes, claim: claim.cloned() };
            let tried = self.verifications.check(attempt, &self.guesses).await?;
            if let Some(checked) = self.judge(&target_is, tried, peppers)? {
                return Ok(checked);
            }
        }
        Err(CheckError::Unavailable("the verification changed during each attempt".into()))
    }

    async fn target(&self, of: &CodeOf) -> Result<Target, StoreError> {
        Ok(match of {
            CodeOf::Verification(id) => Target::Id(*id),
            CodeOf::Phone(phone) => {
                let of = self.verifications.newest(phone.clone()).await?;
                Target::Newest { phone: phone.clone(), of }
            }
        })
    }

    /// Returns `None` if the check must be repeated.
    fn judge(
        &self,
        target: &Target,
        tried: CheckOutcome,
        peppers: &Peppers,
    ) -> Result<Option<Checked>, CheckError> {
        let by_phone = matches!(target, Target::Newest { .. });
        let wrong = |attempts_left| Ok(Some(Checked::Wrong { attempts_left }));
        match tried {
            CheckOutcome::Right(Approval { id, origin, phone, region }) => {
                if origin != Origin::Test {
                    self.guard.approved(origin, &phone, region);
                }
                tracing::debug!(verification.id = %id, "verification approved");
                Ok(Some(Checked::Approved(Some(Approved { origin, region }))))
            }
            CheckOutcome::Wrong { pepper, .. } if peppers.get(&pepper).is_none() => {
                let pepper = pepper.as_str();
                tracing::error!(
                    pepper,
                    "a code was made with a pepper that this process does not have; add it to CODE_PEPPER"
                );
                if by_phone {
                    // The answer must not reveal that a verification exists.
                    return wrong(None);
                }
                Err(CheckError::Unavailable(
                    "this process does not have the pepper of the code".into(),
                ))
            }
            CheckOutcome::Wrong { attempts, .. } => {
                wrong((!by_phone).then_some(ATTEMPTS.saturating_sub(attempts)))
            }
            CheckOutcome::Nothing => wrong(None),
            CheckOutcome::Unknown => Err(CheckError::Unknown),
            CheckOutcome::Approved => Err(CheckError::AlreadyApproved),
            CheckOutcome::Gone(status) => Err(CheckError::Gone(status)),
            CheckOutcome::Exhausted { retry_after, ttl } => {
                let window = Window { quota: ATTEMPTS.into(), period: ttl };
                let policy = Policy::named("attempts", window);
                Err(CheckError::Limited(vec![Violation { policy, retry_after }]))
            }
            CheckOutcome::Limited(violations) => Err(CheckError::Limited(violations)),
            CheckOutcome::Changed => Ok(None),
        }
    }
}

impl From<StoreError> for CheckError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Full => Self::Full,
            StoreError::Unavailable(_) => Self::Unavailable(error.into()),
        }
    }
}

#[cfg(test)]
mod tests;
