//! Logs requests without valid credentials, with the address of a caller.

use std::{
    net::IpAddr,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// The pause between two log lines, because anyone can send such requests.
const LOG_PAUSE: Duration = Duration::from_secs(10);

/// Requests that were answered 401 and are not logged yet.
#[derive(Debug, Default)]
pub(super) struct Refusals(Mutex<Unlogged>);

#[derive(Debug, Default)]
struct Unlogged {
    requests: u64,
    since: Option<Instant>,
}

impl Refusals {
    /// Counts a request of `caller`, and logs it unless another one was logged a moment ago.
    pub(super) fn note(&self, caller: IpAddr) {
        if let Some(requests) = self.count() {
            tracing::warn!(
                requests,
                client.address = %caller,
                "requests without a valid API key, token or password were refused; client.address \
                 sent the last one"
            );
        }
    }

    /// Returns the number of requests to log now.
    fn count(&self) -> Option<u64> {
        let mut unlogged = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        unlogged.requests += 1;
        if unlogged.since.is_some_and(|since| since.elapsed() < LOG_PAUSE) {
            return None;
        }
        let requests = unlogged.requests;
        *unlogged = Unlogged { requests: 0, since: Some(Instant::now()) };
        Some(requests)
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn requests_are_logged_at_most_every_ten_seconds() {
        let refusals = Refusals::default();

        assert_eq!([refusals.count(), refusals.count(), refusals.count()], [Some(1), None, None]);
        advance(LOG_PAUSE).await;
        assert_eq!(refusals.count(), Some(3));
    }
}
