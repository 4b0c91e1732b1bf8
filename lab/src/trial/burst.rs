//! Many messages at once, to a gateway that takes its time: they leave as fast as the limit on calls
//! allows.

use std::{path::Path, sync::Arc, time::Duration};

use anyhow::Context;
use ports::free_port;
use tokio::{
    task::JoinSet,
    time::{sleep, timeout},
};

use super::verdict::Verdict;
use crate::{
    chaos::{
        checker,
        history::{Call, History, Round, SharedHistory},
    },
    kit::{
        clients::{Clients, Habits},
        clock::{Moment, millis, now},
        gateway::{Character, Gateway},
        process::{Process, Role},
        recorder::{GatewayKind, Reply},
        tables::{self, Ledger},
        testbed::{Plan, Testbed},
    },
};

/// Calls at a time, of all consumers.
const IN_FLIGHT: usize = 50;
const LATENCY: Duration = Duration::from_millis(100);
const PHONES: usize = 250;
const MESSAGES_EACH: usize = 4;
const MESSAGES: usize = PHONES * MESSAGES_EACH;
const CONNECTIONS: usize = 50;
const LIMIT: Duration = Duration::from_secs(4);
const PATIENCE: Duration = Duration::from_secs(60);

/// The result with one kind of deployment.
struct Burst {
    history: History,
    ledger: Ledger,
    begun_at: Moment,
    most_in_flight: usize,
}

pub async fn burst(mut plan: Plan) -> anyhow::Result<Verdict> {
    plan.gateway = Character { latency: LATENCY, ..Character::PLAIN };
    plan.env.push(("GATEWAY_IN_FLIGHT", IN_FLIGHT.to_string()));
    // Several share the limit equally, also with one that has no partition yet.
    plan.consumers = 1;
    let mut verdict = Verdict::new("burst");
    verdict.figure("messages", format!("{MESSAGES} to {PHONES} phones"));
    verdict.figure("gateway", format!("{LATENCY:?} for each call, {IN_FLIGHT} at a time"));
    with_servers(&plan).await.context("with servers")?.judge("PostgreSQL, Kafka", &mut verdict)?;
    embedded(&plan).await.context("embedded")?.judge("embedded default", &mut verdict)?;
    Ok(verdict)
}

async fn with_servers(plan: &Plan) -> anyhow::Result<Burst> {
    let history = SharedHistory::default();
    let testbed = Testbed::prepare(plan, history.clone()).await?;
    testbed.start(&[Role::Api, Role::Consumer]).await?;
    // All messages wait in the outbox, so that the trial does not measure how fast they are accepted.
    let begun_at = send(testbed.clients(0)).await?;
    testbed.start(&[Role::Processor]).await?;
    timeout(PATIENCE, all_called(&history)).await.context("not all messages left")?;
    testbed.wait_until_done(PATIENCE).await.context("not all messages ended")?;
    let ledger = tables::read(&testbed.database).await?;
    testbed.stop().await;
    let most_in_flight = testbed.gateway.most_in_flight();
    let history = history.lock().clone();
    Ok(Burst { history, ledger, begun_at, most_in_flight })
}

async fn embedded(plan: &Plan) -> anyhow::Result<Burst> {
    let history = SharedHistory::default();
    let gateway = Gateway::start(plan.gateway, history.clone()).await?;
    let (port, metrics_port) = (free_port(), free_port());
    let file = plan.folder.join("burst.db");
    let env = [
        ("APP_PORT", port.to_string()),
        ("SQLITE_PATH", file.display().to_string()),
        ("GATEWAY", "webhook".to_owned()),
        ("GATEWAY_URL", format!("http://127.0.0.1:{}/send", gateway.port())),
        ("GATEWAY_IN_FLIGHT", IN_FLIGHT.to_string()),
    ];
    let env = env.map(|(name, value)| (name.to_owned(), value)).to_vec();
    let process = Process::new(Role::Messager, 1, &plan.bins, &plan.folder, metrics_port, env);
    process.start()?;
    process.ready(PATIENCE).await?;
    let habits = Habits { fresh_every: 0, tries_next: false };
    let begun_at = send(Clients::new(vec![port], habits, history.clone())).await?;
    timeout(PATIENCE, all_called(&history)).await.context("not all messages left")?;
    timeout(PATIENCE, all_done(&file)).await.context("not all messages ended")?;
    let ledger = tables::read_file(&file).await?;
    process.terminate(PATIENCE).await;
    let most_in_flight = gateway.most_in_flight();
    let history = history.lock().clone();
    Ok(Burst { history, ledger, begun_at, most_in_flight })
}

/// Asks for all messages, those to one phone one after the other. Returns when it began.
async fn send(clients: Clients<SharedHistory>) -> anyhow::Result<Moment> {
    let begun_at = now();
    let round = Round::new(GatewayKind::Plain);
    let phones: Vec<String> = (0..PHONES).map(|number| format!("7900{:07}", 2 * number)).collect();
    {
        let mut history = clients.recorder().lock();
        history.rounds.push(round);
        history.sequences.clone_from(&phones);
    }
    let clients = Arc::new(clients);
    let mut tasks = JoinSet::new();
    for phones in phones.chunks(PHONES / CONNECTIONS) {
        let (clients, phones) = (Arc::clone(&clients), phones.to_vec());
        tasks.spawn(async move {
            for _ in 0..MESSAGES_EACH {
                for phone in &phones {
                    while clients.ask(phone).await != Reply::Accepted {
                        sleep(Duration::from_millis(10)).await;
                    }
                }
            }
        });
    }
    while let Some(ended) = tasks.join_next().await {
        ended?;
    }
    Ok(begun_at)
}

/// Waits until the gateway has answered for all messages.
async fn all_called(history: &SharedHistory) {
    let are_answered = || {
        let history = history.lock();
        history.calls.iter().filter(|call| call.ended_at.is_some()).count() >= MESSAGES
    };
    while !are_answered() {
        sleep(Duration::from_millis(10)).await;
    }
}

async fn all_done(file: &Path) {
    while !tables::backlog_of_file(file).await.is_ok_and(|backlog| backlog.is_empty()) {
        sleep(Duration::from_millis(50)).await;
    }
}

impl Burst {
    fn judge(self, place: &str, verdict: &mut Verdict) -> anyhow::Result<()> {
        let Self { history, ledger, begun_at, most_in_flight } = self;
        let times = |of: fn(&Call) -> Option<Moment>| history.calls.iter().filter_map(of);
        let first_call = times(|call| Some(call.began_at)).min().context("no call")?;
        let last_end = times(|call| call.ended_at).max().context("no call has ended")?;
        let accepted = history.requests.iter().map(|request| request.ended_at).max();
        let accepted = accepted.context("no request")? - begun_at;
        let (first, all) = (first_call - begun_at, last_end - begun_at);
        let leaving = last_end - first_call;
        verdict.figure(format!("{place}: all accepted"), format!("after {accepted} ms"));
        verdict.figure(format!("{place}: calls"), format!("from {first} to {all} ms"));
        verdict.figure(format!("{place}: most calls at a time"), most_in_flight);
        verdict.claim(
            format!("{place}: all leave in under {LIMIT:?}"),
            leaving < millis(LIMIT),
            format!("{leaving} ms"),
        );
        let violations = checker::check(&history, &ledger, millis(PATIENCE)).violations;
        let shown: Vec<_> = violations
            .iter()
            .take(3)
            .map(|it| format!("{}: {}", it.invariant, it.detail))
            .collect();
        verdict.claim(
            format!("{place}: none is lost, none sent twice, each phone in order"),
            violations.is_empty(),
            format!("{} violations {}", violations.len(), shown.join("; ")),
        );
        Ok(())
    }
}
