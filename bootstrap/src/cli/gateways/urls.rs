//! `messager gateways urls`: where providers report deliveries.

use std::io::Write;

use adapters_persistence::Database;
use anyhow::{Context, bail};

use crate::{
    cli::{Output, with_database},
    config::Config,
    roles::receipt_urls,
};

/// Prints a line for each gateway whose provider reports over HTTP: its name and its URL.
pub(super) async fn execute(config: &Config) -> anyhow::Result<()> {
    if config.gateways.public_url.is_none() {
        bail!(
            "PUBLIC_URL is not set, so no provider can report; set it to the URL of this service"
        );
    }
    with_database(config, "messager gateways", async |database| print(config, database).await).await
}

async fn print(config: &Config, database: &Database) -> anyhow::Result<()> {
    let urls = receipt_urls(config, database).await?;
    let urls =
        urls.context("there is no pepper yet; start the service once, or set CODE_PEPPER")?;
    for gateway in config.gateways.gateways.iter().filter(|it| it.is_over_http()) {
        if let Some(url) = urls.of_gateway(&gateway.name) {
            writeln!(Output, "{}\t{url}", gateway.name)?;
        }
    }
    Ok(())
}
