use std::{sync::Arc, time::Duration};

use autometrics::autometrics;
use domain::GatewayName;
use rand_core::CryptoRng;

use super::CodeSender;
use crate::{
    Chain,
    ports::{AwaitedReceipts, ExtraSend, Overdue, Rerouting, StoreError, Verifications},
};

/// Sends codes again through another gateway if no delivery receipt came in time, or if the receipt says
/// that the SMS will not arrive.
///
/// It is always the same code. A code that cannot be derived here any more is not sent again.
#[derive(Debug)]
pub struct SendElsewhere<W, V, R> {
    awaited: W,
    sender: Arc<CodeSender<V, R>>,
}

/// The result of one round.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct SentElsewhere {
    /// The messages that were due.
    pub due: usize,
    /// For each message that was stored, the gateway without the receipt, and the reason.
    pub stored: Vec<(GatewayName, Rerouting)>,
    /// Messages that are due again when their lease ends, because the store or the keys failed.
    pub failed: usize,
}

/// The maximum number of messages in a round.
const BATCH: usize = 100;
/// How long a message that failed waits for its next try.
const LEASE: Duration = Duration::from_secs(5);

impl SentElsewhere {
    /// Whether more messages may be due.
    pub fn is_full(&self) -> bool {
        self.due == BATCH
    }
}

impl<W, V, R> SendElsewhere<W, V, R>
where
    W: AwaitedReceipts,
    V: Verifications,
    R: CryptoRng + Send + 'static,
{
    pub fn new(awaited: W, sender: Arc<CodeSender<V, R>>) -> Self {
        Self { awaited, sender }
    }

    /// Sends the codes that are due. A message that fails does not hold up the others.
    ///
    /// After a crash, a message is due again when its lease ends. It is sent again once, however often
    /// this is repeated.
    #[autometrics(struct_name = "SendElsewhere")]
    pub async fn execute(&self) -> Result<SentElsewhere, StoreError> {
        let due = self.awaited.claim(BATCH, LEASE).await?;
        let mut sent = SentElsewhere { due: due.len(), ..SentElsewhere::default() };
        for overdue in due {
            let (message, reason) = (overdue.message, overdue.reason);
            let gateway = overdue.gateway.clone();
            match self.send(overdue).await {
                Ok(true) => {
                    let reason_text = reason.as_str();
                    tracing::info!(message.id = %message, %gateway, reason = reason_text, "the code is sent again through another gateway");
                    sent.stored.push((gateway, reason));
                }
                Ok(false) => {}
                Err(error) => {
                    sent.failed += 1;
                    tracing::warn!(message.id = %message, %gateway, error = %Chain(&error), "the code was not sent again through another gateway; trying again");
                }
            }
        }
        Ok(sent)
    }

    /// Returns whether a message was stored.
    async fn send(&self, overdue: Overdue) -> Result<bool, StoreError> {
        let Overdue { message: after, reason, verification, .. } = overdue;
        // The caller had the code sent again since the claim.
        if verification.id.message(verification.sends) != after {
            return Ok(false);
        }
        let issued = self.sender.issue_again(&verification);
        let issued = issued.map_err(|closed| StoreError::Unavailable(closed.into()))?;
        let Some((message, trace)) = issued else {
            self.awaited.forget(after).await?;
            return Ok(false);
        };
        let (id, sends) = (verification.id, verification.sends);
        let extra = ExtraSend { verification: id, after, sends, reason, message, trace };
        self.awaited.send_elsewhere(extra).await
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use domain::{CarriedCode, GuardMode, GuardRule, Seed};
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;
    use crate::{
        Guard, ResendPolicy, SendSettings, Vault,
        ports::{CodeSecret, MockAwaitedReceipts, MockVerifications, Verification},
        testing::{START, pending, peppers, vault},
    };

    type Sender = SendElsewhere<MockAwaitedReceipts, MockVerifications, StdRng>;

    fn sender(awaited: MockAwaitedReceipts, vault: Vault, rules: Vec<GuardRule>) -> Sender {
        let settings = SendSettings { resend_policy: ResendPolicy::New, ..SendSettings::default() };
        let guard = Arc::new(Guard::new(rules, Duration::from_secs(3_600)));
        let (rng, store) = (StdRng::seed_from_u64(1), Arc::new(MockVerifications::new()));
        let sender = CodeSender::new(store, || START, rng, vault, guard, settings);
        SendElsewhere::new(awaited, Arc::new(sender))
    }

    fn main() -> GatewayName {
        "main".parse().unwrap()
    }

    fn overdue(verification: Verification) -> Overdue {
        Overdue {
            message: verification.id.message(verification.sends),
            gateway: main(),
            reason: Rerouting::NoReceipt,
            verification,
        }
    }

    fn claiming(due: Vec<Overdue>) -> MockAwaitedReceipts {
        let mut awaited = MockAwaitedReceipts::new();
        awaited.expect_claim().once().returning(move |limit, _| {
            assert_eq!(limit, BATCH);
            Ok(due.clone())
        });
        awaited
    }

    #[tokio::test]
    async fn message_that_was_resent_since_the_claim_is_not_sent_again() {
        let first = pending();
        let due = overdue(first.clone());
        let resent = Verification { sends: first.sends + 1, ..first };
        let awaited = claiming(vec![Overdue { verification: resent, ..due }]);

        let sent = sender(awaited, vault(), Vec::new()).execute().await.unwrap();

        assert_eq!(sent, SentElsewhere { due: 1, stored: Vec::new(), failed: 0 });
    }

    #[tokio::test]
    async fn the_same_code_is_sent_again_even_if_callers_get_a_new_one() {
        let first = Verification { sends: 2, extra_sends: 1, ..pending() };
        let mut awaited = claiming(vec![overdue(first.clone())]);
        let stored = Arc::new(Mutex::new(Vec::new()));
        let book = Arc::clone(&stored);
        awaited.expect_send_elsewhere().once().returning(move |extra| {
            book.lock().unwrap().push(extra);
            Ok(true)
        });

        let sent = sender(awaited, vault(), Vec::new()).execute().await.unwrap();

        let all = vec![(main(), Rerouting::NoReceipt)];
        assert_eq!(sent, SentElsewhere { due: 1, stored: all, failed: 0 });
        let extra = stored.lock().unwrap().remove(0);
        assert_eq!((extra.verification, extra.sends), (first.id, 2));
        assert_eq!((extra.after, extra.message.id), (first.id.message(2), first.id.message(3)));
        let CodeSecret { seed, .. } = first.secret.unwrap();
        let code = peppers().first().derive(first.id, &seed, first.code_length);
        let CarriedCode::Clear { code: carried, .. } = extra.message.code else { panic!() };
        assert_eq!(carried.as_str(), code.as_str());
    }

    #[tokio::test]
    async fn a_message_that_fails_does_not_keep_the_others() {
        let mut awaited = claiming(vec![overdue(pending()), overdue(pending())]);
        let mut answers = vec![Ok(true), Err(StoreError::Full)];
        awaited.expect_send_elsewhere().times(2).returning(move |_| answers.pop().unwrap());

        let sent = sender(awaited, vault(), Vec::new()).execute().await.unwrap();

        assert_eq!((sent.due, sent.stored.len(), sent.failed), (2, 1, 1));
    }

    #[tokio::test]
    async fn a_code_is_not_replaced() {
        let secret =
            CodeSecret { pepper: "gone".parse().unwrap(), seed: Seed::from_bytes([1; 16]) };
        let mut awaited =
            claiming(vec![overdue(Verification { secret: Some(secret), ..pending() })]);
        let message = pending().id.message(1);
        awaited.expect_forget().withf(move |of| *of == message).once().returning(|_| Ok(()));

        let sent = sender(awaited, vault(), Vec::new()).execute().await.unwrap();

        assert_eq!(sent, SentElsewhere { due: 1, ..SentElsewhere::default() });
    }

    #[tokio::test]
    async fn messages_are_kept_until_the_keys_are_there() {
        let awaited = claiming(vec![overdue(pending())]);

        let sent = sender(awaited, Vault::default(), Vec::new()).execute().await.unwrap();

        assert_eq!(sent, SentElsewhere { due: 1, failed: 1, ..SentElsewhere::default() });
    }

    #[tokio::test]
    async fn the_guard_blocks_messages_and_does_not_count_them() {
        let rule = GuardRule::parse("prefix:1:10", GuardMode::Enforce).unwrap();
        let mut awaited = claiming(vec![overdue(pending()); 3]);
        awaited.expect_send_elsewhere().times(3).returning(|_| Ok(true));
        let uncounted = sender(awaited, vault(), vec![rule]).execute().await.unwrap();
        assert_eq!(uncounted.stored.len(), 3);

        let mut awaited = claiming(vec![overdue(pending())]);
        awaited.expect_forget().once().returning(|_| Ok(()));
        let blocking = sender(awaited, vault(), vec![rule]);
        let permit = blocking.sender.admit_resend(&pending()).unwrap();
        permit.sent(pending().id);
        assert_eq!(blocking.execute().await.unwrap().stored, []);
    }
}
