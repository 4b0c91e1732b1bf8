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

/// Verifications of a phone whose newest verification is `newest`.
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
async fn a_right_code_is_approved() {
    for of in [by_id(), by_phone()] {
        let checked = check(trying(right())).execute(of, &code(), None).await.unwrap();

        assert!(matches!(checked, Checked::Approved(_)), "{checked:?}");
    }
}

#[tokio::test]
async fn a_check_by_phone_hashes_for_both_origins_even_without_a_verification() {
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
async fn only_a_check_by_id_returns_the_attempts_left() {
    for (attempts, left) in [(1, 4), (5, 0)] {
        let checked = check(trying(wrong(attempts))).execute(by_id(), &code(), None).await;
        assert_eq!(checked.unwrap(), Checked::Wrong { attempts_left: Some(left) });
    }
    let checked = check(trying(wrong(1))).execute(by_phone(), &code(), None).await.unwrap();
    assert_eq!(checked, Checked::Wrong { attempts_left: None });
}

#[tokio::test]
async fn a_right_code_stays_right_for_the_holder_that_takes_the_claim_over() {
    for of in [by_id(), by_phone()] {
        let done = taken_over(Some(pending().id));
        let check = check(MockVerifications::new());
        let checked = check.execute(of, &code(), Some(&done)).await.unwrap();
        assert!(matches!(checked, Checked::Approved(_)), "{checked:?}");
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
async fn an_unknown_phone_gives_a_wrong_code() {
    let check = check(answering(None, CheckOutcome::Nothing));

    let checked = check.execute(by_phone(), &code(), None).await.unwrap();

    assert_eq!(checked, Checked::Wrong { attempts_left: None });
}

#[tokio::test]
async fn a_check_is_repeated_if_the_target_changed() {
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
    assert!(matches!(checked, Checked::Approved(_)), "{checked:?}");

    let mut verifications = MockVerifications::new();
    verifications.expect_check().times(TRIES).returning(|_, _| Ok(CheckOutcome::Changed));
    let error = check(verifications).execute(by_id(), &code(), None).await.unwrap_err();
    assert!(matches!(error, CheckError::Unavailable(_)), "{error:?}");
}

#[tokio::test]
async fn after_five_wrong_codes_a_check_is_limited_until_expiry() {
    let (retry_after, ttl) = (Duration::from_secs(200), Duration::from_secs(600));
    let exhausted = trying(CheckOutcome::Exhausted { retry_after, ttl });

    let error = check(exhausted).execute(by_id(), &code(), None).await.unwrap_err();

    let CheckError::Limited(violations) = error else { panic!("{error:?}") };
    let Violation { policy, retry_after: found } = &violations[0];
    assert_eq!((policy.name.as_str(), policy.window.quota, *found), ("attempts", 5, retry_after));
    assert_eq!(policy.window.period, ttl);
}

#[tokio::test]
async fn the_error_says_why_a_code_cannot_be_checked() {
    let answer =
        async |tried| check(trying(tried)).execute(by_id(), &code(), None).await.unwrap_err();

    assert!(matches!(answer(CheckOutcome::Unknown).await, CheckError::Unknown));
    assert!(matches!(answer(CheckOutcome::Approved).await, CheckError::AlreadyApproved));
    let gone = answer(CheckOutcome::Gone(VerificationStatus::Expired)).await;
    assert!(matches!(gone, CheckError::Gone(VerificationStatus::Expired)));
}

#[tokio::test]
async fn a_code_with_an_unknown_pepper_is_not_wrong() {
    let gone = || trying(CheckOutcome::Wrong { attempts: 1, pepper: "gone".parse().unwrap() });

    let error = check(gone()).execute(by_id(), &code(), None).await.unwrap_err();
    assert!(matches!(error, CheckError::Unavailable(_)), "{error:?}");
    // By phone the answer is the same as for a wrong code.
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
        let approval = Approval { id: pending().id, origin, phone: pending().phone, region: None };
        let verifications = trying(CheckOutcome::Right(approval));
        let check = CheckCode { guard: Arc::clone(&guard), ..check(verifications) };

        check.execute(by_id(), &code(), None).await.unwrap();

        let passed = guard.decide(Origin::V1, &pending().phone, None) != crate::Admission::Blocked;
        assert_eq!(passed, passes, "{origin:?}");
    }
}

#[tokio::test]
async fn nothing_is_counted_before_the_keys_are_loaded() {
    let guard = Arc::new(Guard::new(Vec::new(), Duration::from_secs(3_600)));
    let verifications = Arc::new(MockVerifications::new());
    let check = CheckCode::new(verifications, Vault::default(), guard, &Windows::OFF);

    let error = check.execute(by_id(), &code(), None).await.unwrap_err();

    assert!(matches!(error, CheckError::Unavailable(_)));
}
