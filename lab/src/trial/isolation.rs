//! Slow phones and undecodable records delay no other message.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use tokio::time::sleep;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    poison::{dead_letters, kinds, poison},
    verdict::Verdict,
};
use crate::kit::{
    phones::Numbered,
    process::Role,
    recorder::Reply,
    tables,
    tally::Tally,
    testbed::{Plan, Testbed},
};

const RATE: f64 = 100.0;
const SLOW_PHONES: u64 = 8;
const MESSAGES_EACH: usize = 3;
const SLOWNESS: Duration = Duration::from_secs(20);
const LIMIT: f64 = 200.0;
/// How long the load runs before the slow phones and the undecodable records.
const CALM: Duration = Duration::from_secs(15);

pub async fn isolation(mut plan: Plan, duration: Duration) -> anyhow::Result<Verdict> {
    plan.gateway.slowness = SLOWNESS;
    plan.env.push(("GATEWAY_TIMEOUT", "30".to_owned()));
    let testbed = Testbed::prepare(&plan, Tally::default()).await?;
    testbed.start(&Role::ALL).await?;
    let clients = Arc::new(testbed.clients(0));

    // The usual latency of this machine at this hour. The claim is about the time after it.
    let load = clients.begin_asking(RATE);
    sleep(CALM).await;
    let calm = testbed.recorder.account().latency;

    let stop = CancellationToken::new();
    let harmed_from = testbed.recorder.elapsed();
    let slow = TaskTracker::new();
    for number in 0..SLOW_PHONES {
        let clients = Arc::clone(&clients);
        slow.spawn(async move {
            let phone = Numbered::Slow(number).to_string();
            for _ in 0..MESSAGES_EACH {
                // The service need not send a message that it has not accepted.
                while clients.ask(&phone).await != Reply::Accepted {
                    sleep(Duration::from_millis(100)).await;
                }
            }
        });
    }
    slow.close();
    slow.wait().await;
    let timer = async {
        sleep(duration).await;
        stop.cancel();
    };
    let (places, ()) = tokio::join!(poison(&testbed, &stop), timer);
    let places = places?;
    let offered = load.end().await?;
    let patience = SLOWNESS * u32::try_from(MESSAGES_EACH)? + Duration::from_secs(60);
    let done = testbed.wait_until_done(patience).await;

    let account = testbed.recorder.account();
    let latency = testbed.recorder.latency_since(harmed_from);
    let letters = dead_letters(&testbed, &places).await?;
    let slow = testbed.recorder.slow_calls();
    let (mut slow_calls, mut slow_sent) = (0, 0);
    for ids in slow.values() {
        slow_calls += ids.len();
        slow_sent += ids.iter().collect::<BTreeSet<_>>().len();
    }
    let states = tables::states(&testbed.database).await?;
    let bad = testbed.stop().await;

    let mut verdict = Verdict::new("isolation");
    verdict.figure("messages accepted", account.accepted);
    verdict.figure("asked", offered.asked);
    verdict.figure("answered to called, before", calm);
    verdict.figure("answered to called, among them", latency);
    verdict.figure("poison records", format!("{} of {} kinds", places.len(), kinds().len()));
    for (kind, reasons) in &letters.reasons {
        let reasons: Vec<&str> = reasons.iter().map(String::as_str).collect();
        verdict.figure(format!("  {kind}"), reasons.join("; "));
    }
    verdict.figure("states", format!("{states:?}"));
    verdict.figure("backlog empty", format!("{done:.1?} after the load"));
    verdict.figure("  rows left in the outbox", tables::left_in_outbox(&testbed.database).await?);
    verdict.figure("longest waits (ms, at ms)", format!("{:?}", testbed.recorder.longest(3)));
    verdict.claim("p99 under 200 ms", latency.p99 < LIMIT, latency);
    verdict.claim(
        "all answers are 200 or 503",
        account.unclean() == 0,
        format!("{:?}", account.replies),
    );
    verdict.claim(
        "every poison record is in dead_letter with its place and a reason",
        letters.missing == 0 && letters.surplus == 0 && letters.reasons.len() == kinds().len(),
        format!("{} missing, {} rows too many", letters.missing, letters.surplus),
    );
    verdict.claim(
        "no other message is lost or doubled",
        account.lost == 0 && account.repeated == 0 && account.strangers == 0,
        format!(
            "{} lost, {} repeated, {} strangers",
            account.lost, account.repeated, account.strangers
        ),
    );
    let expected = usize::try_from(SLOW_PHONES)? * MESSAGES_EACH;
    verdict.claim(
        "the slow messages are sent in the end, once each",
        slow_sent == expected && slow_calls == expected && done.is_some(),
        format!("{slow_sent} of {expected} messages in {slow_calls} calls"),
    );
    verdict.claim("all processes ended well", bad.is_empty(), bad.join(", "));
    Ok(verdict)
}
