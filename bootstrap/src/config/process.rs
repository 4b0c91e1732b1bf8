//! What every binary has: its log, its metrics port, its end.

use std::time::Duration;

use adapters_http::{Hosts, MetricsToken, OperatorPassword};
use tracing_subscriber::EnvFilter;

use super::{
    api::HOSTS,
    reader::Reader,
    setting::{
        Section, Setting,
        Values::{OneOf, Port, Seconds, Secret, Text},
    },
};

#[derive(Debug, Clone)]
pub struct ProcessConfig {
    pub mode: Mode,
    /// The filter of the log, instead of the one of `mode`.
    pub log: Option<String>,
    /// `None`: it depends on the mode and on the terminal.
    pub log_format: Option<LogFormat>,
    pub metrics_hosts: Hosts,
    /// `None`: the default of the binary.
    pub metrics_port: Option<u16>,
    /// `None`: everyone who reaches the port may read the metrics.
    pub metrics_token: Option<MetricsToken>,
    /// `None`: there is no page for the operator.
    pub operator_password: Option<OperatorPassword>,
    pub shutdown_grace: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Debug,
    Release,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    Text,
    Json,
}

impl LogFormat {
    /// Returns the format in force. `is_terminal`: standard error is a terminal.
    pub(super) fn in_force(set: Option<Self>, is_debug: bool, is_terminal: bool) -> Self {
        set.unwrap_or(if is_debug || is_terminal { Self::Text } else { Self::Json })
    }
}

impl ProcessConfig {
    /// Returns the format of the log. `is_terminal`: standard error is a terminal.
    pub(crate) fn log_format(&self, is_terminal: bool) -> LogFormat {
        LogFormat::in_force(self.log_format, self.mode == Mode::Debug, is_terminal)
    }
}

pub(super) const SECTION: Section = Section {
    title: "Logs, metrics, shutdown",
    settings: &[
        Setting {
            name: "APP_MODE",
            default: "release",
            example: None,
            values: OneOf(&["debug", "release"]),
            meaning: "Detail of the log: `release` writes from level info, `debug` from level debug.",
        },
        Setting {
            name: "LOG",
            default: "",
            example: Some("info"),
            values: Text("a level or target=level, by comma"),
            meaning: "Log filter instead of the one of `APP_MODE`, such as `info,rskafka=debug`.",
        },
        Setting {
            name: "LOG_FORMAT",
            default: "text on a terminal and with APP_MODE=debug, otherwise json",
            example: Some("json"),
            values: OneOf(&["text", "json"]),
            meaning: "Form of the log on standard error: `text` for people, `json` with one object \
                      a line for programs.",
        },
        Setting {
            name: "PROMETHEUS_SERVER_HOST",
            default: "*",
            example: None,
            values: HOSTS,
            meaning: "Addresses that metrics and health checks listen on. Written as `APP_HOST`.",
        },
        Setting {
            name: "PROMETHEUS_SERVER_PORT",
            default: "8082, processor 8083, consumer 8084",
            example: Some("8082"),
            values: Port,
            meaning: "Port of metrics and health checks. If it is taken, the first free one of the \
                      next eight is used.",
        },
        Setting {
            name: "METRICS_TOKEN",
            default: "",
            example: Some(""),
            values: Secret("16 to 256 visible characters of ASCII"),
            meaning: "[Token](operating.md#health-and-metrics) that `/metrics` asks for. Unset, it \
                      asks for none. Health checks never do.",
        },
        Setting {
            name: "OPERATOR_PASSWORD",
            default: "",
            example: Some(""),
            values: Secret("16 to 256 visible characters of ASCII"),
            meaning: "Password of the [operator's page](operating.md#the-operators-page), at \
                      `/operator` of the metrics port. Unset, there is no page.",
        },
        Setting {
            name: "SHUTDOWN_GRACE",
            default: "20",
            example: None,
            values: Seconds(1, 3_600),
            meaning: "Seconds that a process may take to finish its work after a signal.",
        },
    ],
};

/// Other settings depend on it, also if some of this section are bad.
pub(super) fn mode(env: &mut Reader<'_>) -> Option<Mode> {
    env.choice("APP_MODE", &[("debug", Mode::Debug), ("release", Mode::Release)])
}

pub(super) fn read(env: &mut Reader<'_>, mode: Option<Mode>) -> Option<ProcessConfig> {
    let log = env.text("LOG");
    if let Some(filter) = &log
        && EnvFilter::try_new(filter).is_err()
    {
        env.problem(
            "LOG",
            &format!("is {filter:?}, and must be a level or target=level, by comma"),
        );
    }
    let log_format = env
        .is_set("LOG_FORMAT")
        .then(|| env.choice("LOG_FORMAT", &[("text", LogFormat::Text), ("json", LogFormat::Json)]));
    let metrics_hosts = env.hosts("PROMETHEUS_SERVER_HOST");
    let metrics_port = env.port("PROMETHEUS_SERVER_PORT");
    let metrics_token = env.secret("METRICS_TOKEN");
    let operator_password = env.secret("OPERATOR_PASSWORD");
    let shutdown_grace = env.seconds("SHUTDOWN_GRACE");

    Some(ProcessConfig {
        mode: mode?,
        log,
        log_format: log_format.flatten(),
        metrics_hosts: metrics_hosts?,
        metrics_port,
        metrics_token,
        operator_password,
        shutdown_grace: shutdown_grace?,
    })
}
