//! Hands each message from the broker to the SMS gateway, once.
//!
//! Starts whether or not the database and the broker are up; `/readyz` on the metrics port says
//! whether the process is ready. Refuses a database whose schema is behind.

use std::process::ExitCode;

use application::{KeySource, Vault, VaultSettings};

use crate::{
    Process,
    cli::{Args, Command, healthcheck, run},
    config::Config,
    roles,
};

const METRICS_PORT: u16 = 8084;

/// Runs the binary.
pub fn main() -> ExitCode {
    let args = Args::parse_for("consumer");
    run(args.audience(), async |config| match args.command {
        Some(Command::Healthcheck) => healthcheck(&config, METRICS_PORT),
        None => serve(config).await,
    })
}

async fn serve(config: Config) -> anyhow::Result<()> {
    config.gateways.check_secrets()?;
    let mut process =
        Process::start("consumer", config, METRICS_PORT, &["database", "broker", "keys"])?;
    let vault = Vault::default();
    // It opens sealed codes, and makes and checks none. But the URLs that it gives to providers have
    // tokens of the pepper.
    let VaultSettings { peppers, payload } = process.config.codes.vault.clone();
    let has_urls = process.config.gateways.public_url.is_some();
    let peppers = if has_urls { peppers } else { KeySource::Absent };
    let settings = VaultSettings { peppers, payload };
    roles::open_vault(&mut process, vault.clone(), settings)?;
    roles::consumer(&mut process, None, vault)?;
    process.run().await
}
