use std::{fmt, path::PathBuf, sync::Arc};

use sea_orm::sqlx::postgres::{PgConnectOptions, PgSslMode};

use super::{
    session::{Purpose, Sessions},
    tls::{Hosts, PostgresHost, Relay, Route, SslClientCert, SslMode, SslRootCert},
};

#[derive(Debug, Clone)]
pub enum DatabaseSettings {
    Postgres(PostgresSettings),
    /// The file is created if it does not exist.
    Sqlite(PathBuf),
}

#[derive(Clone)]
pub struct PostgresSettings {
    pub host: String,
    pub port: u16,
    /// More hosts, which are tried in order. If there are some, a session must be able to write.
    pub more_hosts: Vec<PostgresHost>,
    pub database: String,
    pub user: String,
    pub password: Option<String>,
    pub ssl_mode: SslMode,
    /// The authorities that sign the server's certificate.
    pub ssl_root_cert: Option<SslRootCert>,
    /// The certificate of the client, if the server asks for one.
    pub ssl_client_cert: Option<SslClientCert>,
}

impl DatabaseSettings {
    /// Returns how many descriptors a pool of `connections` may have open. A connection through the
    /// relay for TLS has both ends of the relay's socket and the one to the server, and the pool has
    /// the socket that the relay listens on. One more session is opened to examine the server.
    pub fn descriptors(&self, connections: u32) -> u64 {
        match self {
            Self::Postgres(_) => {
                let sessions = u64::from(connections) + 1;
                if self.has_relay() { 3 * sessions + 1 } else { sessions }
            }
            // The file, its log and its index, while they are opened again.
            Self::Sqlite(_) => 8,
        }
    }

    /// Returns whether connections go through the relay: for TLS, or to choose among hosts. As with
    /// libpq, a local socket has no TLS in any mode.
    fn has_relay(&self) -> bool {
        match self {
            Self::Postgres(postgres) => {
                let chooses = !postgres.more_hosts.is_empty();
                let has_tls = postgres.ssl_mode != SslMode::Disable;
                (has_tls || chooses) && !postgres.host.starts_with('/')
            }
            Self::Sqlite(_) => false,
        }
    }

    /// Returns the relay, if connections go through it.
    pub(super) fn relay(&self) -> Option<Arc<Relay>> {
        match self {
            Self::Postgres(postgres) if self.has_relay() => Some(Arc::new(Relay::to(Route {
                hosts: Hosts::new(postgres.hosts().collect()),
                mode: postgres.ssl_mode,
                roots: postgres.ssl_root_cert.clone(),
                client: postgres.ssl_client_cert.clone(),
            }))),
            Self::Postgres(_) | Self::Sqlite(_) => None,
        }
    }
}

impl PostgresSettings {
    /// Returns all hosts, in order.
    fn hosts(&self) -> impl Iterator<Item = PostgresHost> {
        let first = PostgresHost { name: self.host.clone(), port: self.port };
        std::iter::once(first).chain(self.more_hosts.iter().cloned())
    }

    pub(super) fn sessions(
        &self,
        name: &str,
        purpose: Purpose,
        relay: Option<&Arc<Relay>>,
    ) -> Sessions {
        Sessions::new(self.connect_options(name, relay), purpose, relay.cloned())
    }

    fn connect_options(&self, name: &str, relay: Option<&Arc<Relay>>) -> PgConnectOptions {
        let mut options = PgConnectOptions::new_without_pgpass()
            .host(&self.host)
            .port(self.port)
            .database(&self.database)
            .username(&self.user)
            // The relay does TLS.
            .ssl_mode(PgSslMode::Disable)
            .application_name(name)
            // PgBouncer refuses it in the startup packet, and this service stores no fractions.
            .extra_float_digits(None);
        if let Some(password) = &self.password {
            options = options.password(password);
        }
        if let Some(relay) = relay {
            options = options.socket(relay.folder());
        }
        options
    }
}

/// Says where the database is.
impl fmt::Display for DatabaseSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Postgres(postgres) => {
                let hosts: Vec<_> = postgres.hosts().map(|it| it.to_string()).collect();
                write!(f, "PostgreSQL at {}, database {}", hosts.join(" or "), postgres.database)
            }
            Self::Sqlite(path) => write!(f, "SQLite file {}", path.display()),
        }
    }
}

/// Omits the password.
impl fmt::Debug for PostgresSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresSettings")
            .field("host", &self.host)
            .field("port", &self.port)
            .field("more_hosts", &self.more_hosts)
            .field("database", &self.database)
            .field("user", &self.user)
            .field("ssl_mode", &self.ssl_mode)
            .finish_non_exhaustive()
    }
}
