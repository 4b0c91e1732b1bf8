use std::time::Duration;

use application::ports::{
    Batch, CallOutcome, DeliveryLedger, DeliveryState, Lease, NewSend, OutcomeClass,
    PartitionLeases, Record, Unreadable, Verdict,
};
use sea_orm::ConnectionTrait;

use super::{
    on_both_databases,
    support::{
        LONG, accepted, batch, call_now, calls, count, enqueue, in_time, incoming, ledger,
        new_message, phone, published, records, start,
    },
};
use crate::{
    Database, Events, Expired, SqlDeliveryLedger, SqlHousekeeping, SqlPartitionLeases,
    database::{Sql, begin},
};

on_both_databases!(
    ended_entries_of_any_group_are_deleted_after_their_time,
    expired_entries_of_a_lost_group_are_ended,
    entries_of_a_living_consumer_are_left_to_it,
    call_that_may_be_under_way_is_left_alone,
    messages_that_no_consumer_took_over_are_ended,
    entry_that_cannot_be_ended_is_deleted_and_the_others_end,
    expired_records_of_any_topic_are_deleted,
    group_without_a_consumer_is_forgotten_as_a_whole,
    abandoned_members_and_events_are_deleted,
    oldest_row_version_ages_while_a_transaction_is_open,
);

fn housekeeping(database: &Database) -> SqlHousekeeping {
    SqlHousekeeping::new(database.clone().with_events(Events::Recorded))
}

async fn run(database: &Database, sql: &str) {
    database.connection().execute_unprepared(sql).await.unwrap();
}

/// An expression for a time before now.
fn ago(database: &Database, milliseconds: u64) -> String {
    if database.is_postgres() {
        format!("now() - interval '{milliseconds} milliseconds'")
    } else {
        format!("CAST(round(unixepoch('subsec') * 1000) AS INTEGER) - {milliseconds}")
    }
}

/// Makes all entries of the ledger expire in the past.
async fn expire(database: &Database) {
    run(database, &format!("UPDATE delivery SET expires_at = {}", ago(database, 1_000))).await;
}

/// Releases partition 0, as a stopping consumer does.
async fn leave(database: &Database, group: &str, lease: &Lease) {
    let [group, topic, member] = [group, "message", "member"].map(str::to_owned);
    let leases = SqlPartitionLeases::new(database.clone(), group, topic, member);
    leases.release(lease).await.unwrap();
}

async fn called(ledger: &SqlDeliveryLedger, lease: &Lease, number: usize) -> CallOutcome {
    let message = incoming(&phone(number));
    let call_now = call_now([message.message.id]);
    let batch = Batch { call_now, call_limit: LONG, ..batch(std::slice::from_ref(&message)) };
    ledger.admit(lease, &batch).await.unwrap();
    CallOutcome {
        id: message.message.id,
        attempt: 1,
        class: OutcomeClass::Accepted,
        verdict: Verdict::Sent { reference: None, receipts_by_reference: false, awaited: None },
        detail: String::new(),
    }
}

async fn ended_entries_of_any_group_are_deleted_after_their_time(database: Database) {
    for (group, number) in [("1", 1), ("2", 2)] {
        let (ledger, lease) = ledger(&database, group).await;
        let ended = called(&ledger, &lease, number).await;
        ledger.finish(&[ended]).await.unwrap();
        let mut records = records(&[incoming(&phone(10 + number))]);
        records.push(Record { offset: 1, content: Err(Unreadable("not JSON")) });
        let batch = Batch { records, next_offset: 2, default_ttl: LONG, ..Batch::default() };
        ledger.admit(&lease, &batch).await.unwrap();
    }
    let housekeeping = housekeeping(&database);

    assert_eq!(housekeeping.prune(LONG).await.unwrap(), 0);
    for (table, column) in [("delivery", "accepted_at"), ("dead_letter", "recorded_at")] {
        run(&database, &format!("UPDATE {table} SET {column} = {}", ago(&database, 61_000))).await;
    }
    assert_eq!(housekeeping.prune(LONG).await.unwrap(), 2, "messages that are good are known");
    expire(&database).await;
    assert_eq!(housekeeping.prune(LONG).await.unwrap(), 2);

    assert_eq!(count(&database, "delivery WHERE state = 'pending'").await, 2);
    assert_eq!(count(&database, "delivery").await, 2);
    assert_eq!(count(&database, "dead_letter").await, 0);
}

async fn expired_entries_of_a_lost_group_are_ended(database: Database) {
    for number in 1..=2 {
        accepted(&enqueue(&database, &start(&phone(number))).await);
    }
    let messages = published(&database).await;
    let (ledger, lease) = ledger(&database, "renamed").await;
    ledger.admit(&lease, &batch(&messages)).await.unwrap();
    leave(&database, "renamed", &lease).await;
    let housekeeping = housekeeping(&database);
    assert_eq!(housekeeping.end_expired().await.unwrap(), Expired::default(), "still good");

    expire(&database).await;
    let ended = housekeeping.end_expired().await.unwrap();

    assert_eq!(ended, Expired { expired: 2, ..Expired::default() });
    let wiped = "delivery WHERE state = 'expired' AND code IS NULL AND ended_at IS NOT NULL";
    assert_eq!(count(&database, wiped).await, 2);
    assert_eq!(count(&database, "event WHERE kind = 'failed'").await, 2);
    assert_eq!(housekeeping.end_expired().await.unwrap(), Expired::default());
}

async fn entries_of_a_living_consumer_are_left_to_it(database: Database) {
    let (living, held) = ledger(&database, "living").await;
    let (gone, left) = ledger(&database, "gone").await;
    let message = incoming(&phone(1));
    living.admit(&held, &batch(std::slice::from_ref(&message))).await.unwrap();
    gone.admit(&left, &batch(&[incoming(&phone(2))])).await.unwrap();
    leave(&database, "gone", &left).await;
    expire(&database).await;
    let housekeeping = housekeeping(&database);

    assert_eq!(housekeeping.end_expired().await.unwrap().expired, 1);

    assert_eq!(
        count(&database, "delivery WHERE group_id = 'living' AND state = 'pending'").await,
        1
    );
    let started = living.start(&held, &calls(&[message.message.id]), LONG).await.unwrap();
    assert_eq!(started.ended[0].state, DeliveryState::Expired);

    // The consumer cannot read an entry that it does not end within an hour.
    living.admit(&held, &batch(&[incoming(&phone(3))])).await.unwrap();
    let long_ago = ago(&database, 3_700_000);
    run(&database, &format!("UPDATE delivery SET expires_at = {long_ago}")).await;
    housekeeping.prune(LONG).await.unwrap();
    assert_eq!(count(&database, "delivery WHERE code IS NOT NULL").await, 0);
}

async fn call_that_may_be_under_way_is_left_alone(database: Database) {
    let (ledger, lease) = ledger(&database, "1").await;
    let heard = called(&ledger, &lease, 1).await;
    let unheard = called(&ledger, &lease, 2).await;
    leave(&database, "1", &lease).await;
    expire(&database).await;
    let housekeeping = housekeeping(&database);

    run(&database, &format!("UPDATE delivery SET due_at = {}", ago(&database, 20_000))).await;
    assert_eq!(housekeeping.end_expired().await.unwrap(), Expired::default());
    let recorded = ledger.finish(&[heard]).await.unwrap();
    assert_eq!(recorded[0].state, DeliveryState::Sent, "it counts though its time is over");

    run(&database, &format!("UPDATE delivery SET due_at = {}", ago(&database, 31_000))).await;
    let ended = housekeeping.end_expired().await.unwrap();
    assert_eq!(ended, Expired { unknown: 1, ..Expired::default() });
    assert_eq!(ledger.finish(&[unheard]).await.unwrap(), []);
    assert_eq!(count(&database, "delivery WHERE code IS NOT NULL").await, 0);
}

async fn messages_that_no_consumer_took_over_are_ended(database: Database) {
    let send = NewSend { ttl: Duration::ZERO, ..new_message(&phone(1)) };
    accepted(&enqueue(&database, &send).await);

    let ended = housekeeping(&database).end_expired().await.unwrap();

    assert_eq!(ended, Expired { untaken: 1, ..Expired::default() });
    assert_eq!(count(&database, "outbox").await, 0);
}

async fn entry_that_cannot_be_ended_is_deleted_and_the_others_end(database: Database) {
    let (ledger, lease) = ledger(&database, "1").await;
    let messages = [1, 2, 3].map(|number| incoming(&phone(number)));
    ledger.admit(&lease, &batch(&messages)).await.unwrap();
    leave(&database, "1", &lease).await;
    expire(&database).await;
    let when = format!("NEW.state = 'expired' AND NEW.phone = '{}'", phone(2));
    super::refusals::refuse(&database, "delivery", &when).await;

    let housekeeping = housekeeping(&database);
    in_time(async {
        while count(&database, "delivery WHERE code IS NOT NULL").await > 0 {
            housekeeping.end_expired().await.unwrap();
        }
    })
    .await;

    assert_eq!(count(&database, "delivery WHERE state = 'expired'").await, 2);
    assert_eq!(count(&database, "delivery").await, 2);
    assert_eq!(count(&database, "delivery WHERE code IS NOT NULL").await, 0);
}

async fn expired_records_of_any_topic_are_deleted(database: Database) {
    run(
        &database,
        "INSERT INTO queue_partition (topic, \"partition\", next_offset)
                    VALUES ('old', 0, 4), ('message', 1, 1)",
    )
    .await;
    for (place, expiry) in [
        ("'old', 0, 0", "2020-01-01T00:00:00.000Z"),
        ("'old', 0, 1", "2020-01-01T00:00:00.000Z"),
        ("'old', 0, 2", "9999-01-01T00:00:00.000Z"),
        ("'old', 0, 3", "2020-01-01T00:00:00.000Z"),
        ("'message', 1, 0", "2020-01-01T00:00:00.000Z"),
    ] {
        run(
            &database,
            &format!(
                "INSERT INTO queue_record (topic, \"partition\", \"offset\", headers, written_at)
                 VALUES ({place}, '{{\"ce_expirytime\":\"{expiry}\",\"ce_id\":\"x\"}}', 0)"
            ),
        )
        .await;
    }

    assert_eq!(housekeeping(&database).end_expired().await.unwrap().records, 3);

    assert_eq!(count(&database, "queue_record WHERE topic = 'old' AND \"offset\" >= 2").await, 2);
    assert_eq!(count(&database, "queue_record").await, 2);
}

async fn group_without_a_consumer_is_forgotten_as_a_whole(database: Database) {
    let group = |group: &str| {
        SqlPartitionLeases::new(database.clone(), group.into(), "message".into(), "a".into())
    };
    let (gone, living) = (group("gone"), group("living"));
    for group in [&gone, &living] {
        group.register(&[0, 1]).await.unwrap();
        for lease in group.acquire(2, LONG).await.unwrap() {
            group.release(&lease).await.unwrap();
        }
    }
    living.acquire(1, LONG).await.unwrap();
    let housekeeping = housekeeping(&database);

    assert_eq!(housekeeping.prune(LONG).await.unwrap(), 0, "just given up");
    let long_ago = ago(&database, 61_000);
    let old = format!("UPDATE partition_lease SET expires_at = {long_ago} WHERE owner IS NULL");
    run(&database, &old).await;
    assert_eq!(housekeeping.prune(LONG).await.unwrap(), 2);

    assert_eq!(count(&database, "partition_lease WHERE group_id = 'living'").await, 2);
    // An early version did not note the time.
    let never = if database.is_postgres() { "'-infinity'" } else { "0" };
    run(&database, &format!("UPDATE partition_lease SET owner = NULL, expires_at = {never}")).await;
    assert_eq!(housekeeping.prune(LONG).await.unwrap(), 0, "it counts from now on");
    run(&database, &old).await;
    assert_eq!(housekeeping.prune(LONG).await.unwrap(), 2);
}

async fn abandoned_members_and_events_are_deleted(database: Database) {
    let leases = SqlPartitionLeases::new(database.clone(), "gone".into(), "old".into(), "a".into());
    leases.renew(&[], LONG).await.unwrap();
    accepted(&enqueue(&database, &start(&phone(1))).await);
    let recording = database.clone().with_events(Events::Recorded);
    let settings = crate::OutboxSettings::default();
    let (outbox, _writers) = crate::CoalescingOutbox::start(&recording, settings);
    application::ports::Outbox::enqueue(&outbox, start(&phone(2))).await.unwrap();
    let housekeeping = housekeeping(&database);
    assert_eq!(housekeeping.prune(LONG).await.unwrap(), 0);

    let (day, week) = (ago(&database, 86_401_000), ago(&database, 604_801_000));
    run(&database, &format!("UPDATE consumer_member SET expires_at = {day}")).await;
    run(&database, &format!("UPDATE event SET due_at = {week}")).await;
    assert_eq!(housekeeping.prune(LONG).await.unwrap(), 2);

    assert_eq!(count(&database, "consumer_member").await, 0);
    assert_eq!(count(&database, "event").await, 0);
}

async fn oldest_row_version_ages_while_a_transaction_is_open(database: Database) {
    static DRAW: Sql = Sql::new("SELECT pg_current_xact_id()");
    let housekeeping = housekeeping(&database);
    if !database.is_postgres() {
        assert_eq!(housekeeping.xmin_age().await.unwrap(), None);
        return;
    }
    let transaction = begin(&database.connection()).await.unwrap();
    transaction.execute(&DRAW, database.parameters()).await.unwrap();

    let before = housekeeping.xmin_age().await.unwrap().unwrap();
    for _ in 0..3 {
        database.execute(&DRAW, database.parameters()).await.unwrap();
    }
    let open = housekeeping.xmin_age().await.unwrap().unwrap();
    transaction.commit().await.unwrap();

    assert!(open >= before + 3, "{before}, then {open}");
}
