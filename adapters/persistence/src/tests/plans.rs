//! PostgreSQL reads few rows for the statements of the message path, although it keeps their plans.
//! Polls and sweeps may read all open rows, and are not tested.

use std::{collections::BTreeMap, time::Duration};

use application::ports::{
    AnswerClaim, Attempt, AwaitedReceipt, Batch, CallOutcome, DeliveryLedger, GatewayHealth,
    Incoming, Lease, Minute, NewSend, OutcomeClass, Receipt, Receipts, Resent, Target, Verdict,
    Verifications,
};
use domain::{GatewayName, VerificationStatus};
use sea_orm::{ConnectionTrait, DbBackend, Statement};

use super::{
    resends::again,
    support::{
        self, LONG, batch, call_now, calls, enqueue, id_of, ledger, newest_of, phone, policies,
        postgres, published, right, start,
    },
};
use crate::{Database, SqlDeliveryLedger, SqlGatewayHealth, SqlReceipts, SqlVerifications};

/// More rows than the statements of a few messages should read.
const ROWS: usize = 3_000;
const ENOUGH: i64 = 100;

#[tokio::test]
async fn kept_plan_reads_few_rows_for_any_table_size() {
    let Some(database) = postgres().await else { return };
    for (made_for, vacuumed) in [(0, false), (0, true), (ROWS, false), (ROWS, true)] {
        for events in [false, true] {
            // One connection, because each connection has its own plans.
            let one = Database::connect_lazily(database.settings(), "test", 1);
            let (ledger, lease) = ledger(&one, "group").await;
            let ledger = ledger.with_events(events.into());
            let pipeline = Pipeline { database: one, ledger, lease };

            pipeline.fill(made_for).await;
            if vacuumed {
                pipeline.run("VACUUM ANALYZE").await;
            }
            pipeline.pass(1).await;
            pipeline.fill(ROWS).await;
            let before = pipeline.read().await;
            pipeline.pass(2).await;

            let read =
                pipeline.read().await.into_iter().map(|(name, rows)| (rows - before[&name], name));
            let dear: Vec<_> = read.filter(|(rows, _)| *rows > ENOUGH).collect();
            assert!(
                dear.is_empty(),
                "plans for {made_for} rows, vacuumed: {vacuumed}, events: {events}: {dear:?}"
            );
            pipeline.run(EMPTY).await;
            pipeline.database.close().await.unwrap();
        }
    }
}

/// A reference that receipts name, and a receipt that is awaited.
fn named(round: usize) -> Verdict {
    let passed_over = vec![GatewayName::default()];
    Verdict::Sent {
        reference: Some(round.to_string()),
        receipts_by_reference: true,
        awaited: Some(AwaitedReceipt { within: LONG, passed_over }),
    }
}

/// Runs the steps of a message.
struct Pipeline {
    database: Database,
    ledger: SqlDeliveryLedger,
    lease: Lease,
}

impl Pipeline {
    /// Sends three messages. One of them is first refused, then resent and canceled.
    async fn pass(&self, round: usize) {
        let send = |number| start(&phone(10 * round + number));
        let sends: [NewSend; 3] = [send(1), send(2), send(3)];
        for send in &sends {
            enqueue(&self.database, send).await;
        }
        let ours =
            |incoming: &Incoming| sends.iter().any(|send| send.message.id == incoming.message.id);
        let messages: Vec<_> = published(&self.database).await.into_iter().filter(ours).collect();

        let ids: Vec<_> = messages.iter().map(|it| it.message.id).collect();
        assert!(self.ledger.passed_over(&ids).await.unwrap().is_empty());
        let now = batch(&messages);
        let call_now = call_now(messages[..2].iter().map(|it| it.message.id));
        let now = Batch { call_now, call_limit: LONG, ..now };
        let admitted = self.ledger.admit(&self.lease, &now).await.unwrap();
        assert_eq!((admitted.calls.len(), admitted.fresh.len()), (2, 1));
        let started = self.ledger.start(&self.lease, &calls(&admitted.fresh), LONG).await.unwrap();
        assert_eq!(started.calls.len(), 1);
        let said = |id, verdict| CallOutcome {
            id,
            attempt: 1,
            verdict,
            class: OutcomeClass::Accepted,
            detail: String::new(),
        };
        let outcomes = [
            said(messages[0].message.id, named(round)),
            said(messages[1].message.id, Verdict::Failed),
            said(messages[2].message.id, Verdict::Retry { after: Duration::ZERO }),
        ];
        assert_eq!(self.ledger.finish(&outcomes).await.unwrap().len(), 3);
        // The ids of the tests begin with the first minute.
        let health = SqlGatewayHealth::new(self.database.clone());
        assert!(!health.sample(Minute(0), LONG, 100).await.unwrap().is_empty());
        let receipts = SqlReceipts::new(self.database.clone());
        let main = GatewayName::default();
        receipts.note(&main, messages[0].message.id, Receipt::Undelivered).await.unwrap();
        for reference in [round.to_string(), format!("unknown {round}")] {
            receipts.note_reference(&main, &reference, Receipt::Delivered).await.unwrap();
        }

        let verifications = SqlVerifications::new(self.database.clone());
        let check = async |target| {
            let claim = AnswerClaim { key: [1; 32], holder: [1; 16], first: [1; 16], done: None };
            let attempt = Attempt { claim: Some(claim), ..support::attempt(target, right()) };
            verifications.check(attempt, &policies("check", "9/1h,99/1d")).await.unwrap()
        };
        let [by_id, by_phone] = [
            Target::Id(id_of(&sends[0])),
            newest_of(sends[1].phone.as_str(), Some(id_of(&sends[1]))),
        ];
        let unknown = || newest_of("79991111111", None);
        tokio::join!(check(by_id), check(by_phone), check(unknown()), check(unknown()));
        let resent = verifications.resend(again(&sends[2], 1)).await.unwrap();
        assert!(matches!(resent, Resent::Sent(_)), "{resent:?}");
        let canceled = verifications.cancel(id_of(&sends[2])).await.unwrap().unwrap();
        assert_eq!(canceled.verification.status, VerificationStatus::Canceled);
    }

    /// Adds this many messages to each table, after the messages of the test.
    async fn fill(&self, rows: usize) {
        let fill = format!(
            "INSERT INTO outbox (sequence, id, phone, code, trace, expires_at)
             SELECT 1000000 + nextval(pg_get_serial_sequence('outbox', 'sequence')),
                 gen_random_uuid(), 79990000000 + n, '1234', '', now() + interval '1 hour'
             FROM generate_series(1, {rows}) AS n;
             INSERT INTO delivery
                 (group_id, topic, partition, message_id, phone, code, state, accepted_at,
                  expires_at, attempt, epoch)
             SELECT 'group', 'message', 0, gen_random_uuid(), 79990000000 + n, '1234', 'calling', now(),
                 now() + interval '1 hour', 1, 1
             FROM generate_series(1, {rows}) AS n;
             INSERT INTO verification
                 (id, origin, phone, code_length, pepper_id, code_hash, seed, sequence, expires_at)
             SELECT gen_random_uuid(), 'v1', 79990000000 + n, 6, 'test', '', '', n,
                 now() + interval '1 hour'
             FROM generate_series(1, {rows}) AS n;
             INSERT INTO phone (phone, newest, exclusive, quota_1, sends_1, ends_1, quota_2, sends_2,
                 ends_2, quota_3, sends_3, ends_3)
             SELECT 79990000000 + nextval(pg_get_serial_sequence('outbox', 'sequence')),
                 gen_random_uuid(), true, 0, 0, now(), 0, 0, now(), 0, 0, now()
             FROM generate_series(1, {rows}) AS n;
             INSERT INTO limit_counter (policy, key, quota, used, ends_at)
             SELECT policy, 79990000000 + nextval(pg_get_serial_sequence('outbox', 'sequence')),
                 1, 1, now() + interval '1 hour'
             FROM generate_series(1, {rows}) AS n, (VALUES ('check-1h'), ('check-1d')) AS it (policy);
             INSERT INTO idempotency (key_hash, body_hash, holder, running_until, expires_at)
             SELECT uuid_send(gen_random_uuid()), '', '', now(), now() + interval '1 hour'
             FROM generate_series(1, {rows}) AS n;
             INSERT INTO gateway_receipt (gateway, reference, message_id, expires_at)
             SELECT 'default', gen_random_uuid(), gen_random_uuid(), now() + interval '1 hour'
             FROM generate_series(1, {rows}) AS n;
             INSERT INTO awaited_receipt
                 (message_id, verification_id, send, gateway, passed_over, due_at)
             SELECT gen_random_uuid(), gen_random_uuid(), 1, 'default', 'default',
                 now() + interval '1 hour'
             FROM generate_series(1, {rows}) AS n;
             INSERT INTO extra_send (message_id, gateway, passed_over, reason)
             SELECT gen_random_uuid(), 'default', 'default', 'no-receipt'
             FROM generate_series(1, {rows}) AS n;
             INSERT INTO event (kind, due_at)
             SELECT 'created', now() + interval '1 hour' FROM generate_series(1, {rows})"
        );
        self.run(&fill).await;
    }

    /// Returns the number of entries of each index and of rows of each table that were read so far.
    async fn read(&self) -> BTreeMap<String, i64> {
        self.run("SELECT pg_stat_force_next_flush()").await;
        let sql =
            "SELECT indexrelname::text AS name, idx_tup_read AS rows FROM pg_stat_user_indexes
                   UNION ALL
                   SELECT relname::text, seq_tup_read FROM pg_stat_user_tables";
        let statement = Statement::from_string(DbBackend::Postgres, sql);
        let rows = self.database.connection().query_all_raw(statement).await.unwrap();
        rows.iter()
            .map(|row| (row.try_get("", "name").unwrap(), row.try_get("", "rows").unwrap()))
            .collect()
    }

    async fn run(&self, sql: &str) {
        self.database.connection().execute_unprepared(sql).await.unwrap();
    }
}

const EMPTY: &str = "TRUNCATE outbox, delivery, verification, phone, limit_counter, idempotency, event, gateway_receipt, awaited_receipt, extra_send, partition_lease";
