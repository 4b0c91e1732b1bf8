//! Daily budgets of gateways.

use std::{sync::Arc, time::Duration};

use application::{
    Spent,
    ports::{
        CallOutcome, Cost, DailyLimit, DeliveryLedger, DeliveryState, Lease, LedgerError, Next,
        OutcomeClass, PartitionLeases, Start, Started, Verdict,
    },
};
use domain::MessageId;
use sea_orm::ConnectionTrait;
use tokio::{sync::Semaphore, task::JoinSet};

use super::{
    on_both_databases,
    support::{LONG, batch, calls_of, count, in_time, incoming, number, phone},
};
use crate::{Database, SqlDeliveryLedger, SqlGateways, SqlPartitionLeases};

on_both_databases!(
    calls_begin_while_the_budget_has_room,
    each_budget_of_a_call_must_have_room,
    each_gateway_and_each_day_has_its_own_budget,
    refused_call_gives_its_cost_back,
    ambiguous_call_keeps_its_cost_and_pays_for_its_repeats,
    interrupted_call_keeps_its_cost_and_pays_for_its_repeats,
    interrupted_call_is_paid_for_even_if_its_message_expires,
    grant_that_was_not_heard_costs_nothing,
    cost_that_was_not_given_back_after_a_refusal_is_given_back_by_the_next_call,
    expired_message_costs_nothing,
    fenced_owner_spends_nothing,
    spending_of_today_is_shown_by_gateway_and_scope,
    budget_is_exact_under_concurrency_and_crashes,
);

const NONE: Duration = Duration::ZERO;

#[derive(Clone)]
struct Consumer {
    database: Database,
    ledger: SqlDeliveryLedger,
    lease: Lease,
}

async fn consumer(database: &Database, member: &str, ttl: Duration) -> Consumer {
    let [group, topic] = ["1", "message"].map(str::to_owned);
    let leases =
        SqlPartitionLeases::new(database.clone(), group.clone(), topic.clone(), member.into());
    leases.register(&[0]).await.unwrap();
    let lease = leases.acquire(1, ttl).await.unwrap().remove(0);
    let ledger = SqlDeliveryLedger::new(database.clone(), group, topic, member.into());
    Consumer { database: database.clone(), ledger, lease }
}

/// A call that costs 40, with a limit for each scope.
fn buys<const N: usize>(gateway: &str, ids: &[MessageId], limits: [(&str, u64); N]) -> Vec<Start> {
    let limit = |(scope, limit): (&str, u64)| DailyLimit { scope: scope.to_owned(), limit };
    let cost = Cost { amount: 40, limits: limits.map(limit).to_vec() };
    let next = Next::Buy(gateway.parse().unwrap(), cost);
    ids.iter().map(|id| Start { id: *id, next: next.clone() }).collect()
}

impl Consumer {
    async fn admit<const N: usize>(&self) -> [MessageId; N] {
        let known = usize::try_from(count(&self.database, "delivery").await).unwrap();
        let messages: Vec<_> = (known..known + N).map(|it| incoming(&phone(it))).collect();
        self.ledger.admit(&self.lease, &batch(&messages)).await.unwrap();
        let ids: Vec<_> = messages.into_iter().map(|it| it.message.id).collect();
        ids.try_into().unwrap()
    }

    async fn start(&self, starts: &[Start]) -> Started {
        self.start_for(starts, LONG).await
    }

    async fn start_for(&self, starts: &[Start], limit: Duration) -> Started {
        self.ledger.start(&self.lease, starts, limit).await.unwrap()
    }

    /// Calls `main` with a budget of 100, and records this outcome. The message is due again.
    async fn try_once(&self, id: MessageId, class: OutcomeClass) {
        let started = self.start(&buys("main", &[id], [("", 100)])).await;
        self.finish(id, started.calls[0].attempt, class).await;
    }

    async fn finish(&self, id: MessageId, attempt: u32, class: OutcomeClass) {
        let verdict = Verdict::Retry { after: NONE };
        let outcome = CallOutcome { id, attempt, class, verdict, detail: String::new() };
        assert_eq!(self.ledger.finish(&[outcome]).await.unwrap().len(), 1);
    }

    async fn spent(&self, gateway: &str, scope: &str) -> i64 {
        let sql = format!(
            "SELECT CAST(coalesce(sum(spent), 0) AS bigint) AS n FROM gateway_spending
             WHERE gateway = '{gateway}' AND scope = '{scope}'"
        );
        number(&self.database, sql).await
    }

    /// Lets all messages expire.
    async fn expire(&self) {
        let past = if self.database.is_postgres() { "now() - interval '1 hour'" } else { "1000" };
        self.run(&format!("UPDATE delivery SET expires_at = {past}")).await;
    }

    async fn run(&self, sql: &str) {
        self.database.connection().execute_unprepared(sql).await.unwrap();
    }
}

async fn calls_begin_while_the_budget_has_room(database: Database) {
    let consumer = consumer(&database, "a", LONG).await;
    let ids = consumer.admit::<3>().await;

    let started = consumer.start(&buys("main", &ids, [("", 100)])).await;

    let granted: Vec<_> = started.calls.iter().map(|call| call.id).collect();
    assert!(granted.len() == 2 && !granted.contains(&ids[2]), "in their order");
    assert_eq!((started.unaffordable, started.ended), (vec![ids[2]], vec![]));
    assert_eq!(consumer.spent("main", "").await, 80);
    let waiting = "delivery WHERE state = 'pending' AND attempt = 0 AND reserved IS NULL";
    assert_eq!(count(&database, waiting).await, 1);
    let elsewhere = [calls_of("local", &ids[2..]), buys("main", &ids[2..], [("", 120)])];
    assert_eq!(consumer.start(&elsewhere[1]).await.calls.len(), 1, "the limit was raised");
    assert_eq!(consumer.start(&elsewhere[0]).await.calls.len(), 1);
}

async fn each_budget_of_a_call_must_have_room(database: Database) {
    let consumer = consumer(&database, "a", LONG).await;
    let ids = consumer.admit::<4>().await;
    consumer.start(&buys("main", &ids[..1], [("", 100), ("RU", 40)])).await;

    let region = consumer.start(&buys("main", &ids[1..2], [("", 100), ("RU", 40)])).await;
    let other = consumer.start(&buys("main", &ids[2..3], [("", 100), ("KZ", 40)])).await;
    let all = consumer.start(&buys("main", &ids[3..], [("", 100), ("DE", 40)])).await;

    assert_eq!((region.calls.len(), other.calls.len(), all.calls.len()), (0, 1, 0));
    assert_eq!((region.unaffordable.len(), all.unaffordable.len()), (1, 1));
    for (scope, spent) in [("", 80), ("RU", 40), ("KZ", 40), ("DE", 0)] {
        assert_eq!(consumer.spent("main", scope).await, spent, "{scope}");
    }
}

async fn each_gateway_and_each_day_has_its_own_budget(database: Database) {
    let consumer = consumer(&database, "a", LONG).await;
    let ids = consumer.admit::<3>().await;
    consumer.start(&buys("main", &ids[..1], [("", 40)])).await;

    let other = consumer.start(&buys("local", &ids[1..2], [("", 40)])).await;
    consumer.run("UPDATE gateway_spending SET day = day - 1").await;
    let tomorrow = consumer.start(&buys("main", &ids[2..], [("", 40)])).await;

    assert_eq!((other.calls.len(), tomorrow.calls.len()), (1, 1));
}

async fn refused_call_gives_its_cost_back(database: Database) {
    let consumer = consumer(&database, "a", LONG).await;
    let [id] = consumer.admit().await;
    for class in [
        OutcomeClass::Rejected,
        OutcomeClass::Unroutable,
        OutcomeClass::Misconfigured,
        OutcomeClass::Throttled,
        OutcomeClass::Unavailable,
    ] {
        consumer.try_once(id, class).await;
        assert_eq!(consumer.spent("main", "").await, 0, "{class:?}");
    }

    consumer.try_once(id, OutcomeClass::Accepted).await;

    assert_eq!(consumer.spent("main", "").await, 40);
}

async fn ambiguous_call_keeps_its_cost_and_pays_for_its_repeats(database: Database) {
    let consumer = consumer(&database, "a", LONG).await;
    let [id] = consumer.admit().await;
    consumer.try_once(id, OutcomeClass::Ambiguous).await;
    assert_eq!(consumer.spent("main", "").await, 40);

    // That it refuses the repeat says nothing of the first call.
    consumer.try_once(id, OutcomeClass::Throttled).await;
    consumer.start(&buys("local", &[id], [("", 40)])).await;
    let repeated = consumer.start(&buys("main", &[id], [("", 40)])).await;

    assert_eq!(repeated.calls.len(), 1, "although the budget has no room");
    assert_eq!(consumer.spent("main", "").await, 40);
    assert_eq!(consumer.spent("local", "").await, 0, "that grant was not used");
}

async fn interrupted_call_keeps_its_cost_and_pays_for_its_repeats(database: Database) {
    let old = consumer(&database, "a", NONE).await;
    let [id] = old.admit().await;
    old.start_for(&buys("main", &[id], [("", 40)]), NONE).await;
    let new = consumer(&database, "b", LONG).await;

    let repeated = new.start(&buys("main", &[id], [("", 40)])).await;

    assert_eq!(repeated.calls.len(), 1);
    assert_eq!(new.spent("main", "").await, 40);
    new.finish(id, repeated.calls[0].attempt, OutcomeClass::Unavailable).await;
    assert_eq!(new.spent("main", "").await, 40, "the first call may have been made");
}

async fn interrupted_call_is_paid_for_even_if_its_message_expires(database: Database) {
    let old = consumer(&database, "a", NONE).await;
    let [first, second] = old.admit().await;
    old.start_for(&buys("main", &[first, second], [("", 100)]), NONE).await;
    let new = consumer(&database, "b", LONG).await;
    // The first message goes on to another gateway, and the second expires.
    new.start(&buys("local", &[first], [("", 100)])).await;
    new.expire().await;

    let ended = new.start(&buys("local", &[second], [("", 100)])).await.ended;

    assert_eq!(ended.len(), 1);
    assert_eq!((new.spent("main", "").await, new.spent("local", "").await), (80, 40));
}

async fn grant_that_was_not_heard_costs_nothing(database: Database) {
    let consumer = consumer(&database, "a", LONG).await;
    let [id] = consumer.admit().await;

    for _ in 0..3 {
        let granted = consumer.start(&buys("main", &[id], [("", 40)])).await;
        assert_eq!(granted.calls.len(), 1, "its own cost is not in its way");
    }
    assert_eq!(consumer.spent("main", "").await, 40);
    consumer.start(&buys("local", &[id], [("", 40)])).await;

    assert_eq!((consumer.spent("main", "").await, consumer.spent("local", "").await), (0, 40));
}

/// The process ended between the outcome and what follows from it.
async fn cost_that_was_not_given_back_after_a_refusal_is_given_back_by_the_next_call(
    database: Database,
) {
    let old = consumer(&database, "a", LONG).await;
    let [id] = old.admit().await;
    let granted = old.start(&buys("main", &[id], [("", 100)])).await;
    let restarted =
        SqlDeliveryLedger::new(database.clone(), "1".into(), "message".into(), "a".into());
    let restarted = Consumer { ledger: restarted, ..old };
    restarted.finish(id, granted.calls[0].attempt, OutcomeClass::Unavailable).await;
    assert_eq!(restarted.spent("main", "").await, 40);

    // Its turn must be higher than the turn of the earlier statements.
    for _ in 0..3 {
        restarted.start(&[]).await;
    }
    restarted.start(&buys("local", &[id], [("", 40)])).await;

    let spent = (restarted.spent("main", "").await, restarted.spent("local", "").await);
    assert_eq!(spent, (0, 40));
}

async fn expired_message_costs_nothing(database: Database) {
    let consumer = consumer(&database, "a", LONG).await;
    let [id] = consumer.admit().await;
    consumer.expire().await;

    let started = consumer.start(&buys("main", &[id], [("", 40)])).await;

    assert_eq!(started.ended[0].state, DeliveryState::Expired);
    assert_eq!(consumer.spent("main", "").await, 0);
}

async fn fenced_owner_spends_nothing(database: Database) {
    let old = consumer(&database, "a", NONE).await;
    let [id] = old.admit().await;
    consumer(&database, "b", LONG).await;

    let started = old.ledger.start(&old.lease, &buys("main", &[id], [("", 40)]), LONG).await;

    assert!(matches!(started, Err(LedgerError::Fenced { partition: 0 })), "{started:?}");
    assert_eq!(old.spent("main", "").await, 0);
}

async fn spending_of_today_is_shown_by_gateway_and_scope(database: Database) {
    let consumer = consumer(&database, "a", LONG).await;
    let gateways = SqlGateways::new(database.clone());
    assert_eq!(gateways.spent_today().await.unwrap(), Spent::new());
    let ids = consumer.admit::<3>().await;
    consumer.start(&buys("main", &ids[..1], [("", 100)])).await;
    consumer.run("UPDATE gateway_spending SET day = day - 1").await;

    consumer.start(&buys("main", &ids[1..2], [("", 100), ("RU", 100)])).await;
    consumer.start(&buys("local", &ids[2..], [("international", 100)])).await;

    let of = |scopes: &[&str]| scopes.iter().map(|scope| ((*scope).to_owned(), 40)).collect();
    let expected = [("local", of(&["international"])), ("main", of(&["", "RU"]))]
        .map(|(gateway, spent)| (gateway.parse().unwrap(), spent));
    assert_eq!(gateways.spent_today().await.unwrap(), expected.into());
}

/// Many starts at once, some of which are dropped at any point, as a crash does.
async fn budget_is_exact_under_concurrency_and_crashes(database: Database) {
    const MESSAGES: usize = 200;
    const LIMIT: u64 = 100 * 40;
    let consumer = consumer(&database, "a", LONG).await;
    let ids = consumer.admit::<MESSAGES>().await;
    let mut starts = JoinSet::new();
    let at_once = Arc::new(Semaphore::new(16));
    for (place, part) in ids.chunks(3).enumerate() {
        let (consumer, at_once) = (consumer.clone(), Arc::clone(&at_once));
        let buys = buys("main", part, [("", LIMIT), ("RU", LIMIT)]);
        starts.spawn(async move {
            let _permit = at_once.acquire().await;
            let start = consumer.ledger.start(&consumer.lease, &buys, LONG);
            if place % 3 == 0 {
                let moment = Duration::from_micros(u64::try_from(place * 97 % 4_000).unwrap());
                let _ = tokio::time::timeout(moment, start).await;
                return;
            }
            let mut started = start.await;
            // On a busy machine it may get no connection in time, and asks again, as a consumer does.
            while matches!(started, Err(LedgerError::Unavailable(_))) {
                started = consumer.ledger.start(&consumer.lease, &buys, LONG).await;
            }
            started.unwrap();
        });
    }
    starts.join_all().await;
    let granted = async || count(&database, "delivery WHERE state = 'calling'").await;
    // A commit that was dropped may still be on its way.
    in_time(async { while consumer.spent("main", "").await != 40 * granted().await {} }).await;
    let before = granted().await;
    assert!((1..=100).contains(&before), "{before}");

    // The dropped starts are repeated.
    for part in ids.chunks(7) {
        consumer.start(&buys("main", part, [("", LIMIT), ("RU", LIMIT)])).await;
    }

    assert_eq!(granted().await, 100);
    assert_eq!(
        (consumer.spent("main", "").await, consumer.spent("main", "RU").await),
        (4_000, 4_000)
    );
}
