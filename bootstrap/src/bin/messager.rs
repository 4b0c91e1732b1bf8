//! The whole service in one process, and the operator's tool.
//!
//! Without any settings it runs on what it brings along: an SQLite file, the embedded queue and
//! the console gateway. It brings that file's schema up by itself; a PostgreSQL schema is the
//! operator's to migrate.

use std::process::ExitCode;

use adapters_persistence::{SqlApiKeys, SqlGuard};
use anyhow::Context;
use application::Vault;
use bootstrap::{
    Audience, Process,
    cli::{
        Migration, SETTINGS, guard, healthcheck, keys, limits, migrate, migrate_up, run, secrets,
        settings, with_database,
    },
    config::Config,
    dead_letters,
    roles::{self, StoredSecrets},
};
use clap::{Parser, Subcommand};

const METRICS_PORT: u16 = 8082;

#[derive(Debug, Parser)]
#[command(
    name = "messager",
    version,
    about = "Sends SMS verification codes: API, processor and consumer in one.",
    after_help = SETTINGS
)]
struct Args {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the service (the default).
    Run,
    /// Look at the database schema, or change it.
    #[command(subcommand)]
    Migrate(Migration),
    /// Look after records that are no message.
    #[command(subcommand)]
    DeadLetters(dead_letters::Command),
    /// Make and revoke API keys.
    #[command(subcommand)]
    Keys(keys::Command),
    /// Take back what was counted of a phone.
    #[command(subcommand)]
    Limits(limits::Command),
    /// Look at what the guard did, or try its rules on the past.
    #[command(subcommand)]
    Guard(guard::Command),
    /// Move the keys that were drawn at the first start to where they are safe.
    #[command(subcommand)]
    Secrets(secrets::Command),
    /// Print every setting and where it comes from; secrets are masked.
    Settings(settings::Args),
    /// Exit with 0 if the running service on this machine is ready.
    Healthcheck,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let audience = match args.command {
        // Also with settings that are not usable.
        Some(Command::Settings(args)) => return settings::execute(args),
        None | Some(Command::Run) => Audience::Log,
        Some(_) => Audience::Person,
    };
    run(audience, async |config| match args.command {
        None | Some(Command::Run | Command::Settings(_)) => serve(config).await,
        Some(Command::Migrate(migration)) => migrate(&config, migration).await,
        Some(Command::DeadLetters(command)) => dead_letters::execute(&config, command).await,
        Some(Command::Keys(command)) => {
            with_database(&config, "messager keys", async |database| {
                keys::execute(&SqlApiKeys::new(database.clone()), command).await
            })
            .await
        }
        Some(Command::Limits(command)) => {
            with_database(&config, "messager limits", async |database| {
                let region = config.numbers.default_region;
                limits::execute(database, region, command).await
            })
            .await
        }
        Some(Command::Guard(command)) => {
            with_database(&config, "messager guard", async |database| {
                let records = SqlGuard::new(database.clone());
                let limits = &config.verification.sends.rules.limits;
                guard::execute(records, &config.guard, limits, command).await
            })
            .await
        }
        Some(Command::Secrets(command)) => {
            with_database(&config, "messager secrets", async |database| {
                let stored = StoredSecrets::new(&config, database);
                secrets::execute(&stored, &config.codes.vault, command).await
            })
            .await
        }
        Some(Command::Healthcheck) => healthcheck(&config, METRICS_PORT),
    })
}

async fn serve(config: Config) -> anyhow::Result<()> {
    config.check_all_in_one()?;
    let mut process =
        Process::start("messager", config, METRICS_PORT, &["database", "broker", "keys"])?;
    if process.is_embedded() {
        let missing = migrate_up(&process.database("migrate", 1), &process.config.database)
            .await
            .with_context(|| process.config.database.to_string())?;
        tracing::info!(missing, "schema is up to date");
    }
    let vault = Vault::default();
    let queue = roles::shared_queue(&process, &vault);
    let settings = process.config.codes.vault.clone();
    roles::open_vault(&mut process, vault.clone(), settings)?;
    let stored = roles::api(&mut process, vault.clone()).await?;
    roles::processor(&mut process, queue.clone(), stored)?;
    roles::consumer(&mut process, queue, vault)?;
    process.run().await
}
