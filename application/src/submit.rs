use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use autometrics::autometrics;
use domain::{Code, CodeLength, Message, MessageId, PhoneNumber};
use rand_core::CryptoRng;

use crate::{
    TraceParent,
    ports::{EnqueueError, NewMessage, Outbox},
};

/// Draws a code for a phone number and stores the message that brings it there.
#[derive(Debug)]
pub struct SubmitMessage<O, R> {
    outbox: O,
    rng: Mutex<R>,
    settings: SubmitSettings,
}

#[derive(Debug, Clone, Copy)]
pub struct SubmitSettings {
    pub code_length: CodeLength,
    /// How long the code is good, and so how long the message may be sent.
    pub code_ttl: Duration,
}

impl<O: Outbox, R: CryptoRng + Send + 'static> SubmitMessage<O, R> {
    /// `rng` must be seeded from the operating system: codes are drawn from it.
    pub fn new(outbox: O, rng: R, settings: SubmitSettings) -> Self {
        Self { outbox, rng: Mutex::new(rng), settings }
    }

    /// Accepts a message for `phone`. Once this returns `Ok`, it will be sent.
    ///
    /// `trace` is the caller's, if it has one.
    #[autometrics(struct_name = "SubmitMessage")]
    pub async fn execute(
        &self,
        phone: PhoneNumber,
        trace: Option<TraceParent>,
    ) -> Result<MessageId, EnqueueError> {
        let message = self.draw(phone, trace);
        let id = message.message.id;
        self.outbox.enqueue(message).await?;
        Ok(id)
    }

    fn draw(&self, phone: PhoneNumber, trace: Option<TraceParent>) -> NewMessage {
        // A generator is whole between two draws, so a panic elsewhere does not spoil it.
        let mut rng = self.rng.lock().unwrap_or_else(PoisonError::into_inner);
        let code = Code::generate(self.settings.code_length, &mut *rng);
        let id = MessageId::generate(&mut *rng);
        let trace = trace.unwrap_or_else(|| TraceParent::generate(&mut *rng));
        NewMessage { message: Message { id, phone, code }, ttl: self.settings.code_ttl, trace }
    }
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;
    use crate::ports::MockOutbox;

    fn submit(outbox: MockOutbox) -> SubmitMessage<MockOutbox, StdRng> {
        let settings = SubmitSettings {
            code_length: 6.try_into().unwrap(),
            code_ttl: Duration::from_secs(600),
        };
        SubmitMessage::new(outbox, StdRng::seed_from_u64(1), settings)
    }

    fn phone() -> PhoneNumber {
        "79991234567".parse().unwrap()
    }

    #[tokio::test]
    async fn stores_a_code_of_the_set_length_for_the_phone() {
        let mut outbox = MockOutbox::new();
        outbox
            .expect_enqueue()
            .withf(|new| {
                new.message.phone == phone()
                    && new.message.code.as_str().len() == 6
                    && new.ttl == Duration::from_secs(600)
            })
            .once()
            .returning(|_| Ok(()));

        submit(outbox).execute(phone(), None).await.unwrap();
    }

    #[tokio::test]
    async fn gives_every_message_its_own_id_code_and_trace() {
        let mut outbox = MockOutbox::new();
        let stored = std::sync::Arc::new(Mutex::new(Vec::new()));
        let seen = stored.clone();
        outbox.expect_enqueue().returning(move |new| {
            seen.lock().unwrap().push(new);
            Ok(())
        });
        let submit = submit(outbox);

        submit.execute(phone(), None).await.unwrap();
        submit.execute(phone(), None).await.unwrap();

        let stored = stored.lock().unwrap();
        assert_ne!(stored[0].message.id, stored[1].message.id);
        assert_ne!(stored[0].message.code, stored[1].message.code);
        assert_ne!(stored[0].trace, stored[1].trace);
    }

    #[tokio::test]
    async fn keeps_the_callers_trace() {
        let trace: TraceParent =
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".parse().unwrap();
        let expected = trace.clone();
        let mut outbox = MockOutbox::new();
        outbox.expect_enqueue().withf(move |new| new.trace == expected).returning(|_| Ok(()));

        submit(outbox).execute(phone(), Some(trace)).await.unwrap();
    }

    #[tokio::test]
    async fn says_when_nothing_was_stored() {
        let mut outbox = MockOutbox::new();
        outbox.expect_enqueue().returning(|_| Err(EnqueueError::Full));

        let answer = submit(outbox).execute(phone(), None).await;

        assert!(matches!(answer, Err(EnqueueError::Full)));
    }
}
