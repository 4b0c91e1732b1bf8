use std::{hint::black_box, sync::Arc};

use crate::{
    BoxError, Guard, Vault,
    ports::{Approval, Counted, StoreError, Target, Verifications, Violation},
};
use autometrics::autometrics;
use domain::{
    ATTEMPTS, CodeHash, KeyId, Origin, Policy, VerificationId, VerificationStatus, Window, Windows,
};

/// Tries a code.
#[derive(Debug)]
pub struct CheckCode<V> {
    verifications: Arc<V>,
    vault: Vault,
    guard: Arc<Guard>,
    guesses: Vec<Policy>,
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

impl<V: Verifications> CheckCode<V> {
    /// `guesses` are those at one phone, over its verifications.
    pub fn new(verifications: Arc<V>, vault: Vault, guard: Arc<Guard>, guesses: &Windows) -> Self {
        Self { verifications, vault, guard, guesses: guesses.policies("check") }
    }

    /// Tries `code` against a verification, or against the newest one of a phone.
    ///
    /// The attempt is counted before anything is compared, and is spent whatever happens then. A
    /// code is right once. By phone, there is one answer for all that is not right, and it takes
    /// the same work.
    #[autometrics(struct_name = "CheckCode")]
    pub async fn execute(&self, target: Target, code: &str) -> Result<Checked, CheckError> {
        let peppers = self.vault.peppers().map_err(|it| CheckError::Unavailable(it.into()))?;
        let by_phone = matches!(target, Target::Phone(_));
        let (id, attempts) = match self.verifications.count(target, &self.guesses).await? {
            Counted::Compare { id, hash, pepper, attempts } => {
                let Some(pepper) = peppers.get(&pepper) else {
                    return undecided(by_phone, &pepper);
                };
                if !pepper.matches(id, code, &hash) {
                    let left = ATTEMPTS.saturating_sub(attempts);
                    return Ok(Checked::Wrong { attempts_left: (!by_phone).then_some(left) });
                }
                (id, attempts)
            }
            Counted::Nothing => {
                // The same work as for a wrong code, kept though nobody asks for its outcome.
                black_box(peppers.first().matches(VerificationId::NIL, code, &CodeHash::NONE));
                return Ok(Checked::Wrong { attempts_left: None });
            }
            Counted::Unknown => return Err(CheckError::Unknown),
            Counted::Approved => return Err(CheckError::AlreadyApproved),
            Counted::Gone(status) => return Err(CheckError::Gone(status)),
            Counted::Exhausted { retry_after, ttl } => {
                let window = Window { quota: ATTEMPTS.into(), period: ttl };
                let policy = Policy::named("attempts", window);
                return Err(CheckError::Limited(vec![Violation { policy, retry_after }]));
            }
            Counted::Limited(violations) => return Err(CheckError::Limited(violations)),
        };

        match self.verifications.approve(id, &self.guesses).await? {
            Some(Approval { origin, phone, region }) => {
                // Whoever sends with `/api` may check nothing, so only `/v1` is counted at all.
                if origin == Origin::V1 {
                    self.guard.approved(&phone, region);
                }
                tracing::debug!(verification.id = %id, attempts, "verification approved");
                Ok(Checked::Approved)
            }
            None if by_phone => Ok(Checked::Wrong { attempts_left: None }),
            None => Err(self.ended(id).await?),
        }
    }

    /// How a verification ended between the attempt and its approval.
    async fn ended(&self, id: VerificationId) -> Result<CheckError, CheckError> {
        let found = self.verifications.find(id).await?;
        Ok(match found.map(|verification| verification.status) {
            None => CheckError::Unknown,
            Some(VerificationStatus::Canceled) => CheckError::Gone(VerificationStatus::Canceled),
            Some(VerificationStatus::Approved) => CheckError::AlreadyApproved,
            Some(VerificationStatus::Pending | VerificationStatus::Expired) => {
                CheckError::Gone(VerificationStatus::Expired)
            }
        })
    }
}

/// What to say of a code whose pepper is not set here. By phone, that there is one must not show.
fn undecided(by_phone: bool, pepper: &KeyId) -> Result<Checked, CheckError> {
    tracing::error!(pepper = pepper.as_str(), "codes were made with a pepper that is not set here");
    if by_phone {
        return Ok(Checked::Wrong { attempts_left: None });
    }
    Err(CheckError::Unavailable("the pepper of the code is not set here".into()))
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

    use super::*;
    use crate::{
        ports::{MockVerifications, Verification},
        testing::{pending, peppers, vault},
    };

    const CODE: &str = "482915";

    fn check(verifications: MockVerifications) -> CheckCode<MockVerifications> {
        let guard = Arc::new(Guard::new(Vec::new(), Duration::from_secs(3_600)));
        CheckCode::new(Arc::new(verifications), vault(), guard, &"10/1h".parse().unwrap())
    }

    fn by_id() -> Target {
        Target::Id(pending().id)
    }

    fn by_phone() -> Target {
        Target::Phone(pending().phone)
    }

    fn compare(attempts: u8) -> Counted {
        let pepper = peppers().first().clone();
        let (id, pepper_id) = (pending().id, pepper.id().clone());
        let hash = pepper.hash(id, &CODE.parse().unwrap());
        Counted::Compare { id, hash, pepper: pepper_id, attempts }
    }

    fn counting(counted: Counted) -> MockVerifications {
        let mut verifications = MockVerifications::new();
        verifications
            .expect_count()
            .withf(|_, guesses| guesses[0].name.as_str() == "check-1h")
            .once()
            .returning(move |_, _| Ok(counted.clone()));
        verifications
    }

    fn approving(verifications: &mut MockVerifications, won: bool) {
        let approval = Approval { origin: Origin::V1, phone: pending().phone, region: None };
        verifications
            .expect_approve()
            .withf(|id, guesses| *id == pending().id && guesses.len() == 1)
            .once()
            .returning(move |_, _| Ok(won.then(|| approval.clone())));
    }

    #[tokio::test]
    async fn the_right_code_is_approved() {
        for target in [by_id(), by_phone()] {
            let mut verifications = counting(compare(1));
            approving(&mut verifications, true);

            let checked = check(verifications).execute(target, CODE).await.unwrap();

            assert_eq!(checked, Checked::Approved);
        }
    }

    #[tokio::test]
    async fn a_wrong_code_says_what_is_left_by_id_only() {
        for (attempts, left) in [(1, 4), (5, 0)] {
            let wrong = check(counting(compare(attempts))).execute(by_id(), "482916").await;
            assert_eq!(wrong.unwrap(), Checked::Wrong { attempts_left: Some(left) });
        }
        let wrong = check(counting(compare(1))).execute(by_phone(), "482916").await.unwrap();
        assert_eq!(wrong, Checked::Wrong { attempts_left: None });
    }

    #[tokio::test]
    async fn an_unknown_phone_is_a_wrong_code() {
        for code in [CODE, "0000000000"] {
            let checked = check(counting(Counted::Nothing)).execute(by_phone(), code).await;
            assert_eq!(checked.unwrap(), Checked::Wrong { attempts_left: None });
        }
    }

    #[tokio::test]
    async fn who_comes_second_with_the_right_code_is_told_how_it_ended() {
        for (status, approved) in
            [(VerificationStatus::Approved, true), (VerificationStatus::Canceled, false)]
        {
            let mut verifications = counting(compare(2));
            approving(&mut verifications, false);
            verifications
                .expect_find()
                .returning(move |_| Ok(Some(Verification { status, ..pending() })));

            let error = check(verifications).execute(by_id(), CODE).await.unwrap_err();

            assert_eq!(matches!(error, CheckError::AlreadyApproved), approved, "{error:?}");
            assert_eq!(matches!(error, CheckError::Gone(VerificationStatus::Canceled)), !approved);
        }

        let mut verifications = counting(compare(2));
        approving(&mut verifications, false);
        let checked = check(verifications).execute(by_phone(), CODE).await.unwrap();
        assert_eq!(checked, Checked::Wrong { attempts_left: None });
    }

    #[tokio::test]
    async fn five_wrong_then_limited_until_it_expires() {
        let (retry_after, ttl) = (Duration::from_secs(200), Duration::from_secs(600));
        let exhausted = counting(Counted::Exhausted { retry_after, ttl });

        let error = check(exhausted).execute(by_id(), CODE).await.unwrap_err();

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
            async |counted| check(counting(counted)).execute(by_id(), CODE).await.unwrap_err();

        assert!(matches!(answer(Counted::Unknown).await, CheckError::Unknown));
        assert!(matches!(answer(Counted::Approved).await, CheckError::AlreadyApproved));
        let gone = answer(Counted::Gone(VerificationStatus::Expired)).await;
        assert!(matches!(gone, CheckError::Gone(VerificationStatus::Expired)));
    }

    #[tokio::test]
    async fn a_code_whose_pepper_is_not_set_here_is_not_called_wrong() {
        let gone = || {
            let Counted::Compare { id, hash, attempts, .. } = compare(1) else { panic!() };
            Counted::Compare { id, hash, pepper: "gone".parse().unwrap(), attempts }
        };

        let error = check(counting(gone())).execute(by_id(), CODE).await.unwrap_err();
        assert!(matches!(error, CheckError::Unavailable(_)), "{error:?}");
        // By phone it must look like all that is not right.
        let checked = check(counting(gone())).execute(by_phone(), CODE).await.unwrap();
        assert_eq!(checked, Checked::Wrong { attempts_left: None });
    }

    #[tokio::test]
    async fn only_approvals_of_v1_count_for_the_guard() {
        let rule = domain::GuardRule::parse("prefix:1:100", domain::GuardMode::Enforce).unwrap();
        for (origin, passes) in [(Origin::V1, true), (Origin::Api, false)] {
            let guard = Arc::new(Guard::new(vec![rule], Duration::from_secs(3_600)));
            let crate::Verdict::Passed(passed) = guard.decide(&pending().phone, None) else {
                panic!()
            };
            guard.sent(passed, pending().id);
            let mut verifications = counting(compare(1));
            let approval = Approval { origin, phone: pending().phone, region: None };
            verifications.expect_approve().returning(move |_, _| Ok(Some(approval.clone())));
            let check = CheckCode { guard: Arc::clone(&guard), ..check(verifications) };

            check.execute(by_id(), CODE).await.unwrap();

            let passed = guard.decide(&pending().phone, None) != crate::Verdict::Blocked;
            assert_eq!(passed, passes, "{origin:?}");
        }
    }

    #[tokio::test]
    async fn nothing_is_counted_before_the_keys_are_there() {
        let guard = Arc::new(Guard::new(Vec::new(), Duration::from_secs(3_600)));
        let verifications = Arc::new(MockVerifications::new());
        let check = CheckCode::new(verifications, Vault::default(), guard, &Windows::OFF);

        let error = check.execute(by_id(), CODE).await.unwrap_err();

        assert!(matches!(error, CheckError::Unavailable(_)));
    }
}
