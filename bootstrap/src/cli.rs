//! What the binaries take on their command lines.

mod down;
pub mod guard;
pub mod keys;
pub mod limits;
pub mod secrets;
pub mod settings;

use std::{
    io::{self, Read, Write, stdout},
    net::{SocketAddr, TcpStream},
    process::ExitCode,
    time::{Duration, SystemTime},
};

use adapters_persistence::{Database, DatabaseSettings, check_schema};
use anyhow::{Context, bail, ensure};
use chrono::{DateTime, SecondsFormat, Utc};
use clap::{CommandFactory, FromArgMatches, Parser};
use migration::{MigrationStatus, Migrator, MigratorTrait};
use rand::{
    SeedableRng,
    rngs::{StdRng, SysRng},
};

use crate::{
    config::{Config, Effective, InvalidConfig},
    descriptors,
    report::{Audience, Form},
};

/// Where a user finds what a command line does not say.
pub const SETTINGS: &str = "Settings are read from the environment, and below it from the file .env \
    of the working directory. .env.example and docs/settings.md list them.";

/// The command line of a binary that is one part of the service.
#[derive(Debug, Parser)]
#[command(
    version,
    about = "A part of Messager, which sends SMS verification codes.",
    after_help = SETTINGS
)]
pub struct Args {
    #[command(subcommand)]
    pub command: Option<Command>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::Subcommand)]
pub enum Command {
    /// Exit with 0 if the running service on this machine is ready.
    Healthcheck,
}

impl Args {
    /// Whom the process speaks to.
    pub fn audience(&self) -> Audience {
        if self.command.is_none() { Audience::Log } else { Audience::Person }
    }

    /// Parses the command line of the binary of this name.
    pub fn parse_for(binary: &'static str) -> Self {
        let matches = Self::command().name(binary).get_matches();
        Self::from_arg_matches(&matches).unwrap_or_else(|error| error.exit())
    }
}

/// What an operator can ask of the schema.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::Subcommand)]
pub enum Migration {
    /// Bring the schema up to this version.
    Up,
    /// Take migrations back, the latest first: says which tables and rows that deletes, and asks.
    /// Refuses while a process uses the database.
    Down {
        /// How many.
        #[arg(default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
        steps: u32,
        /// Do not ask. Needed where there is no terminal.
        #[arg(long)]
        yes: bool,
    },
    /// List the migrations and which of them the database has.
    Status,
}

/// Reads the settings and runs `main` on as many threads as there are cores.
///
/// Exits with 2 if the settings are not usable, and with 1 on another failure.
pub fn run<F: Future<Output = anyhow::Result<()>>>(
    audience: Audience,
    main: impl FnOnce(Config) -> F,
) -> ExitCode {
    // In small pages: of the buffers that a connection reserves it uses the first bytes, and a page
    // of 2 MiB takes the rest as well. With 2,000 connections that was 105 MiB instead of 65.
    #[cfg(target_os = "linux")]
    let _ = rustix::thread::disable_transparent_huge_pages(true);

    descriptors::raise();

    let effective = Effective::read();
    let form = Form::of(audience, effective.mode());
    form.report_panics();
    let runtime = effective.config.map_err(anyhow::Error::from).and_then(|config| {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        Ok((runtime, config))
    });
    let result = runtime.and_then(|(runtime, config)| {
        let result = runtime.block_on(main(config));
        // Whatever is still running was left behind on purpose.
        runtime.shutdown_background();
        result
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let code = if error.is::<InvalidConfig>() { 2 } else { 1 };
            form.error(&format!("{error:#}"));
            ExitCode::from(code)
        }
    }
}

/// Asks the service on this machine whether it is ready.
pub fn healthcheck(config: &Config, default_port: u16) -> anyhow::Result<()> {
    const PATIENCE: Duration = Duration::from_secs(3);
    let port = config.process.metrics_port.unwrap_or(default_port);
    let mut unreachable = None;
    for address in config.process.metrics_hosts.from_here() {
        let address = SocketAddr::from((address, port));
        let context = || format!("http://{address}/readyz");
        match TcpStream::connect_timeout(&address, PATIENCE) {
            Ok(stream) => return ask_whether_ready(stream, PATIENCE).with_context(context),
            Err(error) => {
                let error = anyhow::Error::from(error).context("connect").context(context());
                // The first is the likeliest, and so is its error.
                unreachable.get_or_insert(error);
            }
        }
    }
    Err(unreachable.context("no address to ask")?)
}

fn ask_whether_ready(mut stream: TcpStream, patience: Duration) -> anyhow::Result<()> {
    stream.set_read_timeout(Some(patience))?;
    stream.write_all(b"GET /readyz HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    if answer.split(' ').nth(1) == Some("200") {
        return Ok(());
    }
    bail!("{}", answer.lines().last().unwrap_or("no answer"));
}

/// Does one thing with the database, whose schema must be up to date, and names it in an error.
pub async fn with_database(
    config: &Config,
    name: &str,
    act: impl AsyncFnOnce(&Database) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let database = existing_database(config, name)?;
    let result = async {
        check_schema(&database).await?;
        act(&database).await
    }
    .await;
    database.close().await?;
    result.with_context(|| config.database.to_string())
}

pub(crate) fn existing_database(config: &Config, name: &str) -> anyhow::Result<Database> {
    ensure_exists(config)?;
    Ok(Database::connect_lazily(&config.database, name, 1))
}

/// A file that is not there would be made: an empty database where somebody stands in the wrong
/// folder.
fn ensure_exists(config: &Config) -> anyhow::Result<()> {
    if let DatabaseSettings::Sqlite(path) = &config.database {
        ensure!(
            path.exists(),
            "there is no {}: stand where the service's .env is, or set SQLITE_PATH or POSTGRES_HOST",
            path.display()
        );
    }
    Ok(())
}

/// Carries out `messager migrate …`.
pub async fn migrate(config: &Config, migration: Migration) -> anyhow::Result<()> {
    match migration {
        Migration::Up => {
            let database = Database::connect_to_migrate(&config.database, MIGRATE);
            migrating(database, config, async |database| {
                let missing = migrate_up(database, &config.database).await?;
                writeln!(io::stderr(), "schema is up to date ({missing} migrations were missing)")?;
                Ok(())
            })
            .await
        }
        Migration::Down { steps, yes } => down::execute(config, steps, yes).await,
        Migration::Status => {
            let database = existing_database(config, MIGRATE)?;
            migrating(database, config, status).await
        }
    }
}

/// The name of a session that looks at the schema or changes it.
const MIGRATE: &str = "messager migrate";

/// Does one thing with a database that can be used, and names it in an error.
async fn migrating(
    database: Database,
    config: &Config,
    act: impl AsyncFnOnce(&Database) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let result = async {
        database.admit().await?;
        act(&database).await
    }
    .await;
    database.close().await?;
    result.with_context(|| config.database.to_string())
}

/// Brings the schema up. Returns how many migrations were missing.
pub async fn migrate_up(database: &Database, settings: &DatabaseSettings) -> anyhow::Result<usize> {
    let before = pending(database).await?;
    take_turns(database, settings, async || {
        Migrator::up(&database.connection(), None).await.context("migrate up")
    })
    .await?;
    Ok(before)
}

/// Changes the schema while no other process does. SQLite has no such lock; there, a second one
/// fails.
async fn take_turns(
    database: &Database,
    settings: &DatabaseSettings,
    change: impl AsyncFnOnce() -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    /// A migration may have a large table to go through.
    const PATIENCE: Duration = Duration::from_secs(60);
    if matches!(settings, DatabaseSettings::Sqlite(_)) {
        return change().await;
    }
    let waiting = |holder: &str| {
        let _ = writeln!(io::stderr(), "waiting for another migration: {holder}");
    };
    database.lock_for_migration(PATIENCE, waiting).await?;
    let changed = change().await;
    // The lock ends with the session at the latest.
    let _ = database.unlock_after_migration().await;
    changed
}

async fn pending(database: &Database) -> anyhow::Result<usize> {
    let pending = Migrator::get_pending_migrations_read_only(&database.connection()).await;
    Ok(pending.context("look at the schema")?.len())
}

async fn status(database: &Database) -> anyhow::Result<()> {
    let migrations = Migrator::get_migration_with_status_read_only(&database.connection())
        .await
        .context("look at the schema")?;
    for migration in migrations {
        let status = match migration.status() {
            MigrationStatus::Applied => "applied",
            MigrationStatus::Pending => "pending",
        };
        writeln!(Output, "{status}  {}", migration.name())?;
    }
    Ok(())
}

/// Standard output. Its reader may leave when it has seen enough, as `head` does: what is under way
/// goes on.
#[derive(Debug)]
pub(crate) struct Output;

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match stdout().write(bytes) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(bytes.len()),
            written => written,
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match stdout().flush() {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            flushed => flushed,
        }
    }
}

/// A generator for keys.
fn seeded() -> anyhow::Result<StdRng> {
    StdRng::try_from_rng(&mut SysRng).context("seed the generator of keys")
}

pub(crate) fn rfc3339(time: SystemTime) -> String {
    DateTime::<Utc>::from(time).to_rfc3339_opts(SecondsFormat::Secs, true)
}
