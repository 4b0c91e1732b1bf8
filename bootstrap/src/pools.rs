//! The pools of database connections that each part of a process has.

use crate::config::Config;

/// A pool of connections, which no other part of the process can use up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pool {
    /// Stores accepted messages. It has a connection for each writer, and one to watch the
    /// database.
    Api,
    /// Serves all other work of the API.
    Verification,
    Processor,
    Consumer,
    /// Serves the embedded queue, which is used instead of Kafka.
    Queue,
    Keys,
    Migration,
    /// Serves the operator's page.
    Operator,
}

impl Pool {
    /// Returns the name of its connections in the database, without the prefix `messager `.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Api => "api",
            Self::Verification => "verification",
            Self::Processor => "processor",
            Self::Consumer => "consumer",
            Self::Queue => "queue",
            Self::Keys => "keys",
            Self::Migration => "migrate",
            Self::Operator => "operator",
        }
    }

    pub const fn connections(self) -> u32 {
        match self {
            Self::Api => API_WRITERS + 1,
            Self::Verification => 8,
            Self::Processor => 4,
            Self::Consumer => 10,
            Self::Queue => 6,
            Self::Keys | Self::Migration | Self::Operator => 1,
        }
    }

    /// Returns the pools that a binary has open while it serves.
    pub fn of(name: &str, config: &Config) -> Vec<Self> {
        let mut pools = match name {
            "api" => vec![Self::Api, Self::Verification, Self::Keys],
            "processor" => vec![Self::Processor],
            "consumer" => vec![Self::Consumer, Self::Keys],
            _ => {
                vec![Self::Api, Self::Verification, Self::Processor, Self::Consumer, Self::Keys]
            }
        };
        if ["processor", "messager"].contains(&name) && !config.relay.broker.is_kafka() {
            pools.push(Self::Queue);
        }
        if config.process.operator_password.is_some() {
            pools.push(Self::Operator);
        }
        pools
    }
}

/// The number of concurrent inserts into the outbox: one commits while the next one is filled.
const API_WRITERS: u32 = 2;

#[cfg(test)]
mod tests {
    use adapters_persistence::OutboxSettings;

    use super::*;

    #[test]
    fn each_writer_of_the_outbox_has_a_connection() {
        assert_eq!(OutboxSettings::default().writers, API_WRITERS as usize);
    }

    #[test]
    fn each_binary_has_the_documented_number_of_connections() {
        let with = |kafka: &'static str| {
            Config::from_lookup(&|name| match name {
                "PRODUCER_URL" | "CONSUMER_URL" if !kafka.is_empty() => Some(kafka.to_owned()),
                _ => None,
            })
            .unwrap()
        };
        let connections = |name: &str, kafka| -> u32 {
            Pool::of(name, &with(kafka)).into_iter().map(Pool::connections).sum()
        };

        for (name, with_kafka, without) in
            [("api", 12, 12), ("processor", 4, 10), ("consumer", 11, 11), ("messager", 26, 32)]
        {
            assert_eq!(connections(name, "kafka:9092"), with_kafka, "{name}");
            assert_eq!(connections(name, ""), without, "{name} without Kafka");
        }
    }

    #[test]
    fn page_of_the_operator_has_a_connection() {
        let config = Config::from_lookup(&|name| {
            (name == "OPERATOR_PASSWORD").then(|| "a-password-of-the-page".to_owned())
        });

        assert!(Pool::of("api", &config.unwrap()).contains(&Pool::Operator));
    }
}
