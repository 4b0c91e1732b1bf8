//! A real PgBouncer between the service and PostgreSQL, in its three modes.

use std::{
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

use application::ports::Outbox;
use migration::{Migrator, MigratorTrait};
use ports::free_port;
use sea_orm::{ConnectionTrait, DbBackend, Statement};
use tokio::time::{Instant, sleep};

use super::support::{
    Folder, empty_folder, environment, in_time, new_message, new_postgres, phone,
};
use crate::{
    AdmitError, CoalescingOutbox, Database, DatabaseSettings, MigrationLockError, OutboxSettings,
    PostgresSettings, SchemaError, check_schema, take_alone,
};

/// A PgBouncer in front of a new database. It ends when this value is dropped.
struct PgBouncer {
    child: Child,
    folder: Folder,
    direct: PostgresSettings,
    pooled: PostgresSettings,
}

impl PgBouncer {
    async fn start(mode: &str, options: &str) -> Option<Self> {
        let direct = new_postgres().await?;
        let program = environment("TEST_PGBOUNCER");
        assert!(
            program.is_some() || environment("REQUIRE_SERVICES").is_none(),
            "TEST_PGBOUNCER is not set"
        );
        let Some(program) = program else {
            eprintln!("skipped: TEST_PGBOUNCER is not set");
            return None;
        };
        let folder = empty_folder();
        let port = free_port();
        let config = folder.path().join("pgbouncer.ini");
        let PostgresSettings { host, port: server, database, user, password, .. } = &direct;
        let password = password.clone().unwrap_or_default();
        let text = format!(
            "[databases]\n\
             {database} = host={host} port={server} dbname={database} user={user} password={password}\n\
             [pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nauth_type = any\n\
             unix_socket_dir =\npool_mode = {mode}\n{options}\n"
        );
        std::fs::write(&config, text).unwrap();
        let child = Self::run(&program, &config);
        let pooled = PostgresSettings { host: "127.0.0.1".to_owned(), port, ..direct.clone() };
        let begun = Instant::now();
        while tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_err() {
            assert!(begun.elapsed() < Duration::from_secs(20), "PgBouncer did not start");
            sleep(Duration::from_millis(20)).await;
        }
        Some(Self { child, folder, direct, pooled })
    }

    /// Runs PgBouncer as another user, because it refuses to run as root.
    fn run(program: &str, config: &PathBuf) -> Child {
        let switch = environment("TEST_PG_USER_SWITCH").unwrap_or_default();
        let mut words = switch.split_whitespace().chain([program]);
        Command::new(words.next().unwrap())
            .args(words)
            .arg("--quiet")
            .arg(config)
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    }

    fn pooled(&self) -> DatabaseSettings {
        DatabaseSettings::Postgres(self.pooled.clone())
    }

    fn direct(&self) -> DatabaseSettings {
        DatabaseSettings::Postgres(self.direct.clone())
    }
}

impl Drop for PgBouncer {
    fn drop(&mut self) {
        // The child may be the program that switches the user. It forwards TERM, but not KILL.
        let _ = Command::new("kill").arg(self.child.id().to_string()).status();
        let _ = self.child.wait();
        let _ = self.folder.path();
    }
}

async fn text(database: &Database, sql: &str) -> String {
    let statement = Statement::from_string(DbBackend::Postgres, sql);
    let row = database.connection().query_one_raw(statement).await.unwrap().unwrap();
    row.try_get_by_index(0).unwrap()
}

#[tokio::test]
async fn session_mode_works_with_all_settings_in_force() {
    let Some(pgbouncer) = PgBouncer::start("session", "").await else { return };
    let migrate = Database::connect_to_migrate(&pgbouncer.pooled(), "messager migrate");
    Migrator::up(&migrate.connection(), None).await.unwrap();
    migrate.close().await.unwrap();
    let database = Database::connect_lazily(&pgbouncer.pooled(), "messager test", 4);
    check_schema(&database).await.unwrap();

    for (setting, expected) in [
        ("statement_timeout", "10s"),
        ("lock_timeout", "5s"),
        ("idle_in_transaction_session_timeout", "10s"),
        ("plan_cache_mode", "force_generic_plan"),
        ("enable_seqscan", "off"),
        ("jit", "off"),
        ("synchronous_commit", "on"),
        ("application_name", "messager test"),
    ] {
        let found = text(&database, &format!("SELECT current_setting('{setting}')")).await;
        assert_eq!(found, expected, "{setting}");
    }
    let (outbox, _writers) = CoalescingOutbox::start(&database, OutboxSettings::default());
    for number in 0..20 {
        outbox.enqueue(new_message(&phone(number))).await.unwrap();
    }
}

async fn is_refused(pgbouncer: &PgBouncer) {
    let database = Database::connect_lazily(&pgbouncer.pooled(), "messager test", 4);

    let refused = check_schema(&database).await;
    assert!(
        matches!(&refused, Err(SchemaError::Refused(why)) if why.contains("pool_mode = session")),
        "{refused:?}"
    );
    let migrating = Database::connect_to_migrate(&pgbouncer.pooled(), "messager migrate");
    assert!(matches!(migrating.admit().await, Err(AdmitError::Refused(_))));
    // The pools cannot run a statement either.
    let one = Statement::from_string(DbBackend::Postgres, "SELECT 1");
    assert!(database.connection().query_one_raw(one.clone()).await.is_err());
    assert!(migrating.connection().query_one_raw(one).await.is_err());
    // No setting of ours has reached a session of another client.
    let direct = Database::connect_to_migrate(&pgbouncer.direct(), "direct");
    let prepared = "SELECT count(*)::text FROM pg_stat_activity \
        WHERE query LIKE '%set_config%' AND pid <> pg_backend_pid()
            AND datname = current_database()";
    assert_eq!(text(&direct, prepared).await, "0");
}

#[tokio::test]
async fn transaction_mode_is_recognised_and_refused() {
    let Some(pgbouncer) = PgBouncer::start("transaction", "").await else { return };
    is_refused(&pgbouncer).await;
}

#[tokio::test]
async fn statement_mode_is_recognised_and_refused() {
    let Some(pgbouncer) = PgBouncer::start("statement", "").await else { return };
    is_refused(&pgbouncer).await;
}

#[tokio::test]
async fn transaction_mode_is_recognised_with_sessions_in_rotation() {
    let more = "server_round_robin = 1\nmin_pool_size = 8";
    let Some(pgbouncer) = PgBouncer::start("transaction", more).await else { return };
    is_refused(&pgbouncer).await;
}

/// Other clients take and return sessions all the time.
#[tokio::test]
async fn transaction_mode_is_recognised_under_load() {
    use sea_orm::sqlx::{self, Connection as _, postgres::PgConnectOptions};
    let Some(pgbouncer) = PgBouncer::start("transaction", "").await else { return };
    let PostgresSettings { host, port, database, user, .. } = &pgbouncer.pooled;
    let options = PgConnectOptions::new_without_pgpass()
        .host(host)
        .port(*port)
        .database(database)
        .username(user)
        .extra_float_digits(None);
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let mut client = sqlx::PgConnection::connect_with(&options).await.unwrap();
        clients.spawn(async move {
            loop {
                sqlx::raw_sql("SELECT pg_sleep(0.002)").execute(&mut client).await.unwrap();
            }
        });
    }

    for _ in 0..5 {
        let database = Database::connect_lazily(&pgbouncer.pooled(), "messager test", 1);
        let refused = database.admit().await;
        assert!(matches!(refused, Err(AdmitError::Refused(_))), "{refused:?}");
    }
}

#[tokio::test]
async fn waiting_migration_names_the_holder_and_gives_up() {
    let Some(pgbouncer) = PgBouncer::start("session", "").await else { return };
    let connect = || Database::connect_to_migrate(&pgbouncer.pooled(), "messager migrate");
    let (first, second) = (connect(), connect());
    let patience = Duration::from_millis(300);
    first.lock_for_migration(patience, |_| panic!("the lock is free")).await.unwrap();

    let mut told = String::new();
    let refused = second.lock_for_migration(patience, |holder| told = holder.to_owned()).await;
    let pid = text(&first, "SELECT pg_backend_pid()::text").await;
    assert!(told.contains(&format!("process {pid}, messager migrate")), "{told}");
    assert!(matches!(refused, Err(MigrationLockError::Held { .. })), "{refused:?}");

    // The pooler keeps the session, but the lock is released.
    first.unlock_after_migration().await.unwrap();
    second.lock_for_migration(patience, |_| {}).await.unwrap();
}

#[tokio::test]
async fn unreleased_lock_ends_with_its_client() {
    let Some(pgbouncer) = PgBouncer::start("session", "").await else { return };
    let connect = || Database::connect_to_migrate(&pgbouncer.pooled(), "messager migrate");
    let first = connect();
    first.lock_for_migration(Duration::ZERO, |_| {}).await.unwrap();
    first.close().await.unwrap();

    connect().lock_for_migration(Duration::from_secs(10), |_| {}).await.unwrap();
}

/// The sessions that the pooler keeps for the next client belong to no process.
#[tokio::test]
async fn idle_session_of_the_pooler_does_not_count_as_a_process() {
    let Some(pgbouncer) = PgBouncer::start("session", "").await else { return };
    let process = Database::connect_lazily(&pgbouncer.pooled(), "messager api", 2);
    process.ping().await.unwrap();
    let migrate = Database::connect_to_migrate(&pgbouncer.direct(), "messager migrate");

    assert!(!take_alone(&migrate).await.unwrap().is_empty());

    process.close().await.unwrap();
    in_time(async {
        while !take_alone(&migrate).await.unwrap().is_empty() {
            sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}
