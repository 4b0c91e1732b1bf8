use std::{fmt, net::IpAddr, sync::Arc, time::Duration};

use autometrics::autometrics;
use domain::{
    ATTEMPTS, ApiKeyId, CustomLimit, Pacing, Policy, VerificationId, VerificationStatus, Window,
};
use rand_core::CryptoRng;

use crate::{
    BoxError, Guard, Passed, SendRules, TraceParent, Vault, Verdict,
    issue::{Clock, Issuer},
    ports::{
        AnswerClaim, Event, EventKind, History, Resend, Resent, StoreError, Verification,
        Verifications, Violation,
    },
};

/// Sends the code of a pending verification once more.
#[derive(Debug)]
pub struct ResendVerification<V, R> {
    pub(crate) verifications: Arc<V>,
    pub(crate) issuer: Issuer<R>,
    pub(crate) guard: Arc<Guard>,
    pub(crate) settings: SendSettings,
}

/// What holds for the first message of a verification and for those after it.
#[derive(Debug, Clone, Default)]
pub struct SendSettings {
    pub rules: SendRules,
    pub pacing: Pacing,
    pub resend_policy: ResendPolicy,
}

/// Which code a resend has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ResendPolicy {
    /// The one that the verification has.
    #[default]
    Same,
    /// A new one: the one before is no good any more.
    New,
}

/// Who asks for a message, as far as that is counted, and under which claim.
#[derive(Clone, Default)]
pub struct Caller {
    /// The end user's.
    pub ip: Option<IpAddr>,
    pub custom: Vec<(CustomLimit, String)>,
    pub api_key: Option<ApiKeyId>,
    pub trace: Option<TraceParent>,
    /// Of a request that may be repeated.
    pub claim: Option<AnswerClaim>,
}

#[derive(Debug, thiserror::Error)]
pub enum ResendError {
    #[error("no such verification")]
    Unknown,
    #[error("the verification is approved")]
    AlreadyApproved,
    #[error("the verification has ended")]
    Gone(VerificationStatus),
    /// At least one.
    #[error("a limit is reached")]
    Limited(Vec<Violation>),
    /// By the guard.
    #[error("refused")]
    Blocked,
    #[error("too much work is waiting to be stored")]
    Full,
    /// The message may have been stored all the same.
    #[error("the message was not stored")]
    Unavailable(#[source] BoxError),
}

/// Leaves out who the end user is.
impl fmt::Debug for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Caller").field("api_key", &self.api_key).finish_non_exhaustive()
    }
}

impl<V: Verifications, R: CryptoRng + Send + 'static> ResendVerification<V, R> {
    /// `rng` must be seeded from the operating system: ids and codes come of it.
    pub fn new(
        verifications: Arc<V>,
        clock: Clock,
        rng: R,
        vault: Vault,
        guard: Arc<Guard>,
        settings: SendSettings,
    ) -> Self {
        Self { verifications, issuer: Issuer::new(clock, rng, vault), guard, settings }
    }

    /// Stores one more message of the verification. Once this returns `Ok`, it will be sent.
    ///
    /// Under one claim that is done once: whoever takes it over finds the verification as it is.
    #[autometrics(struct_name = "ResendVerification")]
    pub async fn execute(
        &self,
        id: VerificationId,
        // `caller` is a name that autometrics takes.
        asker: &Caller,
    ) -> Result<History, ResendError> {
        if let Some(history) = self.done(asker).await? {
            return Ok(history);
        }
        for _ in 0..2 {
            let found = self.verifications.find(id).await.map_err(ResendError::from)?;
            let verification = found.ok_or(ResendError::Unknown)?;
            self.check(&verification)?;
            let Verdict::Passed(passed) =
                self.guard.decide(verification.origin, &verification.phone, verification.region)
            else {
                return Err(ResendError::Blocked);
            };
            if let Some(verification) = self.again(&verification, passed, asker).await? {
                return Ok(self.tell(verification).await);
            }
        }
        Err(ResendError::Unavailable("others change the verification all the time".into()))
    }

    /// What was done for this request before, and was never answered: the verification that it sent
    /// a message of, or has begun.
    pub(crate) async fn done(&self, caller: &Caller) -> Result<Option<History>, ResendError> {
        match &caller.claim {
            Some(claim) if claim.is_taken_over() => {
                let id = claim.done.unwrap_or_else(|| claim.begins());
                self.verifications.history(id).await.map_err(ResendError::from)
            }
            _ => Ok(None),
        }
    }

    /// Whether one more message may be sent, as far as the verification itself says.
    pub(crate) fn check(&self, verification: &Verification) -> Result<(), ResendError> {
        match verification.status {
            // Nothing is sent, and so nothing is limited.
            VerificationStatus::Pending if verification.is_test() => return Ok(()),
            VerificationStatus::Pending => {}
            VerificationStatus::Approved => return Err(ResendError::AlreadyApproved),
            ended => return Err(ResendError::Gone(ended)),
        }
        let until_it_expires = |name, quota| {
            let policy = Policy::named(name, Window { quota, period: verification.ttl() });
            limited(policy, verification.good_for())
        };
        // A code that cannot be tried is not sent.
        if verification.attempts >= ATTEMPTS {
            return Err(until_it_expires("attempts", ATTEMPTS.into()));
        }
        let pacing = &self.settings.pacing;
        let Some(wait) = pacing.wait_after(verification.sends) else {
            return Err(until_it_expires("sends", pacing.sends_max().into()));
        };
        match wait.checked_sub(verification.since_sent()) {
            Some(rest) if !rest.is_zero() => {
                Err(limited(Policy::named("resend", Window { quota: 1, period: wait }), rest))
            }
            _ => Ok(()),
        }
    }

    /// Stores one more message of a verification that was checked. None: it is not any more what
    /// it was.
    pub(crate) async fn again(
        &self,
        verification: &Verification,
        passed: Passed,
        caller: &Caller,
    ) -> Result<Option<Verification>, ResendError> {
        if verification.is_test() {
            return Ok(Some(verification.clone()));
        }
        let Verification { id, sends, .. } = *verification;
        let wait = self.settings.pacing.wait_after(sends).unwrap_or_default();
        let (message, secret, trace) = self
            .issuer
            .next(verification, self.settings.resend_policy)
            .map_err(|closed| ResendError::Unavailable(closed.into()))?;
        let resend = Resend {
            id,
            sends,
            wait,
            message,
            trace: caller.trace.clone().unwrap_or(trace),
            secret,
            phone_limits: self.settings.rules.limits.phone.clone(),
            extra: self.settings.rules.counters(&verification.recipient(), caller),
            claim: caller.claim.clone(),
        };
        match self.verifications.resend(resend).await.map_err(ResendError::from)? {
            Resent::Sent(verification) => {
                self.guard.sent(passed, id);
                Ok(Some(*verification))
            }
            Resent::Limited(violations) => Err(ResendError::Limited(violations)),
            Resent::Changed => Ok(None),
        }
    }

    /// With its events; where these cannot be read, with those that are certain.
    pub(crate) async fn tell(&self, verification: Verification) -> History {
        match self.verifications.history(verification.id).await {
            Ok(Some(history)) => history,
            // The message is stored: that its story could not be read is no failure of that.
            Ok(None) | Err(_) => begun(verification),
        }
    }
}

/// A verification with the events that its own row tells of while it is pending.
pub(crate) fn begun(verification: Verification) -> History {
    let event = |kind, at| Event { kind, at };
    let mut events = vec![event(EventKind::Created, verification.created_at)];
    if !verification.is_test() {
        events.push(event(EventKind::Queued, verification.sent_at));
    }
    History { verification, events }
}

fn limited(policy: Policy, retry_after: Duration) -> ResendError {
    ResendError::Limited(vec![Violation { policy, retry_after }])
}

impl From<StoreError> for ResendError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Full => Self::Full,
            StoreError::Unavailable(_) => Self::Unavailable(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use domain::{CarriedCode, GuardMode, GuardRule, Pepper, Seed};
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;
    use crate::{
        ports::{CodeSecret, MockVerifications},
        testing::{START, claim, pending, peppers, taken_over, vault},
    };

    type Resender = ResendVerification<MockVerifications, StdRng>;

    fn resender(verifications: MockVerifications, policy: ResendPolicy) -> Resender {
        let settings = SendSettings { resend_policy: policy, ..SendSettings::default() };
        let guard = Arc::new(Guard::new(Vec::new(), Duration::from_secs(3_600)));
        let rng = StdRng::seed_from_u64(1);
        let verifications = Arc::new(verifications);
        ResendVerification::new(verifications, || START, rng, vault(), guard, settings)
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

    /// Takes down what is stored.
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
    async fn resend_policy_new() {
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
    async fn whoever_takes_a_resend_over_sends_only_what_was_not_sent() {
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
            // And tells those that come after.
            assert_eq!(stored.lock().unwrap()[0].claim, Some(claim));
        }
    }

    #[tokio::test]
    async fn a_code_whose_pepper_is_gone_is_replaced() {
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
    async fn limits_of_the_verification_say_how_long_they_hold() {
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
    async fn what_has_ended_is_not_sent_again() {
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
    async fn who_was_overtaken_looks_again() {
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
    async fn the_guard_counts_and_blocks_resends_too() {
        let mut verifications = finding(rested());
        storing(&mut verifications);
        let rule = GuardRule::parse("prefix:1:10", GuardMode::Enforce).unwrap();
        let guard = Arc::new(Guard::new(vec![rule], Duration::from_secs(3_600)));
        let resender = Resender { guard, ..resender(verifications, ResendPolicy::Same) };

        resender.execute(pending().id, &Caller::default()).await.unwrap();
        let error = resender.execute(pending().id, &Caller::default()).await.unwrap_err();

        assert!(matches!(error, ResendError::Blocked));
    }

    #[tokio::test]
    async fn a_test_numbers_verification_sends_nothing() {
        let test = Verification { origin: domain::Origin::Test, ..rested() };
        let mut verifications = finding(test.clone());
        verifications.expect_history().returning(|_| Ok(None));

        let resender = resender(verifications, ResendPolicy::Same);
        let history = resender.execute(test.id, &Caller::default()).await.unwrap();

        assert_eq!(history.verification, test);
    }
}
