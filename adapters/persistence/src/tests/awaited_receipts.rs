//! Codes that are sent again, because a receipt is missing.

use std::{collections::HashMap, time::Duration};

use application::ports::{
    AwaitedReceipt, AwaitedReceipts, CallOutcome, DeliveryLedger, DueEvent, EventKind, EventOutbox,
    EventReason, ExtraSend, Lease, NewSend, Noted, OutcomeClass, Overdue, Receipt, Receipts,
    Rerouting, Resent, Verdict, Verification, Verifications,
};
use domain::{GatewayName, Message, MessageId, VerificationId};
use sea_orm::ConnectionTrait;
use tokio::task::JoinSet;

use super::{
    on_both_databases,
    resends::again,
    support::{
        LONG, accepted, approve, batch, calls_of, count, enqueue, id_of, ledger, new_message,
        phone, published, right, start, try_by_id, wrong,
    },
};
use crate::{
    Database, Events, SqlAwaitedReceipts, SqlDeliveryLedger, SqlEventOutbox, SqlHousekeeping,
    SqlReceipts, SqlVerifications,
};

on_both_databases!(
    message_without_a_receipt_is_due_when_its_time_is_up,
    message_is_awaited_only_if_its_outcome_says_so,
    delivered_message_is_not_sent_again,
    delivered_receipt_before_the_outcome_counts,
    undelivered_message_is_due_at_once,
    message_of_a_verification_that_ended_is_not_sent_again,
    message_of_a_verification_without_attempts_is_not_sent_again,
    resent_message_is_not_sent_again,
    message_before_a_newer_code_is_not_sent_again,
    due_message_is_leased,
    extra_message_is_stored_once,
    extra_message_passes_over_its_gateways,
    extra_message_takes_no_resend_from_the_caller,
    receipt_or_end_after_the_claim_still_counts,
    extra_message_shows_in_the_timeline_and_the_events,
    old_rows_are_deleted,
);

struct Fixture {
    database: Database,
    ledger: SqlDeliveryLedger,
    lease: Lease,
    receipts: SqlReceipts,
    verifications: SqlVerifications,
    awaited: SqlAwaitedReceipts,
}

async fn fixture(database: &Database) -> Fixture {
    let (ledger, lease) = ledger(database, "group").await;
    let database = database.clone().with_events(Events::Recorded);
    Fixture {
        receipts: SqlReceipts::new(database.clone()),
        verifications: SqlVerifications::new(database.clone()),
        awaited: SqlAwaitedReceipts::new(database.clone()),
        database,
        ledger,
        lease,
    }
}

fn names(all: &[&str]) -> Vec<GatewayName> {
    all.iter().map(|name| name.parse().unwrap()).collect()
}

fn main() -> GatewayName {
    "main".parse().unwrap()
}

/// The receipt of a call of `main` within `seconds`.
fn within(seconds: u64) -> AwaitedReceipt {
    AwaitedReceipt { within: Duration::from_secs(seconds), passed_over: names(&["main"]) }
}

const NOW: u64 = 0;
const LATER: u64 = 600;

impl Fixture {
    /// Hands the messages of the outbox to the ledger, and calls `gateway` for them.
    async fn call(&self, gateway: &str) -> Vec<MessageId> {
        let incoming = published(&self.database).await;
        let ids: Vec<MessageId> = incoming.iter().map(|it| it.message.id).collect();
        self.ledger.admit(&self.lease, &batch(&incoming)).await.unwrap();
        let starts = calls_of(gateway, &ids);
        let started = self.ledger.start(&self.lease, &starts, LONG).await.unwrap();
        assert_eq!(started.calls.len(), ids.len());
        ids
    }

    async fn finish(&self, id: MessageId, awaited: impl Into<Option<AwaitedReceipt>>) {
        let awaited = awaited.into();
        let reference = Some(id.to_string());
        let verdict = Verdict::Sent { reference, receipts_by_reference: false, awaited };
        let class = OutcomeClass::Accepted;
        let outcome = CallOutcome { id, attempt: 1, class, verdict, detail: String::new() };
        assert_eq!(self.ledger.finish(&[outcome]).await.unwrap().len(), 1);
    }

    /// A verification whose first message `main` has accepted.
    async fn sent(&self, send: &NewSend, awaited: impl Into<Option<AwaitedReceipt>>) -> MessageId {
        accepted(&enqueue(&self.database, send).await);
        let message = self.call("main").await.remove(0);
        self.finish(message, awaited).await;
        message
    }

    async fn claim(&self) -> Vec<Overdue> {
        self.awaited.claim(9, LONG).await.unwrap()
    }

    async fn awaits(&self) -> i64 {
        count(&self.database, "awaited_receipt").await
    }

    async fn note(&self, message: MessageId, receipt: Receipt) -> Noted {
        self.receipts.note(&main(), message, receipt).await.unwrap()
    }

    async fn find(&self, message: MessageId) -> Verification {
        self.verifications.find(VerificationId::of(message)).await.unwrap().unwrap()
    }

    async fn run(&self, sql: &str) {
        self.database.connection().execute_unprepared(sql).await.unwrap();
    }
}

/// One more message after an overdue one.
fn extra(overdue: &Overdue) -> ExtraSend {
    let NewSend { message, trace, .. } = new_message(overdue.verification.phone.as_str());
    let (id, sends) = (overdue.verification.id, overdue.verification.sends);
    ExtraSend {
        verification: id,
        after: overdue.message,
        sends,
        reason: overdue.reason,
        message: Message { id: id.message(sends + 1), ..message },
        trace,
    }
}

async fn message_without_a_receipt_is_due_when_its_time_is_up(database: Database) {
    let it = fixture(&database).await;
    let late = it.sent(&start(&phone(1)), within(NOW)).await;
    it.sent(&start(&phone(2)), within(LATER)).await;

    let due = it.claim().await;

    let verification = it.find(late).await;
    let read_at = due[0].verification.read_at;
    let verification = Verification { read_at, ..verification };
    let reason = Rerouting::NoReceipt;
    assert_eq!(due, [Overdue { message: late, gateway: main(), reason, verification }]);
    assert_eq!(it.awaits().await, 2);
}

async fn message_is_awaited_only_if_its_outcome_says_so(database: Database) {
    let it = fixture(&database).await;

    it.sent(&start(&phone(1)), None::<AwaitedReceipt>).await;

    assert_eq!(it.awaits().await, 0);
}

async fn delivered_message_is_not_sent_again(database: Database) {
    let it = fixture(&database).await;
    let message = it.sent(&start(&phone(1)), within(NOW)).await;

    assert!(matches!(it.note(message, Receipt::Delivered).await, Noted::Stored(_)));

    assert_eq!(it.claim().await, []);
    assert_eq!(it.awaits().await, 0);
}

async fn delivered_receipt_before_the_outcome_counts(database: Database) {
    let it = fixture(&database).await;
    accepted(&enqueue(&it.database, &start(&phone(1))).await);
    let message = it.call("main").await.remove(0);
    assert!(matches!(it.note(message, Receipt::Delivered).await, Noted::Stored(_)));

    it.finish(message, within(NOW)).await;

    assert_eq!(it.awaits().await, 0);
}

async fn undelivered_message_is_due_at_once(database: Database) {
    let it = fixture(&database).await;
    let message = it.sent(&start(&phone(1)), within(LATER)).await;
    assert_eq!(it.claim().await, []);

    for _ in 0..2 {
        it.note(message, Receipt::Undelivered).await;
    }

    let due = it.claim().await;
    assert_eq!((due.len(), due[0].message, due[0].reason), (1, message, Rerouting::Undelivered));

    // A receipt that a client of the API reports counts, too.
    let message = it.sent(&start(&phone(2)), within(LATER)).await;
    assert!(it.verifications.note_receipt(message, Receipt::Undelivered).await.unwrap().is_known());
    assert_eq!(it.claim().await[0].message, message);
}

async fn message_of_a_verification_that_ended_is_not_sent_again(database: Database) {
    let it = fixture(&database).await;
    let approved = it.sent(&start(&phone(1)), within(NOW)).await;
    let canceled = it.sent(&start(&phone(2)), within(NOW)).await;
    let expired = it.sent(&start(&phone(3)), within(NOW)).await;

    approve(&it.verifications, VerificationId::of(approved)).await;
    it.verifications.cancel(VerificationId::of(canceled)).await.unwrap();
    let id = VerificationId::of(expired).as_uuid();
    it.run(&format!("UPDATE verification SET expires_at = created_at WHERE id = '{id}'")).await;

    assert_eq!(it.claim().await, []);
    assert_eq!(it.awaits().await, 0);
}

async fn message_of_a_verification_without_attempts_is_not_sent_again(database: Database) {
    let it = fixture(&database).await;
    let message = it.sent(&start(&phone(1)), within(NOW)).await;

    for _ in 0..domain::ATTEMPTS {
        try_by_id(&it.verifications, VerificationId::of(message), wrong(), &[]).await;
    }

    assert_eq!(it.claim().await, []);
}

async fn resent_message_is_not_sent_again(database: Database) {
    let it = fixture(&database).await;
    let first = start(&phone(1));
    it.sent(&first, within(NOW)).await;

    let resent = it.verifications.resend(again(&first, 1)).await.unwrap();

    assert!(matches!(resent, Resent::Sent(_)));
    assert_eq!(it.claim().await, []);
    // The second message has a time of its own.
    let second = it.call("main").await.remove(0);
    it.finish(second, within(NOW)).await;
    assert_eq!(it.claim().await[0].message, second);
}

async fn message_before_a_newer_code_is_not_sent_again(database: Database) {
    let it = fixture(&database).await;
    it.sent(&new_message(&phone(1)), within(NOW)).await;
    let newer = it.sent(&new_message(&phone(1)), within(NOW)).await;

    let due = it.claim().await;

    assert_eq!((due.len(), due[0].message), (1, newer));
}

async fn due_message_is_leased(database: Database) {
    let it = fixture(&database).await;
    let message = it.sent(&start(&phone(1)), within(NOW)).await;
    let other = it.sent(&start(&phone(2)), within(NOW)).await;

    let first = it.awaited.claim(1, LONG).await.unwrap();
    let second = it.awaited.claim(9, Duration::ZERO).await.unwrap();

    assert_eq!(first.iter().map(|it| it.message).collect::<Vec<_>>(), [message]);
    assert_eq!(second.iter().map(|it| it.message).collect::<Vec<_>>(), [other]);
    assert_eq!(it.claim().await[0].message, other, "its lease has ended");

    it.awaited.forget(message).await.unwrap();
    assert_eq!(it.awaits().await, 1);
}

async fn extra_message_is_stored_once(database: Database) {
    let it = fixture(&database).await;
    let message = it.sent(&start(&phone(1)), within(NOW)).await;
    let overdue = it.claim().await.remove(0);
    let mut sends = JoinSet::new();
    for _ in 0..8 {
        let (awaited, extra) = (it.awaited.clone(), extra(&overdue));
        sends.spawn(async move { awaited.send_elsewhere(extra).await.unwrap() });
    }

    let sent = sends.join_all().await;

    assert_eq!(sent.iter().filter(|sent| **sent).count(), 1, "{sent:?}");
    assert_eq!((it.find(message).await.sends, it.awaits().await), (2, 0));
    assert_eq!(count(&it.database, "outbox").await, 1);
    assert_eq!(count(&it.database, "extra_send").await, 1);
    assert!(!it.awaited.send_elsewhere(extra(&overdue)).await.unwrap());
    let stored = published(&it.database).await.remove(0);
    assert_eq!(stored.message.id, VerificationId::of(message).message(2));
    assert_eq!(stored.message.phone.as_str(), phone(1));
    let expires_at = stored.validity.unwrap().expires_at;
    assert_eq!(expires_at, overdue.verification.expires_at);
}

async fn extra_message_passes_over_its_gateways(database: Database) {
    let it = fixture(&database).await;
    let awaited =
        Some(AwaitedReceipt { within: Duration::ZERO, passed_over: names(&["other", "main"]) });
    let first = it.sent(&start(&phone(1)), awaited).await;
    let overdue = it.claim().await.remove(0);
    assert!(it.awaited.send_elsewhere(extra(&overdue)).await.unwrap());

    let second = VerificationId::of(first).message(2);
    let passed_over = it.ledger.passed_over(&[first, second]).await.unwrap();

    assert_eq!(passed_over, HashMap::from([(second, names(&["other", "main"]))]));
    // The extra message needs a receipt, too, and the third gateway may follow.
    assert_eq!(it.call("local").await, [second]);
    it.finish(second, within(NOW)).await;
    let due = it.claim().await;
    assert_eq!((due.len(), due[0].message, due[0].gateway.as_str()), (1, second, "local"));
    assert_eq!((due[0].verification.sends, due[0].verification.extra_sends), (2, 1));
    assert!(it.awaited.send_elsewhere(extra(&due[0])).await.unwrap());
}

async fn extra_message_takes_no_resend_from_the_caller(database: Database) {
    let it = fixture(&database).await;
    let first = start(&phone(1));
    let message = it.sent(&first, within(NOW)).await;
    let before = it.find(message).await;
    let overdue = it.claim().await.remove(0);

    assert!(it.awaited.send_elsewhere(extra(&overdue)).await.unwrap());

    let after = it.find(message).await;
    let read_at = after.read_at;
    assert_eq!(after, Verification { sends: 2, extra_sends: 1, read_at, ..before });
    assert_eq!(after.asked_sends(), 1);
    let resent = it.verifications.resend(again(&first, 2)).await.unwrap();
    let Resent::Sent(resent) = resent else { panic!("{resent:?}") };
    assert_eq!((resent.sends, resent.extra_sends), (3, 1));
}

async fn receipt_or_end_after_the_claim_still_counts(database: Database) {
    let it = fixture(&database).await;
    let delivered = it.sent(&start(&phone(1)), within(NOW)).await;
    let approved = it.sent(&start(&phone(2)), within(NOW)).await;
    let resent = start(&phone(3));
    it.sent(&resent, within(NOW)).await;
    let overdue = it.claim().await;
    assert_eq!(overdue.len(), 3);

    it.note(delivered, Receipt::Delivered).await;
    try_by_id(&it.verifications, VerificationId::of(approved), right(), &[]).await;
    it.verifications.resend(again(&resent, 1)).await.unwrap();

    for overdue in &overdue {
        assert!(!it.awaited.send_elsewhere(extra(overdue)).await.unwrap());
    }
    assert_eq!(count(&it.database, "outbox").await, 1, "the resend");
    assert_eq!(count(&it.database, "extra_send").await, 0);
    assert_eq!(it.find(id_of(&resent).message(1)).await.extra_sends, 0);
}

async fn extra_message_shows_in_the_timeline_and_the_events(database: Database) {
    let it = fixture(&database).await;
    let message = it.sent(&start(&phone(1)), within(NOW)).await;
    let overdue = it.claim().await.remove(0);
    it.awaited.send_elsewhere(extra(&overdue)).await.unwrap();
    let second = it.call("local").await.remove(0);
    it.finish(second, None::<AwaitedReceipt>).await;

    let history = it.verifications.history(VerificationId::of(message)).await.unwrap().unwrap();
    let all = history.events.iter().filter(|event| event.kind != EventKind::Published);
    let mut shown: Vec<_> = all
        .map(|event| (event.kind, event.gateway.as_ref().map(GatewayName::as_str), event.reason))
        .collect();
    // What happens in one millisecond has no order.
    shown.sort_by_key(|(kind, gateway, _)| (*kind, *gateway));
    assert_eq!(
        shown,
        [
            (EventKind::Created, None, None),
            (EventKind::Queued, None, None),
            (EventKind::Sent, Some("local"), None),
            (EventKind::Sent, Some("main"), None),
            (EventKind::Rerouted, Some("main"), Some(EventReason::Rerouting(Rerouting::NoReceipt))),
        ]
    );
    let told = SqlEventOutbox::new(it.database.clone()).claim(9, LONG).await.unwrap();
    let told: Vec<_> =
        told.into_iter().map(|DueEvent { kind, reason, .. }| (kind, reason)).collect();
    let rerouted = (EventKind::Rerouted, Some("no-receipt".to_owned()));
    assert!(told.contains(&rerouted), "{told:?}");
}

async fn old_rows_are_deleted(database: Database) {
    let it = fixture(&database).await;
    it.sent(&start(&phone(1)), within(NOW)).await;
    let overdue = it.claim().await.remove(0);
    it.awaited.send_elsewhere(extra(&overdue)).await.unwrap();
    it.call("local").await;
    it.sent(&start(&phone(2)), within(NOW)).await;
    let housekeeping = SqlHousekeeping::new(it.database.clone());
    let rows = async || (it.awaits().await, count(&it.database, "extra_send").await);

    housekeeping.prune(LONG).await.unwrap();
    assert_eq!(rows().await, (1, 1));

    let (awaited, extra) = if it.database.is_postgres() {
        ("due_at - interval '2 days'", "sent_at - interval '2 minutes'")
    } else {
        ("due_at - 172800000", "sent_at - 120000")
    };
    it.run(&format!("UPDATE awaited_receipt SET due_at = {awaited}")).await;
    it.run(&format!("UPDATE extra_send SET sent_at = {extra}")).await;
    housekeeping.prune(LONG).await.unwrap();
    assert_eq!(rows().await, (0, 0));
}
