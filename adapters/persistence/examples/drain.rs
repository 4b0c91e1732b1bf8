//! Relays all rows of an outbox, with a broker that accepts everything at once. The
//! benchmark compares the relay with this rate, which a relay would reach if Kafka cost nothing.
//!
//! Reads `POSTGRES_HOST`, `_PORT`, `_USER`, `_PASSWORD` and `_DB`.

use std::{num::NonZeroU32, time::Duration};

use adapters_persistence::{Database, DatabaseSettings, PostgresSettings, SqlBacklog, SslMode};
use application::{
    RelayBatch, RelaySettings,
    ports::{BrokerError, MessageBroker, Outgoing},
};

struct NoBroker;

impl MessageBroker for NoBroker {
    async fn ready(&self) -> Result<(), BrokerError> {
        Ok(())
    }

    async fn publish(&self, messages: &[Outgoing]) -> Vec<Result<(), BrokerError>> {
        messages.iter().map(|_| Ok(())).collect()
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let settings = DatabaseSettings::Postgres(PostgresSettings {
        host: variable("POSTGRES_HOST")?,
        port: variable("POSTGRES_PORT")?.parse()?,
        database: variable("POSTGRES_DB")?,
        user: variable("POSTGRES_USER")?,
        password: Some(variable("POSTGRES_PASSWORD")?),
        ssl_mode: SslMode::Disable,
        ssl_root_cert: None,
        ssl_client_cert: None,
        more_hosts: Vec::new(),
    });
    let database = Database::connect_lazily(&settings, "drain", 4);
    let mut relay = RelayBatch::new(
        SqlBacklog::new(database, "drain".to_owned(), "drain".to_owned()),
        NoBroker,
        // The defaults of the processor.
        RelaySettings {
            batch: NonZeroU32::new(1_000).ok_or("no batch")?,
            lease: Duration::from_secs(1),
            confirm_within: Duration::from_secs(30),
        },
    );
    while relay.execute().await?.is_none_or(|relayed| relayed.found > 0) {}
    relay.release().await?;
    Ok(())
}

#[expect(clippy::disallowed_methods, reason = "an example has no other settings")]
fn variable(name: &'static str) -> Result<String, String> {
    std::env::var(name).map_err(|_| format!("{name} is not set"))
}
