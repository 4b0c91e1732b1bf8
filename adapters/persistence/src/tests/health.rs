//! What became of messages by gateway, and the factors of gateways.

use std::time::{Duration, SystemTime};

use application::ports::{
    CallOutcome, DeliveryLedger, FactorChange, GatewayHealth, Lease, Measured, Minute, NewSend,
    OutcomeClass, Receipt, Receipts, SampledMessage, Verdict,
};
use domain::{Factor, HealthCounts, Message, MessageId, RegionalGateway, VerificationId};
use sea_orm::ConnectionTrait;

use super::{
    on_both_databases,
    support::{
        LONG, accepted, approve, batch, calls_of, count, enqueue, id_of, ledger, phone, published,
        rng, start,
    },
};
use crate::{
    Database, SqlDeliveryLedger, SqlGatewayHealth, SqlHousekeeping, SqlReceipts, SqlVerifications,
};

on_both_databases!(
    one_caller_gets_a_minute,
    sample_tells_what_became_of_each_message,
    receipt_after_its_time_is_late,
    messages_of_other_minutes_are_not_in_a_sample,
    message_that_another_gateway_may_have_is_not_in_a_sample,
    message_that_was_not_sent_is_not_in_a_sample,
    later_messages_of_a_verification_do_not_count,
    sample_reads_so_many_messages_at_most,
    counts_of_a_minute_are_stored_once,
    only_minutes_of_the_period_are_returned,
    factor_changes_once_in_its_pause,
    factor_that_is_another_one_by_now_does_not_change,
    old_counts_and_full_factors_are_deleted,
);

const MINUTE: Duration = Duration::from_secs(60);
/// The minute in which the messages of these tests begin.
const THEN: Minute = Minute(29_000_000);
const SENT: Verdict =
    Verdict::Sent { reference: None, receipts_by_reference: false, awaited: None };

struct Service {
    database: Database,
    health: SqlGatewayHealth,
    ledger: SqlDeliveryLedger,
    lease: Lease,
}

async fn service(database: &Database) -> Service {
    let (ledger, lease) = ledger(database, "group").await;
    let health = SqlGatewayHealth::new(database.clone());
    Service { database: database.clone(), health, ledger, lease }
}

/// A start whose id begins with a time in a minute.
fn begun(minute: Minute, number: usize) -> NewSend {
    let at = SystemTime::UNIX_EPOCH + Duration::from_secs(60 * minute.0 + number as u64 % 60);
    let send = start(&phone(number));
    let id = VerificationId::generate(at, &mut rng()).message(1);
    NewSend { message: Message { id, ..send.message }, ..send }
}

impl Service {
    /// Accepts a message and admits it to the ledger.
    async fn admit(&self, send: &NewSend) -> MessageId {
        accepted(&enqueue(&self.database, send).await);
        let incoming = published(&self.database).await.remove(0);
        self.ledger.admit(&self.lease, &batch(&[incoming])).await.unwrap();
        send.message.id
    }

    /// Calls a gateway, which answers so.
    async fn call(&self, id: MessageId, gateway: &str, class: OutcomeClass, verdict: Verdict) {
        let started = self.ledger.start(&self.lease, &calls_of(gateway, &[id]), LONG).await;
        let attempt = started.unwrap().calls[0].attempt;
        let outcome = CallOutcome { id, attempt, class, verdict, detail: "said".into() };
        self.ledger.finish(&[outcome]).await.unwrap();
    }

    /// Sends a message of [`THEN`] through a gateway.
    async fn send(&self, number: usize, gateway: &str) -> NewSend {
        let send = begun(THEN, number);
        let id = self.admit(&send).await;
        self.call(id, gateway, OutcomeClass::Accepted, SENT).await;
        send
    }

    async fn report(&self, send: &NewSend, gateway: &str, receipt: Receipt) {
        let receipts = SqlReceipts::new(self.database.clone());
        receipts.note(&gateway.parse().unwrap(), send.message.id, receipt).await.unwrap();
    }

    async fn approve(&self, send: &NewSend) {
        approve(&SqlVerifications::new(self.database.clone()), id_of(send)).await;
    }

    async fn sample(&self) -> Vec<SampledMessage> {
        self.health.sample(THEN, MINUTE, 100).await.unwrap()
    }

    async fn run(&self, postgres: &str, sqlite: &str) {
        let sql = if self.database.is_postgres() { postgres } else { sqlite };
        self.database.connection().execute_unprepared(sql).await.unwrap();
    }
}

fn of(gateway: &str, region: &str) -> RegionalGateway {
    RegionalGateway { gateway: gateway.parse().unwrap(), region: region.parse().ok() }
}

fn measured(minute: Minute, gateway: &str, region: &str, sent: u32) -> Measured {
    let counts = HealthCounts { sent, reported: 3, in_time: 2, approved: 1 };
    Measured { minute, of: of(gateway, region), counts }
}

fn change(from: u8, to: u8) -> FactorChange {
    let [from, to] = [from, to].map(|it| Factor::from_percent(it).unwrap());
    FactorChange { of: of("main", "RU"), from, to }
}

async fn one_caller_gets_a_minute(database: Database) {
    let health = SqlGatewayHealth::new(database.clone());

    let claims = [(); 4].map(|()| health.claim(MINUTE));
    let [a, b, c, d] = claims;
    let (a, b, c, d) = tokio::join!(a, b, c, d);
    let mut claimed: Vec<Minute> =
        [a, b, c, d].into_iter().filter_map(|claim| claim.unwrap()).collect();
    let earlier = health.claim(60 * MINUTE).await.unwrap().unwrap();

    claimed.sort_unstable();
    claimed.dedup();
    let rows = count(&database, "gateway_sample").await;
    assert_eq!(i64::try_from(claimed.len()).unwrap() + 1, rows, "each was claimed once");
    assert!((58..=60).contains(&(claimed[0].0 - earlier.0)), "{claimed:?} {earlier:?}");
    assert_eq!(health.measured(120 * MINUTE).await.unwrap(), [], "a claim is no count");
}

async fn sample_tells_what_became_of_each_message(database: Database) {
    let service = service(&database).await;
    let silent = service.send(1, "main").await;
    let delivered = service.send(2, "main").await;
    let undelivered = service.send(3, "local").await;
    let approved = service.send(4, "local").await;
    service.report(&delivered, "main", Receipt::Delivered).await;
    service.report(&undelivered, "local", Receipt::Undelivered).await;
    service.approve(&approved).await;

    let sample = service.sample().await;

    let expected = [
        (&silent, "main", [false, false, false]),
        (&delivered, "main", [true, true, false]),
        (&undelivered, "local", [true, false, false]),
        (&approved, "local", [false, false, true]),
    ];
    let expected = expected.map(|(send, gateway, [reported, in_time, approved])| SampledMessage {
        gateway: gateway.parse().unwrap(),
        phone: send.message.phone.clone(),
        reported,
        in_time,
        approved,
    });
    assert_eq!(sample, expected);
}

async fn receipt_after_its_time_is_late(database: Database) {
    let service = service(&database).await;
    let send = service.send(1, "main").await;
    service.report(&send, "main", Receipt::Delivered).await;
    service
        .run(
            "UPDATE delivery SET ended_at = delivered_at - interval '61 seconds'",
            "UPDATE delivery SET ended_at = delivered_at - 61000",
        )
        .await;

    let [late] = &service.sample().await[..] else { panic!("one message") };

    assert!(late.reported && !late.in_time, "{late:?}");
    assert!(service.health.sample(THEN, 2 * MINUTE, 100).await.unwrap()[0].in_time);
}

async fn messages_of_other_minutes_are_not_in_a_sample(database: Database) {
    let service = service(&database).await;
    for (number, minute) in [(1, THEN.0 - 1), (59, THEN.0 - 1), (60, THEN.0 + 1)] {
        let id = service.admit(&begun(Minute(minute), number)).await;
        service.call(id, "main", OutcomeClass::Accepted, SENT).await;
    }
    assert_eq!(service.sample().await, []);

    service.send(120, "main").await;
    service.send(119, "main").await;
    assert_eq!(service.sample().await.len(), 2, "at the first and in the last second");
}

async fn message_that_another_gateway_may_have_is_not_in_a_sample(database: Database) {
    let service = service(&database).await;
    let send = begun(THEN, 1);
    let id = service.admit(&send).await;
    let again = Verdict::Retry { after: Duration::ZERO };
    service.call(id, "main", OutcomeClass::Ambiguous, again).await;
    service.call(id, "local", OutcomeClass::Accepted, SENT).await;
    assert_eq!(service.sample().await, []);

    let send = begun(THEN, 2);
    let id = service.admit(&send).await;
    let again = Verdict::Retry { after: Duration::ZERO };
    service.call(id, "main", OutcomeClass::Throttled, again).await;
    service.call(id, "local", OutcomeClass::Accepted, SENT).await;
    assert_eq!(service.sample().await[0].gateway.as_str(), "local", "it surely has only that");
}

async fn message_that_was_not_sent_is_not_in_a_sample(database: Database) {
    let service = service(&database).await;
    service.admit(&begun(THEN, 1)).await;
    let id = service.admit(&begun(THEN, 2)).await;
    service.call(id, "main", OutcomeClass::Rejected, Verdict::Failed).await;

    assert_eq!(service.sample().await, []);
}

async fn later_messages_of_a_verification_do_not_count(database: Database) {
    let service = service(&database).await;
    let first = service.send(1, "main").await;
    service.run("UPDATE verification SET sends = 2", "UPDATE verification SET sends = 2").await;
    service.approve(&first).await;
    let second = begun(THEN, 2);
    let id = VerificationId::of(second.message.id).message(2);
    let second = NewSend { message: Message { id, ..second.message }, ..second };
    service.admit(&second).await;
    service.call(id, "local", OutcomeClass::Accepted, SENT).await;

    let sample = service.sample().await;

    let [only] = &sample[..] else { panic!("{sample:?}") };
    assert_eq!(only.gateway.as_str(), "main");
    assert!(!only.approved, "it took a second message");
}

async fn sample_reads_so_many_messages_at_most(database: Database) {
    let service = service(&database).await;
    for number in 1..=3 {
        service.send(number, "main").await;
    }

    assert_eq!(service.health.sample(THEN, MINUTE, 2).await.unwrap().len(), 2);
}

/// The current minute, and some before.
async fn recent(health: &SqlGatewayHealth, before: u32) -> Minute {
    let claimed = health.claim(before * MINUTE).await.unwrap();
    claimed.expect("it is not claimed yet")
}

async fn counts_of_a_minute_are_stored_once(database: Database) {
    let health = SqlGatewayHealth::new(database);
    let minute = recent(&health, 2).await;
    let all = [
        measured(minute, "local", "", 4),
        measured(minute, "main", "KZ", 5),
        measured(minute, "main", "RU", 6),
    ];

    health.record(&all).await.unwrap();
    health.record(&[measured(minute, "main", "RU", 7)]).await.unwrap();
    health.record(&[]).await.unwrap();

    assert_eq!(health.measured(10 * MINUTE).await.unwrap(), all);
}

async fn only_minutes_of_the_period_are_returned(database: Database) {
    let health = SqlGatewayHealth::new(database);
    let [old, new] = [recent(&health, 40).await, recent(&health, 10).await];
    for minute in [old, new] {
        health.record(&[measured(minute, "main", "RU", 5)]).await.unwrap();
    }

    assert_eq!(health.measured(30 * MINUTE).await.unwrap(), [measured(new, "main", "RU", 5)]);
    assert_eq!(health.measured(60 * MINUTE).await.unwrap().len(), 2);
}

async fn factor_changes_once_in_its_pause(database: Database) {
    let health = SqlGatewayHealth::new(database);
    assert_eq!(health.factors().await.unwrap(), []);

    let (a, b) = (change(100, 50), change(100, 50));
    let (a, b) = tokio::join!(health.change(&a, MINUTE), health.change(&b, MINUTE));
    assert_ne!(a.unwrap(), b.unwrap(), "one of two changes it");
    assert!(!health.change(&change(50, 25), MINUTE).await.unwrap());
    assert!(health.change(&change(50, 25), Duration::ZERO).await.unwrap());

    let factors = health.factors().await.unwrap();
    let [stored] = &factors[..] else { panic!("{factors:?}") };
    assert_eq!((&stored.of, stored.factor.percent()), (&of("main", "RU"), 25));
    assert!(stored.age < MINUTE, "{stored:?}");
    let next = recent(&health, 0).await.0 + 2;
    assert!((next - 1..=next).contains(&stored.since.0), "{stored:?} {next}");
}

async fn factor_that_is_another_one_by_now_does_not_change(database: Database) {
    let health = SqlGatewayHealth::new(database);
    assert!(health.change(&change(100, 50), Duration::ZERO).await.unwrap());

    assert!(!health.change(&change(100, 25), Duration::ZERO).await.unwrap());

    assert_eq!(health.factors().await.unwrap()[0].factor.percent(), 50);
}

async fn old_counts_and_full_factors_are_deleted(database: Database) {
    let service = service(&database).await;
    let housekeeping = SqlHousekeeping::new(database.clone());
    let health = &service.health;
    let [old, new] = [recent(health, 1_442).await, recent(health, 1_430).await];
    for minute in [old, new] {
        health.record(&[measured(minute, "main", "RU", 5)]).await.unwrap();
    }
    for change in [change(100, 50), change(50, 100)] {
        assert!(health.change(&change, Duration::ZERO).await.unwrap());
    }
    let low = FactorChange { of: of("local", ""), ..change(100, 50) };
    assert!(health.change(&low, Duration::ZERO).await.unwrap());

    // The claim of that minute, and its counts.
    assert_eq!(housekeeping.prune(LONG).await.unwrap(), 2);
    service
        .run(
            "UPDATE gateway_factor SET changed_at = now() - interval '25 hours'",
            "UPDATE gateway_factor SET changed_at = changed_at - 90000000",
        )
        .await;
    assert_eq!(housekeeping.prune(LONG).await.unwrap(), 1);

    assert_eq!(health.factors().await.unwrap()[0].of, of("local", ""), "it is not full");
    assert_eq!(count(&database, "gateway_sample").await, 2);
}
