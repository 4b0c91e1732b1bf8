use application::ports::{
    CallOutcome, DeliveryLedger, DueEvent, EventKind, EventOutbox, OutcomeClass, Receipt, Verdict,
    Verifications,
};
use domain::{MessageId, VerificationId};

use super::{
    on_both_databases,
    support::{
        LONG, accepted, batch, calls, count, enqueue, incoming, ledger, phone, published, start,
    },
};
use crate::{Database, Events, SqlDeliveryLedger, SqlEventOutbox, SqlVerifications};

on_both_databases!(
    receipt_counts_once,
    undelivered_message_has_failed_until_it_is_delivered,
    receipt_before_the_outcome_is_kept,
    message_that_failed_before_has_no_second_event,
    failed_call_after_a_receipt_has_no_event,
    receipt_of_a_message_that_was_not_called_is_unknown,
    receipt_is_noted_for_the_groups_that_called,
    receipt_has_no_event_if_events_are_off,
);

const SENT: Verdict =
    Verdict::Sent { reference: None, receipts_by_reference: false, awaited: None };

struct Called {
    database: Database,
    verifications: SqlVerifications,
    ledger: SqlDeliveryLedger,
    message: MessageId,
}

/// A message for which the gateway was called.
async fn called(database: &Database) -> Called {
    called_by(database, "group", 1).await
}

async fn called_by(database: &Database, group: &str, number: usize) -> Called {
    accepted(&enqueue(database, &start(&phone(number))).await);
    let incoming = published(database).await.remove(0);
    let message = incoming.message.id;
    let (ledger, lease) = ledger(database, group).await;
    ledger.admit(&lease, &batch(&[incoming])).await.unwrap();
    ledger.start(&lease, &calls(&[message]), LONG).await.unwrap();
    let verifications = SqlVerifications::new(database.clone().with_events(Events::Recorded));
    Called { database: database.clone(), verifications, ledger, message }
}

impl Called {
    async fn finish(&self, verdict: Verdict) {
        finish(&self.ledger, self.message, verdict).await;
    }

    #[track_caller]
    fn note(&self, receipt: Receipt) -> impl Future<Output = ()> {
        let noted = self.verifications.note_receipt(self.message, receipt);
        async { assert!(noted.await.unwrap().is_known()) }
    }

    /// Returns the events after its publication.
    async fn history(&self) -> Vec<EventKind> {
        let id = VerificationId::of(self.message);
        let history = self.verifications.history(id).await.unwrap().unwrap();
        let mut events = history.events.into_iter().map(|event| event.kind);
        events.find(|kind| *kind == EventKind::Published).unwrap();
        events.collect()
    }

    /// Returns the events since the last call of this.
    async fn told(&self) -> Vec<(EventKind, String)> {
        let events = SqlEventOutbox::new(self.database.clone());
        let told = events.claim(9, LONG).await.unwrap();
        let message = self.message.as_uuid().simple().to_string();
        for DueEvent { id, kind, .. } in &told {
            assert_eq!(*id == message, *kind == EventKind::Failed);
        }
        told.into_iter().map(|event| (event.kind, event.delivery.unwrap())).collect()
    }
}

async fn finish(ledger: &SqlDeliveryLedger, id: MessageId, verdict: Verdict) {
    let (class, detail) = (OutcomeClass::Accepted, String::new());
    let outcome = CallOutcome { id, attempt: 1, class, verdict, detail };
    assert_eq!(ledger.finish(&[outcome]).await.unwrap().len(), 1);
}

fn sent() -> (EventKind, String) {
    (EventKind::Sent, "sent".to_owned())
}

fn delivered() -> (EventKind, String) {
    (EventKind::Delivered, "delivered".to_owned())
}

fn undelivered() -> (EventKind, String) {
    (EventKind::Failed, "undelivered".to_owned())
}

async fn receipt_counts_once(database: Database) {
    let called = called(&database).await;
    called.finish(SENT).await;

    for receipt in [Receipt::Delivered, Receipt::Delivered, Receipt::Undelivered] {
        called.note(receipt).await;
        let noted = "delivery WHERE delivered_at IS NOT NULL AND undelivered_at IS NULL";
        assert_eq!(count(&database, noted).await, 1);
        assert_eq!(called.history().await, [EventKind::Sent, EventKind::Delivered]);
    }

    assert_eq!(called.told().await, [sent(), delivered()]);
}

async fn undelivered_message_has_failed_until_it_is_delivered(database: Database) {
    let called = called(&database).await;
    called.finish(SENT).await;

    for _ in 0..2 {
        called.note(Receipt::Undelivered).await;
    }
    assert_eq!(called.history().await, [EventKind::Sent, EventKind::Failed]);
    assert_eq!(called.told().await, [sent(), undelivered()]);

    called.note(Receipt::Delivered).await;
    assert_eq!(called.history().await, [EventKind::Sent, EventKind::Delivered]);
    assert_eq!(called.told().await, [delivered()]);
}

async fn receipt_before_the_outcome_is_kept(database: Database) {
    let called = called(&database).await;

    called.note(Receipt::Delivered).await;
    assert_eq!(called.history().await, [EventKind::Delivered]);
    called.finish(SENT).await;

    let mut history = called.history().await;
    history.sort();
    assert_eq!(history, [EventKind::Sent, EventKind::Delivered]);
    assert_eq!(called.told().await, [delivered(), sent()]);
}

async fn message_that_failed_before_has_no_second_event(database: Database) {
    let called = called(&database).await;
    called.finish(Verdict::Unknown).await;
    assert_eq!(called.told().await, [(EventKind::Failed, "unknown".to_owned())]);

    called.note(Receipt::Undelivered).await;
    assert_eq!(called.history().await, [EventKind::Failed]);
    assert_eq!(called.told().await, []);

    called.note(Receipt::Delivered).await;
    assert_eq!(called.history().await, [EventKind::Delivered]);
    assert_eq!(called.told().await, [delivered()]);
}

async fn failed_call_after_a_receipt_has_no_event(database: Database) {
    for (number, receipt, told) in
        [(1, Receipt::Delivered, delivered()), (2, Receipt::Undelivered, undelivered())]
    {
        let called = called_by(&database, &number.to_string(), number).await;
        called.note(receipt).await;

        called.finish(Verdict::Failed).await;

        assert_eq!(called.history().await, [told.0]);
        assert_eq!(called.told().await, [told]);
    }
}

async fn receipt_of_a_message_that_was_not_called_is_unknown(database: Database) {
    let verifications = SqlVerifications::new(database.clone().with_events(Events::Recorded));
    let send = start(&phone(1));
    accepted(&enqueue(&database, &send).await);
    let note = async || {
        let noted = verifications.note_receipt(send.message.id, Receipt::Delivered).await;
        assert!(!noted.unwrap().is_known());
    };

    note().await;
    let incoming = published(&database).await.remove(0);
    let (ledger, lease) = ledger(&database, "group").await;
    ledger.admit(&lease, &batch(&[incoming])).await.unwrap();
    note().await;

    assert_eq!(count(&database, "event").await, 0);
    assert_eq!(count(&database, "delivery WHERE delivered_at IS NOT NULL").await, 0);
}

async fn receipt_is_noted_for_the_groups_that_called(database: Database) {
    // A message without a verification has no event.
    let foreign = incoming(&phone(1));
    let id = foreign.message.id;
    for group in ["a", "b", "c"] {
        let (ledger, lease) = ledger(&database, group).await;
        ledger.admit(&lease, &batch(std::slice::from_ref(&foreign))).await.unwrap();
        if group != "c" {
            ledger.start(&lease, &calls(&[id]), LONG).await.unwrap();
            finish(&ledger, id, SENT).await;
        }
    }
    let verifications = SqlVerifications::new(database.clone().with_events(Events::Recorded));

    assert!(verifications.note_receipt(id, Receipt::Delivered).await.unwrap().is_known());

    let noted = "delivery WHERE delivered_at IS NOT NULL AND group_id IN ('a', 'b')";
    assert_eq!(count(&database, noted).await, 2);
    assert_eq!(count(&database, "delivery WHERE delivered_at IS NOT NULL").await, 2);
    assert_eq!(count(&database, "event").await, 0);
}

async fn receipt_has_no_event_if_events_are_off(database: Database) {
    let called = called(&database).await;
    let verifications = SqlVerifications::new(database.clone());

    for receipt in [Receipt::Undelivered, Receipt::Delivered] {
        assert!(verifications.note_receipt(called.message, receipt).await.unwrap().is_known());
    }

    assert_eq!(called.history().await, [EventKind::Delivered]);
    assert_eq!(count(&database, "event").await, 0);
}
