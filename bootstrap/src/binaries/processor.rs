//! Publishes the messages of the outbox to the broker.
//!
//! Starts whether or not the database and the broker are up; `/readyz` on the metrics port says
//! whether the process is ready. Refuses a database whose schema is behind.

use std::{process::ExitCode, sync::Arc};

use crate::{
    Process,
    cli::{Args, Command, healthcheck, run},
    config::Config,
    roles,
};

const METRICS_PORT: u16 = 8083;

/// Runs the binary.
pub fn main() -> ExitCode {
    let args = Args::parse_for("processor");
    run(args.audience(), async |config| match args.command {
        Some(Command::Healthcheck) => healthcheck(&config, METRICS_PORT),
        None => serve(config).await,
    })
}

async fn serve(config: Config) -> anyhow::Result<()> {
    let mut process = Process::start("processor", config, METRICS_PORT, &["database", "broker"])?;
    roles::processor(&mut process, None, Arc::default())?;
    process.run().await
}
