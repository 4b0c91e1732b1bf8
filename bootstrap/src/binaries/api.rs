//! Accepts messages over HTTP and stores them in the outbox.
//!
//! Starts whether or not the database is up; `/readyz` on the metrics port says whether the
//! process is ready. Refuses a database whose schema is behind.

use std::process::ExitCode;

use application::Vault;

use crate::{
    Process,
    cli::{Args, Command, healthcheck, run},
    config::Config,
    metrics::register_no_publications,
    roles,
};

const METRICS_PORT: u16 = 8082;

/// Runs the binary.
pub fn main() -> ExitCode {
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
    let settings = process.config.codes.vault.clone();
    roles::open_vault(&mut process, vault.clone(), settings)?;
    roles::api(&mut process, vault)?;
    process.run().await
}
