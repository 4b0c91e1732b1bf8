use std::{
    collections::HashMap,
    io::Write,
    num::NonZeroU32,
    path::{Path, PathBuf},
    str::FromStr,
    sync::Once,
    time::{Duration, SystemTime},
};

use application::{
    TraceParent,
    ports::{
        Attempt, Backlog, Batch, CheckOutcome, Enqueued, Incoming, Lease, NewSecret, NewSend,
        NewVerification, Newest, Next, Outbox, Outgoing, PartitionLeases, Reached, Record, Start,
        Storing, Target, Verifications, Violation,
    },
};
use domain::{
    CodeHash, Counter, GatewayName, KeyId, Message, MessageId, Origin, PhoneNumber, Policy, Seed,
    VerificationId, Windows,
};
use migration::{Migrator, MigratorTrait};
use rand::{SeedableRng, rngs::StdRng};
use sea_orm::{ConnectionTrait, sqlx};
use tokio::sync::OnceCell;

use crate::{
    CoalescingOutbox, Database, DatabaseSettings, Events, OutboxSettings, PostgresSettings,
    SqlBacklog, SqlDeliveryLedger, SqlPartitionLeases, SqlVerifications, SslMode,
};

const SQLITE_FILE: &str = "messager.db";

/// Longer than any test.
pub(super) const LONG: Duration = Duration::from_secs(60);

/// Creates a database on the server that `TEST_POSTGRES_URL` names. Without it the test is skipped,
/// or fails if `REQUIRE_SERVICES` is set.
pub(super) async fn postgres() -> Option<Database> {
    // A copy of a migrated database takes a fraction of the time of all migrations.
    static MIGRATED: OnceCell<Option<String>> = OnceCell::const_new();
    let migrated = MIGRATED.get_or_init(async || {
        let settings = new_postgres().await?;
        let name = settings.database.clone();
        let database = Database::connect_lazily(&DatabaseSettings::Postgres(settings), "test", 1);
        Migrator::up(&database.connection(), None).await.unwrap();
        database.close().await.unwrap();
        Some(name)
    });
    let template = migrated.await.as_ref()?;
    let settings = new_postgres_as(&format!("TEMPLATE {template}")).await?;
    Some(Database::connect_lazily(&DatabaseSettings::Postgres(settings), "test", 8))
}

pub(super) async fn empty_postgres() -> Option<Database> {
    let settings = new_postgres().await?;
    Some(Database::connect_lazily(&DatabaseSettings::Postgres(settings), "test", 8))
}

/// Prints one line for all tests. The harness shows what a test prints with `println!` only if the
/// test fails, and these pass.
fn say_that_postgres_is_skipped() {
    static SAID: Once = Once::new();
    SAID.call_once(|| {
        let line = b"\nTEST_POSTGRES_URL is not set: no test runs on PostgreSQL; use scripts/services run\n";
        std::io::stderr().write_all(line).unwrap();
    });
}

/// Creates a database, and returns its settings.
pub(super) async fn new_postgres() -> Option<PostgresSettings> {
    new_postgres_as("").await
}

/// The same, with options of `CREATE DATABASE`.
pub(super) async fn new_postgres_as(how: &str) -> Option<PostgresSettings> {
    let Some(url) = environment("TEST_POSTGRES_URL") else {
        assert!(environment("REQUIRE_SERVICES").is_none(), "TEST_POSTGRES_URL is not set");
        say_that_postgres_is_skipped();
        return None;
    };
    let options = sqlx::postgres::PgConnectOptions::from_str(&url).unwrap();
    let name = format!("test_{}", new_id().as_uuid().simple());
    let mut settings = PostgresSettings {
        host: options.get_host().to_owned(),
        port: options.get_port(),
        database: options.get_database().unwrap().to_owned(),
        user: options.get_username().to_owned(),
        password: url.split(['/', ':', '@']).nth(4).map(str::to_owned),
        ssl_mode: SslMode::Disable,
        ssl_root_cert: None,
        ssl_client_cert: None,
        more_hosts: Vec::new(),
    };
    let server = Database::connect_lazily(&DatabaseSettings::Postgres(settings.clone()), "test", 1);
    server.connection().execute_unprepared(&format!("CREATE DATABASE {name} {how}")).await.unwrap();
    server.close().await.unwrap();
    settings.database = name;
    Some(settings)
}

pub(super) async fn sqlite() -> (Database, Folder) {
    static MIGRATED: OnceCell<Vec<u8>> = OnceCell::const_new();
    let migrated = MIGRATED.get_or_init(async || {
        let (database, folder) = empty_sqlite();
        Migrator::up(&database.connection(), None).await.unwrap();
        database.close().await.unwrap();
        std::fs::read(folder.path().join(SQLITE_FILE)).unwrap()
    });
    let migrated = migrated.await;
    let (database, folder) = empty_sqlite();
    std::fs::write(folder.path().join(SQLITE_FILE), migrated).unwrap();
    (database, folder)
}

pub(super) fn empty_folder() -> Folder {
    let name = format!("messager-{}", new_id());
    let folder = Folder(std::env::temp_dir().join(name));
    std::fs::create_dir(&folder.0).unwrap();
    folder
}

pub(super) fn empty_sqlite() -> (Database, Folder) {
    let folder = empty_folder();
    let settings = DatabaseSettings::Sqlite(folder.0.join(SQLITE_FILE));
    (Database::connect_lazily(&settings, "test", 1), folder)
}

/// Removed when dropped.
pub(super) struct Folder(PathBuf);

impl Folder {
    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[expect(clippy::disallowed_methods, reason = "tests are told of their servers this way")]
pub(super) fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

pub(super) fn rng() -> StdRng {
    StdRng::try_from_rng(&mut rand::rngs::SysRng).unwrap()
}

pub(super) fn new_id() -> VerificationId {
    VerificationId::generate(SystemTime::UNIX_EPOCH, &mut rng())
}

pub(super) fn new_message(phone: &str) -> NewSend {
    NewSend {
        message: Message {
            id: new_id().message(1),
            phone: phone.parse().unwrap(),
            code: "048213".parse().unwrap(),
        },
        phone: phone.parse().unwrap(),
        ttl: Duration::from_secs(600),
        trace: TraceParent::generate(&mut rng()),
        verification: NewVerification {
            origin: Origin::Api,
            region: None,
            secret: NewSecret {
                pepper: "test".parse().unwrap(),
                seed: Seed::generate(&mut rng()),
                code_hash: CodeHash::from_bytes([7; 32]),
            },
            code_length: 6.try_into().unwrap(),
            template: None,
            metadata: None,
            api_key: None,
        },
        phone_limits: Windows::OFF,
        apart: false,
        extra: Vec::new(),
        storing: Storing::default(),
    }
}

/// A start of `/v1`.
pub(super) fn start(phone: &str) -> NewSend {
    let send = new_message(phone);
    let verification = NewVerification { origin: Origin::V1, ..send.verification };
    NewSend { verification, ..send }
}

pub(super) fn limited(windows: &str, send: NewSend) -> NewSend {
    NewSend { phone_limits: windows.parse().unwrap(), ..send }
}

pub(super) fn policies(name: &str, windows: &str) -> Vec<Policy> {
    windows.parse::<Windows>().unwrap().policies(name)
}

/// A counter for each window.
pub(super) fn counters(name: &str, windows: &str, key: &str) -> Vec<Counter> {
    let policies = policies(name, windows).into_iter();
    policies.map(|policy| Counter { policy, key: key.to_owned() }).collect()
}

pub(super) fn names(violations: &[Violation]) -> Vec<&str> {
    violations.iter().map(|violation| violation.policy.name.as_str()).collect()
}

pub(super) fn id_of(send: &NewSend) -> VerificationId {
    VerificationId::of(send.message.id)
}

/// One writer, with a patience that a busy machine does not exhaust.
pub(super) fn one_writer() -> OutboxSettings {
    OutboxSettings { writers: 1, patience: Duration::from_secs(60), ..OutboxSettings::default() }
}

/// Stores a send alone.
pub(super) async fn enqueue(database: &Database, send: &NewSend) -> Enqueued {
    let (outbox, _writers) = CoalescingOutbox::start(database, one_writer());
    outbox.enqueue(send.clone()).await.unwrap()
}

#[track_caller]
pub(super) fn accepted(answer: &Enqueued) {
    assert!(matches!(answer, Enqueued::Accepted { .. }), "{answer:?}");
}

/// The hashes of the code that every verification of the tests has.
pub(super) fn right() -> Vec<(KeyId, CodeHash)> {
    vec![hash("other", [9; 32]), hash("test", [7; 32])]
}

/// The hashes of another code, and the right hash under another pepper.
pub(super) fn wrong() -> Vec<(KeyId, CodeHash)> {
    vec![hash("test", [8; 32]), hash("other", [7; 32])]
}

fn hash(pepper: &str, bytes: [u8; 32]) -> (KeyId, CodeHash) {
    (pepper.parse().unwrap(), CodeHash::from_bytes(bytes))
}

/// An attempt. By phone it has the same hashes for both origins.
pub(super) fn attempt(target: Target, hashes: Vec<(KeyId, CodeHash)>) -> Attempt {
    let api_hashes = match &target {
        Target::Id(_) => Vec::new(),
        Target::Newest { .. } => hashes.clone(),
    };
    Attempt { target, hashes, api_hashes, claim: None }
}

/// A phone with this newest verification of `/v1`.
pub(super) fn newest_of(phone: &str, v1: Option<VerificationId>) -> Target {
    Target::Newest { phone: phone.parse().unwrap(), of: Newest { v1, api: None } }
}

pub(super) async fn try_by_id(
    verifications: &SqlVerifications,
    id: VerificationId,
    hashes: Vec<(KeyId, CodeHash)>,
    guesses: &[Policy],
) -> CheckOutcome {
    loop {
        let attempt = attempt(Target::Id(id), hashes.clone());
        match verifications.check(attempt, guesses).await.unwrap() {
            CheckOutcome::Changed => {}
            tried => return tried,
        }
    }
}

pub(super) async fn try_by_phone(
    verifications: &SqlVerifications,
    phone: &str,
    hashes: Vec<(KeyId, CodeHash)>,
    guesses: &[Policy],
) -> CheckOutcome {
    let phone: PhoneNumber = phone.parse().unwrap();
    loop {
        let of = verifications.newest(phone.clone()).await.unwrap();
        let target = Target::Newest { phone: phone.clone(), of };
        let attempt = attempt(target, hashes.clone());
        match verifications.check(attempt, guesses).await.unwrap() {
            CheckOutcome::Changed => {}
            tried => return tried,
        }
    }
}

/// Approves a verification.
pub(super) async fn approve(verifications: &SqlVerifications, id: VerificationId) {
    let tried = try_by_id(verifications, id, right(), &[]).await;
    assert!(matches!(tried, CheckOutcome::Right(_)), "{tried:?}");
}

/// Waits for a condition, and fails the test if it does not come.
pub(super) async fn in_time<T>(condition: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), condition).await.expect("in time")
}

pub(super) fn phone(number: usize) -> String {
    format!("7999{number:07}")
}

/// A record with a phone and a code only.
pub(super) fn incoming(phone: &str) -> Incoming {
    let NewSend { message, .. } = new_message(phone);
    Incoming { message, validity: None, trace: None, sequence: None }
}

/// The outbox as a relay reads it. All of them are the same relay.
pub(super) fn backlog(database: &Database) -> SqlBacklog {
    SqlBacklog::new(database.clone(), "message".to_owned(), "relay".to_owned())
}

/// Looks for the messages above a number.
pub(super) async fn look(database: &Database, above: i64) -> Vec<Outgoing> {
    let backlog = backlog(database);
    let tenure = backlog.acquire(LONG).await.unwrap().expect("it is free or ours");
    backlog.look(&tenure, &[], above, NonZeroU32::new(9).unwrap()).await.unwrap().messages
}

/// Returns the messages of the outbox as a consumer reads them.
pub(super) async fn published(database: &Database) -> Vec<Incoming> {
    look(database, 0).await.into_iter().map(received).collect()
}

/// Notes all messages up to a number as published.
pub(super) async fn reach(database: &Database, published: i64) {
    let backlog = backlog(database);
    let tenure = backlog.acquire(LONG).await.unwrap().expect("it is free or ours");
    let reached = Reached { published, read: published };
    assert!(backlog.renew(&tenure, reached, LONG).await.unwrap());
}

/// A message as a consumer reads it.
pub(super) fn received(outgoing: Outgoing) -> Incoming {
    let Outgoing { sequence, message, validity, trace, .. } = outgoing;
    Incoming { message, validity: Some(validity), trace: Some(trace), sequence: Some(sequence) }
}

/// The ledger of a group that holds partition 0 and records events.
pub(super) async fn ledger(database: &Database, group: &str) -> (SqlDeliveryLedger, Lease) {
    let [group, topic, member] = [group, "message", "member"].map(str::to_owned);
    let leases =
        SqlPartitionLeases::new(database.clone(), group.clone(), topic.clone(), member.clone());
    leases.register(&[0]).await.unwrap();
    let lease = leases.acquire(1, LONG).await.unwrap().remove(0);
    let ledger = SqlDeliveryLedger::new(database.clone(), group, topic, member);
    (ledger.with_events(Events::Recorded), lease)
}

pub(super) fn batch(messages: &[Incoming]) -> Batch {
    Batch { records: records(messages), next_offset: 1, default_ttl: LONG, ..Batch::default() }
}

/// Calls of the default gateway.
pub(super) fn calls(ids: &[MessageId]) -> Vec<Start> {
    calls_of("default", ids)
}

/// Calls of a gateway.
pub(super) fn calls_of(gateway: &str, ids: &[MessageId]) -> Vec<Start> {
    let next = Next::Call(gateway.parse().unwrap());
    ids.iter().map(|id| Start { id: *id, next: next.clone() }).collect()
}

/// The calls of the default gateway that an admission grants.
pub(super) fn call_now(
    ids: impl IntoIterator<Item = MessageId>,
) -> HashMap<MessageId, GatewayName> {
    ids.into_iter().map(|id| (id, GatewayName::default())).collect()
}

/// Messages as records, from offset 0 on.
pub(super) fn records(messages: &[Incoming]) -> Vec<Record> {
    let record =
        |(offset, incoming): (i64, &Incoming)| Record { offset, content: Ok(incoming.clone()) };
    (0..).zip(messages).map(record).collect()
}

/// A statement with parameters `$1`, `$2`, …
pub(super) fn statement(
    database: &Database,
    sql: impl Into<String>,
    values: Vec<sea_orm::Value>,
) -> sea_orm::Statement {
    let backend = database.connection().get_database_backend();
    sea_orm::Statement::from_sql_and_values(backend, sql, values)
}

pub(super) async fn count(database: &Database, from: &str) -> i64 {
    number(database, format!("SELECT count(*) AS n FROM {from}")).await
}

/// Returns the number `n` of the only row.
pub(super) async fn number(database: &Database, sql: String) -> i64 {
    let statement = statement(database, sql, vec![]);
    let row = database.connection().query_one_raw(statement).await.unwrap().unwrap();
    row.try_get("", "n").unwrap()
}
