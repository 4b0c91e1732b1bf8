//! `messager migrate down`.

use std::io::{self, Write};

use adapters_persistence::{Database, DatabaseSettings, Loss, loss, take_alone};
use anyhow::{Context, bail};
use migration::{Migrator, MigratorTrait};

use super::{super::confirm::confirmed, MIGRATE, ensure_exists, migrating, take_turns};
use crate::config::Config;

/// Lists what undoing migrations deletes, asks, and undoes them.
pub(super) async fn execute(config: &Config, steps: u32, yes: bool) -> anyhow::Result<()> {
    let mut announced = Loss::default();
    alone(config, async |database| {
        announced = loss(database, steps).await.context("list what would be deleted")?;
        Ok(())
    })
    .await?;
    if announced.migrations.is_empty() {
        writeln!(io::stderr(), "no migration is applied: there is nothing to undo")?;
        return Ok(());
    }
    announce(&announced, &config.database)?;
    if !yes && !confirmed("Type yes to delete this")? {
        bail!("nothing was changed");
    }
    alone(config, async |database| {
        if loss(database, steps).await?.migrations != announced.migrations {
            bail!("another process changed the schema meanwhile: nothing was changed");
        }
        Migrator::down(&database.connection(), Some(steps)).await.context("migrate down")
    })
    .await?;
    writeln!(
        io::stderr(),
        "{} undone; {} deleted",
        counted(announced.migrations.len(), "migration"),
        deleted(&announced)
    )?;
    Ok(())
}

/// Calls `act` while no process uses the database and none can start to use it.
async fn alone(
    config: &Config,
    act: impl AsyncFnOnce(&Database) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    ensure_exists(config)?;
    let database = Database::connect_to_migrate(&config.database, MIGRATE);
    migrating(database, config, async |database| {
        take_turns(database, &config.database, async || {
            let users = take_alone(database).await.context("ask who uses the database")?;
            if !users.is_empty() {
                bail!(
                    "refused, because the database is in use; stop these first:\n  {}",
                    users.join("\n  ")
                );
            }
            act(database).await
        })
        .await
    })
    .await
}

fn announce(loss: &Loss, database: &DatabaseSettings) -> io::Result<()> {
    let mut told = io::stderr().lock();
    writeln!(told, "{database}")?;
    writeln!(told, "This undoes these migrations, the latest first:")?;
    for migration in &loss.migrations {
        writeln!(told, "  {migration}")?;
    }
    writeln!(told, "and deletes:")?;
    for (table, rows) in &loss.tables {
        let rows = counted(usize::try_from(*rows).unwrap_or(0), "row");
        let what = match table.as_str() {
            "api_key" => ": API keys; their callers lose access",
            "secret" => ": keys that were drawn at the first start",
            "verification" => ": verifications; the codes that were sent cannot be checked",
            _ => "",
        };
        writeln!(told, "  table {table}, {rows}{what}")?;
    }
    for column in &loss.columns {
        writeln!(told, "  column {column}")?;
    }
    if loss.tables.is_empty() && loss.columns.is_empty() {
        writeln!(told, "  no data")?;
    }
    for secret in &loss.secrets {
        writeln!(told, "The drawn {secret} is lost. `messager secrets show` prints it now.")?;
    }
    if let DatabaseSettings::Sqlite(path) = database {
        let mut secrets = path.clone().into_os_string();
        secrets.push(".secrets");
        if std::path::Path::new(&secrets).exists() {
            writeln!(told, "The drawn keys in {} are kept.", secrets.display())?;
        }
    }
    Ok(())
}

fn deleted(loss: &Loss) -> String {
    let rows: i64 = loss.tables.iter().map(|(_, rows)| rows).sum();
    format!(
        "{} with {} and {}",
        counted(loss.tables.len(), "table"),
        counted(usize::try_from(rows).unwrap_or(0), "row"),
        counted(loss.columns.len(), "column")
    )
}

fn counted(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}
