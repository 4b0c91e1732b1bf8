//! Questions to providers about messages that ended unknown.

use std::{collections::BTreeMap, time::Duration};

use adapters_gateway::Gateway;
use application::{
    AskStatus, Asked, Chain, Router,
    ports::{Receipt, Receipts, StatusSource},
};
use domain::{GatewayName, MessageId};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

use crate::metrics::ReceiptMetrics;

/// When a message is asked for after its end, and after each question without an answer.
const PAUSES: [Duration; 4] = [
    Duration::from_secs(10),
    Duration::from_secs(30),
    Duration::from_secs(120),
    Duration::from_secs(300),
];

/// How many messages wait for their question at most. Further ones stay unknown.
const MOST: usize = 10_000;

/// Takes the messages that ended unknown in this process. A restart forgets them.
#[derive(Debug, Clone)]
pub struct UnknownMessages(mpsc::Sender<MessageId>);

/// The gateways that are in force.
#[derive(Debug)]
pub struct AskedGateways(pub Router<Gateway>);

/// The messages that wait for their question.
#[derive(Debug)]
pub struct Questions<R, S> {
    ask: AskStatus<R, S>,
    metrics: ReceiptMetrics,
    inbox: mpsc::Receiver<MessageId>,
    /// By their time and the order of arrival. The number counts the questions that were asked.
    due: BTreeMap<(Instant, u64), (MessageId, usize)>,
    arrived: u64,
}

impl StatusSource for AskedGateways {
    async fn status(&self, gateway: &GatewayName, reference: &str) -> Option<Receipt> {
        self.0.gateway(gateway)?.status(reference).await
    }
}

impl UnknownMessages {
    pub fn new<R: Receipts, S: StatusSource>(
        ask: AskStatus<R, S>,
        metrics: ReceiptMetrics,
    ) -> (Self, Questions<R, S>) {
        let (sender, inbox) = mpsc::channel(MOST);
        (Self(sender), Questions { ask, metrics, inbox, due: BTreeMap::new(), arrived: 0 })
    }

    /// Asks for a message later, if there is room.
    pub fn add(&self, message: MessageId) {
        // It stays unknown, and its receipt may still come.
        let _ = self.0.try_send(message);
    }
}

impl<R: Receipts, S: StatusSource> Questions<R, S> {
    /// Asks until `stop` is cancelled.
    pub async fn run(mut self, stop: CancellationToken) {
        let stopped = stop.clone();
        let work = async {
            loop {
                let next = self.due.first_key_value().map(|((at, _), _)| *at);
                tokio::select! {
                    Some(message) = self.inbox.recv(), if self.due.len() < MOST => {
                        self.plan(message, 0);
                    }
                    () = sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => {
                        if let Some((_, (message, asked))) = self.due.pop_first() {
                            self.ask(message, asked).await;
                        }
                    }
                    else => return,
                }
            }
        };
        stopped.run_until_cancelled(work).await;
        stop.cancelled().await;
    }

    fn plan(&mut self, message: MessageId, asked: usize) {
        if let Some(pause) = PAUSES.get(asked) {
            self.arrived += 1;
            self.due.insert((Instant::now() + *pause, self.arrived), (message, asked));
        }
    }

    async fn ask(&mut self, message: MessageId, asked: usize) {
        match self.ask.execute(message).await {
            Ok(Asked::Answered { gateway, receipt, noted }) => {
                self.metrics.noted(&gateway, receipt, &noted);
            }
            Ok(Asked::Settled) => {}
            Ok(Asked::Open) => self.plan(message, asked + 1),
            Err(error) => {
                tracing::debug!(error = %Chain(&error), "the state of a message was not stored; asking again");
                self.plan(message, asked + 1);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use application::ports::{Noted, StoreError, Unsettled};
    use prometheus::Registry;
    use tokio::time::sleep;

    use super::*;
    use crate::metrics::StepMetrics;

    /// A message that ended unknown, and the gateway that knows its state at the third question.
    #[derive(Debug, Default)]
    struct Third {
        begun: Mutex<Option<Instant>>,
        asked: Mutex<Vec<u64>>,
        noted: Mutex<u32>,
    }

    #[derive(Debug)]
    struct Shared(Arc<Third>);

    impl Receipts for Shared {
        async fn note(
            &self,
            _: &GatewayName,
            _: MessageId,
            _: Receipt,
        ) -> Result<Noted, StoreError> {
            *self.0.noted.lock().unwrap() += 1;
            Ok(Noted::Repeated)
        }

        async fn note_reference(
            &self,
            _: &GatewayName,
            _: &str,
            _: Receipt,
        ) -> Result<Noted, StoreError> {
            Ok(Noted::Unknown)
        }

        async fn known(&self, _: &GatewayName, _: &[String]) -> Result<Vec<String>, StoreError> {
            Ok(Vec::new())
        }

        async fn unsettled(&self, _: MessageId) -> Result<Option<Unsettled>, StoreError> {
            Ok(Some(Unsettled { gateway: GatewayName::default(), reference: None }))
        }
    }

    impl StatusSource for Third {
        async fn status(&self, _: &GatewayName, _: &str) -> Option<Receipt> {
            let begun = self.begun.lock().unwrap().unwrap();
            let mut asked = self.asked.lock().unwrap();
            asked.push(begun.elapsed().as_secs());
            (asked.len() == 3).then_some(Receipt::Delivered)
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_message_is_asked_for_until_its_state_is_known() {
        let third = Arc::<Third>::default();
        *third.begun.lock().unwrap() = Some(Instant::now());
        let ask = AskStatus::new(Shared(Arc::clone(&third)), Arc::clone(&third));
        let registry = Registry::new();
        let steps = StepMetrics::register(&registry).unwrap();
        let metrics = ReceiptMetrics::register(&registry, &steps).unwrap();
        let (unknown, questions) = UnknownMessages::new(ask, metrics);
        let stop = CancellationToken::new();
        let running = tokio::spawn(questions.run(stop.clone()));

        unknown.add("6f2c1a52-9d3f-4f0e-8a55-0d2f6f3b9c01".parse().unwrap());
        sleep(Duration::from_secs(3_600)).await;
        stop.cancel();
        running.await.unwrap();

        assert_eq!(*third.asked.lock().unwrap(), [10, 40, 160]);
        assert_eq!(*third.noted.lock().unwrap(), 1);
    }
}
