//! The gateways of an entry: the one of each call, and those that may have the message.

use std::time::Duration;

use application::ports::{
    CallOutcome, DeliveryLedger, DeliveryState, Due, FailureReason, Lease, LedgerError, Next,
    OutcomeClass, PartitionLeases, Past, Start, Started, Verdict,
};
use domain::{GatewayName, MessageId};
use sea_orm::{ConnectionTrait, FromQueryResult};

use super::{
    on_both_databases,
    support::{LONG, batch, calls_of, count, in_time, incoming, phone, statement},
};
use crate::{Database, Events, Expired, SqlDeliveryLedger, SqlHousekeeping, SqlPartitionLeases};

on_both_databases!(
    intent_names_the_gateway,
    each_call_of_a_statement_has_its_own_gateway,
    admission_names_the_gateway_of_its_call,
    attempts_name_their_gateways,
    gateway_with_an_ambiguous_outcome_may_have_the_message,
    gateway_of_an_interrupted_call_may_have_the_message,
    gateways_that_do_not_deliver_to_the_number_are_remembered,
    call_that_was_granted_again_was_not_made,
    gateway_that_may_have_the_message_is_not_forgotten,
    entry_that_ends_without_a_consumer_keeps_its_gateway,
    calls_of_an_earlier_version_count_for_the_default_gateway,
    binary_of_an_earlier_version_inherits_no_gateway,
    waiting_message_is_due_after_its_time,
    waiting_does_not_end_a_call_of_another_consumer,
    waiting_notes_an_interrupted_call,
    waiting_does_not_outlast_the_message,
    late_wait_does_nothing,
    expired_message_ends_although_it_is_to_wait,
    fenced_owner_lets_nothing_wait,
    message_that_no_gateway_takes_fails_without_a_call,
    message_that_a_gateway_may_have_ends_as_unknown,
    message_that_no_gateway_has_is_not_ended_as_unknown,
    expired_message_that_is_to_end_has_expired,
);

const NONE: Duration = Duration::ZERO;

struct Consumer {
    database: Database,
    ledger: SqlDeliveryLedger,
    lease: Lease,
}

async fn consumer(database: &Database, member: &str, ttl: Duration) -> Consumer {
    let leases =
        SqlPartitionLeases::new(database.clone(), "1".into(), "message".into(), member.into());
    leases.register(&[0]).await.unwrap();
    let lease = leases.acquire(1, ttl).await.unwrap().remove(0);
    Consumer { database: database.clone(), ledger: ledger(database, member), lease }
}

fn ledger(database: &Database, member: &str) -> SqlDeliveryLedger {
    SqlDeliveryLedger::new(database.clone(), "1".into(), "message".into(), member.into())
}

fn names<const N: usize>(names: [&str; N]) -> Vec<GatewayName> {
    names.map(|name| name.parse().unwrap()).to_vec()
}

fn waits(id: MessageId, wait: Duration) -> Vec<Start> {
    vec![Start { id, next: Next::Wait(wait) }]
}

impl Consumer {
    /// Admits a message, which waits for its call.
    async fn admit(&self, number: usize) -> MessageId {
        let messages = [incoming(&phone(number))];
        self.ledger.admit(&self.lease, &batch(&messages)).await.unwrap().fresh[0]
    }

    async fn start(&self, starts: &[Start]) -> Started {
        self.ledger.start(&self.lease, starts, LONG).await.unwrap()
    }

    /// Begins a call that lasts this long, and returns its attempt.
    async fn call(&self, gateway: &str, id: MessageId, limit: Duration) -> u32 {
        let starts = calls_of(gateway, &[id]);
        self.ledger.start(&self.lease, &starts, limit).await.unwrap().calls[0].attempt
    }

    /// Calls a gateway, which answers so. The message is due again at once.
    async fn try_at(&self, gateway: &str, id: MessageId, class: OutcomeClass) {
        let attempt = self.call(gateway, id, LONG).await;
        let state = self.finish(id, attempt, class, Verdict::Retry { after: NONE }).await;
        assert_eq!(state, Some(DeliveryState::Pending));
    }

    async fn finish(
        &self,
        id: MessageId,
        attempt: u32,
        class: OutcomeClass,
        verdict: Verdict,
    ) -> Option<DeliveryState> {
        let outcome = CallOutcome { id, attempt, class, verdict, detail: "said".into() };
        let recorded = self.ledger.finish(&[outcome]).await.unwrap();
        recorded.first().map(|recorded| recorded.state)
    }

    async fn due(&self) -> Vec<Due> {
        self.ledger.due(&self.lease, 100).await.unwrap()
    }

    async fn past(&self) -> Past {
        self.due().await.remove(0).past
    }

    async fn row(&self, id: MessageId) -> Row {
        let text = if self.database.is_postgres() { "attempts::text" } else { "attempts" };
        let sql = format!(
            "SELECT state, gateway, maybe_taken, {text} AS attempts FROM delivery
             WHERE message_id = '{id}'"
        );
        let statement = statement(&self.database, sql, vec![]);
        let row = self.database.connection().query_one_raw(statement).await.unwrap().unwrap();
        Row::from_query_result(&row, "").unwrap()
    }

    async fn run(&self, sql: &str) {
        self.database.connection().execute_unprepared(sql).await.unwrap();
    }
}

#[derive(Debug, FromQueryResult)]
struct Row {
    state: String,
    gateway: Option<String>,
    maybe_taken: Option<String>,
    attempts: String,
}

impl Row {
    fn is_calling(&self, gateway: &str) -> bool {
        self.state == "calling" && self.gateway.as_deref() == Some(gateway)
    }

    fn attempts(&self) -> Vec<serde_json::Value> {
        serde_json::from_str(&self.attempts).unwrap()
    }
}

async fn intent_names_the_gateway(database: Database) {
    let consumer = consumer(&database, "a", LONG).await;
    let id = consumer.admit(1).await;

    let attempt = consumer.call("main", id, LONG).await;

    let row = consumer.row(id).await;
    assert!(row.is_calling("main"), "{row:?}");
    let verdict = Verdict::Sent { reference: None, receipts_by_reference: false, awaited: None };
    consumer.finish(id, attempt, OutcomeClass::Accepted, verdict).await;
    let row = consumer.row(id).await;
    assert_eq!((&*row.state, row.gateway.as_deref()), ("sent", Some("main")));
    assert_eq!(row.maybe_taken, None);
}

async fn each_call_of_a_statement_has_its_own_gateway(database: Database) {
    let consumer = consumer(&database, "a", LONG).await;
    let mut ids = Vec::new();
    for number in 1..=4 {
        ids.push(consumer.admit(number).await);
    }
    let starts =
        [calls_of("main", &ids[..2]), waits(ids[2], LONG), calls_of("local", &ids[3..])].concat();

    let started = consumer.start(&starts).await;

    assert_eq!((started.calls.len(), started.ended.len()), (3, 0));
    for (id, gateway) in [(ids[0], "main"), (ids[1], "main"), (ids[3], "local")] {
        let row = consumer.row(id).await;
        assert!(row.is_calling(gateway), "{row:?}");
    }
    assert_eq!(consumer.row(ids[2]).await.state, "pending");
}

async fn admission_names_the_gateway_of_its_call(database: Database) {
    let consumer = consumer(&database, "a", LONG).await;
    let messages = [1, 2, 3].map(|number| incoming(&phone(number)));
    let ids = [0, 1, 2].map(|place: usize| messages[place].message.id);
    let mut batch = batch(&messages);
    batch.call_limit = LONG;
    batch.call_now =
        [(ids[0], "main"), (ids[1], "local")].map(|(id, it)| (id, it.parse().unwrap())).into();

    let admitted = consumer.ledger.admit(&consumer.lease, &batch).await.unwrap();

    assert_eq!((admitted.calls.len(), admitted.fresh), (2, vec![ids[2]]));
    assert!(consumer.row(ids[0]).await.is_calling("main"));
    assert!(consumer.row(ids[1]).await.is_calling("local"));
    assert_eq!(consumer.row(ids[2]).await.gateway, None);
}

async fn attempts_name_their_gateways(database: Database) {
    let consumer = consumer(&database, "a", LONG).await;
    let id = consumer.admit(1).await;
    for gateway in ["main", "local", "main"] {
        consumer.try_at(gateway, id, OutcomeClass::Unavailable).await;
    }

    let past = consumer.past().await;

    assert_eq!((past.attempts, past.tried), (3, names(["main", "local", "main"])));
    assert_eq!(past.ambiguous, []);
    let attempts = consumer.row(id).await.attempts();
    let gateways: Vec<_> = attempts.iter().filter_map(|it| it["gateway"].as_str()).collect();
    assert_eq!(gateways, ["main", "local", "main"]);
}

async fn gateway_with_an_ambiguous_outcome_may_have_the_message(database: Database) {
    let consumer = consumer(&database, "a", LONG).await;
    let id = consumer.admit(1).await;
    // One name begins with the other.
    for gateway in ["main-2", "main", "main-2", "main"] {
        consumer.try_at(gateway, id, OutcomeClass::Ambiguous).await;
    }
    consumer.try_at("local", id, OutcomeClass::Throttled).await;

    let past = consumer.past().await;

    assert_eq!(past.ambiguous, names(["main-2", "main"]), "each of them once");
    assert_eq!(past.tried.len(), 5);
    assert_eq!(consumer.row(id).await.maybe_taken.as_deref(), Some("main-2 main"));
}

async fn gateway_of_an_interrupted_call_may_have_the_message(database: Database) {
    let old = consumer(&database, "a", NONE).await;
    let id = old.admit(1).await;
    old.call("main", id, NONE).await;
    assert_eq!(
        old.past().await,
        Past { attempts: 1, ..Past::default() },
        "not for its own consumer"
    );
    let new = consumer(&database, "b", LONG).await;

    let due = new.due().await.remove(0);

    assert!(due.interrupted);
    let main = || names(["main"]);
    assert_eq!(due.past, Past { attempts: 1, tried: main(), ambiguous: main(), ..Past::default() });
    new.try_at("local", id, OutcomeClass::Throttled).await;
    let past = new.past().await;
    assert_eq!((past.tried, past.ambiguous), (names(["main", "local"]), main()));
    assert_eq!(new.row(id).await.attempts()[0]["gateway"], "main");
}

async fn gateways_that_do_not_deliver_to_the_number_are_remembered(database: Database) {
    let consumer = consumer(&database, "a", LONG).await;
    let id = consumer.admit(1).await;
    consumer.try_at("main", id, OutcomeClass::Unroutable).await;
    consumer.try_at("local", id, OutcomeClass::Throttled).await;

    let past = consumer.past().await;

    assert_eq!((past.unroutable, past.tried), (names(["main"]), names(["main", "local"])));
}

async fn call_that_was_granted_again_was_not_made(database: Database) {
    let consumer = consumer(&database, "a", LONG).await;
    let id = consumer.admit(1).await;

    consumer.call("main", id, LONG).await;
    consumer.try_at("local", id, OutcomeClass::Throttled).await;

    let past = consumer.past().await;
    assert_eq!(past, Past { attempts: 2, tried: names(["local"]), ..Past::default() });
}

async fn gateway_that_may_have_the_message_is_not_forgotten(database: Database) {
    let consumer = consumer(&database, "a", LONG).await;
    let id = consumer.admit(1).await;
    consumer.try_at("first", id, OutcomeClass::Throttled).await;
    consumer.try_at("main", id, OutcomeClass::Ambiguous).await;
    for _ in 0..105 {
        consumer.try_at("local", id, OutcomeClass::Unavailable).await;
    }

    let past = consumer.past().await;

    assert_eq!((past.attempts, past.tried.len()), (107, 100));
    assert!(!past.tried.contains(&names(["main"])[0]), "that attempt is no longer kept");
    assert_eq!(past.ambiguous, names(["main"]));
}

async fn entry_that_ends_without_a_consumer_keeps_its_gateway(database: Database) {
    let consumer = consumer(&database, "a", NONE).await;
    let id = consumer.admit(1).await;
    consumer.call("main", id, NONE).await;
    let past = if database.is_postgres() { "now() - interval '1 hour'" } else { "1000" };
    consumer.run(&format!("UPDATE delivery SET expires_at = {past}, due_at = {past}")).await;

    let housekeeping = SqlHousekeeping::new(database.with_events(Events::Off));
    let ended = housekeeping.end_expired().await.unwrap();

    assert_eq!(ended, Expired { unknown: 1, ..Expired::default() });
    let row = consumer.row(id).await;
    assert_eq!((&*row.state, row.gateway.as_deref()), ("unknown", Some("main")));
    assert_eq!(row.maybe_taken.as_deref(), Some("main"));
    assert_eq!(row.attempts()[0]["gateway"], "main");
}

/// Its calls have no gateway, neither in their row nor among the attempts.
async fn calls_of_an_earlier_version_count_for_the_default_gateway(database: Database) {
    let old = consumer(&database, "a", NONE).await;
    let (interrupted, ambiguous, refused) =
        (old.admit(1).await, old.admit(2).await, old.admit(3).await);
    old.call("main", interrupted, NONE).await;
    let attempts = |outcome| format!(r#"[{{"attempt": 1, "outcome": "{outcome}", "detail": ""}}]"#);
    for (id, outcome) in [(ambiguous, "ambiguous"), (refused, "throttled")] {
        let attempts = attempts(outcome);
        let set = format!("attempt = 1, attempts = '{attempts}'");
        old.run(&format!("UPDATE delivery SET {set} WHERE message_id = '{id}'")).await;
    }
    old.run("UPDATE delivery SET gateway = NULL").await;
    let new = consumer(&database, "b", LONG).await;

    let past: Vec<_> = new.due().await.into_iter().map(|due| due.past).collect();

    let default = || names(["default"]);
    let maybe = Past { attempts: 1, tried: default(), ambiguous: default(), ..Past::default() };
    assert_eq!(past, [maybe.clone(), maybe, Past { ambiguous: Vec::new(), ..past[0].clone() }]);
    new.try_at("main", interrupted, OutcomeClass::Throttled).await;
    let row = new.row(interrupted).await;
    assert_eq!(row.maybe_taken.as_deref(), Some("default"));
    assert_eq!(row.attempts()[0]["gateway"], "default");
}

/// It begins a call without a gateway, and leaves the name as it is.
async fn binary_of_an_earlier_version_inherits_no_gateway(database: Database) {
    let consumer = consumer(&database, "a", LONG).await;
    let id = consumer.admit(1).await;

    consumer.try_at("main", id, OutcomeClass::Throttled).await;

    assert_eq!(consumer.row(id).await.gateway, None);
}

async fn waiting_message_is_due_after_its_time(database: Database) {
    let consumer = consumer(&database, "a", LONG).await;
    let (soon, later) = (consumer.admit(1).await, consumer.admit(2).await);
    consumer.try_at("main", later, OutcomeClass::Throttled).await;

    let starts = [waits(soon, Duration::from_millis(50)), waits(later, LONG)].concat();
    let started = consumer.start(&starts).await;

    assert_eq!(started, Started::default());
    in_time(async { while consumer.due().await.is_empty() {} }).await;
    let due = consumer.due().await;
    assert_eq!((due.len(), due[0].message.id), (1, soon));
    assert_eq!(due[0].past, Past::default());
    let row = consumer.row(later).await;
    assert_eq!((&*row.state, row.attempts().len()), ("pending", 1));
    assert_eq!(consumer.call("main", later, LONG).await, 2, "it may be called before its time");
}

async fn waiting_does_not_end_a_call_of_another_consumer(database: Database) {
    let old = consumer(&database, "a", NONE).await;
    let id = old.admit(1).await;
    let attempt = old.call("main", id, LONG).await;
    let new = consumer(&database, "b", LONG).await;

    assert_eq!(new.start(&waits(id, NONE)).await, Started::default());

    assert!(new.row(id).await.is_calling("main"));
    let verdict = Verdict::Sent { reference: None, receipts_by_reference: false, awaited: None };
    let state = old.finish(id, attempt, OutcomeClass::Accepted, verdict).await;
    assert_eq!(state, Some(DeliveryState::Sent));
}

async fn waiting_notes_an_interrupted_call(database: Database) {
    let old = consumer(&database, "a", NONE).await;
    let id = old.admit(1).await;
    let attempt = old.call("main", id, NONE).await;
    let new = consumer(&database, "b", LONG).await;

    new.start(&waits(id, NONE)).await;

    let due = new.due().await.remove(0);
    assert!(!due.interrupted);
    let main = || names(["main"]);
    assert_eq!(due.past, Past { attempts: 1, tried: main(), ambiguous: main(), ..Past::default() });
    let late = old.finish(id, attempt, OutcomeClass::Rejected, Verdict::Failed).await;
    assert_eq!(late, None, "the call is over");
}

async fn waiting_does_not_outlast_the_message(database: Database) {
    let consumer = consumer(&database, "a", LONG).await;
    let id = consumer.admit(1).await;

    consumer.start(&waits(id, Duration::MAX)).await;

    assert_eq!(count(&database, "delivery WHERE due_at = expires_at").await, 1);
}

async fn late_wait_does_nothing(database: Database) {
    let consumer = consumer(&database, "a", LONG).await;
    let id = consumer.admit(1).await;
    // Its turn is lower than the turn of the next statement.
    let early = ledger(&database, "a");
    consumer.start(&[]).await;
    consumer.try_at("main", id, OutcomeClass::Throttled).await;

    early.start(&consumer.lease, &waits(id, LONG), LONG).await.unwrap();
    assert_eq!(consumer.due().await.len(), 1, "it is due at once");

    // And no late call begins after a wait.
    let early = ledger(&database, "a");
    consumer.start(&waits(id, LONG)).await;
    let late = early.start(&consumer.lease, &calls_of("main", &[id]), LONG).await.unwrap();
    assert_eq!(late, Started::default());
}

async fn expired_message_ends_although_it_is_to_wait(database: Database) {
    let consumer = consumer(&database, "a", LONG).await;
    let id = consumer.admit(1).await;
    let past = if database.is_postgres() { "now() - interval '1 hour'" } else { "1000" };
    consumer.run(&format!("UPDATE delivery SET expires_at = {past}")).await;

    let started = consumer.start(&waits(id, LONG)).await;

    assert_eq!(started.ended[0].state, DeliveryState::Expired);
    assert_eq!(count(&database, "delivery WHERE code IS NULL").await, 1);
}

async fn fenced_owner_lets_nothing_wait(database: Database) {
    let old = consumer(&database, "a", NONE).await;
    let id = old.admit(1).await;
    consumer(&database, "b", LONG).await;

    let started = old.ledger.start(&old.lease, &waits(id, LONG), LONG).await;

    assert!(matches!(started, Err(LedgerError::Fenced { partition: 0 })), "{started:?}");
    assert_eq!(old.row(id).await.state, "pending");
}

fn fails(id: MessageId) -> Vec<Start> {
    vec![Start { id, next: Next::Fail(FailureReason::NoRoute) }]
}

fn is_in_doubt(id: MessageId) -> Vec<Start> {
    vec![Start { id, next: Next::Unknown("a gateway may have it") }]
}

async fn message_that_no_gateway_takes_fails_without_a_call(database: Database) {
    let consumer = consumer(&database, "a", LONG).await;
    let (new, refused, unheard) =
        (consumer.admit(1).await, consumer.admit(2).await, consumer.admit(3).await);
    consumer.try_at("main", refused, OutcomeClass::Unavailable).await;
    consumer.call("main", unheard, LONG).await;
    let waiting = consumer.admit(4).await;

    let starts = [fails(new), fails(refused), fails(unheard), waits(waiting, NONE)].concat();
    let started = consumer.start(&starts).await;

    let ended: Vec<_> = started.ended.iter().map(|it| it.state).collect();
    assert_eq!((started.calls, ended), (Vec::new(), vec![DeliveryState::Failed; 3]));
    let over = "delivery WHERE state = 'failed' AND code IS NULL AND ended_at IS NOT NULL
        AND detail = 'not called: no route has a gateway for this number'";
    assert_eq!(count(&database, over).await, 3);
    assert_eq!(consumer.row(new).await.attempts().len(), 0);
    assert_eq!(consumer.start(&fails(new)).await, Started::default(), "it has ended");
}

async fn message_that_a_gateway_may_have_ends_as_unknown(database: Database) {
    let old = consumer(&database, "a", NONE).await;
    let (interrupted, ambiguous, earlier) =
        (old.admit(1).await, old.admit(2).await, old.admit(3).await);
    old.try_at("main", ambiguous, OutcomeClass::Ambiguous).await;
    old.try_at("main", earlier, OutcomeClass::Ambiguous).await;
    // An earlier version recorded only the outcome.
    let forget = format!("maybe_taken = NULL WHERE message_id = '{earlier}'");
    old.run(&format!("UPDATE delivery SET {forget}")).await;
    old.call("main", interrupted, NONE).await;
    let new = consumer(&database, "b", LONG).await;

    let starts = [is_in_doubt(interrupted), is_in_doubt(ambiguous), fails(earlier)].concat();
    let started = new.start(&starts).await;

    let ended: Vec<_> = started.ended.iter().map(|it| it.state).collect();
    assert_eq!(ended, [DeliveryState::Unknown; 3]);
    let row = new.row(interrupted).await;
    assert_eq!((row.maybe_taken.as_deref(), row.attempts().len()), (Some("main"), 1));
}

async fn message_that_no_gateway_has_is_not_ended_as_unknown(database: Database) {
    let old = consumer(&database, "a", NONE).await;
    let id = old.admit(1).await;
    let attempt = old.call("main", id, NONE).await;
    let new = consumer(&database, "b", LONG).await;
    assert!(new.due().await[0].interrupted);
    let verdict = Verdict::Retry { after: NONE };
    old.finish(id, attempt, OutcomeClass::Unavailable, verdict).await;

    assert_eq!(new.start(&is_in_doubt(id)).await, Started::default());

    assert_eq!(new.due().await[0].past.ambiguous, []);
}

async fn expired_message_that_is_to_end_has_expired(database: Database) {
    let consumer = consumer(&database, "a", LONG).await;
    let id = consumer.admit(1).await;
    let past = if database.is_postgres() { "now() - interval '1 hour'" } else { "1000" };
    consumer.run(&format!("UPDATE delivery SET expires_at = {past}")).await;

    let started = consumer.start(&is_in_doubt(id)).await;

    assert_eq!(started.ended[0].state, DeliveryState::Expired);
}
