//! A run with two gateways, of which the first fails in one way after the other, while processes are
//! killed.

use std::{path::PathBuf, sync::Arc, time::Duration};

use rand::{RngExt, SeedableRng, rngs::StdRng};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::{
    faults::{Deck, hold, is_meant, pick},
    history::{FIRST_GATEWAY, Round, SharedHistory},
    report::{Report, RoundReport},
    run::{CALM, GATEWAY_TIMEOUT, Run, settings},
    traffic::{Pace, Traffic},
};
use crate::kit::{
    clock::{millis, now},
    gateway::Character,
    gateways_file::{GatewaysFile, ONE_ROUTE},
    process::Role,
    progress::say,
    recorder::{AfterAmbiguous, Answer, GatewayKind},
    testbed::{Plan, Testbed},
};

/// The parameters of a run.
#[derive(Debug, Clone)]
pub struct Scenario {
    pub duration: Duration,
    pub seed: u64,
    /// Requests a second.
    pub rate: u32,
    /// Beginnings of the names of faults. Without any, all faults are used.
    pub faults: Vec<String>,
    /// What follows an ambiguous call. `None` alternates.
    pub ambiguous: Option<AfterAmbiguous>,
    /// The kind of both gateways. `None` alternates.
    pub kind: Option<GatewayKind>,
    pub bins: PathBuf,
    /// For logs.
    pub folder: PathBuf,
}

/// How the first gateway fails: three ways in which it surely takes nothing, two that look like a
/// wrong account, and three after which the message may be there.
pub const FAULTS: [Answer; 8] = [
    Answer::Down,
    Answer::Unavailable,
    Answer::Throttle,
    Answer::Deny,
    Answer::ErrorInside,
    Answer::Error,
    Answer::Late,
    Answer::Reset,
];

/// How long the first gateway may take to be used again.
pub const HEALING: Duration = Duration::from_secs(60);

/// Both rules and both kinds come first.
const SETUPS: [(AfterAmbiguous, GatewayKind); 4] = [
    (AfterAmbiguous::Same, GatewayKind::Idempotent),
    (AfterAmbiguous::Next, GatewayKind::Plain),
    (AfterAmbiguous::Same, GatewayKind::Plain),
    (AfterAmbiguous::Next, GatewayKind::Idempotent),
];
const ROUND: Duration = Duration::from_secs(60);
/// The share of phones that get several messages.
const SEQUENCES: f64 = 0.1;

/// Makes the first gateway fail, and kills processes.
struct Nemesis {
    testbed: Arc<Testbed<SharedHistory>>,
    deck: Deck<Answer>,
}

/// Runs a scenario. An error is the lab's failure, not the service's.
pub async fn run(scenario: &Scenario) -> anyhow::Result<Report> {
    let mut rng = StdRng::seed_from_u64(scenario.seed);
    let history = SharedHistory::default();
    let plan = Plan {
        env: settings(),
        gateway: Character::CHAOS,
        further: vec![Character::CHAOS],
        ..Plan::usual(&scenario.bins, &scenario.folder)
    };
    let testbed = Arc::new(Testbed::prepare(&plan, history.clone()).await?);
    let mut nemesis = Nemesis::new(Arc::clone(&testbed), &scenario.faults);
    let pace = Pace { rate: scenario.rate, sequences: SEQUENCES };
    let ports = testbed.api_ports.clone();
    let draw = StdRng::seed_from_u64(rng.random());
    let mut traffic = Traffic::new(ports, pace, history.clone(), draw);

    let _progress = history.show_progress(scenario.duration);
    let mut run = Run::begin(testbed, history, scenario.seed);
    let setups = setups(scenario);
    let length = scenario.duration / u32::try_from(setups.len()).unwrap_or(u32::MAX);
    for setup in setups {
        let rng = StdRng::seed_from_u64(rng.random());
        if !run.round_with(setup, length, &mut nemesis, &mut traffic, rng).await? {
            break;
        }
    }
    run.end().await
}

/// Returns what each round is about. There are at least two rounds, if there is a choice.
fn setups(scenario: &Scenario) -> Vec<(AfterAmbiguous, GatewayKind)> {
    let is_meant = |(ambiguous, kind): &(AfterAmbiguous, GatewayKind)| {
        scenario.ambiguous.is_none_or(|wanted| wanted == *ambiguous)
            && scenario.kind.is_none_or(|wanted| wanted == *kind)
    };
    let meant: Vec<_> = SETUPS.into_iter().filter(is_meant).collect();
    let count = scenario.duration.as_secs() / ROUND.as_secs();
    let count = usize::try_from(count).unwrap_or(usize::MAX).max(meant.len().min(2));
    meant.into_iter().cycle().take(count).collect()
}

impl Run {
    /// Runs a round, and judges the run so far. Returns whether no message waits.
    async fn round_with(
        &mut self,
        (ambiguous, kind): (AfterAmbiguous, GatewayKind),
        length: Duration,
        nemesis: &mut Nemesis,
        traffic: &mut Traffic,
        rng: StdRng,
    ) -> anyhow::Result<bool> {
        let begun = Instant::now();
        let before = self.findings.report.accepted;
        let setup = GatewaysFile { routes: ONE_ROUTE, ambiguous, timeout: GATEWAY_TIMEOUT };
        nemesis.testbed.use_gateways(kind, &setup).await?;
        let round = Round { from: now(), kind, ambiguous };
        nemesis.testbed.recorder.lock().rounds.push(round);

        let under_faults = length.saturating_sub(CALM + begun.elapsed()).max(length / 2);
        let faults = async |stop: &CancellationToken| nemesis.run(stop, rng).await;
        let recovery = self.endure(under_faults, faults, traffic).await?;
        self.judge(recovery.is_some()).await?;
        let accepted = self.findings.report.accepted - before;
        self.findings.report.rounds.push(RoundReport {
            gateway: format!("{kind} ({ambiguous})"),
            accepted,
            recovery_milliseconds: recovery.map(|time| millis(time).unsigned_abs()),
        });
        let violations = self.findings.report.violations.len();
        say(&format!(
            "chaos: {kind} gateways, ambiguous = {ambiguous}: {accepted} accepted, recovery \
            {recovery:.1?}, {violations} violations so far"
        ));
        Ok(recovery.is_some())
    }
}

impl Nemesis {
    /// `words` select faults by the beginnings of their names.
    fn new(testbed: Arc<Testbed<SharedHistory>>, words: &[String]) -> Self {
        let faults = FAULTS.into_iter().filter(|fault| is_meant(fault, words)).collect();
        Self { testbed, deck: Deck::new(faults) }
    }

    /// Injects faults until `stop`, one after the other, and kills processes meanwhile.
    async fn run(&mut self, stop: &CancellationToken, mut rng: StdRng) -> anyhow::Result<()> {
        let mut draw = || StdRng::seed_from_u64(rng.random());
        let [of_faults, of_consumers, of_others] = [draw(), draw(), draw()];
        let testbed = Arc::clone(&self.testbed);
        // A consumer that was killed keeps its partitions for ten seconds. Some consumer must have
        // partitions, or no message would go out within five.
        let consumers = kill(&testbed, &[Role::Consumer], 5.0..8.0, of_consumers, stop);
        let others = kill(&testbed, &[Role::Api, Role::Processor], 1.0..4.0, of_others, stop);
        let faults = async {
            self.fail(of_faults, stop).await;
            anyhow::Ok(())
        };
        tokio::try_join!(faults, consumers, others)?;
        Ok(())
    }

    /// Lets the first gateway fail again and again. A fault that has begun is not cut short.
    async fn fail(&mut self, mut rng: StdRng, stop: &CancellationToken) {
        while hold(&mut rng, 0.5..2.0, stop).await {
            let Some((answer, ())) = self.deck.draw(&mut rng, |_| Some(())) else { return };
            let history = &self.testbed.recorder;
            let number = history.fault_began(format!("gateway-{answer}"), FIRST_GATEWAY);
            self.testbed.gateway.answer(answer);
            sleep(Duration::from_secs_f64(rng.random_range(6.0..9.0))).await;
            self.testbed.gateway.answer(Answer::Accept);
            history.fault_ended(number);
            // If it takes longer, the checker complains.
            let _ = timeout(HEALING, first_is_used(history)).await;
        }
    }
}

/// Waits until the first gateway takes a message.
pub async fn first_is_used(history: &SharedHistory) {
    let since = now();
    while history.lock().taken_by(0, since).next().is_none() {
        sleep(Duration::from_millis(50)).await;
    }
}

/// Kills processes of these roles until `stop`, and starts each again at once.
async fn kill(
    testbed: &Testbed<SharedHistory>,
    roles: &[Role],
    pause: std::ops::Range<f64>,
    mut rng: StdRng,
    stop: &CancellationToken,
) -> anyhow::Result<()> {
    while hold(&mut rng, pause.clone(), stop).await {
        let processes = testbed.processes.iter().filter(|process| roles.contains(&process.role));
        let Some((process, _reserved)) = pick(processes, &mut rng) else { continue };
        let history = &testbed.recorder;
        let number = history.fault_began(format!("kill-{}", process.role), &*process.name);
        process.kill().await;
        process.start()?;
        history.fault_ended(number);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scenario(seconds: u64) -> Scenario {
        Scenario {
            duration: Duration::from_secs(seconds),
            seed: 1,
            rate: 50,
            faults: Vec::new(),
            ambiguous: None,
            kind: None,
            bins: PathBuf::new(),
            folder: PathBuf::new(),
        }
    }

    #[test]
    fn a_short_run_has_both_rules_and_both_kinds() {
        assert_eq!(setups(&scenario(60)), SETUPS[..2]);
        assert_eq!(setups(&scenario(300)), [&SETUPS[..], &SETUPS[..1]].concat());
    }

    #[test]
    fn a_rule_and_a_kind_can_be_chosen() {
        let ambiguous = Some(AfterAmbiguous::Same);
        let kind = Some(GatewayKind::Plain);

        assert_eq!(setups(&Scenario { ambiguous, kind, ..scenario(30) }), SETUPS[2..3]);
    }
}
