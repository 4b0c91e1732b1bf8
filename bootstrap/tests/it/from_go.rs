//! `messager migrate from-go` beside the Go service, which these tests play: with its schema, its
//! statements and its records.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use sea_orm::{ConnectionTrait, Statement};
use tokio::task::JoinHandle;

use super::support::{Postgres, Stack, Topic, eventually, phone};

const PATIENCE: Duration = Duration::from_secs(90);

/// The only migration of the Go service.
const SCHEMA: &str = include_str!("../../../adapters/persistence/src/tests/go_table.sql");

/// Returns a statement that stores messages to phones from this number on, as the API of the Go service
/// does.
fn accept(first: usize, messages: usize) -> String {
    let last = first + messages - 1;
    format!(
        "INSERT INTO message (payload)
         SELECT jsonb_build_object('phone', '7' || lpad(number::text, 10, '0'), 'code', '123456')
         FROM generate_series({first}, {last}) AS number"
    )
}

/// The API of the Go service: stores a message every few milliseconds until it is stopped. Returns
/// how many.
fn go_api(postgres: &Postgres, first: usize, stop: &Arc<AtomicBool>) -> JoinHandle<usize> {
    let (connection, stop) = (postgres.connection.clone(), Arc::clone(stop));
    tokio::spawn(async move {
        let mut next = first;
        while !stop.load(Ordering::Relaxed) {
            connection.execute_unprepared(&accept(next, 1)).await.unwrap();
            next += 1;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        next - first
    })
}

/// The processor of the Go service, with shorter times: claims the newest rows, publishes them one by
/// one without key and headers, and sets each to `done`. It crashes between the two when it is
/// stopped.
fn go_processor(postgres: &Postgres, topic: &Arc<Topic>, stop: &Arc<AtomicBool>) -> JoinHandle<()> {
    const CLAIM: &str = "
UPDATE message SET reserved_to = localtimestamp + interval '300 ms'
WHERE id IN (
    SELECT id FROM message
    WHERE status = 'new' AND reserved_to < localtimestamp
    ORDER BY created_at DESC
    LIMIT 20
)
RETURNING id, payload::text, (extract(epoch FROM now()) * 1000)::bigint";

    let (connection, topic, stop) =
        (postgres.connection.clone(), Arc::clone(topic), Arc::clone(stop));
    tokio::spawn(async move {
        loop {
            let claim = Statement::from_string(sea_orm::DbBackend::Postgres, CLAIM);
            for row in connection.query_all_raw(claim).await.unwrap() {
                let id: i32 = row.try_get_by_index(0).unwrap();
                let payload: String = row.try_get_by_index(1).unwrap();
                let now = row.try_get_by_index(2).unwrap();
                topic.produce_compressed(vec![payload.into_bytes()], now).await;
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                let done = format!("UPDATE message SET status = 'done' WHERE id = {id}");
                connection.execute_unprepared(&done).await.unwrap();
            }
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    })
}

/// Runs `messager migrate from-go …` to its end, as the owner of the table. Returns its report.
async fn from_go(stack: &Stack, args: &[&str]) -> serde_json::Value {
    let owner = ("POSTGRES_USER", &*stack.postgres.user);
    let command = stack.start("messager", &[owner]).args(&["migrate", "from-go", "--json"]);
    let output = command.args(args).output().await;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_row_of_the_go_service_is_delivered_once_during_the_take_over() {
    const DONE: usize = 300;
    const EXPIRED: usize = 20;
    const NEW: usize = 2_000;
    let Some(stack) = Stack::new().await else { return };
    let Some(go_topic) = Topic::new(1).await else { return };
    let go_topic = Arc::new(go_topic);
    stack.postgres.execute(SCHEMA).await;
    stack.postgres.execute(&accept(0, DONE)).await;
    stack.postgres.execute("UPDATE message SET status = 'done'").await;
    stack.postgres.execute(&accept(DONE, EXPIRED)).await;
    let late = "UPDATE message SET created_at = created_at - interval '1 hour',
        reserved_to = '9999-01-01' WHERE status = 'new'";
    stack.postgres.execute(late).await;
    stack
        .postgres
        .execute(
            "INSERT INTO message (payload, reserved_to, created_at)
        VALUES ('{\"phone\": \"7\", \"code\": \"123456\"}', '9999-01-01', localtimestamp)",
        )
        .await;
    stack.postgres.execute(&accept(1_000, NEW)).await;

    // Both services run, and the Go service accepts messages.
    let (stop_api, stop_processor) = (Arc::default(), Arc::default());
    let processor = go_processor(&stack.postgres, &go_topic, &stop_processor);
    let api = go_api(&stack.postgres, 1_000 + NEW, &stop_api);
    let _processor = stack.start("processor", &[]).ready().await;
    let _consumer = stack.start("consumer", &[]).ready().await;

    // A take-over is killed, and another goes on.
    let owner = ("POSTGRES_USER", &*stack.postgres.user);
    let follow = || stack.start("messager", &[owner]).args(&["migrate", "from-go", "--follow"]);
    let first = follow().spawn();
    eventually("some are taken over", PATIENCE, async || {
        let taken = "SELECT count(*) FROM message
            WHERE status = 'done' AND id > 321 AND reserved_to = created_at";
        (stack.postgres.number(taken).await > 0).then_some(())
    })
    .await;
    first.stop("KILL").await;
    let second = follow().spawn();
    eventually("under way", PATIENCE, async || second.stderr().contains("Ctrl-C").then_some(()))
        .await;
    eventually("all old ones are taken over", PATIENCE, async || {
        let left = "SELECT count(*) FROM message
            WHERE status = 'new' AND id <= 2321 AND reserved_to = created_at";
        (stack.postgres.number(left).await == 0).then_some(())
    })
    .await;

    // The Go service is stopped, and leaves rows that it had claimed.
    stop_processor.store(true, Ordering::Relaxed);
    processor.await.unwrap();
    stop_api.store(true, Ordering::Relaxed);
    let accepted = NEW + api.await.unwrap();
    let (ended, _) = second.stop("TERM").await;
    assert_eq!(ended.code(), Some(0));
    let report = from_go(&stack, &["--stopped", "--topic", &go_topic.name]).await;

    assert!(report["published"].as_u64().unwrap() >= 1, "{report}");
    assert_eq!((&report["new"], &report["claimed"]), (&0.into(), &0.into()), "{report}");
    assert_eq!(report["expired"], EXPIRED);
    assert_eq!(report["unusable"][0]["reason"], "the phone is invalid");
    let by_go: Vec<_> = go_topic.records().await.concat();
    let ours = accepted - by_go.len();
    eventually("all sent", PATIENCE, async || (stack.gateway.count() >= ours).then_some(())).await;
    let mut sent: HashMap<String, usize> = HashMap::new();
    for record in by_go {
        let value = record.record.value.unwrap();
        let value: serde_json::Value = serde_json::from_slice(&value).unwrap();
        *sent.entry(value["phone"].as_str().unwrap().to_owned()).or_default() += 1;
    }
    for sms in stack.gateway.received() {
        assert_eq!(sms.code, "123456");
        *sent.entry(sms.phone).or_default() += 1;
    }
    let expected: HashMap<_, _> =
        (1_000..1_000 + accepted).map(|number| (phone(number), 1)).collect();
    assert_eq!(sent.len(), expected.len());
    assert!(sent == expected, "each new row once, and no other row");
}

#[tokio::test]
async fn rows_that_were_not_published_can_be_given_back() {
    let Some(stack) = Stack::new().await else { return };
    stack.postgres.execute(SCHEMA).await;
    stack.postgres.execute(&accept(0, 50)).await;

    let dry = from_go(&stack, &["--dry-run"]).await;
    let taken = from_go(&stack, &[]).await;
    let waiting = stack.postgres.number("SELECT count(*) FROM outbox").await;
    let back = from_go(&stack, &["--back"]).await;

    assert_eq!((&dry["new"], &dry["taken_over"]), (&50.into(), &0.into()));
    assert_eq!((&taken["new"], &taken["taken_over"]), (&0.into(), &50.into()));
    assert_eq!(waiting, 50);
    assert_eq!((&back["new"], &back["given_back"]), (&50.into(), &50.into()));
    assert_eq!(stack.postgres.number("SELECT count(*) FROM outbox").await, 0);
}

#[tokio::test]
async fn take_over_says_what_it_needs() {
    let Some(stack) = Stack::new().await else { return };
    let said = async |args: &[&str], env: &[(&str, &str)]| {
        let command = stack.start("messager", env).args(&["migrate", "from-go"]).args(args);
        let output = command.output().await;
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8(output.stderr).unwrap()
    };
    let owner = ("POSTGRES_USER", &*stack.postgres.user);

    let without_table = said(&[], &[owner]).await;
    stack.postgres.execute(SCHEMA).await;
    let without_right = said(&[], &[]).await;
    stack.postgres.execute("INSERT INTO message (payload) VALUES ('{}')").await;
    let wrong_zone = said(&["--time-zone", "America/New_York"], &[owner]).await;

    assert!(without_table.contains("there is no table message"), "{without_table}");
    assert!(without_right.contains("GRANT SELECT, INSERT, UPDATE, DELETE"), "{without_right}");
    assert!(wrong_zone.contains("created in the future"), "{wrong_zone}");
}
