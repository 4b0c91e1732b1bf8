mod budgets;
mod certificate;
mod tasks;

use std::{num::NonZeroU16, sync::Arc, time::Duration};

use adapters_http::{
    ApiAuth, ApiMetrics, ApiSettings, Listeners, ServerLimits, V1, V1Settings, docs_router,
    page_router, receipts_router, router, serve, v1_router,
};
use adapters_persistence::{
    CoalescingOutbox, Database, OutboxSettings, Part, SqlAnswers, SqlApiKeys, SqlAwaitedReceipts,
    SqlGuard, SqlVerifications,
};
use anyhow::{Context, bail};
use application::{
    AnswerOnce, Authorize, CancelVerification, CheckCode, CodeSender, FindVerification, FlushGuard,
    Guard, Messaging, NoteReceipt, ReceiptUrls, ResendVerification, SendElsewhere, SendRules,
    StartVerification, SubmitMessage, SubmitSettings, TracedMessages, Vault,
};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use self::{
    budgets::budgets,
    tasks::{refresh_api_keys, run_housekeeping, send_elsewhere, share_guard_counts},
};
use super::{clock, gateways::gateways, housekeeping::clean_up_orphans};
use crate::{
    Pool, Process,
    config::Config,
    descriptors::Shares,
    metrics::GuardMetrics,
    random::seeded,
    receipts::{HttpReceipts, StoredReceipts},
};

/// Accepts messages, starts verifications and checks codes on the API port. Returns what is
/// notified when a message was stored.
pub fn api(process: &mut Process, vault: Vault) -> anyhow::Result<Arc<Notify>> {
    let config = process.config.clone();
    let listeners = listen(process)?;

    // What the use cases store in.
    let settings = OutboxSettings::default();
    let writing = process.database(Pool::Api);
    let usable = process.watch_database(writing.clone(), &[Part::Api]);
    let (outbox, mut writers) = CoalescingOutbox::start(&writing, settings);
    let outbox = outbox.with_tracer(process.tracer.clone());
    let stored = outbox.stored();
    let database = process.database(Pool::Verification);
    let verifications = Arc::new(SqlVerifications::new(database.clone()));
    let keys = Arc::new(Authorize::new(SqlApiKeys::new(database.clone())));
    let guard = Arc::new(Guard::new(config.guard.rules_in_force(), config.guard.window));

    // The use cases.
    let budgets = Some(budgets(process, database.clone(), &usable)?);
    let submit = SubmitMessage::new(
        outbox.clone(),
        clock,
        seeded()?,
        vault.clone(),
        Arc::clone(&guard),
        SubmitSettings {
            code_length: config.codes.length,
            code_ttl: config.codes.ttl,
            rules: SendRules { budgets: budgets.clone(), ..config.api.legacy.rules.clone() },
        },
    );
    let mut sends = config.verification.sends.clone();
    sends.rules.budgets = budgets;
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
        resend: ResendVerification::new(Arc::clone(&sender)),
        check: CheckCode::new(
            Arc::clone(&verifications),
            vault.clone(),
            Arc::clone(&guard),
            &sends.rules.limits.check,
        ),
        find: FindVerification::new(Arc::clone(&verifications)),
        cancel: CancelVerification::new(Arc::clone(&verifications)),
        receipts: NoteReceipt::new(Arc::clone(&verifications)).traced(traced(process)),
        answers: AnswerOnce::new(SqlAnswers::new(database.clone()), vault.clone()),
        auth: Arc::clone(&keys),
    };

    let receipts = receipts(process, database.clone(), vault);

    // The surfaces.
    let metrics = ApiMetrics::register(&process.registry)?
        .traced(process.tracer.clone(), process.exemplars.clone());
    let settings = Arc::new(v1_settings(&config));
    let mut router =
        router(Arc::new(submit), Arc::clone(&keys), metrics.clone(), legacy_settings(&config))
            .merge(receipts_router(receipts, metrics.clone(), &settings))
            .merge(v1_router(Arc::new(v1), metrics, settings))
            .merge(docs_router());
    if process.is_embedded() {
        router = router.merge(page_router());
    }

    // The tasks. `served` is cancelled when the last request has been answered.
    let served = CancellationToken::new();
    run_housekeeping(process, &usable, verifications, config.verification.retention);
    let elsewhere = SendElsewhere::new(SqlAwaitedReceipts::new(database.clone()), sender);
    send_elsewhere(process, &usable, elsewhere, Arc::clone(&stored));
    clean_up_orphans(process, &database, &usable)?;
    if !config.guard.rules_in_force().is_empty() {
        let counts = SqlGuard::new(database);
        let metrics = GuardMetrics::register(&process.registry)?;
        share_guard_counts(process, &usable, &served, FlushGuard::new(guard, counts), metrics);
    }
    if config.api.auth != ApiAuth::None {
        refresh_api_keys(process, &usable, &served, keys);
    }
    let limits = server_limits(&config, &process.shares);
    let (connections, stop) = (process.connections.clone(), process.stop.clone());
    process.spawn(async move {
        let _served = served.drop_guard();
        tokio::select! {
            () = serve(listeners, router, limits, connections, stop) => {}
            _ = writers.join_next() => bail!("a writer of the outbox ended before its time"),
        }
        // The last request is gone, and with it the outbox: the writers store what is queued, and
        // end.
        writers.join_all().await;
        Ok(())
    });
    Ok(stored)
}

/// Returns what records the receipts.
fn traced(process: &Process) -> TracedMessages {
    TracedMessages::new(process.tracer.clone(), Messaging::default())
}

/// Returns what takes the receipts of providers, and follows changes of the gateways.
fn receipts(process: &mut Process, database: Database, vault: Vault) -> Arc<HttpReceipts> {
    let stored = StoredReceipts::new(database, process.receipts.clone(), traced(process));
    let urls = ReceiptUrls::new(process.config.gateways.public_url.as_deref(), vault);
    let receipts = Arc::new(HttpReceipts::new(stored, urls));
    receipts.take_over(&process.config.gateways);
    let (mut gateways, stop) = (gateways(process), process.stop.clone());
    let following = Arc::clone(&receipts);
    process.spawn(async move {
        while let Some(Ok(())) = stop.run_until_cancelled(gateways.changed()).await {
            let changed = Arc::clone(&gateways.borrow_and_update());
            following.take_over(&changed);
        }
        stop.cancelled().await;
        Ok(())
    });
    receipts
}

/// Opens the API port, and warns of paths that need no API key.
fn listen(process: &mut Process) -> anyhow::Result<Listeners> {
    let tls = process.config.api.tls.clone().map(|files| certificate::tls(process, files));
    let tls = tls.transpose()?;
    let config = &process.config;
    let (port, hosts) = (config.api.port, &config.api.hosts);
    let listeners = hosts
        .listen(port)
        .with_context(|| format!("listen on APP_PORT {port}, APP_HOST {hosts}"))?;
    let warnings = if process.has_banner() {
        config.warnings_beside_access()
    } else {
        tracing::info!(address = %listeners, tls = tls.is_some(), "listening for API requests");
        config.warnings()
    };
    for warning in warnings {
        tracing::warn!("{warning}");
    }
    let listeners = listeners.behind(config.api.proxies.clone());
    Ok(match tls {
        Some(tls) => listeners.with_tls(tls),
        None => listeners,
    })
}

fn server_limits(config: &Config, shares: &Shares) -> ServerLimits {
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

fn legacy_settings(config: &Config) -> ApiSettings {
    ApiSettings {
        auth: config.api.auth,
        default_region: config.numbers.default_region,
        is_open: config.api.legacy.is_open,
        ..ApiSettings::default()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_left_to_answer_that_the_outbox_is_full() {
        let OutboxSettings { queue, writers, batch, .. } = OutboxSettings::default();

        assert!(queue + writers * batch < ServerLimits::default().max_connections);
    }
}
