//! Does harm, as a seed tells it to.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, PoisonError, atomic::Ordering},
    time::Duration,
};

use rand::{RngExt, SeedableRng, rngs::StdRng, seq::SliceRandom};
use tokio::{sync::OwnedMutexGuard, time::sleep};
use tokio_util::sync::CancellationToken;

use crate::{
    clock::{millis, now},
    gateway::Answer,
    postgres::{Shutdown, terminate_backends},
    process::{Process, Role, Signal},
    proxy::Effect,
    stage::{LinkKind, Stage},
};

/// A kind of harm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fault {
    /// Kill -9, and start again at once.
    Kill(Role),
    /// SIGSTOP for longer than a lease, then SIGCONT.
    Pause(Role),
    /// SIGTERM, and start again.
    Restart(Role),
    PostgresRestart(Shutdown),
    /// Every session is ended, again and again for a while.
    PostgresTerminate,
    KafkaStop,
    KafkaKill,
    PartitionAdd,
    /// The topic is deleted and made anew.
    TopicWipe,
    Link(LinkKind, Effect),
    Gateway(Answer),
}

/// The most partitions that a topic gets.
const PARTITIONS: usize = 8;

/// How long after new partitions some part may still not know of them.
const DISCOVERY: Duration = Duration::from_secs(15);

impl Fault {
    /// One of each kind.
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

    /// Whether one of these words begins its name; every fault is meant where there are none.
    pub fn is_among(&self, words: &[String]) -> bool {
        let name = self.to_string();
        words.is_empty() || words.iter().any(|word| name.starts_with(word))
    }

    /// What no second fault may touch meanwhile. Processes look after themselves.
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
    stage: Arc<Stage>,
    kills: Vec<Role>,
    deck: Mutex<Deck>,
    in_use: HashMap<String, Arc<tokio::sync::Mutex<()>>>,
}

/// Every fault comes once before any comes again.
#[derive(Debug)]
struct Deck {
    faults: Vec<Fault>,
    left: Vec<Fault>,
    rng: StdRng,
}

impl Nemesis {
    /// `words` select faults by their names.
    pub fn new(stage: Arc<Stage>, words: &[String], mut rng: StdRng) -> Self {
        let (kills, faults): (Vec<Fault>, Vec<Fault>) = Fault::all(&mut rng)
            .into_iter()
            .filter(|fault| fault.is_among(words))
            .partition(|fault| matches!(fault, Fault::Kill(_)));
        let in_use =
            faults.iter().filter_map(|fault| Some((fault.resource()?, Arc::default()))).collect();
        let kills = kills
            .into_iter()
            .filter_map(|fault| match fault {
                Fault::Kill(role) => Some(role),
                _ => None,
            })
            .collect();
        Self { stage, kills, deck: Mutex::new(Deck { faults, left: Vec::new(), rng }), in_use }
    }

    /// Does harm until `stop`, and takes back what it did.
    pub async fn run(&self, stop: &CancellationToken, seed: u64) -> anyhow::Result<()> {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut draw = || StdRng::seed_from_u64(rng.random());
        let mut hands = [draw(), draw()];
        let [first, second] = &mut hands;
        tokio::try_join!(self.kill(draw(), stop), self.hand(first, stop), self.hand(second, stop),)?;
        Ok(())
    }

    async fn kill(&self, mut rng: StdRng, stop: &CancellationToken) -> anyhow::Result<()> {
        while !self.kills.is_empty() {
            let pause = Duration::from_millis(rng.random_range(500..6_000));
            if stop.run_until_cancelled(sleep(pause)).await.is_none() {
                break;
            }
            let role = self.kills[rng.random_range(0..self.kills.len())];
            let Some((process, _taken)) = self.pick(role, &mut rng) else { continue };
            let trouble = self.stage.recorder.trouble(format!("kill-{role}"), &*process.name);
            process.kill().await;
            process.start()?;
            self.stage.recorder.healed(trouble);
        }
        Ok(())
    }

    async fn hand(&self, rng: &mut StdRng, stop: &CancellationToken) -> anyhow::Result<()> {
        loop {
            let pause = Duration::from_millis(rng.random_range(200..1_500));
            if stop.run_until_cancelled(sleep(pause)).await.is_none() {
                return Ok(());
            }
            if let Some((fault, _in_use)) = self.draw() {
                self.carry_out(fault, rng, stop).await?;
            }
        }
    }

    /// The next fault whose object nobody else works on.
    fn draw(&self) -> Option<(Fault, Option<OwnedMutexGuard<()>>)> {
        let mut deck = self.deck.lock().unwrap_or_else(PoisonError::into_inner);
        if deck.left.is_empty() {
            let Deck { faults, left, rng } = &mut *deck;
            left.clone_from(faults);
            left.shuffle(rng);
        }
        for place in (0..deck.left.len()).rev() {
            let guard = match deck.left[place].resource() {
                None => None,
                Some(resource) => match Arc::clone(&self.in_use[&resource]).try_lock_owned() {
                    Ok(guard) => Some(guard),
                    Err(_) => continue,
                },
            };
            return Some((deck.left.remove(place), guard));
        }
        None
    }

    /// A process of this role that nobody else works on.
    fn pick(&self, role: Role, rng: &mut StdRng) -> Option<(Arc<Process>, OwnedMutexGuard<()>)> {
        let mut processes: Vec<_> = self.stage.of_role(role).cloned().collect();
        processes.shuffle(rng);
        processes.into_iter().find_map(|process| {
            let taken = process.try_take()?;
            Some((process, taken))
        })
    }

    async fn carry_out(
        &self,
        fault: Fault,
        rng: &mut StdRng,
        stop: &CancellationToken,
    ) -> anyhow::Result<()> {
        let stage = &*self.stage;
        let recorder = &stage.recorder;
        let name = fault.to_string();
        match fault {
            Fault::Kill(_) => {}
            Fault::Pause(role) => {
                let Some((process, _taken)) = self.pick(role, rng) else { return Ok(()) };
                let trouble = recorder.trouble(name, &*process.name);
                process.signal(Signal::STOP);
                // A consumer's leases last ten seconds, a processor's one.
                let seconds = if role == Role::Consumer { 11.0..14.0 } else { 1.5..5.0 };
                hold(rng, seconds, stop).await;
                process.signal(Signal::CONT);
                recorder.healed(trouble);
            }
            Fault::Restart(role) => {
                let Some((process, _taken)) = self.pick(role, rng) else { return Ok(()) };
                let trouble = recorder.trouble(name, &*process.name);
                process.terminate(Duration::from_secs(30)).await;
                process.start()?;
                recorder.healed(trouble);
            }
            Fault::PostgresRestart(shutdown) => {
                let trouble = recorder.trouble(name, "postgres");
                stage.postgres.restart(shutdown).await?;
                recorder.healed(trouble);
            }
            Fault::PostgresTerminate => {
                let trouble = recorder.trouble(name, "postgres");
                for _ in 0..rng.random_range(3..10) {
                    // Another fault may have taken our own session.
                    let _ = terminate_backends(&stage.database).await;
                    hold(rng, 0.1..0.4, stop).await;
                }
                recorder.healed(trouble);
            }
            Fault::KafkaStop | Fault::KafkaKill => {
                let trouble = recorder.trouble(name, "kafka");
                let signal = if fault == Fault::KafkaStop { Signal::TERM } else { Signal::KILL };
                stage.kafka.stop(signal).await?;
                hold(rng, 0.0..4.0, stop).await;
                stage.kafka.start().await?;
                recorder.healed(trouble);
            }
            Fault::PartitionAdd => {
                let count = stage.partitions.load(Ordering::Relaxed) + 1;
                if count > PARTITIONS {
                    return Ok(());
                }
                let trouble = recorder.trouble(name, format!("topic, {count} partitions"));
                stage.kafka.set_partitions(&stage.topic, count).await?;
                stage.partitions.store(count, Ordering::Relaxed);
                recorder.healed_by(trouble, now() + millis(DISCOVERY));
            }
            Fault::TopicWipe => {
                // Its effects last until all is done: what it took has to be published again.
                recorder.trouble(name, "topic");
                let count = stage.partitions.load(Ordering::Relaxed);
                stage.topic.wipe(count).await?;
                if stage.topic.partitions().await?.len() < count {
                    stage.kafka.set_partitions(&stage.topic, count).await?;
                }
            }
            Fault::Link(kind, effect) => {
                let mut links: Vec<_> = stage.links_of(kind).collect();
                let one = rng.random_bool(0.5);
                links.shuffle(rng);
                links.truncate(if one { 1 } else { links.len() });
                let owners: Vec<&str> = links.iter().map(|link| &*link.owner).collect();
                let trouble = recorder.trouble(name, owners.join(" "));
                for link in &links {
                    link.proxy.put(effect);
                }
                hold(rng, 1.0..8.0, stop).await;
                for link in &links {
                    link.proxy.put(Effect::Pass);
                }
                recorder.healed(trouble);
            }
            Fault::Gateway(answer) => {
                let trouble = recorder.trouble(name, "gateway");
                stage.gateway.answer(answer);
                hold(rng, 2.0..8.0, stop).await;
                stage.gateway.answer(Answer::Accept);
                recorder.healed(trouble);
            }
        }
        Ok(())
    }
}

/// Keeps a fault up for so many seconds, or until `stop`.
async fn hold(rng: &mut StdRng, seconds: std::ops::Range<f64>, stop: &CancellationToken) {
    let pause = Duration::from_secs_f64(rng.random_range(seconds));
    stop.run_until_cancelled(sleep(pause)).await;
}
