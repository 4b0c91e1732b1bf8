use std::io::IsTerminal;

use autometrics::settings::AutometricsSettings;
use prometheus::Registry;
use tracing_subscriber::{EnvFilter, fmt, layer::SubscriberExt, util::SubscriberInitExt};

use crate::config::{Config, Mode};

/// Starts logging and metrics, once for a process. Returns where the metrics are gathered.
///
/// Logs go to standard error: as text for people in debug mode, as JSON in release mode.
/// Standard output is the console gateway's.
pub(crate) fn start(service: &'static str, config: &Config) -> anyhow::Result<Registry> {
    let default = match config.process.mode {
        Mode::Debug => {
            "debug,rskafka=info,sqlx=info,sqlx_core::pool=off,hyper_util=info,h2=info,rustls=info"
        }
        // rskafka tells every connection, and every error that is told again by whoever handles
        // it; sqlx tells every slow statement, and every session that its pool does not get.
        Mode::Release => "info,rskafka=off,sqlx=error,sqlx_core::pool=off",
    };
    let filter = EnvFilter::try_new(config.process.log.as_deref().unwrap_or(default))?;
    let registry = tracing_subscriber::registry().with(filter);
    match config.process.mode {
        Mode::Debug => {
            let colours = std::io::stderr().is_terminal();
            let layer = fmt::layer().with_ansi(colours).with_writer(std::io::stderr);
            registry.with(layer).try_init()?;
        }
        Mode::Release => registry
            .with(fmt::layer().json().flatten_event(true).with_writer(std::io::stderr))
            .try_init()?,
    }

    let metrics = Registry::new();
    AutometricsSettings::builder()
        .service_name(format!("messager-{service}").replace("messager-messager", "messager"))
        // Left out, it would name autometrics' own.
        .repo_url("")
        .histogram_buckets([
            0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
        ])
        .prometheus_registry(metrics.clone())
        .try_init()?;
    Ok(metrics)
}
