//! Moves messages from the outbox to the broker.
//!
//! Starts whether or not its neighbours are up, and says on `/readyz` of its metrics port how
//! things are. Refuses a database whose schema is behind.

use std::process::ExitCode;
use std::sync::Arc;

use bootstrap::{
    Process,
    cli::{Args, Command, healthcheck, run},
    config::Config,
    roles,
};

const METRICS_PORT: u16 = 8083;

fn main() -> ExitCode {
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
