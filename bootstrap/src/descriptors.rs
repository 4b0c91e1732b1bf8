//! Counts the descriptors that the process needs itself, and divides the rest among its clients.

use adapters_http::ServerLimits;
use adapters_persistence::DatabaseSettings;
use application::EventSettings;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::{Pool, config::Config};

/// Raises the limit of open descriptors as far as allowed. The usual limit is low for programs that
/// use `select`, which this process does not.
pub fn raise() {
    let limit = getrlimit(Resource::Nofile);
    // If the system refuses, the limit stays as it was. `Shares` use the limit in force.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
}

/// Returns the limit that is in force.
pub fn limit() -> u64 {
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// Returns how many descriptors a process may need at a time in addition to those of its clients.
///
/// A topic with more partitions than `TOPIC_PARTITIONS` needs more.
pub fn outgoing(name: &str, config: &Config) -> u64 {
    /// The standard streams, the runtime, listeners, and name lookups.
    const ALWAYS: u64 = 48;
    let is = |binary| name == binary || name == "messager";
    let has = |needs: bool, descriptors: u64| if needs { descriptors } else { 0 };

    let database = match &config.database {
        // All parts share one connection.
        settings @ DatabaseSettings::Sqlite(_) => settings.descriptors(1),
        settings @ DatabaseSettings::Postgres(_) => {
            let pools = Pool::of(name, config).into_iter();
            pools.map(|pool| settings.descriptors(pool.connections())).sum()
        }
    };
    let partitions = u64::from(config.relay.partitions.get());
    // Reading and writing need one connection for each partition, and one to ask any broker. The
    // writer also creates the topic at one broker, the controller.
    let read = has(is("consumer") && config.consumer.broker.is_kafka(), partitions + 1);
    let written = has(is("processor") && config.relay.broker.is_kafka(), partitions + 2);
    // The same number may be idle and not closed yet.
    let posts = 2 * EventSettings::default().concurrency as u64;
    let events = has(is("processor") && config.events.is_some(), posts);
    // A partition has its own limit for each gateway.
    let calls_at_once = config.consumer.concurrency as u64 * partitions;
    let gateways = config.gateways.gateways.iter();
    let calls = gateways.map(|gateway| gateway.connections().min(calls_at_once)).sum();
    let calls = has(is("consumer"), calls);
    ALWAYS + database + read + written + events + calls
}

/// The numbers of client connections that are allowed at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shares {
    /// The limit of descriptors that the shares divide.
    pub limit: u64,
    /// Connections that are served on the API port.
    pub api: usize,
    /// Connections on the API port that get a 503 because all places are taken.
    pub api_turned_away: usize,
    /// Connections that are served on the metrics port.
    pub metrics: usize,
    pub metrics_turned_away: usize,
}

impl Shares {
    /// Divides `limit` descriptors. The process keeps the `outgoing` descriptors that it needs
    /// itself, but at most half of all.
    pub fn of(limit: u64, outgoing: u64, max_connections: usize) -> Self {
        let free = limit - outgoing.min(limit / 2);
        let free = usize::try_from(free).unwrap_or(usize::MAX);
        let metrics = (free / 8).clamp(1, 512);
        let metrics_turned_away = (metrics / 4).max(1);
        let rest = free.saturating_sub(with_leaving(metrics) + metrics_turned_away);
        let api = max_connections.min(rest / 4 * 3).max(1);
        let api_turned_away = rest.saturating_sub(with_leaving(api)).clamp(1, 4_096);
        Self { limit, api, api_turned_away, metrics, metrics_turned_away }
    }
}

/// Adds the connections that are leaving.
fn with_leaving(max_connections: usize) -> usize {
    max_connections + ServerLimits { max_connections, ..ServerLimits::default() }.max_leaving()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usual_limit_is_enough_for_the_largest_shares() {
        let shares = Shares::of(524_288, 384, 768);

        assert_eq!((shares.api, shares.api_turned_away), (768, 4_096));
        assert_eq!((shares.metrics, shares.metrics_turned_away), (512, 128));
        assert_eq!(Shares::of(u64::MAX, 384, 65_535).api, 65_535);
    }

    #[test]
    fn process_reserves_descriptors_for_everything_that_it_opens() {
        const POSTGRES: &[(&str, &str)] = &[
            ("POSTGRES_HOST", "db"),
            ("POSTGRES_DB", "messager"),
            ("POSTGRES_USER", "messager"),
            ("POSTGRES_PASSWORD", "secret"),
        ];
        const KAFKA: &[(&str, &str)] =
            &[("PRODUCER_URL", "kafka:9092"), ("CONSUMER_URL", "kafka:9092")];
        #[track_caller]
        fn check(name: &str, settings: &[&[(&str, &str)]], expected: u64) {
            let settings = settings.concat();
            let find = |name: &str| settings.iter().find(|(known, _)| *known == name);
            let config =
                Config::from_lookup(&|name| find(name).map(|(_, value)| (*value).to_owned()));
            assert_eq!(outgoing(name, &config.unwrap()), expected, "{name} {settings:?}");
        }

        // An SQLite file.
        check("messager", &[], 48 + 8);
        // Five pools of 3, 8, 4, 10 and 1, and a session more of each; each with three descriptors
        // and a listener for TLS. A topic of four partitions.
        let without_tls = [("DB_SSL_MODE", "disable")];
        check("messager", &[POSTGRES, KAFKA], 48 + 3 * 31 + 5 + 5 + 6);
        check("messager", &[POSTGRES, KAFKA, &without_tls], 48 + 31 + 5 + 6);
        check("messager", &[POSTGRES, KAFKA, &[("TOPIC_PARTITIONS", "100")]], 146 + 101 + 102);
        let events = [
            ("EVENTS_URL", "https://example.com/events"),
            ("EVENTS_SECRET", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"),
        ];
        check("messager", &[POSTGRES, KAFKA, &events], 146 + 11 + 32);
        let webhook = [("GATEWAY", "webhook"), ("GATEWAY_URL", "https://example.com/sms")];
        check("consumer", &[POSTGRES, KAFKA, &webhook], 48 + 3 * 13 + 2 + 5 + 64 * 4);
        check("processor", &[POSTGRES, KAFKA], 48 + 3 * 5 + 1 + 6);
        check("api", &[POSTGRES, KAFKA], 48 + 3 * 15 + 3);
    }

    #[test]
    fn low_limit_is_split_between_the_clients_and_the_process() {
        for limit in [64, 256, 1_024, 2_048, 4_096] {
            let outgoing = 384;
            let Shares { api, api_turned_away, metrics, metrics_turned_away, .. } =
                Shares::of(limit, outgoing, 768);

            let served = with_leaving(api) + with_leaving(metrics);
            let clients = (served + api_turned_away + metrics_turned_away) as u64;
            assert!(clients + outgoing.min(limit / 2) <= limit, "{limit}");
            assert!(api as u64 >= limit / 4 || api == 768, "{limit}: {api}");
            assert!(metrics >= 2 && api_turned_away >= 3, "{limit}");
        }
    }
}
