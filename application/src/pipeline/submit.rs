use std::{sync::Arc, time::Duration};

use autometrics::autometrics;
use domain::{
    ApiKeyId, CodeLength, MessageId, NumberRefused, Origin, PhoneNumber, Recipient, VerificationId,
};
use rand_core::CryptoRng;

use crate::{
    BoxError, Caller, Clock, Guard, SendRules, TraceParent, Vault,
    ports::{Enqueued, Outbox, StoreError, Violation},
    verification::{IssueRequest, Issuer, Refusal},
};

/// Starts a verification of `/api` and stores its message.
#[derive(Debug)]
pub struct SubmitMessage<O, R> {
    outbox: O,
    issuer: Issuer<R>,
    guard: Arc<Guard>,
    settings: SubmitSettings,
}

/// A request to `/api`.
#[derive(Debug, Clone)]
pub struct Submission {
    pub to: Recipient,
    /// The recipient as the caller wrote it. The gateway receives this form.
    pub written: PhoneNumber,
    /// The API key of the caller, if `/api` requires one.
    pub api_key: Option<ApiKeyId>,
    /// The trace of the caller, if the request has one.
    pub trace: Option<TraceParent>,
}

/// Settings of [`SubmitMessage`].
#[derive(Debug, Clone)]
pub struct SubmitSettings {
    pub code_length: CodeLength,
    /// The time to live of the code, and so of the message.
    pub code_ttl: Duration,
    pub rules: SendRules,
}

/// The reason why a message was not accepted.
#[derive(Debug, thiserror::Error)]
pub enum SubmitError {
    /// The limits that are reached: at least one. Nothing was stored.
    #[error("a limit is reached")]
    Limited(Vec<Violation>),
    /// The rules for numbers refuse this number.
    #[error(transparent)]
    Refused(NumberRefused),
    /// Every gateway that can take the message has used its daily budget up.
    #[error("the daily budget is used up")]
    BudgetExhausted,
    /// The guard blocked the message.
    #[error("refused")]
    Blocked,
    /// Too much work is already waiting for the database. Nothing was stored.
    #[error("too much work is waiting to be stored")]
    Full,
    /// The message may have been stored.
    #[error("the message was not stored")]
    Unavailable(#[source] BoxError),
}

impl<O: Outbox, R: CryptoRng + Send + 'static> SubmitMessage<O, R> {
    /// `rng` must be seeded from the operating system: codes are drawn from it.
    pub fn new(
        outbox: O,
        clock: Clock,
        rng: R,
        vault: Vault,
        guard: Arc<Guard>,
        settings: SubmitSettings,
    ) -> Self {
        Self { outbox, issuer: Issuer::new(clock, rng, vault), guard, settings }
    }

    /// Accepts a message, if the rules of `/api` allow it. Once this returns `Ok`, the message will be
    /// sent.
    #[autometrics(struct_name = "SubmitMessage")]
    pub async fn execute(&self, submission: Submission) -> Result<MessageId, SubmitError> {
        let Submission { to, written, api_key, trace } = submission;
        let rules = &self.settings.rules;
        let permit = rules.admit(&self.guard, Origin::Api, &to, &written)?;
        let caller = Caller { api_key, ..Caller::default() };
        let request = IssueRequest {
            id: None,
            origin: Origin::Api,
            phone: to.phone().clone(),
            written: Some(written),
            region: to.region(),
            ttl: self.settings.code_ttl,
            code_length: self.settings.code_length,
            template: None,
            metadata: None,
            api_key,
            trace,
            phone_limits: rules.limits.phone.clone(),
            apart: rules.phones_apart(),
            extra: rules.counters(&to, &caller),
        };
        let send =
            self.issuer.first(request).map_err(|closed| SubmitError::Unavailable(closed.into()))?;
        let id = send.message.id;
        // If the caller hangs up, this future is dropped, but the message may still be stored and sent.
        let permit = permit.stored_by(&send.storing);
        match self.outbox.enqueue(send).await? {
            Enqueued::Accepted { .. } => {
                permit.sent(VerificationId::of(id));
                Ok(id)
            }
            Enqueued::Limited(violations) => Err(SubmitError::Limited(violations)),
            Enqueued::Pending(_) => Err(SubmitError::Unavailable(
                "the outbox treated it as a verification of /v1".into(),
            )),
        }
    }
}

impl From<StoreError> for SubmitError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Full => Self::Full,
            StoreError::Unavailable(_) => Self::Unavailable(error.into()),
        }
    }
}

impl From<Refusal> for SubmitError {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Number(rule) => Self::Refused(rule),
            Refusal::Budget => Self::BudgetExhausted,
            Refusal::Guard => Self::Blocked,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{Arc, Mutex},
        time::SystemTime,
    };

    use domain::{CarriedCode, Number, SendLimits, Window};
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;
    use crate::{
        ports::{MockOutbox, NewSend},
        testing::{PEPPER, START, no_budget, sealing_vault, vault},
    };

    fn submit_with(outbox: MockOutbox, vault: Vault) -> SubmitMessage<MockOutbox, StdRng> {
        let rules = SendRules {
            limits: SendLimits { phone: "20/1h".parse().unwrap(), ..SendLimits::OFF },
            ..SendRules::NONE
        };
        let settings = SubmitSettings {
            code_length: 6.try_into().unwrap(),
            code_ttl: Duration::from_secs(600),
            rules,
        };
        let guard = Arc::new(Guard::new(Vec::new(), Duration::from_secs(3_600)));
        SubmitMessage::new(outbox, || START, StdRng::seed_from_u64(1), vault, guard, settings)
    }

    fn submit(outbox: MockOutbox) -> SubmitMessage<MockOutbox, StdRng> {
        submit_with(outbox, vault())
    }

    fn phone() -> PhoneNumber {
        "79991234567".parse().unwrap()
    }

    fn submission() -> Submission {
        let to = Recipient::Unreadable(phone());
        Submission { to, written: phone(), api_key: None, trace: None }
    }

    fn accepted() -> Enqueued {
        Enqueued::Accepted { at: SystemTime::UNIX_EPOCH }
    }

    fn accepting() -> (MockOutbox, Arc<Mutex<Vec<NewSend>>>) {
        let mut outbox = MockOutbox::new();
        let stored = Arc::new(Mutex::new(Vec::new()));
        let seen = stored.clone();
        outbox.expect_enqueue().returning(move |new| {
            seen.lock().unwrap().push(new);
            Ok(accepted())
        });
        (outbox, stored)
    }

    #[tokio::test]
    async fn the_gateway_receives_the_written_form_and_the_canonical_form_is_counted() {
        let (outbox, stored) = accepting();
        let number =
            Number { phone: phone(), region: "RU".parse().ok(), kind: domain::NumberType::Mobile };
        let written: PhoneNumber = "89991234567".parse().unwrap();
        let api_key = "6f2c1a529d3f4f0e8a550d2f6f3b9c00".parse().ok();
        let to = Recipient::Number(number);
        let submission = Submission { to, written: written.clone(), api_key, trace: None };

        submit(outbox).execute(submission).await.unwrap();

        let stored = stored.lock().unwrap();
        assert_eq!((&stored[0].message.phone, &stored[0].phone), (&written, &phone()));
        let verification = &stored[0].verification;
        assert_eq!((verification.region, verification.api_key), ("RU".parse().ok(), api_key));
    }

    #[tokio::test]
    async fn a_refused_message_is_not_stored() {
        let mut submit = submit(MockOutbox::new());
        submit.settings.rules.refuse_unreadable = true;

        let refused = submit.execute(submission()).await.unwrap_err();

        assert!(matches!(refused, SubmitError::Refused(NumberRefused::Unreadable)), "{refused:?}");
    }

    #[tokio::test]
    async fn a_message_that_no_gateway_can_afford_is_not_stored() {
        let mut submit = submit(MockOutbox::new());
        submit.settings.rules.budgets = Some(no_budget());

        let refused = submit.execute(submission()).await.unwrap_err();

        assert!(matches!(refused, SubmitError::BudgetExhausted), "{refused:?}");
    }

    #[tokio::test]
    async fn the_code_has_the_set_length_and_its_secret_is_stored() {
        let (outbox, stored) = accepting();

        let id = submit(outbox).execute(submission()).await.unwrap();

        let stored = stored.lock().unwrap();
        let NewSend { message, ttl, verification, phone_limits, extra, .. } = &stored[0];
        assert_eq!((message.id, &message.phone), (id, &phone()));
        assert_eq!((*ttl, extra.len()), (Duration::from_secs(600), 0));
        assert_eq!(*phone_limits, "20/1h".parse().unwrap());
        assert_eq!(verification.origin, Origin::Api);
        let CarriedCode::Clear { code, template: None } = &message.code else { panic!() };
        assert_eq!(code.as_str().len(), 6);
        let pepper = PEPPER.parse::<domain::Peppers>().unwrap();
        let (pepper, id) = (pepper.first(), VerificationId::of(id));
        let secret = &verification.secret;
        assert_eq!(pepper.hash(id, code).as_bytes(), secret.code_hash.as_bytes());
        assert_eq!(pepper.derive(id, &secret.seed, verification.code_length), *code);
        assert_eq!(secret.pepper, *pepper.id());
    }

    #[tokio::test]
    async fn every_message_has_its_own_verification_code_and_trace() {
        let (outbox, stored) = accepting();
        let submit = submit(outbox);

        submit.execute(submission()).await.unwrap();
        submit.execute(submission()).await.unwrap();

        let stored = stored.lock().unwrap();
        let verification = |at: usize| VerificationId::of(stored[at].message.id);
        assert_ne!(verification(0), verification(1));
        assert_eq!(verification(0).message(1), stored[0].message.id);
        assert_ne!(stored[0].message.code, stored[1].message.code);
        assert_ne!(stored[0].trace, stored[1].trace);
    }

    #[tokio::test]
    async fn the_code_is_sealed_if_there_is_a_payload_key() {
        let (outbox, stored) = accepting();
        let vault = sealing_vault();

        submit_with(outbox, vault.clone()).execute(submission()).await.unwrap();

        let message = &stored.lock().unwrap()[0].message;
        let CarriedCode::Sealed(sealed) = &message.code else { panic!() };
        let keys = vault.keys().unwrap().payload.as_ref().unwrap();
        assert_eq!(keys.open(message.id, sealed).unwrap().phone, phone());
    }

    #[tokio::test]
    async fn the_trace_of_the_caller_is_kept() {
        let trace: TraceParent =
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".parse().unwrap();
        let expected = trace.clone();
        let mut outbox = MockOutbox::new();
        outbox
            .expect_enqueue()
            .withf(move |new| new.trace == expected)
            .returning(|_| Ok(accepted()));

        submit(outbox).execute(Submission { trace: Some(trace), ..submission() }).await.unwrap();
    }

    #[tokio::test]
    async fn the_error_says_why_nothing_was_stored() {
        let mut outbox = MockOutbox::new();
        outbox.expect_enqueue().returning(|_| Err(StoreError::Full));
        let answer = submit(outbox).execute(submission()).await;
        assert!(matches!(answer, Err(SubmitError::Full)));

        let window = Window { quota: 20, period: Duration::from_secs(3_600) };
        let policy = domain::Policy::new("phone", window);
        let violation = Violation { policy, retry_after: Duration::from_secs(7) };
        let mut outbox = MockOutbox::new();
        let expected = violation.clone();
        outbox.expect_enqueue().returning(move |_| Ok(Enqueued::Limited(vec![violation.clone()])));
        let answer = submit(outbox).execute(submission()).await;
        assert!(matches!(answer, Err(SubmitError::Limited(found)) if found == [expected]));
    }

    /// A use case whose guard applies to `/api` and blocks a prefix after one message.
    fn guarded<O: Outbox>(outbox: O) -> SubmitMessage<O, StdRng> {
        let rule = domain::GuardRule::parse("prefix:1:10", domain::GuardMode::Enforce).unwrap();
        let guard = Arc::new(Guard::new(vec![rule], Duration::from_secs(3_600)));
        let elsewhere = "4915112345678".parse().unwrap();
        (0..20).for_each(|_| guard.approved(Origin::Api, &elsewhere, None));
        let SubmitMessage { issuer, settings, .. } = submit(MockOutbox::new());
        SubmitMessage { outbox, issuer, guard, settings }
    }

    #[tokio::test]
    async fn the_guard_counts_only_messages_that_may_be_stored() {
        for (begins, counts) in [(true, true), (false, false)] {
            let mut outbox = MockOutbox::new();
            outbox.expect_enqueue().returning(move |send| {
                if begins {
                    send.storing.begin();
                }
                Err(StoreError::Unavailable("no commit in time".into()))
            });
            let submit = guarded(outbox);

            let first = submit.execute(submission()).await;
            let second = submit.execute(submission()).await;

            assert!(matches!(first, Err(SubmitError::Unavailable(_))), "{first:?}");
            assert_eq!(matches!(second, Err(SubmitError::Blocked)), counts, "{second:?}");
        }
    }

    /// An outbox that begins to store a message and never answers.
    struct Silent;

    impl Outbox for Silent {
        async fn enqueue(&self, send: NewSend) -> Result<Enqueued, StoreError> {
            send.storing.begin();
            std::future::pending().await
        }
    }

    #[tokio::test]
    async fn the_guard_counts_a_message_that_is_stored_after_its_caller_hung_up() {
        let submit = guarded(Silent);

        let ask = || tokio::time::timeout(Duration::ZERO, submit.execute(submission()));
        let hung_up = ask().await;
        let next = ask().await;

        assert!(hung_up.is_err());
        assert!(matches!(next, Ok(Err(SubmitError::Blocked))), "{next:?}");
    }

    #[tokio::test]
    async fn nothing_is_accepted_before_the_keys_are_loaded() {
        let submit = submit_with(MockOutbox::new(), Vault::default());

        let answer = submit.execute(submission()).await;

        assert!(matches!(answer, Err(SubmitError::Unavailable(_))));
    }
}
