//! What is allowed and should not stay so.

use adapters_http::{ApiAuth, Hosts};
use adapters_persistence::DatabaseSettings;
use application::DrawnKeys;
use domain::Regions;

use super::{Config, Mode};

impl Config {
    /// What whoever runs an API should know at each start.
    pub fn warnings(&self) -> Vec<String> {
        let auth = self.verification.api_auth;
        let mut warnings = Vec::new();
        let api = &self.verification.api;
        let open = match (auth, api.is_open) {
            (ApiAuth::None, true) => Some("/api and /v1 are"),
            (ApiAuth::None, false) => Some("/v1 is"),
            (ApiAuth::V1, true) => Some("/api is"),
            (ApiAuth::V1, false) | (ApiAuth::All, _) => None,
        };
        if let Some(open) = open {
            warnings.push(self.warning_of_open(open));
        }
        let is_postgres = matches!(self.database, DatabaseSettings::Postgres(_));
        if auth == ApiAuth::None && self.mode == Mode::Release && is_postgres {
            warnings.push(
                "API_AUTH=none with APP_MODE=release: make keys with `messager keys create` and \
                 set API_AUTH=v1"
                    .to_owned(),
            );
        }
        if api.is_open && api.rules.numbers.allowed != Regions::ALL && !api.rules.refuse_unreadable
        {
            warnings.push(
                "REGIONS does not hold for what /api is given and no numbering plan has: it is \
                 sent; API_UNREADABLE_NUMBERS=refuse would refuse it"
                    .to_owned(),
            );
        }
        let tests = self.verification.numbers.test.len();
        if tests > 0 {
            warnings.push(format!(
                "TEST_NUMBERS is set: whoever knows one of {tests} numbers and its code is \
                 verified without an SMS"
            ));
        }
        warnings
    }

    /// Who can use the paths that `open` says are open.
    fn warning_of_open(&self, open: &str) -> String {
        let port = self.api_port;
        if self.api_hosts.is_loopback() {
            return format!(
                "{open} open without an API key to every program on this machine (APP_HOST={}, port \
                 {port}), and to all whom a proxy on it lets through: set API_AUTH=all to ask for \
                 keys",
                self.api_hosts
            );
        }
        let (addresses, hint) = match &self.api_hosts {
            Hosts::All => ("any address of this machine, IPv4 or IPv6".to_owned(), true),
            hosts => (hosts.to_string(), false),
        };
        let loopback = if hint { "APP_HOST=localhost or " } else { "" };
        format!(
            "{open} open without an API key to all who reach port {port} of {addresses}: keep it \
             from the public, or set {loopback}API_AUTH=all"
        )
    }

    /// What whoever runs a process with drawn keys should know at each start of it.
    pub fn warning_of_drawn(&self, drawn: DrawnKeys) -> Option<String> {
        drawn.pepper.then(|| {
            format!(
                "CODE_PEPPER is not set: the one in use was drawn and stands in {}, where whoever \
                 reads the database may read it too. `messager secrets show` prints the line for \
                 your .env, and `messager secrets forget` then removes it there",
                self.secrets_place()
            )
        })
    }

    /// Where drawn keys are kept.
    pub fn secrets_place(&self) -> String {
        match &self.database {
            DatabaseSettings::Sqlite(path) => format!("the file {}.secrets", path.display()),
            DatabaseSettings::Postgres(_) => "the table secret".to_owned(),
        }
    }
}
