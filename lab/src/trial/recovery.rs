//! What was published and is not read comes back by itself.

use std::{sync::Arc, time::Duration};

use anyhow::Context;
use tokio::time::{Instant, sleep, timeout};

use super::{
    load::ask_times,
    stand::{PARTITIONS, Plan, Stand},
    verdict::Verdict,
};
use crate::process::Role;

const MESSAGES: usize = 1_000;
const BY_LATEST: Duration = Duration::from_secs(60);
const BY_WIPED: Duration = Duration::from_secs(90);
/// How much longer we look on.
const PATIENCE: Duration = Duration::from_secs(400);

/// A fresh group that begins at the end, and a topic that is deleted; in both cases the consumers
/// start `pause` after the last message was published.
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
    let stand = Stand::prepare(plan).await?;
    stand.start(&[Role::Processor, Role::Api]).await?;
    ask_times(&Arc::new(stand.clients(0)), MESSAGES).await;
    let published = async {
        while stand.count("SELECT count(*) FROM outbox").await? > 0 {
            sleep(Duration::from_millis(20)).await;
        }
        anyhow::Ok(())
    };
    timeout(PATIENCE, published).await.context("not all was published")??;
    if wipe {
        stand.topic.wipe(PARTITIONS).await?;
    }
    sleep(pause).await;

    let begun = Instant::now();
    stand.start(&[Role::Consumer]).await?;
    let ready = begun.elapsed();
    let mut half = None;
    let delivered = async {
        loop {
            let (called, accepted) = stand.tape.progress();
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
    stand.wait_until_done(Duration::from_secs(30)).await;
    let account = stand.tape.account();
    let bad = stand.stop().await;

    verdict.figure(format!("{name}: partitions read"), format!("after {ready:.1?}"));
    verdict.figure(format!("{name}: half delivered"), format!("after {half:.1?}"));
    verdict.claim(
        format!("{name}: all delivered within {limit:?}"),
        took.is_some_and(|took| took <= limit) && account.accepted == MESSAGES,
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
