use std::time::Duration;

use application::ports::{
    CallOutcome, DeliveryLedger, EventKind, EventOutbox, Lease, Next, OutcomeClass, Receipt, Start,
    Verdict, Verifications,
};
use domain::{Channel, GatewayName, MessageId, VerificationId};

use super::{
    on_both_databases,
    support::{LONG, accepted, batch, enqueue, ledger, phone, published, start},
};
use crate::{Database, Events, SqlDeliveryLedger, SqlEventOutbox, SqlGateways, SqlVerifications};

on_both_databases!(
    channel_of_the_gateway_that_sent_shows_in_the_timeline_and_the_events,
    event_keeps_the_channel_of_its_time,
    event_before_the_first_outcome_has_the_channel_that_is_called,
    gateway_without_a_stored_channel_sends_sms,
    channel_of_a_gateway_can_change,
);

const SENT: Verdict =
    Verdict::Sent { reference: None, receipts_by_reference: false, awaited: None };

/// A message that waits for its first call.
struct Pending {
    database: Database,
    ledger: SqlDeliveryLedger,
    lease: Lease,
    message: MessageId,
}

async fn pending(database: &Database) -> Pending {
    let channels = [(name("telegram"), Channel::Telegram), (name("sms"), Channel::Sms)];
    SqlGateways::new(database.clone()).name_channels(&channels).await.unwrap();
    accepted(&enqueue(database, &start(&phone(1))).await);
    let incoming = published(database).await.remove(0);
    let message = incoming.message.id;
    let (ledger, lease) = ledger(database, "group").await;
    ledger.admit(&lease, &batch(&[incoming])).await.unwrap();
    Pending { database: database.clone(), ledger, lease, message }
}

fn name(text: &str) -> GatewayName {
    text.parse().unwrap()
}

impl Pending {
    async fn call(&self, gateway: &str) -> u32 {
        let next = Next::Call(name(gateway));
        let starts = [Start { id: self.message, next }];
        let started = self.ledger.start(&self.lease, &starts, LONG).await.unwrap();
        started.calls[0].attempt
    }

    async fn finish(&self, attempt: u32, class: OutcomeClass, verdict: Verdict) {
        let outcome =
            CallOutcome { id: self.message, attempt, class, verdict, detail: String::new() };
        assert_eq!(self.ledger.finish(&[outcome]).await.unwrap().len(), 1);
    }

    fn verifications(&self) -> SqlVerifications {
        SqlVerifications::new(self.database.clone().with_events(Events::Recorded))
    }

    /// Returns the channels of the events that follow from a call, and that of the whole.
    async fn shown(&self) -> (Vec<(EventKind, Option<Channel>)>, Channel) {
        let id = VerificationId::of(self.message);
        let history = self.verifications().history(id).await.unwrap().unwrap();
        let events = history.events.iter().filter(|event| event.gateway.is_some());
        (events.map(|event| (event.kind, event.channel)).collect(), history.channel())
    }

    async fn told(&self) -> Vec<(EventKind, Channel)> {
        let events = SqlEventOutbox::new(self.database.clone());
        let told = events.claim(9, LONG).await.unwrap();
        told.into_iter().map(|event| (event.kind, event.channel)).collect()
    }
}

async fn channel_of_the_gateway_that_sent_shows_in_the_timeline_and_the_events(database: Database) {
    let pending = pending(&database).await;
    assert_eq!(pending.shown().await, (Vec::new(), Channel::Sms));
    let attempt = pending.call("sms").await;
    let again = Verdict::Retry { after: Duration::ZERO };
    pending.finish(attempt, OutcomeClass::Unavailable, again).await;

    let attempt = pending.call("telegram").await;
    pending.finish(attempt, OutcomeClass::Accepted, SENT).await;
    assert!(
        pending
            .verifications()
            .note_receipt(pending.message, Receipt::Delivered)
            .await
            .unwrap()
            .is_known()
    );

    let telegram = Some(Channel::Telegram);
    let events = vec![(EventKind::Sent, telegram), (EventKind::Delivered, telegram)];
    assert_eq!(pending.shown().await, (events, Channel::Telegram));
    assert_eq!(
        pending.told().await,
        [(EventKind::Sent, Channel::Telegram), (EventKind::Delivered, Channel::Telegram)]
    );
}

async fn event_keeps_the_channel_of_its_time(database: Database) {
    let pending = pending(&database).await;
    let attempt = pending.call("telegram").await;
    let again = Verdict::Retry { after: Duration::ZERO };
    pending.finish(attempt, OutcomeClass::Unroutable, again).await;
    assert!(
        pending
            .verifications()
            .note_receipt(pending.message, Receipt::Delivered)
            .await
            .unwrap()
            .is_known()
    );
    tokio::time::sleep(Duration::from_millis(2)).await;
    let attempt = pending.call("sms").await;
    pending.finish(attempt, OutcomeClass::Accepted, SENT).await;

    assert_eq!(
        pending.told().await,
        [(EventKind::Delivered, Channel::Telegram), (EventKind::Sent, Channel::Sms)]
    );
}

async fn event_before_the_first_outcome_has_the_channel_that_is_called(database: Database) {
    let pending = pending(&database).await;
    pending.call("telegram").await;
    assert!(
        pending
            .verifications()
            .note_receipt(pending.message, Receipt::Delivered)
            .await
            .unwrap()
            .is_known()
    );

    assert_eq!(pending.told().await, [(EventKind::Delivered, Channel::Telegram)]);
    let events = vec![(EventKind::Delivered, Some(Channel::Telegram))];
    assert_eq!(pending.shown().await, (events, Channel::Telegram));
}

async fn gateway_without_a_stored_channel_sends_sms(database: Database) {
    let pending = pending(&database).await;
    let attempt = pending.call("other").await;
    pending.finish(attempt, OutcomeClass::Accepted, SENT).await;

    assert_eq!(pending.told().await, [(EventKind::Sent, Channel::Sms)]);
    let events = vec![(EventKind::Sent, Some(Channel::Sms))];
    assert_eq!(pending.shown().await, (events, Channel::Sms));
}

async fn channel_of_a_gateway_can_change(database: Database) {
    let pending = pending(&database).await;
    let attempt = pending.call("sms").await;
    pending.finish(attempt, OutcomeClass::Accepted, SENT).await;
    let gateways = SqlGateways::new(database);

    gateways.name_channels(&[]).await.unwrap();
    for channel in [Channel::Telegram, Channel::Telegram, Channel::Sms] {
        gateways.name_channels(&[(name("sms"), channel)]).await.unwrap();

        assert_eq!(pending.shown().await.1, channel);
    }
}
