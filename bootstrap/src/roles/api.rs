use std::{num::NonZeroU16, sync::Arc, time::Duration};

use adapters_http::{
    ApiAuth, ApiMetrics, ApiSettings, ServerLimits, V1, V1Settings, docs_router, page_router,
    router, serve, v1_router,
};
use adapters_persistence::{
    CoalescingOutbox, OutboxSettings, Part, SqlAnswers, SqlApiKeys, SqlGuard, SqlVerifications,
};
use anyhow::{Context, bail};
use application::{
    AnswerOnce, Authorize, CancelVerification, Chain, CheckCode, CodeSender, FindVerification,
    FlushGuard, Guard, NoteReceipt, ResendVerification, StartVerification, SubmitMessage,
    SubmitSettings, Vault,
    ports::{ApiKeys, GuardCounts, Housekeeping, StoreError},
};
use tokio::{
    sync::Notify,
    time::{MissedTickBehavior, interval, sleep},
};
use tokio_util::sync::CancellationToken;

use super::{clock, housekeeping::clean_up_orphans, seeded};
use crate::{Process, config::Config, descriptors::Shares, metrics::GuardMetrics};

/// How many connections verifications have beside the writers of the outbox.
const CONNECTIONS: u32 = 8;

/// Accepts messages, begins verifications and checks codes on the API port. Returns what is told
/// when a message was stored.
pub async fn api(process: &mut Process, vault: Vault) -> anyhow::Result<Arc<Notify>> {
    let config = process.config.clone();
    let port = config.api.port;
    let listeners = config
        .api
        .hosts
        .listen(port)
        .with_context(|| format!("listen on APP_PORT {port}, APP_HOST {}", config.api.hosts))?;
    tracing::info!(address = %listeners, "accepting messages");
    for warning in config.warnings() {
        tracing::warn!("{warning}");
    }

    let events = config.events.is_some();
    let settings = OutboxSettings { events, ..OutboxSettings::default() };
    let writing = process.database("api", u32::try_from(settings.writers)? + 1);
    let usable = process.watch_database(writing.clone(), &[Part::Api]);
    let (outbox, mut writers) = CoalescingOutbox::start(&writing, settings);
    let stored = outbox.stored();
    let database = process.database("verification", CONNECTIONS);
    let verifications = Arc::new(SqlVerifications::new(database.clone()).with_events(events));
    let keys = Arc::new(Authorize::new(SqlApiKeys::new(database.clone())));
    let guard = Arc::new(Guard::new(config.guard.rules_in_force(), config.guard.window));

    let submit = SubmitMessage::new(
        outbox.clone(),
        clock,
        seeded()?,
        vault.clone(),
        Arc::clone(&guard),
        SubmitSettings {
            code_length: config.codes.length,
            code_ttl: config.codes.ttl,
            rules: config.api.legacy.rules.clone(),
        },
    );
    let sends = config.verification.sends.clone();
    let sender = Arc::new(CodeSender::new(
        Arc::clone(&verifications),
        clock,
        seeded()?,
        vault.clone(),
        Arc::clone(&guard),
        sends.clone(),
    ));
    let v1 = V1 {
        start: StartVerification::new(outbox, Arc::clone(&sender)),
        resend: ResendVerification::new(sender),
        check: CheckCode::new(
            Arc::clone(&verifications),
            vault.clone(),
            Arc::clone(&guard),
            &sends.rules.limits.check,
        ),
        find: FindVerification::new(Arc::clone(&verifications)),
        cancel: CancelVerification::new(Arc::clone(&verifications)),
        receipts: NoteReceipt::new(Arc::clone(&verifications)),
        answers: AnswerOnce::new(SqlAnswers::new(database.clone()), vault),
        auth: Arc::clone(&keys),
    };
    let metrics = ApiMetrics::register(&process.registry)?;
    let api = ApiSettings {
        auth: config.api.auth,
        default_region: config.numbers.default_region,
        is_open: config.api.legacy.is_open,
        ..ApiSettings::default()
    };
    let mut router = router(Arc::new(submit), Arc::clone(&keys), metrics.clone(), api)
        .merge(v1_router(Arc::new(v1), metrics, Arc::new(v1_settings(&config))))
        .merge(docs_router());
    if process.is_embedded() {
        router = router.merge(page_router());
    }

    // Cancelled when the last request has been answered.
    let served = CancellationToken::new();
    run_housekeeping(process, &usable, verifications, config.verification.retention);
    clean_up_orphans(process, &database, &usable)?;
    if !config.guard.rules_in_force().is_empty() {
        let counts = SqlGuard::new(database).with_events(events);
        let metrics = GuardMetrics::register(&process.registry)?;
        let flush = FlushGuard::new(guard, counts);
        share_guard_counts(process, &usable, served.clone(), flush, metrics);
    }
    if config.api.auth != ApiAuth::None {
        refresh_api_keys(process, &usable, served.clone(), keys);
    }

    let limits = limits(&config, &process.shares);
    let (connections, stop) = (process.connections.clone(), process.stop.clone());
    process.spawn(async move {
        let _served = served.drop_guard();
        tokio::select! {
            () = serve(listeners, router, limits, connections, stop) => {}
            _ = writers.join_next() => bail!("a writer of the outbox ended before its time"),
        }
        // The last request has gone, and with it the outbox: what is queued is stored, then the
        // writers end.
        writers.join_all().await;
        Ok(())
    });
    Ok(stored)
}

fn limits(config: &Config, shares: &Shares) -> ServerLimits {
    if shares.api < usize::from(config.api.max_connections) {
        tracing::warn!(
            limit = shares.limit,
            connections = shares.api,
            "the limit of open files is too low for MAX_CONNECTIONS={}: raise it (ulimit -Hn, \
             LimitNOFILE=)",
            config.api.max_connections
        );
    }
    ServerLimits {
        max_connections: shares.api,
        max_turned_away: shares.api_turned_away,
        max_per_peer: config
            .api
            .max_connections_per_peer
            .map_or(usize::MAX, |max| NonZeroU16::get(max).into()),
        farewell: Duration::from_millis(250),
        ..ServerLimits::default()
    }
}

fn v1_settings(config: &Config) -> V1Settings {
    let verification = &config.verification;
    V1Settings {
        default_region: config.numbers.default_region,
        auth: config.api.auth,
        limits: verification.sends.rules.limits.clone(),
        require_ip: verification.require_ip,
        templates: Arc::clone(&config.texts),
        code_length: config.codes.length,
        ttl: config.codes.ttl,
        pacing: verification.sends.pacing.clone(),
        test_numbers: config.numbers.test.clone(),
        body_timeout: ApiSettings::default().body_timeout,
    }
}

/// Ends verifications whose time is up, and removes what nobody needs any more.
fn run_housekeeping<V: Housekeeping + Send>(
    process: &mut Process,
    usable: &CancellationToken,
    verifications: Arc<V>,
    retention: Duration,
) {
    const EXPIRE: Duration = Duration::from_secs(5);
    /// In rounds: ten minutes. It looks at whole tables.
    const PRUNE: u32 = 120;
    let (usable, stop) = (usable.clone(), process.stop.clone());
    process.spawn(async move {
        let work = async {
            usable.cancelled().await;
            let mut rounds = 0_u32;
            loop {
                until_none(|| verifications.expire(), "verifications were not ended").await;
                if rounds.is_multiple_of(PRUNE) {
                    until_none(|| verifications.prune(retention), "old rows stay").await;
                }
                rounds = rounds.wrapping_add(1);
                sleep(EXPIRE).await;
            }
        };
        stop.run_until_cancelled(work).await;
        Ok(())
    });
}

/// Goes on as long as there is something left to do.
async fn until_none<F>(mut act: impl FnMut() -> F, failure: &'static str)
where
    F: Future<Output = Result<u64, StoreError>>,
{
    loop {
        match act().await {
            Ok(0) => return,
            Ok(_) => {}
            Err(error) => {
                tracing::warn!(error = %Chain(&error), "{failure}");
                return;
            }
        }
    }
}

/// Adds what the guard has counted here to what all processes have.
fn share_guard_counts<C: GuardCounts + Send>(
    process: &mut Process,
    usable: &CancellationToken,
    served: CancellationToken,
    guard: FlushGuard<C>,
    metrics: GuardMetrics,
) {
    const PAUSE: Duration = Duration::from_millis(250);
    let usable = usable.clone();
    process.spawn(async move {
        if served.run_until_cancelled(usable.cancelled()).await.is_none() {
            return Ok(());
        }
        loop {
            // Once more at the end: what was sent since the last flush counts.
            let is_last = served.run_until_cancelled(sleep(PAUSE)).await.is_none();
            match guard.execute().await {
                Ok(flushed) => metrics.flushed(&flushed),
                Err(error) => {
                    tracing::warn!(error = %Chain(&error), "the guard's counts were not shared");
                }
            }
            if is_last {
                return Ok(());
            }
        }
    });
}

/// Keeps the API keys that are known up to date, and notes their use.
fn refresh_api_keys<K: ApiKeys + Send>(
    process: &mut Process,
    usable: &CancellationToken,
    served: CancellationToken,
    keys: Arc<Authorize<K>>,
) {
    const REFRESH: Duration = Duration::from_secs(5);
    const NOTE: u32 = 12;
    let usable = usable.clone();
    process.spawn(async move {
        if served.run_until_cancelled(usable.cancelled()).await.is_none() {
            return Ok(());
        }
        let mut ticks = interval(REFRESH);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut rounds = 0_u32;
        loop {
            let is_last = served.run_until_cancelled(ticks.tick()).await.is_none();
            if !is_last && let Err(error) = keys.refresh().await {
                tracing::warn!(error = %Chain(&error), "API keys were not read");
            }
            rounds = rounds.wrapping_add(1);
            if (is_last || rounds.is_multiple_of(NOTE))
                && let Err(error) = keys.note_use().await
            {
                tracing::warn!(error = %Chain(&error), "the use of API keys was not noted");
            }
            if is_last {
                return Ok(());
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_connections_left_to_say_that_the_outbox_is_full() {
        let OutboxSettings { queue, writers, batch, .. } = OutboxSettings::default();

        assert!(queue + writers * batch < ServerLimits::default().max_connections);
    }
}
