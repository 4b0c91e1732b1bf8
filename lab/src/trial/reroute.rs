//! The first of two gateways fails in one way after another. Its route goes on through the second
//! gateway, and no other route is affected.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use anyhow::ensure;
use tokio::time::{sleep, timeout};

use super::verdict::Verdict;
use crate::{
    chaos::{
        checker::{self, Failover},
        faults::is_meant,
        gateways::{FAULTS, HEALING, first_is_used},
        history::{FIRST_GATEWAY, History, Incident, Round, SharedHistory},
    },
    kit::{
        clock::{Moment, millis, now},
        gateway::Character,
        gateways_file::GatewaysFile,
        load::Running,
        recorder::{AfterAmbiguous, Answer, GatewayKind, Reply},
        tables::{self, Ledger},
        tally::Latency,
        testbed::{Plan, Testbed},
    },
};

/// Numbers of a route that goes on through the second gateway.
const FAILING: &str = "7901";
/// Numbers of a route without another gateway. Its messages wait until the fault is over.
const STUCK: &str = "7902";
/// Numbers of a route that does not use the first gateway.
const OTHER: &str = "7903";

/// The prefixes of numbers, and messages a second to each.
const STREAMS: [(&str, f64); 3] = [(FAILING, 50.0), (STUCK, 20.0), (OTHER, 50.0)];

const ROUTES: &str = r#"
[[route]]
prefixes = ["+7901"]
gateways = ["first", "second"]
[[route]]
prefixes = ["+7902"]
gateways = ["first"]
[[route]]
gateways = ["second"]
"#;

/// The default of the service.
const TIMEOUT: Duration = Duration::from_secs(10);
/// How long the load runs before each fault, for comparison.
const CALM: Duration = Duration::from_secs(4);
/// A fault is noticed within this time. After it, messages leave this soon, too.
const NOTICED: Moment = 5_000;
const LIMIT: f64 = 200.0;
/// The share of messages that must leave in time once a fault is noticed. The others probe the first
/// gateway.
const IN_TIME: f64 = 0.9;

/// What the trial does.
#[derive(Debug)]
pub struct Faults {
    /// How long each lasts.
    pub length: Duration,
    /// The beginnings of their names. If there are none, all faults are used.
    pub words: Vec<String>,
    pub ambiguous: AfterAmbiguous,
}

/// The history of the run, and the ledger at its end.
struct Seen<'a> {
    history: &'a History,
    ledger: &'a Ledger,
    /// The first call that took each message, by its phone: each phone gets one message.
    taken_at: HashMap<&'a str, Moment>,
}

pub async fn reroute(mut plan: Plan, faults: Faults) -> anyhow::Result<Verdict> {
    plan.gateway = Character { refuses_numbers: false, ..Character::CHAOS };
    plan.further = vec![plan.gateway];
    plan.env.push(("CODE_TTL", "600".to_owned()));
    let ambiguous = faults.ambiguous;
    let kind = match ambiguous {
        AfterAmbiguous::Same => GatewayKind::Idempotent,
        AfterAmbiguous::Next => GatewayKind::Plain,
    };
    let history = SharedHistory::default();
    let testbed = Testbed::prepare(&plan, history.clone()).await?;
    let setup = GatewaysFile { routes: ROUTES, ambiguous, timeout: TIMEOUT };
    testbed.use_gateways(kind, &setup).await?;
    history.lock().rounds.push(Round { from: now(), kind, ambiguous });

    let load = STREAMS.map(|(prefix, rate)| begin_asking(&testbed, prefix, rate));
    sleep(CALM).await;
    for answer in FAULTS.into_iter().filter(|fault| is_meant(fault, &faults.words)) {
        fail(&testbed, answer, faults.length).await;
    }
    for load in load {
        load.end().await?;
    }
    let done = testbed.wait_until_done(HEALING).await;
    let ledger = tables::read(&testbed.database).await?;
    let bad = testbed.stop().await;
    history.all_faults_ended();
    let history = history.lock().clone();

    let mut verdict = Verdict::new("reroute");
    verdict.figure("gateways", format!("{kind}, ambiguous = {ambiguous}"));
    verdict.figure("backlog empty", format!("{done:.1?} after the load"));
    judge(&Seen::new(&history, &ledger), &mut verdict)?;
    verdict.claim("all messages end", done.is_some(), format!("{done:.1?}"));
    verdict.claim("all processes ended well", bad.is_empty(), bad.join(", "));
    Ok(verdict)
}

/// Asks for messages to new numbers with this prefix, at a steady rate.
fn begin_asking(testbed: &Testbed<SharedHistory>, prefix: &'static str, rate: f64) -> Running {
    let clients = Arc::new(testbed.clients(0));
    // Even numbers, because those that end with 13 stand for refused ones.
    let mut numbers = (0_u32..).step_by(2);
    Running::begin(rate, move || {
        let phone = format!("{prefix}{:07}", numbers.next().unwrap_or_default());
        let clients = Arc::clone(&clients);
        async move {
            clients.ask(&phone).await;
        }
    })
}

/// Lets the first gateway fail for a while, and waits until it is used again.
async fn fail(testbed: &Testbed<SharedHistory>, answer: Answer, length: Duration) {
    let history = &testbed.recorder;
    let number = history.fault_began(format!("gateway-{answer}"), FIRST_GATEWAY);
    testbed.gateway.answer(answer);
    sleep(length).await;
    testbed.gateway.answer(Answer::Accept);
    history.fault_ended(number);
    // If it takes longer, the verdict says so.
    let _ = timeout(HEALING, first_is_used(history)).await;
    sleep(CALM).await;
}

fn judge(seen: &Seen<'_>, verdict: &mut Verdict) -> anyhow::Result<()> {
    let Seen { history, ledger, .. } = *seen;
    ensure!(history.outages().next().is_some(), "--faults names no fault");
    for outage in history.outages() {
        let end = outage.to.unwrap_or(Moment::MAX);
        let calm = seen.latency(OTHER, outage.from - millis(CALM), outage.from);
        let other = seen.latency(OTHER, outage.from, end);
        let failing = seen.latency(FAILING, outage.from + NOTICED, end);
        let in_time = seen.in_time(outage);
        let kind = &outage.kind;
        verdict.figure(format!("{kind}: other route, before"), calm);
        verdict.figure(format!("{kind}: other route, during"), other);
        verdict.figure(format!("{kind}: its route, noticed"), failing);
        let to_second = seen.to_second(outage);
        let found = Failover { to_second, ..Failover::of(history, ledger, outage) };
        verdict.figure(format!("{kind}: used"), &found);
        let p99 = other.p99;
        verdict.claim(format!("{kind}: p99 of the other route under 200 ms"), p99 < LIMIT, p99);
        verdict.claim(
            format!("{kind}: its route takes the second gateway within 5 s"),
            to_second.is_some_and(|took| took <= NOTICED),
            format!("{to_second:?} ms"),
        );
        verdict.claim(
            format!("{kind}: once noticed, messages of its route leave within 5 s"),
            in_time >= IN_TIME,
            format!("{:.1} %", in_time * 100.0),
        );
    }
    // It also checks how soon the first gateway was used again.
    let violations = checker::check(history, ledger, millis(TIMEOUT)).violations;
    for violation in violations.iter().take(3) {
        let detail = format!("{} {}", violation.invariant, violation.detail);
        verdict.figure("  violation", detail);
    }
    let asked = history.requests.len();
    verdict.claim(
        "none is lost, none sent twice, the first gateway is used again within a minute",
        violations.is_empty(),
        format!("{} violations of {asked} messages", violations.len()),
    );
    Ok(())
}

impl<'a> Seen<'a> {
    fn new(history: &'a History, ledger: &'a Ledger) -> Self {
        let mut taken_at = HashMap::new();
        for call in history.calls.iter().filter(|call| call.paid) {
            taken_at.entry(&*call.phone).or_insert(call.began_at);
        }
        Self { history, ledger, taken_at }
    }

    /// Returns how long each message to these numbers that was accepted between the two times waited
    /// until a gateway took it, in milliseconds.
    fn waits(&self, prefix: &str, from: Moment, to: Moment) -> Vec<Moment> {
        let accepted = self.history.requests.iter().filter(|request| {
            request.reply == Reply::Accepted
                && request.phone.starts_with(prefix)
                && (from..to).contains(&request.ended_at)
        });
        let wait = |phone: &str, since: Moment| {
            self.taken_at.get(phone).map_or(Moment::MAX, |taken_at| (taken_at - since).max(0))
        };
        accepted.map(|request| wait(&request.phone, request.ended_at)).collect()
    }

    fn latency(&self, prefix: &str, from: Moment, to: Moment) -> Latency {
        let micros = |wait: Moment| u32::try_from(wait.saturating_mul(1_000)).unwrap_or(u32::MAX);
        Latency::of(self.waits(prefix, from, to).into_iter().map(micros).collect())
    }

    /// Returns the time from the beginning of the fault until the second gateway took a message of its
    /// route that was accepted since.
    fn to_second(&self, outage: &Incident) -> Option<Moment> {
        let accepted = self.history.requests.iter().filter(|request| {
            request.phone.starts_with(FAILING) && request.ended_at >= outage.from
        });
        let accepted: HashSet<&str> = accepted.map(|request| &*request.phone).collect();
        let mut taken = self.history.taken_by(1, outage.from);
        let first = taken.find(|call| accepted.contains(&*call.phone))?;
        outage.to.is_none_or(|end| first.began_at <= end).then_some(first.began_at - outage.from)
    }

    /// Returns the share of messages that left in time after the fault was noticed.
    #[expect(clippy::cast_precision_loss, reason = "some thousand messages")]
    fn in_time(&self, outage: &Incident) -> f64 {
        let end = outage.to.unwrap_or(Moment::MAX);
        let waits = self.waits(FAILING, outage.from + NOTICED, end);
        let in_time = waits.iter().filter(|wait| **wait <= NOTICED).count();
        in_time as f64 / waits.len().max(1) as f64
    }
}
