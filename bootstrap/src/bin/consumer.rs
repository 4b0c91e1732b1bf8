//! Brings messages from the broker to the SMS gateway, each once.
//!
//! Starts whether or not its neighbours are up, and says on `/readyz` of its metrics port how
//! things are. Refuses a database whose schema is behind.

use std::process::ExitCode;

use application::{KeySource, Vault, VaultSettings};
use bootstrap::{
    Process,
    cli::{Args, Command, healthcheck, run},
    config::Config,
    roles,
};

const METRICS_PORT: u16 = 8084;

fn main() -> ExitCode {
    let args = Args::parse_for("consumer");
    run(args.audience(), async |config| match args.command {
        Some(Command::Healthcheck) => healthcheck(&config, METRICS_PORT),
        None => serve(config).await,
    })
}

async fn serve(config: Config) -> anyhow::Result<()> {
    let mut process =
        Process::start("consumer", config, METRICS_PORT, &["database", "broker", "keys"])?;
    let vault = Vault::default();
    // It opens what was sealed; it makes and checks no codes.
    let payload = process.config.codes.vault.payload.clone();
    let settings = VaultSettings { peppers: KeySource::Absent, payload };
    roles::open_vault(&mut process, vault.clone(), settings)?;
    roles::consumer(&mut process, None, vault)?;
    process.run().await
}
