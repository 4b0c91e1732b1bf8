//! Three Kafka brokers replicate the topic, and each is killed in turn under load.

use std::{sync::Arc, time::Duration};

use tokio::time::sleep;

use super::verdict::Verdict;
use crate::kit::{
    cluster::{BROKERS, Cluster},
    process::Role,
    tally::Tally,
    testbed::{Plan, Testbed},
};

const RATE: f64 = 100.0;
/// How long the load runs before each kill.
const CALM: Duration = Duration::from_secs(5);
/// How long a killed broker is away.
const AWAY: Duration = Duration::from_secs(12);
/// The longest that a message may wait. Without a fault it waits some milliseconds.
const LONGEST_WAIT: Duration = Duration::from_secs(5);

pub async fn brokers(mut plan: Plan, kills: usize) -> anyhow::Result<Verdict> {
    let cluster = Arc::new(Cluster::start(&plan.folder).await?);
    plan.cluster = Some(Arc::clone(&cluster));
    let testbed = Testbed::prepare(&plan, Tally::default()).await?;
    testbed.start(&Role::ALL).await?;
    let load = Arc::new(testbed.clients(0)).begin_asking(RATE);

    let mut verdict = Verdict::new("brokers");
    for kill in 0..kills {
        sleep(CALM).await;
        once(&testbed, &cluster, kill % BROKERS + 1, &mut verdict).await?;
    }
    let offered = load.end().await?;
    let done = testbed.wait_until_done(Duration::from_secs(60)).await;
    let bad = testbed.stop().await;

    verdict.figure("asked", offered.asked);
    verdict.figure("backlog empty", format!("{done:.1?} after the load"));
    verdict.judge(&testbed.recorder.account());
    verdict.judge_writes(&testbed.database).await?;
    verdict.claim("all processes ended well", bad.is_empty(), bad.join(", "));
    Ok(verdict)
}

/// Kills a broker, starts it again, and waits until it has all records.
async fn once(
    testbed: &Testbed<Tally>,
    cluster: &Cluster,
    id: usize,
    verdict: &mut Verdict,
) -> anyhow::Result<()> {
    let topic = &testbed.topic.name;
    let partitions = cluster.partitions(topic).await?;
    let led: Vec<_> = partitions
        .iter()
        .filter(|(_, one)| one.leader == Some(id))
        .map(|(number, _)| number)
        .collect();
    let from = testbed.recorder.elapsed();
    cluster.kill(id).await?;
    sleep(AWAY).await;
    let waits = testbed.recorder.waits_since(from.saturating_sub(LONGEST_WAIT));
    let longest = Duration::from_micros(waits.iter().copied().max().unwrap_or_default().into());
    cluster.restart(id)?;
    cluster.wait_until_whole(topic).await?;
    verdict.claim(
        format!("broker {id} killed, leader of {led:?}: no message waits for 5 s"),
        !waits.is_empty() && longest < LONGEST_WAIT,
        format!("longest {longest:.1?} of {} messages", waits.len()),
    );
    Ok(())
}
