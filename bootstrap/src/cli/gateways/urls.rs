//! `messager gateways urls`: where providers report deliveries.

use std::io::Write;

use adapters_persistence::Database;
use anyhow::{Context, bail};

use crate::{
    cli::{
        Output,
        table::{Form, Table, text},
        with_database,
    },
    config::Config,
    roles::receipt_urls,
};

/// Prints a line for each gateway whose provider reports over HTTP: its name and its URL.
pub(super) async fn execute(config: &Config, json: bool) -> anyhow::Result<()> {
    if config.gateways.public_url.is_none() {
        bail!(
            "PUBLIC_URL is not set, so no provider can report; set it to the URL of this service"
        );
    }
    let form = Form::of(json);
    with_database(config, "messager gateways", async |database| {
        Ok(write!(Output, "{}", urls(config, database).await?.text(form))?)
    })
    .await
}

async fn urls(config: &Config, database: &Database) -> anyhow::Result<Table<2>> {
    let urls = receipt_urls(config, database).await?;
    let urls =
        urls.context("there is no pepper yet; start the service once, or set CODE_PEPPER")?;
    let mut table = Table::new(["gateway", "url"]);
    for gateway in config.gateways.gateways.iter().filter(|it| it.is_over_http()) {
        if let Some(url) = urls.of_gateway(&gateway.name) {
            table.row([text(&gateway.name), text(url)]);
        }
    }
    Ok(table)
}
