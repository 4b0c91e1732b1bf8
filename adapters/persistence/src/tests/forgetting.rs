//! The erasure of a phone.

use std::{fmt::Write, time::Duration};

use application::ports::{
    CallOutcome, DeliveryLedger, Incoming, Lease, OutcomeClass, Verdict, Verifications,
};
use domain::{Counter, VerificationId};
use sea_orm::ConnectionTrait;

use super::{
    on_both_databases,
    support::{
        LONG, accepted, batch, calls, count, counters, enqueue, id_of, ledger, limited, phone,
        published, reach, start, statement,
    },
};
use crate::{
    Database, Events, SqlDeliveryLedger, SqlForgetting, SqlVerifications, Traces,
    takedown::all_columns,
};

on_both_databases!(
    forgotten_phone_is_in_no_column_of_any_table,
    message_of_a_forgotten_phone_is_not_sent_by_any_group,
    open_message_ends_before_it_is_erased,
    phone_that_is_not_known_is_erased_without_a_change,
    message_that_is_accepted_meanwhile_is_noticed_and_kept,
    end_of_a_message_of_a_forgotten_phone_is_in_no_event,
    erasure_that_stopped_halfway_is_completed,
);

fn forgetting(database: &Database) -> SqlForgetting {
    SqlForgetting::new(database.clone(), "1".to_owned(), "message".to_owned())
}

async fn traces(database: &Database, number: usize) -> Traces {
    forgetting(database).find(&phone(number).parse().unwrap(), &|_| ()).await.unwrap()
}

/// Starts a verification, and lets the group take its message over.
async fn taken_over(
    database: &Database,
    number: usize,
    group: &(SqlDeliveryLedger, Lease),
) -> (VerificationId, Incoming) {
    let extra: Vec<Counter> = counters("device", "9/1h", &format!("+{}", phone(number)));
    let send = application::ports::NewSend { extra, ..limited("9/1h", start(&phone(number))) };
    accepted(&enqueue(database, &send).await);
    let record = published(database).await.remove(0);
    let (ledger, lease) = group;
    ledger.admit(lease, &batch(std::slice::from_ref(&record))).await.unwrap();
    (id_of(&send), record)
}

async fn send(ledger: &SqlDeliveryLedger, lease: &Lease, id: VerificationId) {
    let call = ledger.start(lease, &calls(&[id.message(1)]), LONG).await.unwrap().calls.remove(0);
    let verdict = Verdict::Sent {
        reference: Some("ref-1".to_owned()),
        receipts_by_reference: true,
        awaited: None,
    };
    let (class, detail) = (OutcomeClass::Accepted, String::new());
    let outcome = CallOutcome { id: call.id, attempt: call.attempt, verdict, class, detail };
    ledger.finish(&[outcome]).await.unwrap();
}

/// Returns each column of each table that contains one of `texts`, with the number of its rows.
async fn columns_with(database: &Database, texts: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    for (table, column) in all_columns(database).await.unwrap() {
        let mut sql = format!("SELECT count(*) AS n FROM \"{table}\" WHERE false");
        for text in texts {
            let hex = text.bytes().fold(String::new(), |mut hex, byte| {
                write!(hex, "{byte:02x}").unwrap();
                hex
            });
            if database.is_postgres() {
                // A bytea is shown in hexadecimal digits.
                write!(sql, " OR strpos(\"{column}\"::text, '{text}') > 0").unwrap();
                write!(sql, " OR strpos(\"{column}\"::text, '{hex}') > 0").unwrap();
            } else {
                write!(sql, " OR instr(lower(hex(\"{column}\")), '{hex}') > 0").unwrap();
            }
        }
        let row = database.connection().query_one_raw(statement(database, sql, vec![])).await;
        let rows: i64 = row.unwrap().unwrap().try_get("", "n").unwrap();
        if rows > 0 {
            found.push(format!("{table}.{column}: {rows}"));
        }
    }
    found
}

async fn forgotten_phone_is_in_no_column_of_any_table(database: Database) {
    let number = phone(1);
    let key = adapters_wire::key_of(&number.parse().unwrap());
    let texts = [number.as_str(), key.as_str()];
    let group = ledger(&database, "1").await;
    let (sent, _) = taken_over(&database, 1, &group).await;
    send(&group.0, &group.1, sent).await;
    let (other, _) = taken_over(&database, 2, &group).await;
    SqlVerifications::new(database.clone()).cancel(sent).await.unwrap();
    // One that waits, one in transit, records of the queue, and the rows around a message.
    accepted(&enqueue(&database, &super::support::new_message(&number)).await);
    reach(&database, published(&database).await[0].sequence.unwrap()).await;
    accepted(&enqueue(&database, &super::support::new_message(&number)).await);
    let now = if database.is_postgres() { "now()" } else { "unixepoch() * 1000" };
    let id = sent.message(1);
    let value = format!("{{\"phone\":\"{number}\",\"code\":\"048291\"}}");
    let value = if database.is_postgres() {
        format!("convert_to('{value}', 'UTF8')")
    } else {
        format!("CAST('{value}' AS BLOB)")
    };
    let done = sent.as_uuid();
    let body = if database.is_postgres() { "'\\x01'" } else { "x'01'" };
    for sql in [
        format!(
            "INSERT INTO queue_record (topic, \"partition\", \"offset\", key, value, headers, written_at)
             VALUES ('message', 0, 0, '{key}', {value}, '{{}}', 0),
                    ('message', 0, 9, '{key}', {value}, '{{}}', 0)"
        ),
        format!("INSERT INTO event (id, kind, verification, at, due_at)
                 VALUES ('{done}', 'sent', '{done}', {now}, {now})"),
        format!("INSERT INTO extra_send (message_id, gateway, passed_over, reason, sent_at)
                 VALUES ('{id}', 'a', '', 'no-receipt', {now})"),
        format!("INSERT INTO awaited_receipt (message_id, verification_id, send, gateway, passed_over, due_at)
                 VALUES ('{id}', '{done}', 1, 'a', '', {now})"),
        format!("INSERT INTO gateway_note (message_id, gateway, note, expires_at)
                 VALUES ('{id}', 'a', 'x', {now})"),
        format!("INSERT INTO idempotency (key_hash, body_hash, holder, running_until, expires_at, done)
                 VALUES ({body}, {body}, {body}, {now}, {now}, '{done}')"),
        format!("INSERT INTO limit_counter (policy, key, quota, used, ends_at)
                 VALUES ('check-1h', '?{number}', 9, 1, {now})"),
    ] {
        database.connection().execute_unprepared(&sql).await.unwrap();
    }
    assert_eq!(count(&database, "gateway_receipt").await, 1);
    let before = columns_with(&database, &texts).await;
    for column in [
        "delivery.phone",
        "outbox.phone",
        "verification.phone",
        "phone.phone",
        "limit_counter.key",
        "queue_record.key",
        "queue_record.value",
    ] {
        assert!(before.iter().any(|it| it.starts_with(column)), "{column}: {before:?}");
    }

    let found = traces(&database, 1).await;
    assert!(found.tables.iter().all(|table| table.rows > 0), "{:?}", found.tables);
    let forgetting = forgetting(&database);
    forgetting.stop(&found).await.unwrap();
    assert_eq!(forgetting.open(&found).await.unwrap(), 0);
    forgetting.erase(&found).await.unwrap();

    assert_eq!(columns_with(&database, &texts).await, Vec::<String>::new());
    assert!(traces(&database, 1).await.is_empty());
    assert!(!forgetting.is_back(&number.parse().unwrap()).await.unwrap());
    // The other number is as it was, and what was sent is still counted.
    assert!(!columns_with(&database, &[&phone(2)]).await.is_empty());
    assert_eq!(count(&database, "verification").await, 1);
    assert_eq!(count(&database, "delivery WHERE state = 'sent'").await, 1);
    let _ = other;
}

async fn message_of_a_forgotten_phone_is_not_sent_by_any_group(database: Database) {
    let groups = [ledger(&database, "1").await, ledger(&database, "2").await];
    accepted(&enqueue(&database, &start(&phone(1))).await);
    let record = published(&database).await.remove(0);

    let found = traces(&database, 1).await;
    let forgetting = forgetting(&database);
    forgetting.stop(&found).await.unwrap();
    forgetting.erase(&found).await.unwrap();

    // The record is on the topic, and both groups read it now.
    for (ledger, lease) in &groups {
        let admitted = ledger.admit(lease, &batch(std::slice::from_ref(&record))).await.unwrap();
        assert!(admitted.fresh.is_empty() && admitted.calls.is_empty(), "{admitted:?}");
    }
    assert_eq!(count(&database, "delivery WHERE state = 'expired'").await, 2);
    assert_eq!(columns_with(&database, &[&phone(1)]).await, Vec::<String>::new());
}

async fn open_message_ends_before_it_is_erased(database: Database) {
    let group = ledger(&database, "1").await;
    let (id, _) = taken_over(&database, 1, &group).await;
    let (ledger, lease) = &group;
    let found = traces(&database, 1).await;
    let forgetting = forgetting(&database);
    forgetting.stop(&found).await.unwrap();
    assert_eq!(forgetting.open(&found).await.unwrap(), 1);

    // The consumer does not call any more, and the entry ends.
    let started = ledger.start(lease, &calls(&[id.message(1)]), LONG).await.unwrap();
    assert!(started.calls.is_empty());
    assert_eq!(forgetting.open(&found).await.unwrap(), 0);

    // Without a consumer, the command ends it.
    let (id, _) = taken_over(&database, 2, &group).await;
    let found = traces(&database, 2).await;
    forgetting.stop(&found).await.unwrap();
    forgetting.end_late(&found).await.unwrap();
    assert_eq!(forgetting.open(&found).await.unwrap(), 0);

    // A call in progress is waited for, and its outcome counts.
    let _ = id;
    let (id, _) = taken_over(&database, 3, &group).await;
    let call = ledger.start(lease, &calls(&[id.message(1)]), LONG).await.unwrap().calls.remove(0);
    let found = traces(&database, 3).await;
    forgetting.stop(&found).await.unwrap();
    forgetting.end_late(&found).await.unwrap();
    assert_eq!(forgetting.open(&found).await.unwrap(), 1);
    let verdict = Verdict::Retry { after: Duration::ZERO };
    let (class, detail) = (OutcomeClass::Unavailable, String::new());
    let outcome = CallOutcome { id: call.id, attempt: call.attempt, verdict, class, detail };
    ledger.finish(&[outcome]).await.unwrap();
    assert_eq!(forgetting.open(&found).await.unwrap(), 0);
    forgetting.erase(&found).await.unwrap();
    assert_eq!(columns_with(&database, &[&phone(3)]).await, Vec::<String>::new());
}

async fn end_of_a_message_of_a_forgotten_phone_is_in_no_event(database: Database) {
    let database = database.with_events(Events::Recorded);
    let (ledger, lease) = ledger(&database, "1").await;
    let (pending, _) = taken_over(&database, 1, &(ledger.clone(), lease.clone())).await;
    let (called, _) = taken_over(&database, 2, &(ledger.clone(), lease.clone())).await;
    let call =
        ledger.start(&lease, &calls(&[called.message(1)]), LONG).await.unwrap().calls.remove(0);
    let forgetting = forgetting(&database);

    for number in [1, 2] {
        forgetting.stop(&traces(&database, number).await).await.unwrap();
    }
    ledger.start(&lease, &calls(&[pending.message(1)]), LONG).await.unwrap();
    let verdict = Verdict::Sent { reference: None, receipts_by_reference: false, awaited: None };
    let (class, detail) = (OutcomeClass::Accepted, String::new());
    let outcome = CallOutcome { id: call.id, attempt: call.attempt, verdict, class, detail };
    ledger.finish(&[outcome]).await.unwrap();

    assert_eq!(count(&database, "delivery WHERE state IN ('sent', 'expired')").await, 2);
    assert_eq!(count(&database, "event").await, 0);
}

async fn erasure_that_stopped_halfway_is_completed(database: Database) {
    let group = ledger(&database, "1").await;
    let (id, _) = taken_over(&database, 1, &group).await;
    send(&group.0, &group.1, id).await;
    let forgetting = forgetting(&database);
    forgetting.stop(&traces(&database, 1).await).await.unwrap();
    // Only the id of the verification, which is gone, leads to it.
    let now = if database.is_postgres() { "now()" } else { "unixepoch() * 1000" };
    let event = format!(
        "INSERT INTO event (id, kind, verification, at, due_at)
         VALUES ('{0}', 'sent', '{0}', {now}, {now})",
        id.as_uuid()
    );
    database.connection().execute_unprepared(&event).await.unwrap();

    let found = traces(&database, 1).await;
    forgetting.stop(&found).await.unwrap();
    forgetting.erase(&found).await.unwrap();

    assert_eq!(count(&database, "event").await, 0);
    assert_eq!(columns_with(&database, &[&phone(1)]).await, Vec::<String>::new());
}

async fn phone_that_is_not_known_is_erased_without_a_change(database: Database) {
    let found = traces(&database, 1).await;

    assert!(found.is_empty());
    let forgetting = forgetting(&database);
    forgetting.stop(&found).await.unwrap();
    forgetting.erase(&found).await.unwrap();
}

async fn message_that_is_accepted_meanwhile_is_noticed_and_kept(database: Database) {
    accepted(&enqueue(&database, &start(&phone(1))).await);
    let found = traces(&database, 1).await;
    let forgetting = forgetting(&database);
    forgetting.stop(&found).await.unwrap();
    accepted(&enqueue(&database, &super::support::new_message(&phone(1))).await);
    forgetting.erase(&found).await.unwrap();

    assert!(forgetting.is_back(&phone(1).parse().unwrap()).await.unwrap());
    assert_eq!(count(&database, "outbox").await, 1);
    assert_eq!(count(&database, "verification").await, 1);
}
