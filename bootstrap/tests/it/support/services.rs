use std::{
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::Command,
};

use sea_orm::{ConnectionTrait, Database, DatabaseConnection, Statement};
use tokio::sync::OnceCell;

use super::{Binary, Gateway, Kafka, SmallDisk, Topic};

/// The most privileges that each part of the service has in these tests.
const GRANTS: &str = include_str!("../../../../adapters/persistence/src/grants.sql");
const ROLES: [&str; 4] =
    ["messager_api", "messager_processor", "messager_consumer", "messager_operator"];

/// Returns the address of a test server, by the name that `scripts/services` gives. Without it the
/// test is skipped. With `REQUIRE_SERVICES` it fails.
#[expect(clippy::disallowed_methods, reason = "tests are told of their servers this way")]
pub(crate) fn environment(name: &str) -> Option<String> {
    let value = std::env::var(name).ok();
    assert!(
        value.is_some() || std::env::var("REQUIRE_SERVICES").is_err(),
        "{name} is not set: run the tests through `make test`"
    );
    if value.is_none() {
        eprintln!("skipped: {name} is not set");
    }
    value
}

/// A folder that is removed when this value is dropped.
#[derive(Debug)]
pub(crate) struct Folder(PathBuf);

impl Folder {
    pub(crate) fn new() -> Self {
        let path = std::env::temp_dir().join(format!("messager-it-{}", unique()));
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

pub(crate) fn unique() -> String {
    use rand::{
        Rng, SeedableRng,
        rngs::{StdRng, SysRng},
    };
    format!("{:016x}", StdRng::try_from_rng(&mut SysRng).unwrap().next_u64())
}

/// A new database on the test server.
#[derive(Debug)]
pub(crate) struct Postgres {
    pub(crate) connection: DatabaseConnection,
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) name: String,
    pub(crate) user: String,
    pub(crate) password: String,
    tablespace: Option<Tablespace>,
}

/// The tablespace of one database. Both are dropped with this value, also if the test fails: without
/// the disk below them, no checkpoint of the server succeeds.
#[derive(Debug)]
struct Tablespace {
    name: String,
    database: String,
}

impl Drop for Tablespace {
    fn drop(&mut self) {
        let Self { name, database } = self;
        let psql = format!("{}/psql", environment("TEST_PG_BIN").unwrap());
        let dropped = Command::new(psql)
            .args(["-Xq", "-v", "ON_ERROR_STOP=1", &environment("TEST_POSTGRES_URL").unwrap()])
            .args(["-c", &format!("DROP DATABASE {database} WITH (FORCE)")])
            .args(["-c", &format!("DROP TABLESPACE {name}")])
            .status();
        if !std::thread::panicking() {
            assert!(dropped.unwrap().success());
        }
    }
}

impl Postgres {
    pub(crate) async fn new() -> Option<Self> {
        Self::made("").await
    }

    /// Creates a database with these options.
    pub(crate) async fn made(how: &str) -> Option<Self> {
        Self::with("", how).await
    }

    /// Creates a database whose tables are on this disk.
    pub(crate) async fn on_disk(disk: &SmallDisk) -> Option<Self> {
        let folder = disk.path().join("tablespace");
        std::fs::create_dir(&folder).unwrap();
        let user = environment("TEST_PG_DATA")?;
        let owner = std::fs::metadata(user).unwrap();
        std::os::unix::fs::chown(&folder, Some(owner.uid()), Some(owner.gid())).unwrap();
        let name = format!("space_{}", unique());
        let create = format!("CREATE TABLESPACE {name} LOCATION '{}'", folder.display());
        let mut postgres = Self::with(&create, &format!("TABLESPACE {name}")).await?;
        postgres.tablespace = Some(Tablespace { name, database: postgres.name.clone() });
        Some(postgres)
    }

    async fn with(before: &str, options: &str) -> Option<Self> {
        let url = environment("TEST_POSTGRES_URL")?;
        let (login, place) = url.strip_prefix("postgres://").unwrap().split_once('@').unwrap();
        let (user, password) = login.split_once(':').unwrap();
        let (server, _) = place.split_once('/').unwrap();
        let (host, port) = server.split_once(':').unwrap();

        let name = format!("it_{}", unique());
        let admin = Database::connect(&url).await.unwrap();
        if !before.is_empty() {
            admin.execute_unprepared(before).await.unwrap();
        }
        admin.execute_unprepared(&format!("CREATE DATABASE {name} {options}")).await.unwrap();
        admin.execute_unprepared(&create_roles(password)).await.unwrap();
        admin.close().await.unwrap();
        let connection =
            Database::connect(format!("postgres://{login}@{server}/{name}")).await.unwrap();
        Some(Self {
            connection,
            host: host.to_owned(),
            port: port.parse().unwrap(),
            name,
            user: user.to_owned(),
            password: password.to_owned(),
            tablespace: None,
        })
    }

    /// Returns the settings for this database.
    pub(crate) fn env(&self) -> Vec<(String, String)> {
        [
            ("POSTGRES_HOST", self.host.clone()),
            ("POSTGRES_PORT", self.port.to_string()),
            ("POSTGRES_DB", self.name.clone()),
            ("POSTGRES_USER", self.user.clone()),
            ("POSTGRES_PASSWORD", self.password.clone()),
            ("DB_SSL_MODE", "disable".to_owned()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .to_vec()
    }

    /// Ends the sessions of a role. Later sessions are not affected.
    pub(crate) async fn end_sessions_of(&self, role: &str) {
        self.number(&format!(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
             WHERE datname = current_database() AND usename = '{role}'"
        ))
        .await;
    }

    /// Runs a statement.
    pub(crate) async fn execute(&self, sql: &str) {
        self.connection.execute_unprepared(sql).await.unwrap();
    }

    pub(crate) async fn number(&self, sql: &str) -> i64 {
        let statement = Statement::from_string(sea_orm::DbBackend::Postgres, sql);
        let row = self.connection.query_one_raw(statement).await.unwrap().unwrap();
        row.try_get_by_index(0).unwrap()
    }
}

/// Returns the statements that create the roles. Another test may have created them, because roles
/// belong to the server.
fn create_roles(password: &str) -> String {
    use std::fmt::Write;
    let mut sql = "SELECT pg_advisory_lock(1);".to_owned();
    for role in ROLES.iter().chain(&["messager_queue"]) {
        write!(
            sql,
            "DO $$ BEGIN CREATE ROLE {role} LOGIN PASSWORD '{password}';
             EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL; END $$;"
        )
        .unwrap();
    }
    sql.push_str("SELECT pg_advisory_unlock(1)");
    sql
}

/// Returns the name of a migrated database. Its copies take a fraction of the time of `migrate`.
async fn migrated() -> Option<&'static str> {
    static MIGRATED: OnceCell<Option<String>> = OnceCell::const_new();
    let name = MIGRATED.get_or_init(async || {
        let postgres = Postgres::new().await?;
        let folder = Folder::new();
        let mut messager = Binary::new("messager", folder.path()).args(&["migrate", "up"]);
        for (name, value) in postgres.env() {
            messager = messager.env(&name, &value);
        }
        let done = messager.output().await;
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        // A database with a session cannot be copied.
        postgres.connection.close().await.unwrap();
        Some(postgres.name)
    });
    name.await.as_deref()
}

/// The neighbours of the three binaries: a migrated database, a topic, a gateway.
#[derive(Debug)]
pub(crate) struct Stack {
    pub(crate) postgres: Postgres,
    pub(crate) topic: Topic,
    pub(crate) gateway: Gateway,
    pub(crate) folder: Folder,
    pub(crate) env: Vec<(String, String)>,
}

impl Stack {
    pub(crate) async fn new() -> Option<Self> {
        Self::with_topic(Topic::new(4).await?).await
    }

    /// Starts with a topic on a broker of the test.
    pub(crate) async fn on(kafka: &Kafka) -> Option<Self> {
        Self::with_topic(Topic::on(kafka.server.clone(), 4).await).await
    }

    async fn with_topic(topic: Topic) -> Option<Self> {
        let postgres = Postgres::made(&format!("TEMPLATE {}", migrated().await?)).await?;
        let gateway = Gateway::start().await;
        let mut env = postgres.env();
        env.extend(
            [
                ("PRODUCER_URL", topic.server.clone()),
                ("CONSUMER_URL", topic.server.clone()),
                ("PROCESSOR_TOPIC", topic.name.clone()),
                ("CONSUMER_TOPIC", topic.name.clone()),
                ("GATEWAY", "webhook".to_owned()),
                ("GATEWAY_URL", gateway.url()),
            ]
            .map(|(name, value)| (name.to_owned(), value)),
        );
        let stack = Self { postgres, topic, gateway, folder: Folder::new(), env };
        stack.postgres.execute(GRANTS).await;
        Some(stack)
    }

    /// Returns a binary with these neighbours, further settings and the privileges of its role.
    pub(crate) fn start(&self, binary: &str, more: &[(&str, &str)]) -> Binary {
        let mut start = Binary::new(binary, self.folder.path());
        let role = match binary {
            "messager" => "messager_operator".to_owned(),
            part => format!("messager_{part}"),
        };
        for (name, value) in &self.env {
            start = start.env(name, value);
        }
        start = start.env("POSTGRES_USER", &role);
        for (name, value) in more {
            start = start.env(name, value);
        }
        start
    }
}
