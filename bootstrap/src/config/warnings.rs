//! Warnings about settings that are allowed and unsafe.

use std::net::IpAddr;

use adapters_http::{ApiAuth, Hosts};
use adapters_persistence::DatabaseSettings;
use application::DrawnKeys;
use domain::Regions;

use super::{ApiConfig, Config, Mode, TracesConfig};

impl Config {
    /// Returns the warnings for the operator of an API, which are logged at each start.
    pub fn warnings(&self) -> Vec<String> {
        let open = self.open_paths().map(|open| self.warning_of_open(open));
        open.into_iter().chain(self.warnings_beside_access()).collect()
    }

    /// Returns the warnings without the one about open paths, which [`Self::access`] describes.
    pub(crate) fn warnings_beside_access(&self) -> Vec<String> {
        let (auth, legacy) = (self.api.auth, &self.api.legacy);
        let mut warnings = Vec::new();
        let is_postgres = matches!(self.database, DatabaseSettings::Postgres(_));
        if auth == ApiAuth::None && self.process.mode == Mode::Release && is_postgres {
            warnings.push(
                "API_AUTH=none with APP_MODE=release: make keys with `messager keys create` and \
                 set API_AUTH=v1"
                    .to_owned(),
            );
        }
        let is_limited = legacy.rules.numbers.allowed != Regions::ALL;
        if legacy.is_open && is_limited && !legacy.rules.refuse_unreadable {
            warnings.push(
                "REGIONS does not hold for digits on /api that are not a number of any numbering \
                 plan: they are sent; API_UNREADABLE_NUMBERS=refuse would refuse them"
                    .to_owned(),
            );
        }
        let tests = self.numbers.test.len();
        if tests > 0 {
            warnings.push(format!(
                "TEST_NUMBERS is set: anyone who knows one of {tests} numbers and its code is \
                 verified without an SMS"
            ));
        }
        warnings
    }

    /// Returns the warning for the operator of a process that logs in to Kafka.
    pub(crate) fn warning_of_kafka(&self) -> Option<&'static str> {
        self.kafka.sends_password_in_clear().then_some(
            "KAFKA_SASL_MECHANISM=PLAIN with SASL_PLAINTEXT sends the password in clear text: use \
             SASL_SSL or SCRAM",
        )
    }

    /// Returns the warning for the operator of a process with a page that other machines can reach.
    pub(crate) fn warning_of_page(&self) -> Option<&'static str> {
        let process = &self.process;
        let is_open = process.operator_password.is_some() && !process.metrics_hosts.is_loopback();
        is_open.then_some(
            "OPERATOR_PASSWORD crosses the network in clear text: reach the page through an SSH \
             tunnel, `kubectl port-forward` or a proxy with TLS, and set \
             PROMETHEUS_SERVER_HOST=localhost if nothing else needs the metrics port",
        )
    }

    /// Returns the warning for the operator of a process that sends a secret to a collector on
    /// another machine.
    pub(crate) fn warning_of_collector(&self) -> Option<&'static str> {
        let TracesConfig { endpoint, headers, .. } = self.traces.as_ref()?;
        let has_password = endpoint.authority().is_some_and(|it| it.as_str().contains('@'));
        let is_clear = endpoint.scheme_str() == Some("http") && !is_of_this_machine(endpoint);
        (is_clear && (has_password || !headers.is_empty())).then_some(
            "OTEL_EXPORTER_OTLP_HEADERS, or the password in OTEL_EXPORTER_OTLP_ENDPOINT, crosses \
             the network in clear text: use an https:// endpoint, or a collector on this machine",
        )
    }

    /// Says which paths need no API key.
    fn open_paths(&self) -> Option<&'static str> {
        match (self.api.auth, self.api.legacy.is_open) {
            (ApiAuth::None, true) => Some("/api and /v1 are"),
            (ApiAuth::None, false) => Some("/v1 is"),
            (ApiAuth::V1, true) => Some("/api is"),
            (ApiAuth::V1, false) | (ApiAuth::All, _) => None,
        }
    }

    /// Describes in one or two sentences which callers may use the API.
    pub(crate) fn access(&self) -> String {
        let Some(open) = self.open_paths() else {
            return "every request needs an API key: `messager keys create` makes one".to_owned();
        };
        let port = self.api.port;
        if self.api.hosts.is_loopback() {
            return format!(
                "{open} open without an API key to every program on this machine. \
                 API_AUTH=all asks for keys."
            );
        }
        format!(
            "{open} open without an API key to everyone who can reach port {port}. \
             APP_HOST=localhost keeps other machines out, API_AUTH=all asks for keys."
        )
    }

    /// Says which callers can reach the open paths.
    fn warning_of_open(&self, open: &str) -> String {
        let ApiConfig { port, hosts, .. } = &self.api;
        if hosts.is_loopback() {
            return format!(
                "{open} open without an API key to every program on this machine (APP_HOST={hosts}, \
                 port {port}), and to every client that a proxy on it lets through: set \
                 API_AUTH=all to ask for keys"
            );
        }
        let (addresses, hint) = match hosts {
            Hosts::All => ("any address of this machine, IPv4 or IPv6".to_owned(), true),
            hosts => (hosts.to_string(), false),
        };
        let loopback = if hint { "APP_HOST=localhost or " } else { "" };
        format!(
            "{open} open without an API key to everyone who can reach port {port} of {addresses}: \
             block public access to it, or set {loopback}API_AUTH=all"
        )
    }

    /// Returns the warning for the operator of a process with drawn keys, which is logged at each
    /// start.
    pub fn warning_of_drawn(&self, drawn: DrawnKeys) -> Option<String> {
        drawn.pepper.then(|| {
            format!(
                "CODE_PEPPER is not set: a key was drawn and is stored in {}, where anyone who \
                 reads the database may read it too. `messager secrets show` prints the line for \
                 your .env, and `messager secrets forget` then removes the stored key",
                self.secrets_place()
            )
        })
    }

    /// Says where drawn keys are stored.
    pub fn secrets_place(&self) -> String {
        match &self.database {
            DatabaseSettings::Sqlite(path) => format!("the file {}.secrets", path.display()),
            DatabaseSettings::Postgres(_) => "the table secret".to_owned(),
        }
    }
}

/// Returns whether the host of a URL is certainly this machine.
fn is_of_this_machine(url: &http::Uri) -> bool {
    let host = url.host().unwrap_or_default();
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    host.eq_ignore_ascii_case("localhost") || address.is_ok_and(|it| it.is_loopback())
}
