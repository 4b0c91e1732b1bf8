//! The whole service in one process, and the operator's tool.
//!
//! Without any settings it runs on the embedded default: an SQLite file, the embedded queue and the
//! console gateway. It migrates that file by itself; an operator migrates PostgreSQL.

use std::{
    env,
    io::{self, Write},
    process::ExitCode,
};

use adapters_persistence::{SqlApiKeys, SqlGuard};
use anyhow::Context;
use application::Vault;
use bootstrap::{
    Audience, Pool, Process, binaries,
    cli::{
        CompletionsArgs, ManArgs, SETTINGS, completions, dead_letters, doctor, forget, gateways,
        guard, healthcheck, keys, limits, man, message, migrate, run, secrets, settings, status,
        with_database,
    },
    config::Config,
    roles::{self, StoredSecrets},
};
use clap::{CommandFactory, Parser, Subcommand};

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
    /// Show rates, what waits, partitions, gateways and the last errors. On a terminal, refreshed until
    /// Ctrl-C.
    Status(status::Args),
    /// Tell what became of a message, of a verification, or of the messages to a phone.
    Message(message::Args),
    /// Erase a number from the database. Lists what it has of the number, and asks.
    Forget(forget::Args),
    /// Show or change the database schema.
    #[command(subcommand)]
    Migrate(migrate::Command),
    /// Show, retry or delete records that the consumer could not read.
    #[command(subcommand)]
    DeadLetters(dead_letters::Command),
    /// List, check, test and drain SMS gateways.
    Gateways(gateways::Args),
    /// Create, list and revoke API keys.
    #[command(subcommand)]
    Keys(keys::Command),
    /// Reset the rate limits of a phone.
    #[command(subcommand)]
    Limits(limits::Command),
    /// Show the guard's decisions, allow a prefix, or try rules on the past.
    #[command(subcommand)]
    Guard(guard::Command),
    /// Move the keys that were drawn at the first start into your settings.
    #[command(subcommand)]
    Secrets(secrets::Command),
    /// Print every setting with the source of its value. Secrets are masked.
    Settings(settings::Args),
    /// Check the settings, the database, the broker and the gateways, and say what to do. Exits with 1
    /// if the service cannot work.
    Doctor(doctor::Args),
    /// Exit with 0 if the running service on this machine is ready.
    Healthcheck,
    /// Print the completions of a shell.
    Completions(CompletionsArgs),
    /// Print the man page, or write one for each command.
    Man(ManArgs),
}

fn main() -> ExitCode {
    let role = env::args_os().next().and_then(|program| binaries::called(&program));
    role.map_or_else(messager, |main| main())
}

fn messager() -> ExitCode {
    let args = Args::parse();
    let audience = match &args.command {
        // These also work with bad settings.
        Some(Command::Settings(args)) => return settings::execute(*args),
        Some(Command::Doctor(args)) => return doctor::execute(args),
        Some(Command::Gateways(args)) if let Some(file) = args.to_check() => {
            return gateways::check(file);
        }
        Some(Command::Completions(args)) => {
            completions(Args::command(), args);
            return ExitCode::SUCCESS;
        }
        Some(Command::Man(args)) => return pages(args),
        None | Some(Command::Run) => Audience::Log,
        Some(_) => Audience::Person,
    };
    run(audience, async |config| match args.command {
        None
        | Some(
            Command::Run
            | Command::Settings(_)
            | Command::Doctor(_)
            | Command::Completions(_)
            | Command::Man(_),
        ) => serve(config).await,
        Some(Command::Migrate(command)) => migrate::execute(&config, command).await,
        Some(Command::DeadLetters(command)) => dead_letters::execute(&config, command).await,
        Some(Command::Gateways(args)) => gateways::execute(&config, args).await,
        Some(Command::Keys(command)) => {
            with_database(&config, "messager keys", async |database| {
                keys::execute(&SqlApiKeys::new(database.clone()), command).await
            })
            .await
        }
        Some(Command::Limits(command)) => {
            with_database(&config, "messager limits", async |database| {
                limits::execute(database, config.numbers.default_region, command).await
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
        Some(Command::Status(args)) => {
            with_database(&config, "messager status", async |database| {
                status::execute(&config, database, args).await
            })
            .await
        }
        Some(Command::Message(args)) => {
            with_database(&config, "messager message", async |database| {
                message::execute(&config, database, args).await
            })
            .await
        }
        Some(Command::Forget(args)) => {
            with_database(&config, "messager forget", async |database| {
                forget::execute(&config, database, args).await
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

fn pages(args: &ManArgs) -> ExitCode {
    match man(Args::command(), args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "{error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn serve(config: Config) -> anyhow::Result<()> {
    config.check_all_in_one()?;
    config.gateways.check_secrets()?;
    let mut process =
        Process::start("messager", config, METRICS_PORT, &["database", "broker", "keys"])?;
    if process.is_embedded() {
        migrate_embedded(&process).await?;
    }
    let vault = Vault::default();
    let queue = roles::shared_queue(&process, &vault);
    let settings = process.config.codes.vault.clone();
    roles::open_vault(&mut process, vault.clone(), settings)?;
    let stored = roles::api(&mut process, vault.clone())?;
    roles::processor(&mut process, queue.clone(), stored)?;
    roles::consumer(&mut process, queue, vault)?;
    process.show_banner();
    process.run().await
}

async fn migrate_embedded(process: &Process) -> anyhow::Result<()> {
    let settings = &process.config.database;
    let applied = migrate::migrate_up(&process.database(Pool::Migration), settings)
        .await
        .with_context(|| settings.to_string())?;
    tracing::info!("the schema is up to date; {applied} migrations were applied");
    Ok(())
}
