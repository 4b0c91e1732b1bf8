//! `messager migrate`: the database schema.

mod down;
mod from_go;

use std::{
    io::{self, Write},
    time::Duration,
};

use adapters_persistence::{Database, DatabaseSettings, SqlGoTable};
use anyhow::Context;
use migration::{MigrationStatus, Migrator, MigratorTrait};

use super::{
    Output, ensure_exists, existing_database,
    progress::Progress,
    table::{Form, Table},
};
use crate::config::Config;

#[derive(Debug, Clone, PartialEq, Eq, clap::Subcommand)]
pub enum Command {
    /// Apply the migrations that the database lacks.
    Up,
    /// Undo migrations, the latest first. Lists the tables and rows that this deletes, and asks.
    /// Refused while a process uses the database.
    Down {
        /// How many migrations to undo.
        #[arg(default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
        steps: u32,
        /// Do not ask. Needed if there is no terminal.
        #[arg(long)]
        yes: bool,
    },
    /// List the migrations, and whether the database has them.
    Status {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Take over the messages that wait in the table of the Go service, while it may still run.
    FromGo(from_go::Args),
}

/// Carries out `messager migrate …`.
pub async fn execute(config: &Config, command: Command) -> anyhow::Result<()> {
    match command {
        Command::Up => {
            let database = Database::connect_to_migrate(&config.database, MIGRATE);
            migrating(database, config, async |database| {
                let progress = Progress::of("migrations");
                let missing = apply(database, &config.database, &progress).await?;
                drop(progress);
                writeln!(io::stderr(), "schema is up to date ({missing} migrations were missing)")?;
                if SqlGoTable::exists(database).await? {
                    writeln!(
                        io::stderr(),
                        "the table message was left as it is; if it is that of the Go service, \
                         `messager migrate from-go` takes its messages over"
                    )?;
                }
                Ok(())
            })
            .await
        }
        Command::Down { steps, yes } => down::execute(config, steps, yes).await,
        Command::Status { json } => {
            let database = existing_database(config, MIGRATE)?;
            let form = Form::of(json);
            migrating(database, config, async |database| status(database, form).await).await
        }
        Command::FromGo(args) => from_go::execute(config, &args).await,
    }
}

/// The name of a session that reads or changes the schema.
const MIGRATE: &str = "messager migrate";

/// Calls `act` with a database that Messager supports. An error names the database.
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

/// Applies the missing migrations. Returns how many there were.
pub async fn migrate_up(database: &Database, settings: &DatabaseSettings) -> anyhow::Result<usize> {
    apply(database, settings, &Progress::silent()).await
}

/// Applies the missing migrations one after the other, and shows which one runs.
async fn apply(
    database: &Database,
    settings: &DatabaseSettings,
    progress: &Progress,
) -> anyhow::Result<usize> {
    let before = pending(database).await?.len();
    take_turns(database, settings, async || {
        // Another process may have applied some of them meanwhile.
        let missing = pending(database).await?;
        for (place, name) in missing.iter().enumerate() {
            let doing = format!("migration {} of {}: {name}", place + 1, missing.len());
            let connection = database.connection();
            let applied = Migrator::up(&connection, Some(1));
            progress.during(&doing, applied).await.context("migrate up")?;
        }
        // Without any, this refuses a schema that has migrations that this version does not know.
        Migrator::up(&database.connection(), None).await.context("migrate up")
    })
    .await?;
    Ok(before)
}

/// Changes the schema while no other process does. On SQLite, which has no such lock, a second
/// change fails.
async fn take_turns(
    database: &Database,
    settings: &DatabaseSettings,
    change: impl AsyncFnOnce() -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    /// A migration may read a large table.
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

/// Returns the names of the migrations that the database lacks.
async fn pending(database: &Database) -> anyhow::Result<Vec<String>> {
    let pending = Migrator::get_pending_migrations_read_only(&database.connection()).await;
    let pending = pending.context("look at the schema")?;
    Ok(pending.iter().map(|migration| migration.name().to_owned()).collect())
}

async fn status(database: &Database, form: Form) -> anyhow::Result<()> {
    let migrations = Migrator::get_migration_with_status_read_only(&database.connection())
        .await
        .context("look at the schema")?;
    let mut table = Table::new(["status", "migration"]);
    for migration in migrations {
        let status = match migration.status() {
            MigrationStatus::Applied => "applied",
            MigrationStatus::Pending => "pending",
        };
        table.row([status.into(), migration.name().into()]);
    }
    Ok(write!(Output, "{}", table.text(form))?)
}
