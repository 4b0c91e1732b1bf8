use std::sync::Arc;

use autometrics::autometrics;
use domain::VerificationId;
use rand_core::CryptoRng;

use super::{Caller, CodeSender, ResendError};
use crate::ports::{History, Verifications};

/// Sends the code of a pending verification again.
#[derive(Debug)]
pub struct ResendVerification<V, R> {
    sender: Arc<CodeSender<V, R>>,
}

impl<V: Verifications, R: CryptoRng + Send + 'static> ResendVerification<V, R> {
    pub fn new(sender: Arc<CodeSender<V, R>>) -> Self {
        Self { sender }
    }

    /// Stores one more message of the verification. Once this returns `Ok`, it will be sent.
    ///
    /// This happens once for each claim. A caller that takes the claim over gets the verification in
    /// its present state.
    #[autometrics(struct_name = "ResendVerification")]
    pub async fn execute(
        &self,
        id: VerificationId,
        // autometrics uses the name `caller` itself.
        asker: &Caller,
    ) -> Result<History, ResendError> {
        let sender = &self.sender;
        if let Some(history) = sender.find_done(asker).await? {
            return Ok(history);
        }
        for _ in 0..2 {
            let verification = sender.find(id).await?;
            sender.check_resend(&verification)?;
            let permit = sender.admit_resend(&verification)?;
            if let Some(verification) = sender.resend(&verification, permit, asker).await? {
                return Ok(sender.with_events(verification).await);
            }
        }
        Err(ResendError::Unavailable("the verification changed during each attempt".into()))
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Mutex, time::Duration};

    use domain::{CarriedCode, GuardMode, GuardRule, Pepper, Seed, VerificationStatus};
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;
    use crate::verification::sender::begun;
    use crate::{
        Guard, ResendPolicy, SendSettings,
        ports::{
            CodeSecret, EventKind, MockVerifications, Resend, Resent, StoreError, Verification,
            Violation,
        },
        testing::{START, claim, no_budget, pending, peppers, taken_over, vault},
    };

    type Resender = ResendVerification<MockVerifications, StdRng>;

    fn resender(verifications: MockVerifications, policy: ResendPolicy) -> Resender {
        guarded(verifications, policy, Vec::new())
    }

    fn guarded(
        verifications: MockVerifications,
        policy: ResendPolicy,
        rules: Vec<GuardRule>,
    ) -> Resender {
        let settings = SendSettings { resend_policy: policy, ..SendSettings::default() };
        with_settings(verifications, settings, rules)
    }

    fn with_settings(
        verifications: MockVerifications,
        settings: SendSettings,
        rules: Vec<GuardRule>,
    ) -> Resender {
        let guard = Arc::new(Guard::new(rules, Duration::from_secs(3_600)));
        let rng = StdRng::seed_from_u64(1);
        let verifications = Arc::new(verifications);
        let sender = CodeSender::new(verifications, || START, rng, vault(), guard, settings);
        ResendVerification::new(Arc::new(sender))
    }

    /// A minute after its first message.
    fn rested() -> Verification {
        Verification { read_at: START + Duration::from_secs(60), ..pending() }
    }

    fn finding(verification: Verification) -> MockVerifications {
        let mut verifications = MockVerifications::new();
        verifications.expect_find().returning(move |_| Ok(Some(verification.clone())));
        verifications
    }

    /// Records the resends that are stored.
    fn storing(verifications: &mut MockVerifications) -> Arc<Mutex<Vec<Resend>>> {
        let book = Arc::new(Mutex::new(Vec::new()));
        let entries = Arc::clone(&book);
        verifications.expect_resend().returning(move |again| {
            let sends = again.sends + 1;
            entries.lock().unwrap().push(again);
            Ok(Resent::Sent(Box::new(Verification { sends, ..rested() })))
        });
        verifications.expect_history().returning(|_| Ok(None));
        book
    }

    fn code_of(resend: &Resend) -> String {
        let CarriedCode::Clear { code, .. } = &resend.message.code else { panic!() };
        code.as_str().to_owned()
    }

    fn code_kept(pepper: &Pepper) -> String {
        let CodeSecret { seed, .. } = pending().secret.unwrap();
        pepper.derive(pending().id, &seed, pending().code_length).as_str().to_owned()
    }

    async fn refused(verification: Verification) -> ResendError {
        let resender = resender(finding(verification), ResendPolicy::Same);
        resender.execute(pending().id, &Caller::default()).await.unwrap_err()
    }

    #[tokio::test]
    async fn a_resend_has_the_same_code_and_the_next_id() {
        let mut verifications = finding(rested());
        let stored = storing(&mut verifications);
        let caller = Caller { ip: "203.0.113.7".parse().ok(), ..Caller::default() };

        let resender = resender(verifications, ResendPolicy::Same);
        let history = resender.execute(pending().id, &caller).await.unwrap();

        assert_eq!(history.verification.sends, 2);
        let kinds: Vec<_> = history.events.iter().map(|event| event.kind).collect();
        assert_eq!(kinds, [EventKind::Created, EventKind::Queued]);
        let stored = stored.lock().unwrap();
        let resend = &stored[0];
        assert_eq!(resend.message.id, pending().id.message(2));
        assert_eq!(code_of(resend), code_kept(peppers().first()));
        assert!(resend.secret.is_none());
        assert_eq!((resend.sends, resend.wait), (1, Duration::from_secs(60)));
        assert_eq!(resend.phone_limits, domain::SendLimits::default().phone);
        let counters: Vec<_> = resend.extra.iter().map(|it| it.policy.name.as_str()).collect();
        assert_eq!(counters, ["ip-1h", "ip-1d", "prefix-1h"]);
    }

    #[tokio::test]
    async fn policy_new_replaces_the_code() {
        let mut verifications = finding(rested());
        let stored = storing(&mut verifications);

        let resender = resender(verifications, ResendPolicy::New);
        resender.execute(pending().id, &Caller::default()).await.unwrap();

        let stored = stored.lock().unwrap();
        let secret = stored[0].secret.as_ref().unwrap();
        assert_ne!(secret.seed, pending().secret.unwrap().seed);
        let hash = peppers().first().hash(pending().id, &code_of(&stored[0]).parse().unwrap());
        assert_eq!(hash.as_bytes(), secret.code_hash.as_bytes());
    }

    #[tokio::test]
    async fn a_resend_that_is_taken_over_is_sent_once() {
        let mut done = MockVerifications::new();
        let sent = begun(Verification { sends: 2, ..pending() });
        let found = sent.clone();
        done.expect_history()
            .withf(|id| *id == pending().id)
            .returning(move |_| Ok(Some(found.clone())));
        let under = |claim| Caller { claim: Some(claim), ..Caller::default() };

        let caller = under(taken_over(Some(pending().id)));
        let history = resender(done, ResendPolicy::Same).execute(pending().id, &caller).await;
        assert_eq!(history.unwrap(), sent);

        for claim in [claim(), taken_over(None)] {
            let mut verifications = finding(rested());
            let stored = storing(&mut verifications);
            let resender = resender(verifications, ResendPolicy::Same);
            resender.execute(pending().id, &under(claim.clone())).await.unwrap();
            // The claim is passed on, so that later holders learn of the resend.
            assert_eq!(stored.lock().unwrap()[0].claim, Some(claim));
        }
    }

    #[tokio::test]
    async fn a_code_with_an_unknown_pepper_is_replaced() {
        let secret =
            CodeSecret { pepper: "gone".parse().unwrap(), seed: Seed::from_bytes([1; 16]) };
        let mut verifications = finding(Verification { secret: Some(secret), ..rested() });
        let stored = storing(&mut verifications);

        let resender = resender(verifications, ResendPolicy::Same);
        resender.execute(pending().id, &Caller::default()).await.unwrap();

        let stored = stored.lock().unwrap();
        assert_eq!(stored[0].secret.as_ref().unwrap().pepper, *peppers().first().id());
    }

    #[tokio::test]
    async fn limits_of_a_verification_have_a_retry_time() {
        for (verification, name, quota, seconds) in [
            (pending(), "resend", 1, 60),
            (Verification { sends: 2, ..rested() }, "resend", 1, 30),
            (Verification { sends: 4, ..rested() }, "sends", 4, 540),
            (Verification { attempts: 5, ..rested() }, "attempts", 5, 540),
        ] {
            let ResendError::Limited(violations) = refused(verification).await else { panic!() };
            let [Violation { policy, retry_after }] = &violations[..] else { panic!() };
            assert_eq!((policy.name.as_str(), policy.window.quota), (name, quota));
            assert_eq!(retry_after.as_secs(), seconds, "{name}");
        }
    }

    #[tokio::test]
    async fn an_ended_verification_is_not_resent() {
        let ended = |status| Verification { status, ..rested() };

        let approved = refused(ended(VerificationStatus::Approved)).await;
        let expired = refused(ended(VerificationStatus::Expired)).await;

        assert!(matches!(approved, ResendError::AlreadyApproved));
        assert!(matches!(expired, ResendError::Gone(VerificationStatus::Expired)));
        let mut verifications = MockVerifications::new();
        verifications.expect_find().returning(|_| Ok(None));
        let unknown = resender(verifications, ResendPolicy::Same);
        let error = unknown.execute(pending().id, &Caller::default()).await.unwrap_err();
        assert!(matches!(error, ResendError::Unknown));
    }

    #[tokio::test]
    async fn a_resend_that_lost_a_race_reads_the_verification_again() {
        let mut verifications = MockVerifications::new();
        let mut looks = mockall::Sequence::new();
        let found = |it: Verification| move |_| Ok(Some(it.clone()));
        let first = verifications.expect_find().once().in_sequence(&mut looks);
        first.returning(found(rested()));
        let second = verifications.expect_find().once().in_sequence(&mut looks);
        second.returning(found(Verification { sends: 2, ..rested() }));
        verifications.expect_resend().once().returning(|_| Ok(Resent::Changed));

        let resender = resender(verifications, ResendPolicy::Same);
        let error = resender.execute(pending().id, &Caller::default()).await.unwrap_err();

        assert!(matches!(error, ResendError::Limited(_)), "{error:?}");
    }

    #[tokio::test]
    async fn the_guard_counts_and_blocks_resends() {
        let mut verifications = finding(rested());
        storing(&mut verifications);
        let rule = GuardRule::parse("prefix:1:10", GuardMode::Enforce).unwrap();
        let resender = guarded(verifications, ResendPolicy::Same, vec![rule]);

        resender.execute(pending().id, &Caller::default()).await.unwrap();
        let error = resender.execute(pending().id, &Caller::default()).await.unwrap_err();

        assert!(matches!(error, ResendError::Blocked));
    }

    #[tokio::test]
    async fn a_resend_that_no_gateway_can_afford_is_not_stored() {
        let mut settings = SendSettings::default();
        settings.rules.budgets = Some(no_budget());
        let resend = async |verification: Verification| {
            let id = verification.id;
            let mut verifications = finding(verification);
            verifications.expect_history().returning(|_| Ok(None));
            let resender = with_settings(verifications, settings.clone(), Vec::new());
            resender.execute(id, &Caller::default()).await
        };

        let error = resend(rested()).await.unwrap_err();
        assert!(matches!(error, ResendError::BudgetExhausted), "{error:?}");
        let test = Verification { origin: domain::Origin::Test, ..rested() };
        assert!(resend(test).await.is_ok(), "nothing is sent to a test number");
    }

    #[tokio::test]
    async fn the_guard_counts_a_resend_that_may_be_stored() {
        let is_blocked_after = async |error: fn() -> StoreError| {
            let mut verifications = finding(rested());
            verifications.expect_resend().returning(move |_| Err(error()));
            let rule = GuardRule::parse("prefix:1:10", GuardMode::Enforce).unwrap();
            let resender = guarded(verifications, ResendPolicy::Same, vec![rule]);
            resender.execute(pending().id, &Caller::default()).await.unwrap_err();
            let again = resender.execute(pending().id, &Caller::default()).await.unwrap_err();
            matches!(again, ResendError::Blocked)
        };

        assert!(is_blocked_after(|| StoreError::Unavailable("no answer".into())).await);
        assert!(!is_blocked_after(|| StoreError::Full).await);
    }

    #[tokio::test]
    async fn a_resend_to_a_test_number_sends_nothing() {
        let test = Verification { origin: domain::Origin::Test, ..rested() };
        let mut verifications = finding(test.clone());
        verifications.expect_history().returning(|_| Ok(None));

        let resender = resender(verifications, ResendPolicy::Same);
        let history = resender.execute(test.id, &Caller::default()).await.unwrap();

        assert_eq!(history.verification, test);
    }
}
