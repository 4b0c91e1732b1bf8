//! Receipts that gateways report, by our id and by their references.

use std::time::Duration;

use application::ports::{
    CallOutcome, DeliveryLedger, DueEvent, EventKind, EventOutbox, Lease, NewReceipt, Noted,
    OutcomeClass, Receipt, Receipts, Unsettled, Verdict, Verifications,
};
use domain::{GatewayName, MessageId, VerificationId};
use sea_orm::ConnectionTrait;

use super::{
    on_both_databases,
    support::{
        LONG, accepted, batch, calls_of, count, enqueue, ledger, new_id, phone, published, start,
    },
};
use crate::{
    Database, Events, SqlDeliveryLedger, SqlEventOutbox, SqlHousekeeping, SqlReceipts,
    SqlVerifications, receipts::references::Room,
};

on_both_databases!(
    receipt_finds_its_message_by_our_id,
    receipt_finds_its_message_by_the_reference_of_its_call,
    receipt_before_the_outcome_counts_with_it,
    receipt_and_outcome_meet_whichever_comes_first,
    delivered_is_kept_rather_than_undelivered,
    receipt_that_a_crash_left_is_stored_by_the_housekeeping,
    reference_is_one_of_its_gateway,
    reference_belongs_to_the_message_that_got_it_last,
    reference_is_recorded_only_if_receipts_name_it,
    known_references_are_those_of_calls_of_the_gateway,
    unknown_receipts_are_kept_for_a_time_and_the_oldest_are_dropped,
    reference_that_no_database_can_store_is_unknown,
    undelivered_receipt_of_an_earlier_gateway_is_ignored,
    undelivered_receipt_during_a_call_waits_for_the_outcome,
    undelivered_receipt_during_a_call_does_not_count_for_a_later_call,
    undelivered_receipt_of_a_message_that_waits_is_ignored,
    receipt_of_a_gateway_that_was_not_called_is_unknown,
    old_references_are_deleted,
    message_that_ended_unknown_is_unsettled_until_its_receipt,
);

struct Fixture {
    database: Database,
    ledger: SqlDeliveryLedger,
    lease: Lease,
    receipts: SqlReceipts,
}

async fn fixture(database: &Database) -> Fixture {
    let (ledger, lease) = ledger(database, "group").await;
    let database = database.clone().with_events(Events::Recorded);
    Fixture { receipts: SqlReceipts::new(database.clone()), database, ledger, lease }
}

fn main() -> GatewayName {
    "main".parse().unwrap()
}

fn named(reference: &str) -> Verdict {
    Verdict::Sent {
        reference: Some(reference.to_owned()),
        receipts_by_reference: true,
        awaited: None,
    }
}

fn retried() -> Verdict {
    Verdict::Retry { after: Duration::ZERO }
}

#[track_caller]
fn stored(noted: Noted) -> NewReceipt {
    let Noted::Stored(new) = noted else { panic!("{noted:?}") };
    new
}

impl Fixture {
    /// A message of `/v1` to a number of Russia, for which `main` is called.
    async fn called(&self, number: usize) -> MessageId {
        let mut send = start(&phone(number));
        send.verification.region = "RU".parse().ok();
        accepted(&enqueue(&self.database, &send).await);
        let incoming = published(&self.database).await.remove(0);
        let message = incoming.message.id;
        self.ledger.admit(&self.lease, &batch(&[incoming])).await.unwrap();
        self.call("main", message).await;
        message
    }

    async fn call(&self, gateway: &str, message: MessageId) {
        let started = self.ledger.start(&self.lease, &calls_of(gateway, &[message]), LONG).await;
        assert_eq!(started.unwrap().calls.len(), 1);
    }

    async fn finish(&self, message: MessageId, attempt: u32, verdict: Verdict) {
        let outcome = CallOutcome {
            id: message,
            attempt,
            class: OutcomeClass::Accepted,
            verdict,
            detail: String::new(),
        };
        assert_eq!(self.ledger.finish(&[outcome]).await.unwrap().len(), 1);
    }

    async fn note(&self, gateway: &str, message: MessageId, receipt: Receipt) -> Noted {
        self.receipts.note(&gateway.parse().unwrap(), message, receipt).await.unwrap()
    }

    async fn report(&self, reference: &str, receipt: Receipt) -> Noted {
        self.receipts.note_reference(&main(), reference, receipt).await.unwrap()
    }

    /// Returns the events after its publication.
    async fn history(&self, message: MessageId) -> Vec<EventKind> {
        let verifications = SqlVerifications::new(self.database.clone());
        let history = verifications.history(VerificationId::of(message)).await.unwrap().unwrap();
        let kinds = history.events.into_iter().map(|event| event.kind);
        kinds.skip_while(|kind| *kind != EventKind::Published).skip(1).collect()
    }

    /// Returns the events since the last call of this.
    async fn told(&self) -> Vec<EventKind> {
        let told = SqlEventOutbox::new(self.database.clone()).claim(9, LONG).await.unwrap();
        told.into_iter().map(|DueEvent { kind, .. }| kind).collect()
    }

    async fn keep_house(&self) {
        SqlHousekeeping::new(self.database.clone()).end_expired().await.unwrap();
    }

    async fn run(&self, sql: &str) {
        self.database.connection().execute_unprepared(sql).await.unwrap();
    }

    async fn kept(&self) -> i64 {
        count(&self.database, "gateway_receipt WHERE receipt IS NOT NULL").await
    }
}

async fn receipt_finds_its_message_by_our_id(database: Database) {
    let it = fixture(&database).await;
    let message = it.called(1).await;
    it.finish(message, 1, named("SM1")).await;

    let new = stored(it.note("main", message, Receipt::Delivered).await);

    assert_eq!(new.region, "RU".parse().ok());
    let traced = format!("delivery WHERE trace = '{}'", new.trace.clone().unwrap());
    assert_eq!(count(&database, &traced).await, 1);
    assert!(new.since_call <= new.since_acceptance && new.since_acceptance < LONG, "{new:?}");
    assert_eq!(it.note("main", message, Receipt::Delivered).await, Noted::Repeated);
    assert_eq!(it.note("main", message, Receipt::Undelivered).await, Noted::Repeated);
    let unknown = new_id().message(1);
    assert_eq!(it.note("main", unknown, Receipt::Delivered).await, Noted::Unknown);
    assert_eq!(it.history(message).await, [EventKind::Sent, EventKind::Delivered]);
    assert_eq!(it.told().await, [EventKind::Created, EventKind::Sent, EventKind::Delivered]);
}

async fn receipt_finds_its_message_by_the_reference_of_its_call(database: Database) {
    let it = fixture(&database).await;
    let message = it.called(1).await;
    it.finish(message, 1, named("SM1")).await;

    stored(it.report("SM1", Receipt::Undelivered).await);
    assert_eq!(it.report("SM1", Receipt::Undelivered).await, Noted::Repeated);
    stored(it.report("SM1", Receipt::Delivered).await);
    assert_eq!(it.report("SM1", Receipt::Undelivered).await, Noted::Repeated);

    assert_eq!(it.history(message).await, [EventKind::Sent, EventKind::Delivered]);
    let told = [EventKind::Created, EventKind::Sent, EventKind::Failed, EventKind::Delivered];
    assert_eq!(it.told().await, told);
    assert_eq!(it.kept().await, 0);
}

async fn receipt_before_the_outcome_counts_with_it(database: Database) {
    let it = fixture(&database).await;
    let message = it.called(1).await;

    for _ in 0..2 {
        assert_eq!(it.report("SM1", Receipt::Delivered).await, Noted::Early);
    }
    assert_eq!(it.history(message).await, []);
    it.finish(message, 1, named("SM1")).await;

    assert_eq!(it.history(message).await, [EventKind::Sent, EventKind::Delivered]);
    assert_eq!(it.told().await, [EventKind::Created, EventKind::Sent, EventKind::Delivered]);
    assert_eq!(it.kept().await, 0);
    assert_eq!(it.report("SM1", Receipt::Delivered).await, Noted::Repeated);
}

async fn receipt_and_outcome_meet_whichever_comes_first(database: Database) {
    let it = fixture(&database).await;
    for number in 1..=20 {
        let message = it.called(number).await;
        let reference = format!("SM{number}");

        let report = it.report(&reference, Receipt::Delivered);
        tokio::join!(it.finish(message, 1, named(&reference)), report);

        assert_eq!(it.history(message).await.last(), Some(&EventKind::Delivered));
    }
    assert_eq!(it.kept().await, 0);
}

async fn delivered_is_kept_rather_than_undelivered(database: Database) {
    let it = fixture(&database).await;
    let message = it.called(1).await;

    for receipt in [Receipt::Undelivered, Receipt::Delivered, Receipt::Undelivered] {
        assert_eq!(it.report("SM1", receipt).await, Noted::Early);
    }
    it.finish(message, 1, named("SM1")).await;

    assert_eq!(it.history(message).await, [EventKind::Sent, EventKind::Delivered]);
}

async fn receipt_that_a_crash_left_is_stored_by_the_housekeeping(database: Database) {
    let it = fixture(&database).await;
    let message = it.called(1).await;
    it.finish(message, 1, named("SM1")).await;
    // As after a crash between the commit of the outcome and the next step.
    it.run("UPDATE gateway_receipt SET receipt = 'delivered'").await;

    it.keep_house().await;

    assert_eq!(it.history(message).await, [EventKind::Sent, EventKind::Delivered]);
    assert_eq!(it.kept().await, 0);
}

async fn reference_is_one_of_its_gateway(database: Database) {
    let it = fixture(&database).await;
    let message = it.called(1).await;
    it.finish(message, 1, named("SM1")).await;

    let other = "other".parse().unwrap();
    let noted = it.receipts.note_reference(&other, "SM1", Receipt::Delivered).await;

    assert_eq!(noted.unwrap(), Noted::Early);
    assert_eq!(it.history(message).await, [EventKind::Sent]);
}

async fn reference_belongs_to_the_message_that_got_it_last(database: Database) {
    let it = fixture(&database).await;
    let (first, second) = (it.called(1).await, it.called(2).await);
    let outcome = |id| CallOutcome {
        id,
        attempt: 1,
        class: OutcomeClass::Accepted,
        verdict: named("SM1"),
        detail: String::new(),
    };
    // Even in one commit.
    it.finish(first, 1, named("SM1")).await;
    let third = it.called(3).await;
    let ended = it.ledger.finish(&[outcome(second), outcome(third)]).await.unwrap();
    assert_eq!(ended.len(), 2);

    stored(it.report("SM1", Receipt::Delivered).await);

    assert_eq!(it.history(first).await, [EventKind::Sent]);
    let delivered = "delivery WHERE delivered_at IS NOT NULL";
    assert_eq!(count(&database, delivered).await, 1);
}

async fn reference_is_recorded_only_if_receipts_name_it(database: Database) {
    let it = fixture(&database).await;
    let message = it.called(1).await;

    it.finish(
        message,
        1,
        Verdict::Sent {
            reference: Some("SM1".into()),
            receipts_by_reference: false,
            awaited: None,
        },
    )
    .await;

    assert_eq!(count(&database, "gateway_receipt").await, 0);
    assert_eq!(count(&database, "delivery WHERE reference = 'SM1'").await, 1);
}

async fn known_references_are_those_of_calls_of_the_gateway(database: Database) {
    let it = fixture(&database).await;
    let message = it.called(1).await;
    it.finish(message, 1, named("26")).await;
    assert_eq!(it.report("1b", Receipt::Delivered).await, Noted::Early);
    let known = async |gateway: &str| {
        let references = ["1a", "26", "1b", "a\0"].map(str::to_owned);
        it.receipts.known(&gateway.parse().unwrap(), &references).await.unwrap()
    };

    assert_eq!(known("main").await, ["26"]);
    assert!(known("other").await.is_empty());
}

async fn unknown_receipts_are_kept_for_a_time_and_the_oldest_are_dropped(database: Database) {
    let it = fixture(&database).await;
    let receipts = it.receipts.clone().with_room(Room { most: 3, every: 1 });
    let known = it.called(9).await;
    it.finish(known, 1, named("known")).await;

    let second = if database.is_postgres() { "interval '1 second'" } else { "1000" };
    for number in 1..=9 {
        let reference = format!("SM{number}");
        // Each has its own time.
        it.run(&format!("UPDATE gateway_receipt SET expires_at = expires_at - {second}")).await;
        let noted = receipts.note_reference(&main(), &reference, Receipt::Delivered).await;
        assert_eq!(noted.unwrap(), Noted::Early);
    }

    let left = "gateway_receipt WHERE reference IN ('SM7', 'SM8', 'SM9', 'known')";
    assert_eq!(count(&database, left).await, 4);
    assert_eq!(count(&database, "gateway_receipt").await, 4);
}

async fn reference_that_no_database_can_store_is_unknown(database: Database) {
    let it = fixture(&database).await;
    let message = it.called(1).await;
    let long = "a".repeat(256);

    for reference in ["", "a\0b", &long] {
        assert_eq!(it.report(reference, Receipt::Delivered).await, Noted::Unknown);
    }
    it.finish(message, 1, named(&long)).await;

    assert_eq!(count(&database, "gateway_receipt").await, 0);
    assert_eq!(it.history(message).await, [EventKind::Sent]);
}

async fn undelivered_receipt_of_an_earlier_gateway_is_ignored(database: Database) {
    let it = fixture(&database).await;
    let message = it.called(1).await;
    it.finish(message, 1, retried()).await;
    it.call("other", message).await;
    it.finish(message, 2, named("SM1")).await;

    assert_eq!(it.note("main", message, Receipt::Undelivered).await, Noted::Repeated);
    assert_eq!(it.history(message).await, [EventKind::Sent]);
    stored(it.note("main", message, Receipt::Delivered).await);
    assert_eq!(it.history(message).await, [EventKind::Sent, EventKind::Delivered]);
    assert_eq!(it.told().await, [EventKind::Created, EventKind::Sent, EventKind::Delivered]);
}

async fn undelivered_receipt_during_a_call_waits_for_the_outcome(database: Database) {
    let it = fixture(&database).await;
    let (refused, sent) = (it.called(1).await, it.called(2).await);
    for message in [refused, sent] {
        assert_eq!(it.note("main", message, Receipt::Undelivered).await, Noted::Early);
    }
    it.keep_house().await;
    assert_eq!(it.kept().await, 2, "the calls have not ended");

    it.finish(refused, 1, retried()).await;
    it.finish(sent, 1, named("SM1")).await;
    it.keep_house().await;

    assert_eq!(it.kept().await, 0);
    assert_eq!(it.history(refused).await, [], "it goes on to the next gateway");
    assert_eq!(it.history(sent).await, [EventKind::Sent, EventKind::Failed]);
}

async fn undelivered_receipt_during_a_call_does_not_count_for_a_later_call(database: Database) {
    let it = fixture(&database).await;
    let message = it.called(1).await;
    assert_eq!(it.note("main", message, Receipt::Undelivered).await, Noted::Early);
    it.finish(message, 1, retried()).await;
    it.call("main", message).await;

    it.finish(message, 2, named("SM1")).await;
    it.keep_house().await;

    assert_eq!(it.history(message).await, [EventKind::Sent]);
    assert_eq!(it.kept().await, 0);
    stored(it.note("main", message, Receipt::Undelivered).await);
}

async fn receipt_of_a_gateway_that_was_not_called_is_unknown(database: Database) {
    let it = fixture(&database).await;
    let message = it.called(1).await;
    let strange = async || {
        for receipt in Receipt::ALL {
            assert_eq!(it.note("other", message, receipt).await, Noted::Unknown);
        }
        assert_eq!(it.note("default", message, Receipt::Delivered).await, Noted::Unknown);
    };

    strange().await;
    it.finish(message, 1, retried()).await;
    strange().await;
    it.call("main", message).await;
    it.finish(message, 2, named("SM1")).await;
    strange().await;

    assert_eq!(it.history(message).await, [EventKind::Sent]);
}

async fn undelivered_receipt_of_a_message_that_waits_is_ignored(database: Database) {
    let it = fixture(&database).await;
    let message = it.called(1).await;
    it.finish(message, 1, retried()).await;

    assert_eq!(it.note("main", message, Receipt::Undelivered).await, Noted::Repeated);
    assert_eq!(it.history(message).await, []);
    stored(it.note("main", message, Receipt::Delivered).await);
}

async fn old_references_are_deleted(database: Database) {
    let it = fixture(&database).await;
    let message = it.called(1).await;
    it.finish(message, 1, named("SM1")).await;
    it.report("SM2", Receipt::Delivered).await;
    let housekeeping = SqlHousekeeping::new(database.clone());
    housekeeping.prune(LONG).await.unwrap();
    assert_eq!(count(&database, "gateway_receipt").await, 2);

    let past = if database.is_postgres() { "now()" } else { "1" };
    it.run(&format!("UPDATE gateway_receipt SET expires_at = {past}")).await;
    housekeeping.prune(LONG).await.unwrap();

    assert_eq!(count(&database, "gateway_receipt").await, 0);
}

async fn message_that_ended_unknown_is_unsettled_until_its_receipt(database: Database) {
    let it = fixture(&database).await;
    let message = it.called(1).await;
    let unsettled = async || it.receipts.unsettled(message).await.unwrap();
    assert_eq!(unsettled().await, None, "the call has not ended");

    it.finish(message, 1, Verdict::Unknown).await;
    assert_eq!(unsettled().await, Some(Unsettled { gateway: main(), reference: None }));

    stored(it.note("main", message, Receipt::Delivered).await);
    assert_eq!(unsettled().await, None);
    assert_eq!(it.history(message).await, [EventKind::Delivered]);
}
