//! Accepts messages over HTTP and stores them in the outbox.
//!
//! Starts whether or not its neighbours are up, and says on `/readyz` of its metrics port how
//! things are. Refuses a database whose schema is behind.

use std::process::ExitCode;

use application::Vault;
use bootstrap::{
    Process,
    cli::{Args, Command, healthcheck, run},
    config::Config,
    metrics::register_no_publications,
    roles,
};

const METRICS_PORT: u16 = 8082;

fn main() -> ExitCode {
    let args = Args::parse_for("api");
    run(args.audience(), async |config| match args.command {
        Some(Command::Healthcheck) => healthcheck(&config, METRICS_PORT),
        None => serve(config).await,
    })
}

async fn serve(config: Config) -> anyhow::Result<()> {
    let mut process = Process::start("api", config, METRICS_PORT, &["database", "keys"])?;
    register_no_publications(&process.registry)?;
    let vault = Vault::default();
    // It seals, and opens nothing that others have sealed.
    let settings = process.config.codes.vault.clone();
    roles::open_vault(&mut process, vault.clone(), settings)?;
    roles::api(&mut process, vault).await?;
    process.run().await
}
