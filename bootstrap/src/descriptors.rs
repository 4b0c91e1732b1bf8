//! How many descriptors this process may have open, and how many of them are for its clients.

use adapters_http::ServerLimits;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises the limit of open descriptors as far as the process may. The usual one is as low as it is
/// for programs that use `select`, which this is not.
pub fn raise() {
    let limit = getrlimit(Resource::Nofile);
    // A system that refuses leaves the limit as it was: `Shares` go by that.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
}

/// The limit that is in force.
pub fn limit() -> u64 {
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// How many connections of clients there may be at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shares {
    /// What the shares follow from.
    pub limit: u64,
    /// That are served on the API port.
    pub api: usize,
    /// That are told there that all are taken.
    pub api_turned_away: usize,
    /// The same of the metrics port.
    pub metrics: usize,
    pub metrics_turned_away: usize,
}

impl Shares {
    /// Shares of `limit` descriptors, of which the process needs `outgoing` itself: it keeps them,
    /// or half of all if that is less.
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

/// So many connections, and those that are on their way out.
fn with_leaving(max_connections: usize) -> usize {
    max_connections + ServerLimits { max_connections, ..ServerLimits::default() }.max_leaving()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_usual_limit_leaves_all_that_is_wanted() {
        let shares = Shares::of(524_288, 384, 768);

        assert_eq!((shares.api, shares.api_turned_away), (768, 4_096));
        assert_eq!((shares.metrics, shares.metrics_turned_away), (512, 128));
        assert_eq!(Shares::of(u64::MAX, 384, 65_535).api, 65_535);
    }

    #[test]
    fn a_low_limit_is_shared_and_the_process_keeps_its_part() {
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
