//! Published messages that no consumer reads are published again.

use std::{sync::Arc, time::Duration};

use anyhow::Context;
use tokio::time::{Instant, sleep, timeout};

use super::verdict::Verdict;
use crate::kit::{
    process::Role,
    tables,
    tally::Tally,
    testbed::{PARTITIONS, Plan, Testbed},
};

const MESSAGES: u64 = 1_000;
const BY_LATEST: Duration = Duration::from_secs(60);
const BY_WIPED: Duration = Duration::from_secs(90);
/// How long the trial waits before it gives up.
const PATIENCE: Duration = Duration::from_secs(400);

/// Tries a new group that starts at the end, and a topic that is deleted. In both cases the
/// consumers start `pause` after the last publication.
pub async fn recovery(mut plan: Plan, pause: Duration) -> anyhow::Result<Verdict> {
    plan.env.push(("CONSUMER_AUTO_OFFSET_RESET", "latest".to_owned()));
    let mut verdict = Verdict::new("recovery");
    verdict.figure("messages", MESSAGES);
    verdict.figure("consumers start after publication", format!("{pause:.0?}"));
    for (name, wipe, limit) in [
        ("fresh group with latest", false, BY_LATEST),
        ("topic deleted and made again", true, BY_WIPED),
    ] {
        once(&plan, name, wipe, limit, pause, &mut verdict).await.context(name)?;
    }
    Ok(verdict)
}

async fn once(
    plan: &Plan,
    name: &str,
    wipe: bool,
    limit: Duration,
    pause: Duration,
    verdict: &mut Verdict,
) -> anyhow::Result<()> {
    let testbed = Testbed::prepare(plan, Tally::default()).await?;
    testbed.start(&[Role::Processor, Role::Api]).await?;
    Arc::new(testbed.clients(0)).ask_times(MESSAGES).await?;
    let published = async {
        while tables::count(&testbed.database, "SELECT count(*) FROM outbox").await? > 0 {
            sleep(Duration::from_millis(20)).await;
        }
        anyhow::Ok(())
    };
    timeout(PATIENCE, published).await.context("not all messages were published")??;
    if wipe {
        testbed.topic.wipe(PARTITIONS).await?;
    }
    sleep(pause).await;

    let begun = Instant::now();
    testbed.start(&[Role::Consumer]).await?;
    let ready = begun.elapsed();
    let mut half = None;
    let delivered = async {
        loop {
            let (called, accepted) = testbed.recorder.progress();
            if called * 2 >= accepted {
                half.get_or_insert_with(|| begun.elapsed());
            }
            if called == accepted {
                return begun.elapsed();
            }
            sleep(Duration::from_millis(20)).await;
        }
    };
    let took = timeout(PATIENCE, delivered).await.ok();
    testbed.wait_until_done(Duration::from_secs(30)).await;
    let account = testbed.recorder.account();
    let bad = testbed.stop().await;

    verdict.figure(format!("{name}: partitions read"), format!("after {ready:.1?}"));
    verdict.figure(format!("{name}: half delivered"), format!("after {half:.1?}"));
    verdict.claim(
        format!("{name}: all delivered within {limit:?}"),
        took.is_some_and(|took| took <= limit) && account.accepted as u64 == MESSAGES,
        format!("{} accepted, {} not delivered, took {took:.1?}", account.accepted, account.lost),
    );
    verdict.claim(
        format!("{name}: none twice"),
        account.repeated == 0 && account.strangers == 0,
        format!("{} called again", account.repeated),
    );
    verdict.claim(format!("{name}: all processes ended well"), bad.is_empty(), bad.join(", "));
    Ok(())
}
