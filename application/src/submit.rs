use std::time::Duration;

use autometrics::autometrics;
use domain::{CodeLength, MessageId, Origin, PhoneNumber, Windows};
use rand_core::CryptoRng;

use crate::{
    BoxError, TraceParent, Vault,
    issue::{Clock, Issuer, Order},
    ports::{EnqueueError, Enqueued, Outbox, Violation},
};

/// Begins a verification of a phone number and stores the message that brings the code there.
#[derive(Debug)]
pub struct SubmitMessage<O, R> {
    outbox: O,
    issuer: Issuer<R>,
    settings: SubmitSettings,
}

#[derive(Debug, Clone)]
pub struct SubmitSettings {
    pub code_length: CodeLength,
    /// How long the code is good, and so how long the message may be sent.
    pub code_ttl: Duration,
    pub phone_limits: Windows,
}

#[derive(Debug, thiserror::Error)]
pub enum SubmitError {
    /// The phone has had as many as it may. Nothing was stored.
    #[error("too many messages to this number")]
    Limited(Vec<Violation>),
    /// As much work is waiting for the database as may wait. Nothing was stored.
    #[error("too much work is waiting to be stored")]
    Full,
    /// The message may have been stored all the same.
    #[error("the message was not stored")]
    Unavailable(#[source] BoxError),
}

impl<O: Outbox, R: CryptoRng + Send + 'static> SubmitMessage<O, R> {
    /// `rng` must be seeded from the operating system: codes come of it.
    pub fn new(outbox: O, clock: Clock, rng: R, vault: Vault, settings: SubmitSettings) -> Self {
        Self { outbox, issuer: Issuer::new(clock, rng, vault), settings }
    }

    /// Accepts a message for `phone`. Once this returns `Ok`, it will be sent.
    ///
    /// `trace` is the caller's, if it has one.
    #[autometrics(struct_name = "SubmitMessage")]
    pub async fn execute(
        &self,
        phone: PhoneNumber,
        trace: Option<TraceParent>,
    ) -> Result<MessageId, SubmitError> {
        let order = Order {
            id: None,
            origin: Origin::Api,
            phone,
            region: None,
            ttl: self.settings.code_ttl,
            code_length: self.settings.code_length,
            template: None,
            metadata: None,
            api_key: None,
            trace,
            phone_limits: self.settings.phone_limits.clone(),
            extra: Vec::new(),
        };
        let send =
            self.issuer.first(order).map_err(|closed| SubmitError::Unavailable(closed.into()))?;
        let id = send.message.id;
        match self.outbox.enqueue(send).await {
            Ok(Enqueued::Accepted { .. }) => Ok(id),
            Ok(Enqueued::Limited(violations)) => Err(SubmitError::Limited(violations)),
            Ok(Enqueued::Pending(_)) => {
                Err(SubmitError::Unavailable("the outbox took it for one of another kind".into()))
            }
            Err(EnqueueError::Full) => Err(SubmitError::Full),
            Err(error @ EnqueueError::Unavailable(_)) => {
                Err(SubmitError::Unavailable(error.into()))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{Arc, Mutex},
        time::SystemTime,
    };

    use domain::{CarriedCode, VerificationId, Window};
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;
    use crate::{
        ports::{MockOutbox, NewSend},
        testing::{PEPPER, START, sealing_vault, vault},
    };

    fn submit_with(outbox: MockOutbox, vault: Vault) -> SubmitMessage<MockOutbox, StdRng> {
        let settings = SubmitSettings {
            code_length: 6.try_into().unwrap(),
            code_ttl: Duration::from_secs(600),
            phone_limits: "20/1h".parse().unwrap(),
        };
        SubmitMessage::new(outbox, || START, StdRng::seed_from_u64(1), vault, settings)
    }

    fn submit(outbox: MockOutbox) -> SubmitMessage<MockOutbox, StdRng> {
        submit_with(outbox, vault())
    }

    fn phone() -> PhoneNumber {
        "79991234567".parse().unwrap()
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
    async fn stores_a_code_of_the_set_length_and_what_to_check_it_with() {
        let (outbox, stored) = accepting();

        let id = submit(outbox).execute(phone(), None).await.unwrap();

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
    async fn gives_every_message_its_own_verification_code_and_trace() {
        let (outbox, stored) = accepting();
        let submit = submit(outbox);

        submit.execute(phone(), None).await.unwrap();
        submit.execute(phone(), None).await.unwrap();

        let stored = stored.lock().unwrap();
        let verification = |at: usize| VerificationId::of(stored[at].message.id);
        assert_ne!(verification(0), verification(1));
        assert_eq!(verification(0).message(1), stored[0].message.id);
        assert_ne!(stored[0].message.code, stored[1].message.code);
        assert_ne!(stored[0].trace, stored[1].trace);
    }

    #[tokio::test]
    async fn seals_the_code_where_there_is_a_key() {
        let (outbox, stored) = accepting();
        let vault = sealing_vault();

        submit_with(outbox, vault.clone()).execute(phone(), None).await.unwrap();

        let message = &stored.lock().unwrap()[0].message;
        let CarriedCode::Sealed(sealed) = &message.code else { panic!() };
        let keys = vault.keys().unwrap().payload.as_ref().unwrap();
        assert_eq!(keys.open(message.id, sealed).unwrap().phone, phone());
    }

    #[tokio::test]
    async fn keeps_the_callers_trace() {
        let trace: TraceParent =
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".parse().unwrap();
        let expected = trace.clone();
        let mut outbox = MockOutbox::new();
        outbox
            .expect_enqueue()
            .withf(move |new| new.trace == expected)
            .returning(|_| Ok(accepted()));

        submit(outbox).execute(phone(), Some(trace)).await.unwrap();
    }

    #[tokio::test]
    async fn says_when_nothing_was_stored() {
        let mut outbox = MockOutbox::new();
        outbox.expect_enqueue().returning(|_| Err(EnqueueError::Full));
        let answer = submit(outbox).execute(phone(), None).await;
        assert!(matches!(answer, Err(SubmitError::Full)));

        let window = Window { quota: 20, period: Duration::from_secs(3_600) };
        let policy = domain::Policy::new("phone", window);
        let violation = Violation { policy, retry_after: Duration::from_secs(7) };
        let mut outbox = MockOutbox::new();
        let expected = violation.clone();
        outbox.expect_enqueue().returning(move |_| Ok(Enqueued::Limited(vec![violation.clone()])));
        let answer = submit(outbox).execute(phone(), None).await;
        assert!(matches!(answer, Err(SubmitError::Limited(found)) if found == [expected]));
    }

    #[tokio::test]
    async fn accepts_nothing_before_the_keys_are_there() {
        let submit = submit_with(MockOutbox::new(), Vault::default());

        let answer = submit.execute(phone(), None).await;

        assert!(matches!(answer, Err(SubmitError::Unavailable(_))));
    }
}
