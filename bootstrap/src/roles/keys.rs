use std::time::Duration;

use adapters_persistence::{Database, DatabaseSettings, FileSecrets, SqlSecrets};
use anyhow::Context;
use application::{
    CODE_PEPPER, Chain, KeySource, Keys, OpenError, OpenVault, ReceiptUrls, Vault, VaultSettings,
    ports::{Secrets, StoreError},
};
use tokio::time::sleep;

use crate::{Pool, Process, config::Config, random::seeded};

/// The store of drawn keys: a file beside the SQLite file, or a table.
#[derive(Debug)]
pub enum StoredSecrets {
    File(FileSecrets),
    Sql(SqlSecrets),
}

impl StoredSecrets {
    pub fn new(config: &Config, database: &Database) -> Self {
        match &config.database {
            DatabaseSettings::Sqlite(path) => Self::File(FileSecrets::beside(path)),
            DatabaseSettings::Postgres(_) => Self::Sql(SqlSecrets::new(database.clone())),
        }
    }
}

impl Secrets for StoredSecrets {
    async fn keep(&self, name: &str, drawn: &str) -> Result<String, StoreError> {
        match self {
            Self::File(secrets) => secrets.keep(name, drawn).await,
            Self::Sql(secrets) => secrets.keep(name, drawn).await,
        }
    }

    async fn find(&self, name: &str) -> Result<Option<String>, StoreError> {
        match self {
            Self::File(secrets) => secrets.find(name).await,
            Self::Sql(secrets) => secrets.find(name).await,
        }
    }

    async fn forget(&self, name: &str) -> Result<bool, StoreError> {
        match self {
            Self::File(secrets) => secrets.forget(name).await,
            Self::Sql(secrets) => secrets.forget(name).await,
        }
    }
}

/// Opens the vault as soon as the stored keys can be read, and warns at each start about a pepper
/// that the operator has not set.
pub fn open_vault(
    process: &mut Process,
    vault: Vault,
    settings: VaultSettings,
) -> anyhow::Result<()> {
    const PAUSE: Duration = Duration::from_millis(500);
    let config = process.config.clone();
    let database = process.database(Pool::Keys);
    let secrets = StoredSecrets::new(&config, &database);
    let open = OpenVault::new(secrets, seeded()?, vault, settings);
    let (stop, readiness) = (process.stop.clone(), process.readiness.clone());
    process.spawn(async move {
        let opening = async {
            loop {
                match open.execute().await {
                    Ok(drawn) => {
                        if let Some(warning) = config.warning_of_drawn(drawn) {
                            tracing::warn!("{warning}");
                        }
                        readiness.set_up("keys");
                        return Ok(());
                    }
                    Err(error @ OpenError::Damaged(_)) => return Err(error.into()),
                    // The database or its schema is missing, or a file may not be read.
                    Err(error) => match database.ping().await {
                        Err(unreachable) => readiness.set_down("keys", unreachable),
                        Ok(()) => readiness.set_down("keys", Chain(&error)),
                    },
                }
                sleep(PAUSE).await;
            }
        };
        match stop.run_until_cancelled(opening).await {
            Some(Err(error)) => return Err(error),
            // A task that ends before the stop ends the process.
            Some(Ok(())) => stop.cancelled().await,
            None => {}
        }
        Ok(())
    });
    Ok(())
}

/// Returns the URLs at which providers report deliveries, for a command that shows them. Draws no key.
///
/// `None` without `PUBLIC_URL`, or if there is no pepper yet.
pub async fn receipt_urls(
    config: &Config,
    database: &Database,
) -> anyhow::Result<Option<ReceiptUrls>> {
    let Some(public_url) = &config.gateways.public_url else { return Ok(None) };
    let peppers = match &config.codes.vault.peppers {
        KeySource::Set(peppers) => Some(peppers.clone()),
        KeySource::Drawn => {
            let drawn = StoredSecrets::new(config, database).find(CODE_PEPPER).await?;
            drawn.map(|drawn| drawn.parse()).transpose().context("the stored pepper is damaged")?
        }
        KeySource::Absent => None,
    };
    Ok(peppers.map(|peppers| {
        let vault = Vault::of(Keys { peppers: Some(peppers), payload: None });
        ReceiptUrls::new(Some(public_url), vault)
    }))
}

/// Opens a vault for one command that reads sealed codes.
pub async fn unlock(config: &Config, database: &Database) -> anyhow::Result<Vault> {
    let vault = Vault::default();
    let payload = config.codes.vault.payload.clone();
    let settings = VaultSettings { peppers: KeySource::Absent, payload };
    let secrets = StoredSecrets::new(config, database);
    OpenVault::new(secrets, seeded()?, vault.clone(), settings).execute().await?;
    Ok(vault)
}
