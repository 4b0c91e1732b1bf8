//! The faults of a run with all its servers, in the order that a seed gives.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, PoisonError, atomic::Ordering},
    time::Duration,
};

use rand::{RngExt, SeedableRng, rngs::StdRng, seq::SliceRandom};
use tokio::sync::OwnedMutexGuard;
use tokio_util::sync::CancellationToken;

use super::{
    faults::{Deck, hold, is_meant, pick},
    history::SharedHistory,
};
use crate::kit::{
    clock::{millis, now},
    postgres::{Shutdown, terminate_backends},
    process::{Role, Signal},
    proxy::Effect,
    recorder::Answer,
    testbed::{LinkKind, Testbed},
};

/// A kind of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fault {
    /// Kill -9, and start again at once.
    Kill(Role),
    /// SIGSTOP for longer than a lease, then SIGCONT.
    Pause(Role),
    /// SIGTERM, and start again.
    Restart(Role),
    PostgresRestart(Shutdown),
    /// Ends every session, again and again for a while.
    PostgresTerminate,
    KafkaStop,
    KafkaKill,
    PartitionAdd,
    /// Deletes the topic and creates it again.
    TopicWipe,
    Link(LinkKind, Effect),
    Gateway(Answer),
}

/// The most partitions that a topic gets.
const PARTITIONS: usize = 8;

/// How long after new partitions some process may not know of them.
const DISCOVERY: Duration = Duration::from_secs(15);

impl Fault {
    /// Returns one of each kind.
    pub fn all(rng: &mut StdRng) -> Vec<Self> {
        let effects = |rng: &mut StdRng| {
            let delay = Duration::from_millis(rng.random_range(50..1_000));
            [Effect::Cut, Effect::Delay(delay), Effect::HalfOpen, Effect::EatAnswers]
        };
        let mut all = Vec::new();
        for role in Role::ALL {
            all.extend([Self::Kill(role), Self::Pause(role), Self::Restart(role)]);
        }
        all.extend([Shutdown::Fast, Shutdown::Immediate].map(Self::PostgresRestart));
        all.extend([
            Self::PostgresTerminate,
            Self::KafkaStop,
            Self::KafkaKill,
            Self::PartitionAdd,
            Self::TopicWipe,
        ]);
        for kind in LinkKind::ALL {
            all.extend(effects(rng).map(|effect| Self::Link(kind, effect)));
        }
        all.extend(
            [
                Answer::Error,
                Answer::Throttle,
                Answer::Unavailable,
                Answer::Late,
                Answer::Reset,
                Answer::Drip,
                Answer::Noise,
                Answer::BadBody,
            ]
            .map(Self::Gateway),
        );
        all
    }

    /// Names the part that no second fault may touch at the same time. Processes are reserved one
    /// by one.
    fn resource(self) -> Option<String> {
        match self {
            Self::Kill(_) | Self::Pause(_) | Self::Restart(_) => None,
            Self::PostgresRestart(_) | Self::PostgresTerminate => Some("postgres".to_owned()),
            Self::KafkaStop | Self::KafkaKill | Self::PartitionAdd | Self::TopicWipe => {
                Some("kafka".to_owned())
            }
            Self::Link(kind, _) => Some(kind.to_string()),
            Self::Gateway(_) => Some("gateway".to_owned()),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kill(role) => write!(f, "kill-{role}"),
            Self::Pause(role) => write!(f, "pause-{role}"),
            Self::Restart(role) => write!(f, "restart-{role}"),
            Self::PostgresRestart(Shutdown::Fast) => f.write_str("postgres-fast"),
            Self::PostgresRestart(Shutdown::Immediate) => f.write_str("postgres-immediate"),
            Self::PostgresTerminate => f.write_str("postgres-terminate"),
            Self::KafkaStop => f.write_str("kafka-stop"),
            Self::KafkaKill => f.write_str("kafka-kill"),
            Self::PartitionAdd => f.write_str("partition-add"),
            Self::TopicWipe => f.write_str("topic-wipe"),
            Self::Link(kind, effect) => write!(f, "link-{effect}-{kind}"),
            Self::Gateway(answer) => write!(f, "gateway-{answer}"),
        }
    }
}

/// Draws faults and carries them out.
#[derive(Debug)]
pub struct Nemesis {
    testbed: Arc<Testbed<SharedHistory>>,
    /// The roles whose processes it kills.
    kills: Vec<Role>,
    deck: Mutex<(Deck<Fault>, StdRng)>,
    in_use: HashMap<String, Arc<tokio::sync::Mutex<()>>>,
}

impl Nemesis {
    /// `words` select faults by the beginnings of their names.
    pub fn new(testbed: Arc<Testbed<SharedHistory>>, words: &[String], mut rng: StdRng) -> Self {
        let (mut kills, mut faults) = (Vec::new(), Vec::new());
        for fault in Fault::all(&mut rng).into_iter().filter(|fault| is_meant(fault, words)) {
            match fault {
                Fault::Kill(role) => kills.push(role),
                _ => faults.push(fault),
            }
        }
        let resources = faults.iter().filter_map(|fault| fault.resource());
        let in_use = resources.map(|resource| (resource, Arc::default())).collect();
        Self { testbed, kills, deck: Mutex::new((Deck::new(faults), rng)), in_use }
    }

    /// Injects faults until `stop`, two at a time besides the kills, and takes them away.
    pub async fn run(&self, stop: &CancellationToken, seed: u64) -> anyhow::Result<()> {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut draw = || StdRng::seed_from_u64(rng.random());
        let [first, second] = [draw(), draw()];
        tokio::try_join!(
            self.kill(draw(), stop),
            self.inject(first, stop),
            self.inject(second, stop)
        )?;
        Ok(())
    }

    async fn kill(&self, mut rng: StdRng, stop: &CancellationToken) -> anyhow::Result<()> {
        while !self.kills.is_empty() && hold(&mut rng, 0.5..6.0, stop).await {
            let role = self.kills[rng.random_range(0..self.kills.len())];
            let processes = self.testbed.of_role(role);
            let Some((process, _reserved)) = pick(processes, &mut rng) else { continue };
            let history = &self.testbed.recorder;
            let number = history.fault_began(format!("kill-{role}"), &*process.name);
            process.kill().await;
            process.start()?;
            history.fault_ended(number);
        }
        Ok(())
    }

    async fn inject(&self, mut rng: StdRng, stop: &CancellationToken) -> anyhow::Result<()> {
        while hold(&mut rng, 0.2..1.5, stop).await {
            if let Some((fault, _reserved)) = self.draw() {
                self.carry_out(fault, &mut rng, stop).await?;
            }
        }
        Ok(())
    }

    /// Draws the next fault whose resource is free, and reserves it.
    fn draw(&self) -> Option<(Fault, Option<OwnedMutexGuard<()>>)> {
        let mut deck = self.deck.lock().unwrap_or_else(PoisonError::into_inner);
        let (deck, rng) = &mut *deck;
        deck.draw(rng, |fault| match fault.resource() {
            None => Some(None),
            Some(resource) => Arc::clone(&self.in_use[&resource]).try_lock_owned().ok().map(Some),
        })
    }

    async fn carry_out(
        &self,
        fault: Fault,
        rng: &mut StdRng,
        stop: &CancellationToken,
    ) -> anyhow::Result<()> {
        let testbed = &*self.testbed;
        let history = &testbed.recorder;
        let name = fault.to_string();
        match fault {
            Fault::Kill(_) => {}
            Fault::Pause(role) => {
                let processes = testbed.of_role(role);
                let Some((process, _reserved)) = pick(processes, rng) else { return Ok(()) };
                let number = history.fault_began(name, &*process.name);
                process.signal(Signal::STOP);
                // A consumer's lease lasts ten seconds, a processor's one second.
                let seconds = if role == Role::Consumer { 11.0..14.0 } else { 1.5..5.0 };
                hold(rng, seconds, stop).await;
                process.signal(Signal::CONT);
                history.fault_ended(number);
            }
            Fault::Restart(role) => {
                let processes = testbed.of_role(role);
                let Some((process, _reserved)) = pick(processes, rng) else { return Ok(()) };
                let number = history.fault_began(name, &*process.name);
                process.terminate(Duration::from_secs(30)).await;
                process.start()?;
                history.fault_ended(number);
            }
            Fault::PostgresRestart(shutdown) => {
                let number = history.fault_began(name, "postgres");
                testbed.postgres.restart(shutdown).await?;
                history.fault_ended(number);
            }
            Fault::PostgresTerminate => {
                let number = history.fault_began(name, "postgres");
                for _ in 0..rng.random_range(3..10) {
                    // Another fault may have ended the session of the lab.
                    let _ = terminate_backends(&testbed.database).await;
                    hold(rng, 0.1..0.4, stop).await;
                }
                history.fault_ended(number);
            }
            Fault::KafkaStop | Fault::KafkaKill => {
                let number = history.fault_began(name, "kafka");
                let signal = if fault == Fault::KafkaStop { Signal::TERM } else { Signal::KILL };
                testbed.kafka.stop(signal).await?;
                hold(rng, 0.0..4.0, stop).await;
                testbed.kafka.start().await?;
                history.fault_ended(number);
            }
            Fault::PartitionAdd => {
                let count = testbed.partitions.load(Ordering::Relaxed) + 1;
                if count > PARTITIONS {
                    return Ok(());
                }
                let number = history.fault_began(name, format!("topic, {count} partitions"));
                testbed.kafka.set_partitions(&testbed.topic, count).await?;
                testbed.partitions.store(count, Ordering::Relaxed);
                history.fault_ends_at(number, now() + millis(DISCOVERY));
            }
            Fault::TopicWipe => {
                // Its effects last until all is done: the lost messages must be published again.
                history.fault_began(name, "topic");
                let count = testbed.partitions.load(Ordering::Relaxed);
                testbed.topic.wipe(count).await?;
                if testbed.topic.partitions().await?.len() < count {
                    testbed.kafka.set_partitions(&testbed.topic, count).await?;
                }
            }
            Fault::Link(kind, effect) => {
                let mut links: Vec<_> = testbed.links_of(kind).collect();
                let one = rng.random_bool(0.5);
                links.shuffle(rng);
                links.truncate(if one { 1 } else { links.len() });
                let owners: Vec<&str> = links.iter().map(|link| &*link.owner).collect();
                let number = history.fault_began(name, owners.join(" "));
                for link in &links {
                    link.proxy.put(effect);
                }
                hold(rng, 1.0..8.0, stop).await;
                for link in &links {
                    link.proxy.put(Effect::Pass);
                }
                history.fault_ended(number);
            }
            Fault::Gateway(answer) => {
                let number = history.fault_began(name, "gateway");
                testbed.gateway.answer(answer);
                hold(rng, 2.0..8.0, stop).await;
                testbed.gateway.answer(Answer::Accept);
                history.fault_ended(number);
            }
        }
        Ok(())
    }
}
