use std::{sync::Arc, time::Duration};

use autometrics::autometrics;
use domain::{Code, CodeLength, Metadata, Number, NumberRefused, Origin, Recipient, TemplateKey};
use rand_core::CryptoRng;

use super::{Caller, CodeSender, IssueRequest, Refusal, ResendError, sender::begun};
use crate::{
    BoxError,
    ports::{AnswerClaim, Enqueued, History, Outbox, StoreError, Verifications, Violation},
};

/// Begins a verification, or sends its code once more while one is pending for the phone.
#[derive(Debug)]
pub struct StartVerification<O, V, R> {
    outbox: O,
    sender: Arc<CodeSender<V, R>>,
}

#[derive(Debug, Clone)]
pub struct StartRequest {
    pub number: Number,
    pub ttl: Duration,
    pub code_length: CodeLength,
    /// None: the default one.
    pub template: Option<TemplateKey>,
    pub metadata: Option<Metadata>,
    pub caller: Caller,
    /// The code of a test number, to which nothing is sent.
    pub test_code: Option<Code>,
}

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// At least one.
    #[error("a limit is reached")]
    Limited(Vec<Violation>),
    /// Nothing is sent to such numbers.
    #[error(transparent)]
    Refused(NumberRefused),
    /// By the guard.
    #[error("refused")]
    Blocked,
    #[error("too much work is waiting to be stored")]
    Full,
    /// The verification may have been begun all the same.
    #[error("the verification was not stored")]
    Unavailable(#[source] BoxError),
}

impl<O: Outbox, V: Verifications, R: CryptoRng + Send + 'static> StartVerification<O, V, R> {
    pub fn new(outbox: O, sender: Arc<CodeSender<V, R>>) -> Self {
        Self { outbox, sender }
    }

    /// Begins a verification. Once this returns `Ok`, its message will be sent.
    ///
    /// While one is pending for the phone this is a resend of that one, and what else the request
    /// says is passed over.
    ///
    /// Under one claim that is done once: whoever takes it over finds the verification as it is.
    #[autometrics(struct_name = "StartVerification")]
    pub async fn execute(&self, request: StartRequest) -> Result<History, StartError> {
        let sender = &self.sender;
        if let Some(history) = sender.find_done(&request.caller).await? {
            return Ok(history);
        }
        if let Some(code) = &request.test_code {
            return self.start_test(&request, code).await;
        }
        let to = Recipient::Number(request.number.clone());
        for _ in 0..2 {
            let permit = sender.admit(&to)?;
            let send = sender.issue(self.issue_request(&request)).map_err(unavailable)?;
            let unaccepted = send.clone();
            let pending = match self.outbox.enqueue(send).await? {
                Enqueued::Accepted { at } => {
                    let verification = unaccepted.accepted(at);
                    permit.sent(verification.id);
                    return Ok(begun(verification));
                }
                Enqueued::Limited(violations) => return Err(StartError::Limited(violations)),
                Enqueued::Pending(pending) => *pending,
            };
            if request.caller.claim.as_ref().is_some_and(|claim| claim.begins() == pending.id) {
                // An earlier holder of the claim has begun it just now.
                return Ok(sender.with_events(pending).await);
            }
            let sent = match sender.check_resend(&pending) {
                Ok(()) => sender.resend(&pending, permit, &request.caller).await,
                Err(error) => Err(error),
            };
            match sent {
                Ok(Some(verification)) => return Ok(sender.with_events(verification).await),
                // It has ended in between, or somebody else has sent: look again.
                Ok(None)
                | Err(ResendError::Gone(_) | ResendError::AlreadyApproved | ResendError::Unknown) =>
                    {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(StartError::Unavailable("others change the verification all the time".into()))
    }

    /// A test number has no limits, and each start begins anew.
    async fn start_test(&self, request: &StartRequest, code: &Code) -> Result<History, StartError> {
        let test =
            self.sender.issue_test(self.issue_request(request), code).map_err(unavailable)?;
        Ok(begun(self.sender.start_test(test).await?))
    }

    fn issue_request(&self, request: &StartRequest) -> IssueRequest {
        let rules = self.sender.rules();
        let request = request.clone();
        let Number { phone, region, .. } = request.number.clone();
        IssueRequest {
            id: request.caller.claim.as_ref().map(AnswerClaim::begins),
            origin: Origin::V1,
            phone_limits: rules.limits.phone.clone(),
            apart: rules.phones_apart(),
            extra: rules.counters(&Recipient::Number(request.number), &request.caller),
            phone,
            written: None,
            region,
            ttl: request.ttl,
            code_length: request.code_length,
            template: request.template,
            metadata: request.metadata,
            api_key: request.caller.api_key,
            trace: request.caller.trace,
        }
    }
}

impl From<StoreError> for StartError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Full => Self::Full,
            StoreError::Unavailable(_) => unavailable(error),
        }
    }
}

impl From<Refusal> for StartError {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Number(rule) => Self::Refused(rule),
            Refusal::Guard => Self::Blocked,
        }
    }
}

impl From<ResendError> for StartError {
    fn from(error: ResendError) -> Self {
        match error {
            ResendError::Limited(violations) => Self::Limited(violations),
            ResendError::Blocked => Self::Blocked,
            ResendError::Full => Self::Full,
            ResendError::Unavailable(cause) => Self::Unavailable(cause),
            ended
            @ (ResendError::Unknown | ResendError::AlreadyApproved | ResendError::Gone(_)) => {
                Self::Unavailable(ended.into())
            }
        }
    }
}

fn unavailable(cause: impl Into<BoxError>) -> StartError {
    StartError::Unavailable(cause.into())
}

#[cfg(test)]
mod tests {
    use std::{sync::Mutex, time::SystemTime};

    use domain::{
        CarriedCode, GuardMode, GuardRule, Policy, VerificationId, VerificationStatus, Window,
    };
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;
    use crate::{
        Guard, SendSettings, Vault,
        ports::{EventKind, MockOutbox, MockVerifications, NewSend, Resent, Verification},
        testing::{START, claim, pending, peppers, taken_over, vault},
    };

    type Starter = StartVerification<MockOutbox, MockVerifications, StdRng>;

    fn starter(outbox: MockOutbox, verifications: MockVerifications) -> Starter {
        with_rules(outbox, verifications, &[])
    }

    fn with_rules(
        outbox: MockOutbox,
        verifications: MockVerifications,
        rules: &[GuardRule],
    ) -> Starter {
        let guard = Arc::new(Guard::new(rules.to_vec(), Duration::from_secs(3_600)));
        let rng = StdRng::seed_from_u64(1);
        let settings = SendSettings::default();
        let verifications = Arc::new(verifications);
        let sender = CodeSender::new(verifications, || START, rng, vault(), guard, settings);
        StartVerification::new(outbox, Arc::new(sender))
    }

    fn number(phone: &str) -> Number {
        let kind = domain::NumberType::Mobile;
        Number { phone: phone.parse().unwrap(), region: "RU".parse().ok(), kind }
    }

    fn request() -> StartRequest {
        StartRequest {
            number: number("79991234567"),
            ttl: Duration::from_secs(300),
            code_length: 8.try_into().unwrap(),
            template: "login/de".parse().ok(),
            metadata: Some(Metadata::new(r#"{"user":"42"}"#.to_owned())),
            caller: Caller { ip: "203.0.113.7".parse().ok(), ..Caller::default() },
            test_code: None,
        }
    }

    fn accepting() -> (MockOutbox, Arc<Mutex<Vec<NewSend>>>) {
        let mut outbox = MockOutbox::new();
        let book = Arc::new(Mutex::new(Vec::new()));
        let entries = Arc::clone(&book);
        outbox.expect_enqueue().returning(move |send| {
            entries.lock().unwrap().push(send);
            Ok(Enqueued::Accepted { at: START })
        });
        (outbox, book)
    }

    fn answering(enqueued: Enqueued) -> MockOutbox {
        let mut outbox = MockOutbox::new();
        outbox.expect_enqueue().returning(move |_| Ok(enqueued.clone()));
        outbox
    }

    fn at(seconds: u64) -> SystemTime {
        START + Duration::from_secs(seconds)
    }

    #[tokio::test]
    async fn a_new_verification_is_as_it_was_asked_for() {
        let (outbox, stored) = accepting();

        let starter = starter(outbox, MockVerifications::new());
        let History { verification, events } = starter.execute(request()).await.unwrap();

        let stored = stored.lock().unwrap();
        let NewSend { message, verification: new, extra, .. } = &stored[0];
        assert_eq!(verification.id.message(1), message.id);
        assert_eq!(verification.expires_at, at(300));
        assert_eq!((verification.attempts, verification.sends), (0, 1));
        assert_eq!(verification.metadata, request().metadata);
        let kinds: Vec<_> = events.iter().map(|event| (event.kind, event.at)).collect();
        assert_eq!(kinds, [(EventKind::Created, START), (EventKind::Queued, START)]);
        assert_eq!((new.origin, new.region), (Origin::V1, request().number.region));
        let CarriedCode::Clear { code, template } = &message.code else { panic!() };
        assert_eq!((code.as_str().len(), template), (8, &request().template));
        let keys: Vec<_> = extra.iter().map(|counter| counter.key.as_str()).collect();
        assert_eq!(keys, ["203.0.113.7", "203.0.113.7", "7999123"]);
    }

    #[tokio::test]
    async fn a_second_start_is_a_resend_with_the_same_code() {
        let rested = Verification { read_at: at(60), ..pending() };
        let secret = rested.secret.clone().unwrap();
        let length = rested.code_length;
        let mut verifications = MockVerifications::new();
        verifications
            .expect_resend()
            .withf(move |again| {
                let id = pending().id;
                let code = peppers().first().derive(id, &secret.seed, length);
                let code = CarriedCode::Clear { code, template: pending().template };
                again.message.id == id.message(2) && again.message.code == code
            })
            .once()
            .returning(|_| Ok(Resent::Sent(Box::new(Verification { sends: 2, ..pending() }))));
        verifications.expect_history().returning(|_| Ok(None));

        let starter = starter(answering(Enqueued::Pending(Box::new(rested))), verifications);
        let history = starter.execute(request()).await.unwrap();

        assert_eq!((history.verification.id, history.verification.sends), (pending().id, 2));
    }

    #[tokio::test]
    async fn a_second_start_too_early_says_when() {
        let early = Verification { read_at: at(20), ..pending() };
        let outbox = answering(Enqueued::Pending(Box::new(early)));

        let error = starter(outbox, MockVerifications::new()).execute(request()).await.unwrap_err();

        let StartError::Limited(violations) = error else { panic!("{error:?}") };
        assert_eq!(violations[0].policy.name.as_str(), "resend");
        assert_eq!(violations[0].retry_after, Duration::from_secs(40));
    }

    fn under(claim: AnswerClaim) -> StartRequest {
        StartRequest { caller: Caller { claim: Some(claim), ..request().caller }, ..request() }
    }

    #[tokio::test]
    async fn whoever_takes_a_start_over_finds_what_it_began() {
        for (claim, id) in
            [(taken_over(None), claim().begins()), (taken_over(Some(pending().id)), pending().id)]
        {
            let begun = begun(Verification { id, ..pending() });
            let found = begun.clone();
            let mut verifications = MockVerifications::new();
            verifications
                .expect_history()
                .withf(move |asked| *asked == id)
                .once()
                .returning(move |_| Ok(Some(found.clone())));

            let starter = starter(MockOutbox::new(), verifications);

            assert_eq!(starter.execute(under(claim)).await.unwrap(), begun);
        }
    }

    /// What timed out for its caller may still be under way in the database.
    #[tokio::test]
    async fn a_start_that_is_done_late_is_found_by_whoever_takes_it_over_meanwhile() {
        let begun = Verification { id: claim().begins(), ..pending() };
        let pending = begun.clone();
        let mut outbox = MockOutbox::new();
        outbox
            .expect_enqueue()
            .once()
            .returning(move |_| Ok(Enqueued::Pending(Box::new(pending.clone()))));
        let mut verifications = MockVerifications::new();
        verifications.expect_history().returning(|_| Ok(None));

        let starter = starter(outbox, verifications);
        let history = starter.execute(under(taken_over(None))).await.unwrap();

        assert_eq!(history.verification, begun);
    }

    #[tokio::test]
    async fn a_start_has_one_id_whoever_of_its_holders_begins_it() {
        for (claim, looks) in [(claim(), 0), (taken_over(None), 1)] {
            let (outbox, stored) = accepting();
            let mut verifications = MockVerifications::new();
            verifications.expect_history().times(looks).returning(|_| Ok(None));

            let history = starter(outbox, verifications).execute(under(claim)).await.unwrap();

            let id = crate::testing::claim().begins();
            assert_eq!(history.verification.id, id);
            assert_eq!(stored.lock().unwrap()[0].message.id, id.message(1));
        }
    }

    #[tokio::test]
    async fn a_start_is_not_done_again_while_nothing_can_be_known_of_it() {
        let mut verifications = MockVerifications::new();
        verifications.expect_history().returning(|_| Err(StoreError::Unavailable("down".into())));

        let starter = starter(MockOutbox::new(), verifications);
        let error = starter.execute(under(taken_over(None))).await.unwrap_err();

        assert!(matches!(error, StartError::Unavailable(_)), "{error:?}");
    }

    #[tokio::test]
    async fn one_that_ended_in_between_makes_room() {
        let ended = Verification { status: VerificationStatus::Expired, ..pending() };
        let mut outbox = MockOutbox::new();
        let mut rounds = mockall::Sequence::new();
        outbox
            .expect_enqueue()
            .once()
            .in_sequence(&mut rounds)
            .returning(move |_| Ok(Enqueued::Pending(Box::new(ended.clone()))));
        outbox
            .expect_enqueue()
            .once()
            .in_sequence(&mut rounds)
            .returning(|_| Ok(Enqueued::Accepted { at: START }));

        let starter = starter(outbox, MockVerifications::new());
        let history = starter.execute(request()).await.unwrap();

        assert_ne!(history.verification.id, pending().id);
    }

    #[tokio::test]
    async fn says_why_nothing_was_stored() {
        let window = Window { quota: 5, period: Duration::from_secs(3_600) };
        let policy = Policy::new("phone", window);
        let violations = vec![Violation { policy, retry_after: Duration::from_secs(9) }];
        let limited = answering(Enqueued::Limited(violations.clone()));
        let error =
            starter(limited, MockVerifications::new()).execute(request()).await.unwrap_err();
        assert!(matches!(error, StartError::Limited(found) if found == violations));

        let mut full = MockOutbox::new();
        full.expect_enqueue().returning(|_| Err(StoreError::Full));
        let error = starter(full, MockVerifications::new()).execute(request()).await.unwrap_err();
        assert!(matches!(error, StartError::Full));
    }

    #[tokio::test]
    async fn nothing_is_stored_before_the_keys_are_there() {
        let guard = Arc::new(Guard::new(Vec::new(), Duration::from_secs(3_600)));
        let (rng, settings) = (StdRng::seed_from_u64(1), SendSettings::default());
        let verifications = Arc::new(MockVerifications::new());
        let vault = Vault::default();
        let sender = CodeSender::new(verifications, || START, rng, vault, guard, settings);
        let starter = StartVerification::new(MockOutbox::new(), Arc::new(sender));

        let error = starter.execute(request()).await.unwrap_err();

        assert!(matches!(error, StartError::Unavailable(_)));
    }

    #[tokio::test]
    async fn the_guard_blocks_a_flood_and_only_notes_it_in_shadow() {
        let rule = |mode| GuardRule::parse("prefix:3:10", mode).unwrap();
        let mut sent = Vec::new();
        for mode in [GuardMode::Enforce, GuardMode::Shadow] {
            let (outbox, stored) = accepting();
            let starter = with_rules(outbox, MockVerifications::new(), &[rule(mode)]);
            for number in 0..10 {
                let number = self::number(&format!("7999123000{number}"));
                let answer = starter.execute(StartRequest { number, ..request() }).await;
                assert!(matches!(answer, Ok(_) | Err(StartError::Blocked)));
            }
            sent.push(stored.lock().unwrap().len());
        }

        assert_eq!(sent, [3, 10]);
    }

    #[tokio::test]
    async fn a_test_number_has_its_code_and_sends_nothing() {
        let mut verifications = MockVerifications::new();
        verifications
            .expect_start_test()
            .withf(|test| {
                let hash = peppers().first().hash(test.id, &"000000".parse().unwrap());
                test.verification.origin == Origin::Test
                    && hash.as_bytes() == test.verification.secret.code_hash.as_bytes()
            })
            .returning(|test| {
                let ttl = test.ttl;
                Ok(Verification::begun(test.id, test.phone, ttl, &test.verification, START))
            });
        let request = StartRequest { test_code: "000000".parse().ok(), ..request() };

        let starter = starter(MockOutbox::new(), verifications);
        let history = starter.execute(request).await.unwrap();

        assert!(history.verification.is_test());
        let kinds: Vec<_> = history.events.iter().map(|event| event.kind).collect();
        assert_eq!(kinds, [EventKind::Created]);
        assert_eq!(VerificationId::of(history.verification.id.message(1)), history.verification.id);
    }
}
