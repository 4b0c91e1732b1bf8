use std::fmt;

use autometrics::settings::AutometricsSettings;
use chrono::Utc;
use prometheus::Registry;
use tracing_subscriber::{
    EnvFilter, Layer, fmt::format::Writer, fmt::time::FormatTime, layer::SubscriberExt,
    util::SubscriberInitExt,
};

use crate::config::{Config, LogFormat, Mode};

/// What standard error is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Terminal {
    pub(crate) is_terminal: bool,
    pub(crate) colours: bool,
}

/// Starts the log and the metrics of a process. Returns the registry of the metrics.
///
/// The log goes to standard error. Standard output is the console gateway's.
pub(crate) fn start(
    service: &'static str,
    config: &Config,
    terminal: Terminal,
) -> anyhow::Result<Registry> {
    let filter = config.process.log.as_deref().unwrap_or(default_filter(config, terminal));
    let filter = EnvFilter::try_new(filter)?;
    tracing_subscriber::registry().with(filter).with(layer(config, terminal)).try_init()?;

    let metrics = Registry::new();
    AutometricsSettings::builder()
        .service_name(format!("messager-{service}").replace("messager-messager", "messager"))
        // Without it, autometrics would name its own repository.
        .repo_url("")
        .histogram_buckets([
            0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
        ])
        .prometheus_registry(metrics.clone())
        .try_init()?;
    Ok(metrics)
}

fn default_filter(config: &Config, terminal: Terminal) -> &'static str {
    match config.process.mode {
        Mode::Debug => {
            "debug,rskafka=info,sqlx=info,sqlx_core::pool=off,hyper_util=info,h2=info,rustls=info"
        }
        // rskafka logs every connection, and every error that its caller reports too; sqlx logs
        // every slow statement, and every session that its pool does not get; sea-orm logs each
        // migration. A person on a terminal does not need each partition.
        Mode::Release if terminal.is_terminal => {
            "info,bootstrap::consumer=warn,rskafka=off,sea_orm_migration=warn,sqlx=error,\
             sqlx_core::pool=off"
        }
        Mode::Release => "info,rskafka=off,sea_orm_migration=warn,sqlx=error,sqlx_core::pool=off",
    }
}

fn layer<S>(config: &Config, terminal: Terminal) -> Box<dyn Layer<S> + Send + Sync>
where
    S: tracing::Subscriber + for<'a> tracing_subscriber::registry::LookupSpan<'a>,
{
    let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    match config.process.log_format(terminal.is_terminal) {
        LogFormat::Json => layer.json().flatten_event(true).boxed(),
        LogFormat::Text if terminal.is_terminal && config.process.mode == Mode::Release => {
            layer.with_ansi(terminal.colours).with_target(false).with_timer(TimeOfDay).boxed()
        }
        LogFormat::Text => layer.with_ansi(terminal.colours).boxed(),
    }
}

/// The time without the date, for a person who watches.
struct TimeOfDay;

impl FormatTime for TimeOfDay {
    fn format_time(&self, writer: &mut Writer<'_>) -> fmt::Result {
        write!(writer, "{}", Utc::now().format("%H:%M:%SZ"))
    }
}
