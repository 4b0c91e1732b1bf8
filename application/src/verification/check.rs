use std::sync::Arc;

use crate::{
    BoxError, Guard, Vault,
    ports::{
        AnswerClaim, Approval, Attempt, CheckOutcome, StoreError, Target, Verifications, Violation,
    },
};
use autometrics::autometrics;
use domain::{
    ATTEMPTS, Code, Origin, Peppers, PhoneNumber, Policy, VerificationId, VerificationStatus,
    Window, Windows,
};

/// Tries a code.
#[derive(Debug)]
pub struct CheckCode<V> {
    verifications: Arc<V>,
    vault: Vault,
    guard: Arc<Guard>,
    guesses: Vec<Policy>,
}

/// Whose code is tried.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CodeOf {
    Verification(VerificationId),
    /// That of one of its newest verifications.
    Phone(PhoneNumber),
}

/// What a code that was tried is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checked {
    Approved,
    /// By phone, nothing is said of attempts: whether there is a verification at all must not show.
    Wrong {
        attempts_left: Option<u8>,
    },
}

#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    #[error("no such verification")]
    Unknown,
    #[error("the verification is approved")]
    AlreadyApproved,
    #[error("the verification has ended")]
    Gone(VerificationStatus),
    /// At least one.
    #[error("a limit is reached")]
    Limited(Vec<Violation>),
    #[error("too much work is waiting for the database")]
    Full,
    /// The attempt may be counted all the same.
    #[error("the code was not checked")]
    Unavailable(#[source] BoxError),
}

/// Tries at what others change in between.
const TRIES: usize = 3;

impl<V: Verifications> CheckCode<V> {
    /// `guesses` are those at one phone, over its verifications.
    pub fn new(verifications: Arc<V>, vault: Vault, guard: Arc<Guard>, guesses: &Windows) -> Self {
        Self { verifications, vault, guard, guesses: guesses.policies("check") }
    }

    /// Tries `code` against a verification, or against the newest one of a phone from each door.
    ///
    /// The attempt is counted in the commit that decides about it. A code is right once, and for
    /// whoever takes the claim over of the one for whom it was. By phone, there is one answer for
    /// all that is not right, and it takes the same work.
    #[autometrics(struct_name = "CheckCode")]
    pub async fn execute(
        &self,
        of: CodeOf,
        code: &Code,
        claim: Option<&AnswerClaim>,
    ) -> Result<Checked, CheckError> {
        if claim.is_some_and(|claim| claim.done.is_some()) {
            return Ok(Checked::Approved);
        }
        let peppers = self.vault.peppers().map_err(|it| CheckError::Unavailable(it.into()))?;
        for _ in 0..TRIES {
            let target = self.target(&of).await?;
            // Where there is no verification, hashes are made all the same: it takes as long.
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
        Err(CheckError::Unavailable("others change the verification all the time".into()))
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

    /// None: to be tried again.
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
                Ok(Some(Checked::Approved))
            }
            CheckOutcome::Wrong { pepper, .. } if peppers.get(&pepper).is_none() => {
                let pepper = pepper.as_str();
                tracing::error!(pepper, "codes were made with a pepper that is not set here");
                if by_phone {
                    // That there is one must not show.
                    return wrong(None);
                }
                Err(CheckError::Unavailable("the pepper of the code is not set here".into()))
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
mod tests {
    use std::time::Duration;

    use mockall::Sequence;

    use super::*;
    use crate::{
        ports::{MockVerifications, Newest},
        testing::{claim, pending, peppers, taken_over, vault},
    };

    fn check(verifications: MockVerifications) -> CheckCode<MockVerifications> {
        let guard = Arc::new(Guard::new(Vec::new(), Duration::from_secs(3_600)));
        CheckCode::new(Arc::new(verifications), vault(), guard, &"10/1h".parse().unwrap())
    }

    fn code() -> Code {
        "482915".parse().unwrap()
    }

    fn by_id() -> CodeOf {
        CodeOf::Verification(pending().id)
    }

    fn by_phone() -> CodeOf {
        CodeOf::Phone(pending().phone)
    }

    fn right() -> CheckOutcome {
        CheckOutcome::Right(Approval {
            id: pending().id,
            origin: Origin::V1,
            phone: pending().phone,
            region: None,
        })
    }

    fn wrong(attempts: u8) -> CheckOutcome {
        CheckOutcome::Wrong { attempts, pepper: peppers().first().id().clone() }
    }

    /// Of a phone whose newest verification is `newest`.
    fn answering(newest: Option<VerificationId>, tried: CheckOutcome) -> MockVerifications {
        let mut verifications = MockVerifications::new();
        let of = Newest { v1: newest, api: None };
        verifications.expect_newest().returning(move |_| Ok(of));
        verifications
            .expect_check()
            .withf(move |attempt, guesses| {
                let id = newest.unwrap_or(VerificationId::NIL);
                let hash = peppers().first().hash(id, &code());
                attempt.hashes.len() == 1
                    && attempt.hashes[0].0 == *peppers().first().id()
                    && attempt.hashes[0].1.as_bytes() == hash.as_bytes()
                    && guesses[0].name.as_str() == "check-1h"
            })
            .once()
            .returning(move |_, _| Ok(tried.clone()));
        verifications
    }

    fn trying(tried: CheckOutcome) -> MockVerifications {
        answering(Some(pending().id), tried)
    }

    #[tokio::test]
    async fn the_right_code_is_approved() {
        for of in [by_id(), by_phone()] {
            let checked = check(trying(right())).execute(of, &code(), None).await.unwrap();

            assert_eq!(checked, Checked::Approved);
        }
    }

    #[tokio::test]
    async fn by_phone_a_code_is_tried_for_both_doors_whether_or_not_they_have_one() {
        let api = VerificationId::of_drawn([7; 16]);
        for of in [Newest { v1: None, api: Some(api) }, Newest::default()] {
            let mut verifications = MockVerifications::new();
            verifications.expect_newest().returning(move |_| Ok(of));
            verifications
                .expect_check()
                .withf(move |attempt, _| {
                    let expected = |id: Option<VerificationId>| {
                        peppers().hashes(id.unwrap_or(VerificationId::NIL), &code())
                    };
                    let same = |hashes: &[(domain::KeyId, domain::CodeHash)], id| {
                        let expected = expected(id);
                        hashes.len() == expected.len()
                            && hashes
                                .iter()
                                .zip(&expected)
                                .all(|(one, other)| one.1.as_bytes() == other.1.as_bytes())
                    };
                    same(&attempt.hashes, of.v1) && same(&attempt.api_hashes, of.api)
                })
                .once()
                .returning(|_, _| Ok(CheckOutcome::Nothing));

            let checked = check(verifications).execute(by_phone(), &code(), None).await.unwrap();

            assert_eq!(checked, Checked::Wrong { attempts_left: None });
        }
    }

    #[tokio::test]
    async fn a_wrong_code_says_what_is_left_by_id_only() {
        for (attempts, left) in [(1, 4), (5, 0)] {
            let checked = check(trying(wrong(attempts))).execute(by_id(), &code(), None).await;
            assert_eq!(checked.unwrap(), Checked::Wrong { attempts_left: Some(left) });
        }
        let checked = check(trying(wrong(1))).execute(by_phone(), &code(), None).await.unwrap();
        assert_eq!(checked, Checked::Wrong { attempts_left: None });
    }

    #[tokio::test]
    async fn what_was_right_is_right_for_whoever_takes_it_over() {
        for of in [by_id(), by_phone()] {
            let done = taken_over(Some(pending().id));
            let check = check(MockVerifications::new());
            let checked = check.execute(of, &code(), Some(&done)).await.unwrap();
            assert_eq!(checked, Checked::Approved);
        }

        for claim in [claim(), taken_over(None)] {
            let mut verifications = MockVerifications::new();
            let passed = claim.clone();
            verifications
                .expect_check()
                .withf(move |attempt, _| attempt.claim == Some(passed.clone()))
                .once()
                .returning(|_, _| Ok(wrong(1)));
            let checked = check(verifications).execute(by_id(), &code(), Some(&claim)).await;
            assert_eq!(checked.unwrap(), Checked::Wrong { attempts_left: Some(4) });
        }
    }

    #[tokio::test]
    async fn an_unknown_phone_is_a_wrong_code() {
        let check = check(answering(None, CheckOutcome::Nothing));

        let checked = check.execute(by_phone(), &code(), None).await.unwrap();

        assert_eq!(checked, Checked::Wrong { attempts_left: None });
    }

    #[tokio::test]
    async fn what_others_change_is_tried_again_as_it_is_then() {
        let mut verifications = MockVerifications::new();
        let mut order = Sequence::new();
        for (newest, tried) in [(None, CheckOutcome::Changed), (Some(pending().id), right())] {
            verifications
                .expect_newest()
                .once()
                .in_sequence(&mut order)
                .return_once(move |_| Ok(Newest { v1: newest, api: None }));
            verifications
                .expect_check()
                .withf(move |attempt, _| {
                    let expected = Newest { v1: newest, api: None };
                    matches!(&attempt.target, Target::Newest { of, .. } if *of == expected)
                })
                .once()
                .in_sequence(&mut order)
                .return_once(|_, _| Ok(tried));
        }
        let checked = check(verifications).execute(by_phone(), &code(), None).await.unwrap();
        assert_eq!(checked, Checked::Approved);

        let mut verifications = MockVerifications::new();
        verifications.expect_check().times(TRIES).returning(|_, _| Ok(CheckOutcome::Changed));
        let error = check(verifications).execute(by_id(), &code(), None).await.unwrap_err();
        assert!(matches!(error, CheckError::Unavailable(_)), "{error:?}");
    }

    #[tokio::test]
    async fn five_wrong_then_limited_until_it_expires() {
        let (retry_after, ttl) = (Duration::from_secs(200), Duration::from_secs(600));
        let exhausted = trying(CheckOutcome::Exhausted { retry_after, ttl });

        let error = check(exhausted).execute(by_id(), &code(), None).await.unwrap_err();

        let CheckError::Limited(violations) = error else { panic!("{error:?}") };
        let Violation { policy, retry_after: found } = &violations[0];
        assert_eq!(
            (policy.name.as_str(), policy.window.quota, *found),
            ("attempts", 5, retry_after)
        );
        assert_eq!(policy.window.period, ttl);
    }

    #[tokio::test]
    async fn what_cannot_be_checked_is_said() {
        let answer =
            async |tried| check(trying(tried)).execute(by_id(), &code(), None).await.unwrap_err();

        assert!(matches!(answer(CheckOutcome::Unknown).await, CheckError::Unknown));
        assert!(matches!(answer(CheckOutcome::Approved).await, CheckError::AlreadyApproved));
        let gone = answer(CheckOutcome::Gone(VerificationStatus::Expired)).await;
        assert!(matches!(gone, CheckError::Gone(VerificationStatus::Expired)));
    }

    #[tokio::test]
    async fn a_code_whose_pepper_is_not_set_here_is_not_called_wrong() {
        let gone = || trying(CheckOutcome::Wrong { attempts: 1, pepper: "gone".parse().unwrap() });

        let error = check(gone()).execute(by_id(), &code(), None).await.unwrap_err();
        assert!(matches!(error, CheckError::Unavailable(_)), "{error:?}");
        // By phone it must look like all that is not right.
        let checked = check(gone()).execute(by_phone(), &code(), None).await.unwrap();
        assert_eq!(checked, Checked::Wrong { attempts_left: None });
    }

    #[tokio::test]
    async fn only_approvals_of_v1_count_for_the_guard() {
        let rule = domain::GuardRule::parse("prefix:1:100", domain::GuardMode::Enforce).unwrap();
        for (origin, passes) in [(Origin::V1, true), (Origin::Api, false)] {
            let guard = Arc::new(Guard::new(vec![rule], Duration::from_secs(3_600)));
            let crate::Admission::Passed(permit) = guard.decide(Origin::V1, &pending().phone, None)
            else {
                panic!()
            };
            permit.sent(pending().id);
            let approval =
                Approval { id: pending().id, origin, phone: pending().phone, region: None };
            let verifications = trying(CheckOutcome::Right(approval));
            let check = CheckCode { guard: Arc::clone(&guard), ..check(verifications) };

            check.execute(by_id(), &code(), None).await.unwrap();

            let passed =
                guard.decide(Origin::V1, &pending().phone, None) != crate::Admission::Blocked;
            assert_eq!(passed, passes, "{origin:?}");
        }
    }

    #[tokio::test]
    async fn nothing_is_counted_before_the_keys_are_there() {
        let guard = Arc::new(Guard::new(Vec::new(), Duration::from_secs(3_600)));
        let verifications = Arc::new(MockVerifications::new());
        let check = CheckCode::new(verifications, Vault::default(), guard, &Windows::OFF);

        let error = check.execute(by_id(), &code(), None).await.unwrap_err();

        assert!(matches!(error, CheckError::Unavailable(_)));
    }
}
