//! The table of the Go service, with its schema and its statements.

use std::{collections::HashSet, time::Duration};

use application::{
    TraceParent,
    ports::{Backlog, GivingBack, GoRow, GoTable, Ids, Reached, Taking},
};
use domain::{Message, MessageId};
use migration::{Migrator, MigratorTrait};
use sea_orm::{
    ConnectionTrait,
    sqlx::{self, Connection as _, PgConnection, Row as _, postgres::PgConnectOptions},
};

use super::support::{
    backlog, count, in_time, look, new_postgres, number, phone, postgres, rng, sqlite,
};
use crate::{Database, DatabaseSettings, NoGoTable, PostgresSettings, SqlGoTable};

/// The only migration of the Go service.
const SCHEMA: &str = include_str!("go_table.sql");

/// Its API.
const ACCEPT: &str = "INSERT INTO message (payload) VALUES ($1::jsonb)";

/// Its processor, once in `PROCESSOR_RESERVATION_TIME`. It gives its own time twice.
const CLAIM: &str = "
UPDATE message SET reserved_to = $1
WHERE id IN (
    SELECT id FROM message
    WHERE status = 'new' AND reserved_to < $2
    ORDER BY created_at DESC
    LIMIT $3
)
RETURNING id, payload";

const ALL: Ids = Ids { after: 0, last: 1_000_000 };
const TTL: Duration = Duration::from_secs(600);

/// Returns a migrated database that has the table of the Go service too.
async fn database() -> Option<Database> {
    let database = postgres().await?;
    run(&database, SCHEMA).await;
    Some(database)
}

async fn run(database: &Database, sql: &str) {
    database.connection().execute_unprepared(sql).await.unwrap();
}

async fn open(database: &Database) -> SqlGoTable {
    SqlGoTable::open(database.clone(), Some("UTC".into()), TTL).await.unwrap()
}

/// Returns a session with the settings of a server, as the Go service has it.
async fn session(database: &Database) -> PgConnection {
    let DatabaseSettings::Postgres(settings) = database.settings() else { panic!() };
    let options = PgConnectOptions::new_without_pgpass()
        .host(&settings.host)
        .port(settings.port)
        .database(&settings.database)
        .username(&settings.user)
        .password(settings.password.as_deref().unwrap_or_default());
    PgConnection::connect_with(&options).await.unwrap()
}

/// Stores messages as the API of the Go service does.
async fn accept(database: &Database, messages: std::ops::Range<usize>) {
    let mut session = session(database).await;
    for number in messages {
        let payload = serde_json::json!({"code": "123456", "phone": phone(number)});
        sqlx::query(ACCEPT).bind(payload.to_string()).execute(&mut session).await.unwrap();
    }
}

/// Claims rows as the processor of the Go service does. Returns their ids.
async fn claim(session: &mut PgConnection, seconds: i64, limit: i64) -> Vec<i64> {
    // The service sends its own time. Here that is the time of the server.
    let now = "SELECT (clock_timestamp() AT TIME ZONE 'UTC')::text";
    let now: String = sqlx::query(now).fetch_one(&mut *session).await.unwrap().get(0);
    let claim = CLAIM
        .replace("$1", &format!("timestamp '{now}' + interval '{seconds} seconds'"))
        .replace("$2", &format!("timestamp '{now}'"))
        .replace("$3", &limit.to_string());
    let claim = sqlx::AssertSqlSafe(claim);
    let rows = sqlx::query(claim).fetch_all(&mut *session).await.unwrap();
    rows.iter().map(|row| i64::from(row.get::<i32, _>(0))).collect()
}

async fn waiting(table: &SqlGoTable) -> Vec<GoRow> {
    table.waiting(ALL, false, 10_000).await.unwrap()
}

fn taking(rows: Vec<GoRow>) -> Vec<Taking> {
    let taking = |row: GoRow| {
        let (phone, code) = row.content.clone().unwrap();
        let id = MessageId::of_go_row(row.id, row.created_at);
        let message = Message { id, phone, code: code.into() };
        Taking { row, message, trace: TraceParent::generate(&mut rng()) }
    };
    rows.into_iter().map(taking).collect()
}

fn ids(rows: &[GoRow]) -> Vec<i64> {
    rows.iter().map(|row| row.id).collect()
}

#[tokio::test]
async fn taken_row_is_done_and_its_message_waits_in_the_outbox() {
    let Some(database) = database().await else { return };
    accept(&database, 0..3).await;
    run(&database, "UPDATE message SET created_at = created_at - interval '1 minute', reserved_to = created_at - interval '1 minute'").await;
    let table = open(&database).await;

    let rows = taking(waiting(&table).await);
    let taken = table.take(&rows).await.unwrap();

    assert_eq!(taken, 3);
    let waiting = look(&database, 0).await;
    let messages: Vec<_> = waiting.iter().map(|it| it.message.clone()).collect();
    assert_eq!(messages, rows.iter().map(|it| it.message.clone()).collect::<Vec<_>>());
    for (waiting, taken) in waiting.iter().zip(&rows) {
        assert_eq!(waiting.validity.accepted_at, taken.row.accepted_at);
        assert_eq!(waiting.validity.expires_at, taken.row.accepted_at + TTL);
        assert_eq!(waiting.trace, taken.trace);
    }
    let kept = "message WHERE status = 'done' AND payload ->> 'code' = '123456' AND created_at = reserved_to";
    assert_eq!(count(&database, kept).await, 3);
    assert_eq!(table.take(&rows).await.unwrap(), 0, "a repeat takes nothing");
    assert_eq!(count(&database, "outbox").await, 3);
}

#[tokio::test]
async fn only_new_rows_that_have_not_expired_wait() {
    let Some(database) = database().await else { return };
    accept(&database, 0..5).await;
    run(&database, "UPDATE message SET status = 'done' WHERE id = 1").await;
    run(&database, "UPDATE message SET created_at = created_at - interval '10 minutes', reserved_to = reserved_to - interval '10 minutes' WHERE id = 2").await;
    run(
        &database,
        "UPDATE message SET reserved_to = reserved_to + interval '1 second' WHERE id = 3",
    )
    .await;
    let table = open(&database).await;

    let counts = table.count(ALL).await.unwrap();

    assert_eq!(ids(&waiting(&table).await), [4, 5]);
    assert_eq!(ids(&table.waiting(ALL, true, 10).await.unwrap()), [3]);
    assert_eq!(ids(&table.waiting(ALL, false, 1).await.unwrap()), [4]);
    assert_eq!(ids(&table.waiting(Ids { after: 4, last: 5 }, false, 10).await.unwrap()), [5]);
    assert_eq!(table.ids().await.unwrap(), Some(Ids { after: 0, last: 5 }));
    let found = (counts.done, counts.waiting, counts.claimed, counts.expired, counts.ahead);
    assert_eq!(found, (1, 2, 1, 1, 0));
    assert!(counts.newest.is_some());
}

#[tokio::test]
async fn row_without_a_valid_message_says_why() {
    let Some(database) = database().await else { return };
    run(
        &database,
        r#"INSERT INTO message (payload) VALUES
            ('{"phone": "79991234567"}'), ('{"code": "123456"}'), ('[1]'), ('7'),
            ('{"phone": 79991234567, "code": "123456"}'),
            ('{"phone": "1234567890123456", "code": "123456"}'),
            ('{"phone": "79991234567", "code": "abc"}')"#,
    )
    .await;

    let rows = waiting(&open(&database).await).await;

    let reasons: Vec<_> = rows.iter().map(|row| row.content.clone().unwrap_err()).collect();
    let (no_phone, no_code) = ("the payload has no phone", "the payload has no code");
    let (phone, code) = ("the phone is invalid", "the code is invalid");
    assert_eq!(reasons, [no_code, no_phone, no_phone, no_phone, no_phone, phone, code]);
}

#[tokio::test]
async fn row_that_the_go_processor_claimed_in_the_meantime_is_not_taken() {
    let Some(database) = database().await else { return };
    accept(&database, 0..4).await;
    let table = open(&database).await;
    let rows = taking(waiting(&table).await);
    let mut go = session(&database).await;

    let mut claiming = go.begin().await.unwrap();
    assert_eq!(claim(&mut claiming, 1, 2).await.len(), 2);
    let during = table.take(&rows).await.unwrap();
    claiming.commit().await.unwrap();
    let after = table.take(&rows).await.unwrap();

    assert_eq!((during, after), (2, 0));
    assert_eq!(table.waiting(ALL, true, 10).await.unwrap().len(), 2);
}

/// A claim that waits for a row updates and returns it as it is then, whatever its state. Therefore a
/// taken row is deleted, and inserted again.
#[tokio::test]
async fn claim_of_the_go_processor_that_waits_for_a_taken_row_does_not_get_it() {
    let Some(database) = database().await else { return };
    accept(&database, 0..3).await;
    // A take-over stops in its middle until this test lets it go on.
    run(
        &database,
        "CREATE FUNCTION stop() RETURNS trigger LANGUAGE plpgsql AS
         'BEGIN PERFORM pg_advisory_xact_lock(7); RETURN NEW; END';
         CREATE TRIGGER stop BEFORE INSERT ON outbox FOR EACH ROW EXECUTE FUNCTION stop()",
    )
    .await;
    let mut test = session(&database).await;
    sqlx::query("SELECT pg_advisory_lock(7)").execute(&mut test).await.unwrap();
    let table = open(&database).await;
    let rows = taking(waiting(&table).await);
    let blocked = async |by: &str| {
        let sql = format!(
            "SELECT count(*) AS n FROM pg_stat_activity WHERE datname = current_database()
             AND wait_event_type = 'Lock' AND wait_event = '{by}'"
        );
        in_time(async {
            while number(&database, sql.clone()).await == 0 {
                tokio::task::yield_now().await;
            }
        })
        .await;
    };

    let taking = tokio::spawn(async move { table.take(&rows).await.unwrap() });
    blocked("advisory").await;
    let mut go = session(&database).await;
    let claiming = tokio::spawn(async move { claim(&mut go, 1, 10).await });
    blocked("transactionid").await;
    sqlx::query("SELECT pg_advisory_unlock(7)").execute(&mut test).await.unwrap();

    assert_eq!(taking.await.unwrap(), 3);
    assert_eq!(claiming.await.unwrap(), Vec::<i64>::new());
}

#[tokio::test]
async fn each_row_goes_to_one_of_two_take_overs_and_the_go_processor() {
    const ROWS: usize = 2_000;
    let Some(database) = database().await else { return };
    accept(&database, 0..ROWS).await;

    let mut tasks = tokio::task::JoinSet::new();
    let mut go = session(&database).await;
    tasks.spawn(async move {
        let mut mine = Vec::new();
        for _ in 0..200 {
            // What it claims stays claimed.
            mine.extend(claim(&mut go, 3_600, 5).await);
        }
        mine
    });
    for _ in 0..2 {
        let table = open(&database).await;
        tasks.spawn(async move {
            loop {
                let rows = table.waiting(ALL, false, 50).await.unwrap();
                if rows.is_empty() {
                    return Vec::new();
                }
                table.take(&taking(rows)).await.unwrap();
            }
        });
    }
    let of_go: HashSet<i64> = tasks.join_all().await.concat().into_iter().collect();

    let taken = count(&database, "outbox").await;
    assert_eq!(count(&database, "message WHERE status = 'done'").await, taken);
    let claimed = open(&database).await.waiting(ALL, true, ROWS).await.unwrap();
    assert_eq!(ids(&claimed).into_iter().collect::<HashSet<_>>(), of_go);
    assert_eq!(usize::try_from(taken).unwrap() + of_go.len(), ROWS);
    assert!(!of_go.is_empty(), "the claims came too late to race");
}

#[tokio::test]
async fn only_messages_that_were_never_published_are_given_back() {
    let Some(database) = database().await else { return };
    accept(&database, 0..3).await;
    let table = open(&database).await;
    table.take(&taking(waiting(&table).await)).await.unwrap();
    let before = table.unpublished(0, 10).await.unwrap().expect("there was no relay");
    let done = table.done(ALL).await.unwrap();
    let sequence_of = |id| before.iter().find(|it| it.id == id).unwrap().sequence;
    let all: Vec<_> =
        done.iter().map(|(row, id)| GivingBack { row: *row, sequence: sequence_of(*id) }).collect();
    let backlog = backlog(&database);

    let tenure = backlog.acquire(Duration::ZERO).await.unwrap().unwrap();
    assert_eq!(table.unpublished(0, 10).await.unwrap(), None);
    assert_eq!(table.give_back(&all).await.unwrap(), None);
    // The first was published, and the second by a processor of an earlier version.
    let reached = Reached { published: 0, read: before[0].sequence };
    backlog.release(&tenure, reached).await.unwrap();
    let second = format!("UPDATE outbox SET attempt = 1 WHERE sequence = {}", before[1].sequence);
    run(&database, &second).await;
    assert_eq!(table.unpublished(0, 10).await.unwrap(), Some(vec![before[2]]));
    let given = table.give_back(&all).await.unwrap();
    let again = table.give_back(&all).await.unwrap();

    assert_eq!((all.len(), given, again), (3, Some(1), Some(0)));
    assert_eq!(table.unpublished(0, 10).await.unwrap(), Some(vec![]));
    assert_eq!(count(&database, "outbox").await, 2);
    assert_eq!(count(&database, "message WHERE status = 'done'").await, 2);
    assert_eq!(waiting(&table).await.len(), 1, "as if never claimed");
    let mut go = session(&database).await;
    assert_eq!(claim(&mut go, 1, 10).await.len(), 1);
}

/// The user of the Go service is not a superuser. It owns the table `message` and the objects that
/// `migrate up` creates.
#[tokio::test]
async fn user_of_the_go_service_may_take_rows_over_and_give_them_back() {
    let Some(settings) = new_postgres().await else { return };
    let server = Database::connect_lazily(&DatabaseSettings::Postgres(settings.clone()), "test", 1);
    let name = &settings.database;
    let (user, password) = (format!("go_{name}"), settings.password.as_deref().unwrap());
    run(&server, &format!("CREATE ROLE {user} LOGIN PASSWORD '{password}'")).await;
    run(&server, &format!("ALTER DATABASE {name} OWNER TO {user}")).await;
    let settings = DatabaseSettings::Postgres(PostgresSettings { user, ..settings.clone() });
    let database = Database::connect_lazily(&settings, "test", 2);
    run(&database, SCHEMA).await;
    Migrator::up(&database.connection(), None).await.unwrap();
    accept(&database, 0..2).await;
    let table = open(&database).await;

    assert_eq!(table.take(&taking(waiting(&table).await)).await.unwrap(), 2);
    let stored = table.unpublished(0, 10).await.unwrap().unwrap();
    let done = table.done(ALL).await.unwrap();
    let back = stored.iter().zip(done);
    let back: Vec<_> =
        back.map(|(it, (row, _))| GivingBack { row, sequence: it.sequence }).collect();

    assert_eq!(table.give_back(&back).await.unwrap(), Some(2));
}

#[tokio::test]
async fn row_that_was_published_becomes_done_unless_it_changed() {
    let Some(database) = database().await else { return };
    accept(&database, 0..2).await;
    let mut go = session(&database).await;
    claim(&mut go, 0, 2).await;
    let table = open(&database).await;
    let rows = table.waiting(ALL, true, 10).await.unwrap();
    let changed = claim(&mut go, 1, 1).await;

    let done = table.mark_done(&rows).await.unwrap();

    assert_eq!((done, changed.len()), (1, 1));
    assert_eq!(count(&database, "message WHERE status = 'new'").await, 1);
    assert_eq!(count(&database, "outbox").await, 0);
}

#[tokio::test]
async fn times_of_the_table_are_in_the_zone_of_the_database() {
    let Some(database) = database().await else { return };
    let name = name_of(&database);
    run(&database, &format!("ALTER DATABASE {name} SET TimeZone = 'Asia/Tokyo'")).await;
    run(&database, "SET TimeZone = 'Asia/Tokyo'; INSERT INTO message (payload) VALUES ('{}'); SET TimeZone = 'UTC'").await;

    let table = SqlGoTable::open(database.clone(), None, TTL).await.unwrap();

    assert_eq!(table.zone(), "Asia/Tokyo");
    assert_eq!(table.count(ALL).await.unwrap().ahead, 0);
    assert_eq!(open(&database).await.count(ALL).await.unwrap().ahead, 1);
    let unknown = SqlGoTable::open(database.clone(), Some("Mars/Phobos".into()), TTL).await;
    assert!(matches!(unknown, Err(NoGoTable::Unusable(_))), "{unknown:?}");
}

fn name_of(database: &Database) -> &str {
    let DatabaseSettings::Postgres(settings) = database.settings() else { panic!() };
    &settings.database
}

#[tokio::test]
async fn table_that_is_not_as_the_go_service_made_it_is_refused() {
    let Some(database) = database().await else { return };
    let refused = async || match SqlGoTable::open(database.clone(), None, TTL).await {
        Err(NoGoTable::Unusable(why)) => why,
        other => panic!("{other:?}"),
    };
    for (change, undo, expected) in [
        ("ALTER TABLE message ADD sent_by text", "ALTER TABLE message DROP sent_by", "sent_by"),
        (
            "ALTER TABLE message RENAME payload TO body",
            "ALTER TABLE message RENAME body TO payload",
            "its column body",
        ),
        (
            "CREATE TABLE receipt (message integer REFERENCES message)",
            "DROP TABLE receipt",
            "the table receipt references",
        ),
        (
            "CREATE FUNCTION it() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
             CREATE TRIGGER audit AFTER DELETE ON message FOR EACH ROW EXECUTE FUNCTION it()",
            "DROP TRIGGER audit ON message",
            "the trigger audit",
        ),
        ("ALTER TABLE message RENAME TO old", "ALTER TABLE old RENAME TO message", "no table"),
    ] {
        run(&database, change).await;
        let why = refused().await;
        run(&database, undo).await;
        assert!(why.contains(expected), "{change}: {why}");
    }
    open(&database).await;

    let (sqlite, _folder) = sqlite().await;
    let on_sqlite = SqlGoTable::open(sqlite, None, TTL).await;
    assert!(matches!(on_sqlite, Err(NoGoTable::Unusable(_))), "{on_sqlite:?}");
}
