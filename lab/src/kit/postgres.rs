//! The PostgreSQL server of `scripts/services`, and a database on it.

use std::{path::Path, process::Stdio, time::Duration};

use anyhow::Context;
use ports::free_port;
use sqlx::{
    PgPool,
    postgres::{PgConnectOptions, PgPoolOptions},
};
use tokio::process::Command;

use super::environment::variable;

/// How a server is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Shutdown {
    /// Ends all sessions and writes out committed data.
    Fast,
    /// Like a crash: the server recovers when it starts.
    Immediate,
}

#[derive(Debug, Clone)]
pub struct Postgres {
    pub port: u16,
    user: String,
    password: String,
    host: String,
    program: String,
    data: String,
    log: String,
    /// The words before a command that run it as the server's user.
    user_switch: Vec<String>,
}

impl Postgres {
    /// Describes the server that the environment names.
    pub fn from_environment() -> anyhow::Result<Self> {
        let url = variable("TEST_POSTGRES_URL")?;
        let parts = || {
            let (login, place) = url.strip_prefix("postgres://")?.split_once('@')?;
            let (user, password) = login.split_once(':')?;
            let (host, port) = place.split_once('/')?.0.split_once(':')?;
            Some((user.to_owned(), password.to_owned(), host.to_owned(), port.parse().ok()?))
        };
        let (user, password, host, port) =
            parts().context("TEST_POSTGRES_URL is not as expected")?;
        Ok(Self {
            port,
            user,
            password,
            host,
            program: format!("{}/pg_ctl", variable("TEST_PG_BIN")?),
            data: variable("TEST_PG_DATA")?,
            log: variable("TEST_PG_LOG")?,
            user_switch: variable("TEST_PG_USER_SWITCH")?
                .split_whitespace()
                .map(ToOwned::to_owned)
                .collect(),
        })
    }

    /// Creates a database and connects to it.
    pub async fn create_database(&self, name: &str) -> anyhow::Result<PgPool> {
        let admin = self.admin().await?;
        let create = sqlx::AssertSqlSafe(format!("CREATE DATABASE {name}"));
        sqlx::query(create).execute(&admin).await?;
        admin.close().await;
        Ok(self.database(name))
    }

    /// Returns a pool for a database, which connects when it is used.
    pub fn database(&self, name: &str) -> PgPool {
        let pool = PgPoolOptions::new().max_connections(4).acquire_timeout(Duration::from_secs(5));
        pool.connect_lazy_with(self.options(name))
    }

    async fn admin(&self) -> sqlx::Result<PgPool> {
        PgPoolOptions::new().max_connections(1).connect_with(self.options("postgres")).await
    }

    fn options(&self, database: &str) -> PgConnectOptions {
        PgConnectOptions::new_without_pgpass()
            .host(&self.host)
            .port(self.port)
            .username(&self.user)
            .password(&self.password)
            .database(database)
            .application_name("lab")
    }

    /// Returns the settings that lead a process of the service to a database, through `port`.
    pub fn settings(&self, database: &str, port: u16) -> Vec<(String, String)> {
        [
            ("POSTGRES_HOST", self.host.clone()),
            ("POSTGRES_PORT", port.to_string()),
            ("POSTGRES_DB", database.to_owned()),
            ("POSTGRES_USER", self.user.clone()),
            ("POSTGRES_PASSWORD", self.password.clone()),
            ("DB_SSL_MODE", "disable".to_owned()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .to_vec()
    }

    pub fn log(&self) -> &Path {
        Path::new(&self.log)
    }

    /// Returns the arguments that lead a client program of PostgreSQL to a database.
    pub fn client_args(&self, database: &str) -> Vec<String> {
        let port = self.port.to_string();
        ["-h", &self.host, "-p", &port, "-U", &self.user, database].map(ToOwned::to_owned).to_vec()
    }

    pub fn client_env(&self) -> [(&'static str, &str); 1] {
        [("PGPASSWORD", &self.password)]
    }

    /// Removes a database, even if sessions are connected to it.
    pub async fn drop_database(&self, name: &str) -> anyhow::Result<()> {
        let admin = self.admin().await?;
        let drop = sqlx::AssertSqlSafe(format!("DROP DATABASE {name} WITH (FORCE)"));
        sqlx::query(drop).execute(&admin).await?;
        admin.close().await;
        Ok(())
    }

    /// Restarts the server, and waits until it answers again.
    pub async fn restart(&self, shutdown: Shutdown) -> anyhow::Result<()> {
        self.control(&["restart", "-m", shutdown.mode(), "-l", &self.log]).await
    }

    pub async fn stop(&self, shutdown: Shutdown) -> anyhow::Result<()> {
        self.control(&["stop", "-m", shutdown.mode()]).await
    }

    /// Starts the server with these options of its command line.
    pub async fn start(&self, options: &str) -> anyhow::Result<()> {
        self.control(&["start", "-l", &self.log, "-o", options]).await
    }

    /// Stops the server if it runs, and starts it with these options and no earlier ones.
    pub async fn start_over(&self, options: &str) -> anyhow::Result<()> {
        // It fails if the server does not run.
        let _ = self.stop(Shutdown::Fast).await;
        self.start(options).await
    }

    /// Copies the server while it runs. The copy follows it as a standby, on a port of its own, once
    /// it is started. Its data is beside that of the original.
    pub async fn copy(&self) -> anyhow::Result<Self> {
        let port = free_port();
        let beside = |path: &str| format!("{path}-{port}");
        let copy = Self { port, data: beside(&self.data), log: beside(&self.log), ..self.clone() };
        let program = Path::new(&self.program).with_file_name("pg_basebackup");
        let from = self.port.to_string();
        let program = program.to_str().context("no pg_basebackup")?;
        let mut words = vec![program, "-D", &copy.data, "-R", "-X", "stream", "--no-sync"];
        words.extend(["--checkpoint=fast", "-h", &self.host, "-p", &from, "-U", &self.user]);
        self.run(&words).await?;
        Ok(copy)
    }

    /// Makes a standby the primary.
    pub async fn promote(&self) -> anyhow::Result<()> {
        self.control(&["promote"]).await
    }

    /// Removes the data of a copy, which must not run.
    pub async fn remove(&self) -> anyhow::Result<()> {
        self.run(&["rm", "-r", &self.data, &self.log]).await
    }

    /// Runs `pg_ctl`, and waits until it is done.
    async fn control(&self, words: &[&str]) -> anyhow::Result<()> {
        // A machine that is busy writing may need more than the usual minute for a checkpoint.
        let common = ["-w", "-s", "-t", "180", "-D", &self.data];
        let words: Vec<&str> =
            std::iter::once(&*self.program).chain(words.iter().copied()).chain(common).collect();
        self.run(&words).await
    }

    /// Runs a program as the user of the server.
    async fn run(&self, words: &[&str]) -> anyhow::Result<()> {
        let mut all = self.user_switch.iter().map(String::as_str).chain(words.iter().copied());
        let program = all.next().context("no program")?;
        let status = Command::new(program)
            .args(all)
            .envs(self.client_env())
            .env("LC_ALL", "C")
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .await
            .with_context(|| format!("run {}", words.join(" ")))?;
        anyhow::ensure!(status.success(), "{}: {status}", words.join(" "));
        Ok(())
    }
}

impl Shutdown {
    fn mode(self) -> &'static str {
        match self {
            Self::Fast => "fast",
            Self::Immediate => "immediate",
        }
    }
}

/// Ends every session of the service in this database.
pub async fn terminate_backends(database: &PgPool) -> sqlx::Result<()> {
    let sql = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
        WHERE datname = current_database() AND application_name LIKE 'messager%'";
    sqlx::query(sql).execute(database).await.map(|_| ())
}
