//! Tells other processes the state of the gateways here, and learns which gateways are drained and which
//! factors they have.

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use adapters_gateway::Gateway;
use adapters_persistence::{Database, GatewayReport, SqlGatewayHealth, SqlGateways};
use application::{
    Chain, GatewayState, GatewayStatus, Router,
    ports::{GatewayHealth, OutcomeClass, StoreError, StoredFactor},
};
use domain::GatewayName;
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::{
    Process,
    config::{GatewaysConfig, Weights},
    periodic::every,
};

/// How often the drained gateways are read.
const LOOK: Duration = Duration::from_secs(1);
/// How often a state that has changed is stored, and factors are read, in rounds of [`LOOK`].
const REPORT: u32 = 3;
/// How often a state is stored that has not changed: it shows that the process lives.
const REPEAT: Duration = Duration::from_secs(20);
/// The period of the counts that are shown.
const PERIOD: Duration = Duration::from_secs(300);
/// How often a count is kept.
const STEP: Duration = Duration::from_secs(10);

/// Shares the state of `router` under the name `process_name`, and drains what the operator drains.
pub(in crate::roles) fn share(
    process: &mut Process,
    usable: &CancellationToken,
    database: Database,
    process_name: String,
    router: Router<Gateway>,
) {
    let gateways = super::gateways(process);
    let stop = process.stop.clone();
    let mut reporter = Reporter {
        store: SqlGateways::new(database.clone()),
        health: SqlGatewayHealth::new(database),
        process: process_name,
        router,
        gateways,
        windows: HashMap::new(),
        reported: Vec::new(),
        reported_at: None,
        rounds: 0,
    };
    process.spawn_when(usable, &stop.clone(), async move {
        let reporter = tokio::sync::Mutex::new(&mut reporter);
        every(LOOK, &stop, || async {
            if let Err(error) = reporter.lock().await.round().await {
                tracing::warn!(
                    error = %Chain(&error),
                    "the state of the gateways was not shared, and drains and factors are not noticed; \
                     trying again"
                );
            }
        })
        .await;
        let reporter = reporter.into_inner();
        // A row that stays is deleted within the hour.
        let _ = reporter.store.withdraw(&reporter.process).await;
    });
}

struct Reporter {
    store: SqlGateways,
    health: SqlGatewayHealth,
    process: String,
    router: Router<Gateway>,
    gateways: watch::Receiver<std::sync::Arc<GatewaysConfig>>,
    windows: HashMap<GatewayName, Window>,
    reported: Vec<GatewayReport>,
    reported_at: Option<Instant>,
    rounds: u32,
}

impl Reporter {
    async fn round(&mut self) -> Result<(), StoreError> {
        self.router.drain(&self.store.drained().await?);
        let reports_now = self.rounds.is_multiple_of(REPORT);
        self.rounds = self.rounds.wrapping_add(1);
        if !reports_now {
            return Ok(());
        }
        self.follow_factors().await?;
        let now = Instant::now();
        let reports = self.reports(now);
        let is_old = self.reported_at.is_none_or(|at| now - at >= REPEAT);
        if reports == self.reported && !is_old {
            return Ok(());
        }
        let names = |reports: &[GatewayReport]| -> Vec<GatewayName> {
            reports.iter().map(|report| report.gateway.clone()).collect()
        };
        if names(&reports) != names(&self.reported) {
            // Gateways that the process no longer has.
            self.store.withdraw(&self.process).await?;
        }
        self.store.report(&self.process, &reports).await?;
        (self.reported, self.reported_at) = (reports, Some(now));
        Ok(())
    }

    async fn follow_factors(&self) -> Result<(), StoreError> {
        let moves = self.gateways.borrow().weights == Weights::Move;
        let stored = if moves { self.health.factors().await? } else { Vec::new() };
        self.router
            .set_factors(stored.into_iter().map(|StoredFactor { of, factor, .. }| (of, factor)));
        Ok(())
    }

    fn reports(&mut self, now: Instant) -> Vec<GatewayReport> {
        let gateways = std::sync::Arc::clone(&self.gateways.borrow());
        let snapshot = self.router.snapshot();
        self.windows.retain(|name, _| snapshot.iter().any(|status| status.name == *name));
        let report = |status: GatewayStatus| {
            let window = self.windows.entry(status.name.clone()).or_default();
            let counts = window.add(now, Counts::of(&status.outcomes));
            GatewayReport {
                provider: gateways
                    .find(&status.name)
                    .map_or("", |gateway| gateway.provider)
                    .to_owned(),
                state: status.state.as_str().to_owned(),
                reason: reason(&status),
                in_flight: status.in_flight as u64,
                accepted: counts.accepted,
                refused: counts.refused,
                unclear: counts.unclear,
                gateway: status.name,
            }
        };
        snapshot.into_iter().map(report).collect()
    }
}

const MISCONFIGURED: &str =
    "misconfigured; correct the credentials, the sender, the credit or the URL";

/// Says why a gateway is given no message.
fn reason(status: &GatewayStatus) -> String {
    let (failed, of) = status.failed_of_last;
    match status.state {
        GatewayState::Open | GatewayState::HalfOpen if status.is_misconfigured => {
            MISCONFIGURED.to_owned()
        }
        GatewayState::Open | GatewayState::HalfOpen => {
            format!("{failed} of the last {of} calls failed")
        }
        GatewayState::Silent => "it answers none of its calls".to_owned(),
        GatewayState::Closed | GatewayState::Drained => String::new(),
    }
}

/// Calls by what came of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Counts {
    accepted: u64,
    refused: u64,
    unclear: u64,
}

impl Counts {
    fn of(outcomes: &[(OutcomeClass, u64)]) -> Self {
        let mut counts = Self::default();
        for (class, count) in outcomes {
            let of_class = match class {
                OutcomeClass::Accepted => &mut counts.accepted,
                OutcomeClass::Ambiguous => &mut counts.unclear,
                _ => &mut counts.refused,
            };
            *of_class += count;
        }
        counts
    }

    fn since(self, earlier: Self) -> Self {
        Self {
            accepted: self.accepted.saturating_sub(earlier.accepted),
            refused: self.refused.saturating_sub(earlier.refused),
            unclear: self.unclear.saturating_sub(earlier.unclear),
        }
    }
}

/// The counts at some moments of the last minutes.
#[derive(Debug, Default)]
struct Window(VecDeque<(Instant, Counts)>);

impl Window {
    /// Adds the counts since the start, and returns those of the last minutes.
    fn add(&mut self, now: Instant, total: Counts) -> Counts {
        while self.0.front().is_some_and(|(at, _)| now - *at > PERIOD) {
            self.0.pop_front();
        }
        if self.0.back().is_none_or(|(at, _)| now - *at >= STEP) {
            // The calls before the first look are new too.
            let counts = if self.0.is_empty() { Counts::default() } else { total };
            self.0.push_back((now, counts));
        }
        total.since(self.0.front().map(|it| it.1).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accepted(accepted: u64) -> Counts {
        Counts { accepted, ..Counts::default() }
    }

    #[tokio::test(start_paused = true)]
    async fn counts_are_those_of_the_last_five_minutes() {
        let mut window = Window::default();
        let mut shown = Vec::new();
        for minute in 0..10 {
            shown.push(window.add(Instant::now(), accepted(10 * (minute + 1))).accepted);
            tokio::time::advance(Duration::from_secs(60)).await;
        }

        assert_eq!(shown, [10, 20, 30, 40, 50, 60, 50, 50, 50, 50]);
    }

    #[test]
    fn reason_of_a_misconfigured_gateway_says_what_to_do() {
        let status = |is_misconfigured| GatewayStatus {
            name: GatewayName::default(),
            state: GatewayState::Open,
            in_flight: 0,
            in_flight_limit: None,
            failed_of_last: (1, 1),
            failures_in_a_row: 1,
            is_misconfigured,
            openings: 1,
            outcomes: Vec::new(),
            per_second: 0.0,
        };

        assert_eq!(reason(&status(false)), "1 of the last 1 calls failed");
        assert!(reason(&status(true)).starts_with("misconfigured; "));
        assert!(reason(&status(true)).contains("correct the credentials"));
    }

    #[test]
    fn outcomes_are_accepted_refused_or_unclear() {
        let counts = Counts::of(&[
            (OutcomeClass::Accepted, 5),
            (OutcomeClass::Ambiguous, 2),
            (OutcomeClass::Throttled, 1),
            (OutcomeClass::Misconfigured, 3),
        ]);

        assert_eq!(counts, Counts { accepted: 5, refused: 4, unclear: 2 });
    }
}
