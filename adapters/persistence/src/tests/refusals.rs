//! The database refuses one row of a statement. The other rows are stored.

use application::ports::{
    Backlog, Batch, CallOutcome, DeliveryLedger, DeliveryState, Incoming, Lease, OutcomeClass,
    PartitionLeases, Record, Unreadable, Verdict,
};
use domain::MessageId;
use sea_orm::ConnectionTrait;

use super::{
    on_both_databases,
    support::{
        LONG, accepted, backlog, call_now, calls, count, enqueue, in_time, incoming, ledger,
        new_message, phone, published, records, start,
    },
};
use crate::{Database, SqlDeliveryLedger, SqlPartitionLeases};

on_both_databases!(
    outcome_whose_texts_cannot_be_stored_is_recorded_without_them,
    outcome_whose_event_cannot_be_stored_is_recorded,
    outcome_that_cannot_be_stored_is_recorded_as_unknown,
    message_that_cannot_be_stored_becomes_a_dead_letter,
    expired_message_whose_event_cannot_be_stored_is_recorded,
    dead_letter_that_cannot_be_stored_is_skipped,
    entry_whose_call_cannot_be_recorded_ends,
    expired_message_that_cannot_be_noted_is_deleted_with_its_code,
);

/// Makes the database refuse the rows of a table for which the condition `when` on `NEW` holds.
pub(super) async fn refuse(database: &Database, table: &str, when: &str) {
    let sql = if database.is_postgres() {
        format!(
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
                 $$ BEGIN RAISE EXCEPTION 'refused' USING ERRCODE = '22P05'; END $$;
             CREATE TRIGGER refuse BEFORE INSERT OR UPDATE ON {table}
                 FOR EACH ROW WHEN ({when}) EXECUTE FUNCTION refuse()"
        )
    } else {
        let trigger = |event| {
            format!(
                "CREATE TRIGGER refuse_{event} BEFORE {event} ON {table} WHEN {when}
                 BEGIN SELECT RAISE(ABORT, 'refused'); END;"
            )
        };
        [trigger("INSERT"), trigger("UPDATE")].concat()
    };
    database.connection().execute_unprepared(&sql).await.unwrap();
}

fn ids(messages: &[Incoming]) -> Vec<MessageId> {
    messages.iter().map(|incoming| incoming.message.id).collect()
}

fn batch(records: Vec<Record>, next_offset: i64) -> Batch {
    Batch { records, next_offset, default_ttl: LONG, ..Batch::default() }
}

/// Returns three messages whose calls have begun.
async fn called(ledger: &SqlDeliveryLedger, lease: &Lease) -> [Incoming; 3] {
    let messages = [1, 2, 3].map(|number| incoming(&phone(number)));
    let batch = Batch {
        call_now: call_now(ids(&messages)),
        call_limit: LONG,
        ..batch(records(&messages), 3)
    };
    assert_eq!(ledger.admit(lease, &batch).await.unwrap().calls.len(), 3);
    messages
}

fn sent(messages: &[Incoming], references: [&str; 3]) -> Vec<CallOutcome> {
    let outcome = |(incoming, reference): (&Incoming, &str)| CallOutcome {
        id: incoming.message.id,
        attempt: 1,
        class: OutcomeClass::Accepted,
        verdict: Verdict::Sent {
            reference: Some(reference.to_owned()),
            receipts_by_reference: false,
            awaited: None,
        },
        detail: String::new(),
    };
    messages.iter().zip(references).map(outcome).collect()
}

async fn states(ledger: &SqlDeliveryLedger, outcomes: &[CallOutcome]) -> Vec<DeliveryState> {
    let recorded = ledger.finish(outcomes).await.unwrap();
    let state = |outcome: &CallOutcome| {
        recorded.iter().find(|recorded| recorded.id == outcome.id).unwrap().state
    };
    outcomes.iter().map(state).collect()
}

async fn outcome_whose_texts_cannot_be_stored_is_recorded_without_them(database: Database) {
    use DeliveryState::Sent;
    let (ledger, lease) = ledger(&database, "1").await;
    refuse(&database, "delivery", "NEW.reference = '日本'").await;
    let messages = called(&ledger, &lease).await;

    // PostgreSQL also refuses a NUL without the trigger.
    let outcomes = sent(&messages, ["日本", "good", "a\0b"]);
    assert_eq!(states(&ledger, &outcomes).await, [Sent; 3]);

    assert_eq!(count(&database, "delivery WHERE state = 'sent' AND code IS NULL").await, 3);
    assert_eq!(count(&database, "delivery WHERE reference = 'good'").await, 1);
    assert_eq!(count(&database, "delivery WHERE reference = '日本'").await, 0);
}

async fn outcome_whose_event_cannot_be_stored_is_recorded(database: Database) {
    use DeliveryState::Sent;
    let (ledger, lease) = ledger(&database, "1").await;
    for number in 1..=3 {
        accepted(&enqueue(&database, &start(&phone(number))).await);
    }
    let messages = published(&database).await;
    ledger.admit(&lease, &batch(records(&messages), 3)).await.unwrap();
    ledger.start(&lease, &calls(&ids(&messages)), LONG).await.unwrap();
    let verification = domain::VerificationId::of(messages[1].message.id).as_uuid();
    refuse(&database, "event", &format!("NEW.verification = '{verification}'")).await;

    assert_eq!(states(&ledger, &sent(&messages, ["a", "b", "c"])).await, [Sent; 3]);

    assert_eq!(count(&database, "event").await, 2);
}

async fn outcome_that_cannot_be_stored_is_recorded_as_unknown(database: Database) {
    use DeliveryState::{Sent, Unknown};
    let (ledger, lease) = ledger(&database, "1").await;
    let when = format!("NEW.state = 'sent' AND NEW.phone = '{}'", phone(2));
    refuse(&database, "delivery", &when).await;
    let messages = called(&ledger, &lease).await;

    let outcomes = sent(&messages, ["a", "b", "c"]);
    assert_eq!(states(&ledger, &outcomes).await, [Sent, Unknown, Sent], "it is not called again");
}

async fn message_that_cannot_be_stored_becomes_a_dead_letter(database: Database) {
    let (ledger, lease) = ledger(&database, "1").await;
    refuse(&database, "delivery", &format!("NEW.phone = '{}'", phone(3))).await;
    for number in 1..=5 {
        accepted(&enqueue(&database, &new_message(&phone(number))).await);
    }
    let messages = published(&database).await;
    let mut records = records(&messages);
    records.push(Record { offset: 5, content: Err(Unreadable("not JSON")) });

    let admitted = ledger.admit(&lease, &batch(records, 7)).await.unwrap();

    assert_eq!((admitted.fresh.len(), admitted.refused), (4, 1));
    let reason = "reason = 'the database cannot store the message'";
    assert_eq!(
        count(&database, &format!("dead_letter WHERE record_offset = 2 AND {reason}")).await,
        1
    );
    assert_eq!(count(&database, "dead_letter").await, 2);
    assert_eq!(count(&database, "outbox").await, 1, "it stays in the outbox until it expires");
    let member = "member".to_owned();
    let leases = SqlPartitionLeases::new(database, "1".into(), "message".into(), member);
    leases.release(&lease).await.unwrap();
    assert_eq!(leases.acquire(1, LONG).await.unwrap()[0].next_offset, Some(7));
}

async fn expired_message_whose_event_cannot_be_stored_is_recorded(database: Database) {
    let (ledger, lease) = ledger(&database, "1").await;
    accepted(&enqueue(&database, &start(&phone(1))).await);
    let mut late = published(&database).await.remove(0);
    late.validity = late.validity.map(|it| domain::Validity { expires_at: it.accepted_at, ..it });
    refuse(&database, "event", "NEW.kind = 'failed'").await;

    let admitted = ledger.admit(&lease, &batch(records(&[late]), 1)).await.unwrap();

    assert_eq!((admitted.expired.len(), admitted.refused), (1, 0));
    assert_eq!(count(&database, "outbox").await, 0);
}

async fn dead_letter_that_cannot_be_stored_is_skipped(database: Database) {
    let (ledger, lease) = ledger(&database, "1").await;
    refuse(&database, "dead_letter", "NEW.record_offset = 1").await;
    let mut records = records(&[incoming(&phone(1)), incoming(&phone(2)), incoming(&phone(3))]);
    records[1].content = Err(Unreadable("not JSON"));

    let admitted = ledger.admit(&lease, &batch(records, 3)).await.unwrap();

    assert_eq!(admitted.fresh.len(), 2);
    assert_eq!(count(&database, "partition_lease WHERE next_offset = 3").await, 1);
}

async fn entry_whose_call_cannot_be_recorded_ends(database: Database) {
    let (ledger, lease) = ledger(&database, "1").await;
    let when = format!("NEW.state = 'calling' AND NEW.phone = '{}'", phone(2));
    refuse(&database, "delivery", &when).await;
    let messages = [1, 2, 3].map(|number| incoming(&phone(number)));
    ledger.admit(&lease, &batch(records(&messages), 3)).await.unwrap();

    let started = ledger.start(&lease, &calls(&ids(&messages)), LONG).await.unwrap();

    assert_eq!(started.calls.len(), 2);
    let ended: Vec<_> = started.ended.iter().map(|it| (it.id, it.state)).collect();
    assert_eq!(ended, [(messages[1].message.id, DeliveryState::Failed)]);
    assert_eq!(count(&database, "delivery WHERE state = 'failed' AND code IS NULL").await, 1);
}

async fn expired_message_that_cannot_be_noted_is_deleted_with_its_code(database: Database) {
    for number in 1..=3 {
        let ttl = std::time::Duration::ZERO;
        let send = application::ports::NewSend { ttl, ..new_message(&phone(number)) };
        accepted(&enqueue(&database, &send).await);
    }
    refuse(&database, "delivery", &format!("NEW.phone = '{}'", phone(2))).await;
    let backlog = backlog(&database);

    // The rows of a refused statement may stay locked for a moment.
    in_time(async {
        let mut ended = 0;
        while ended < 3 {
            ended += backlog.end_expired().await.unwrap();
        }
    })
    .await;

    assert_eq!(count(&database, "outbox").await, 0);
    assert_eq!(count(&database, "delivery WHERE state = 'expired'").await, 2);
}
