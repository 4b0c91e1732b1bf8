//! Slow phones and poison hold nobody else up.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use tokio::time::sleep;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    load::Running,
    phones::slow_phone_of,
    poison::{graves, kinds, poison},
    stand::{Plan, Stand},
    tape::Reply,
    verdict::Verdict,
};
use crate::process::Role;

const RATE: f64 = 100.0;
const SLOW_PHONES: u64 = 8;
const MESSAGES_EACH: usize = 3;
const SLOWNESS: Duration = Duration::from_secs(20);
const LIMIT: f64 = 200.0;
/// Before the slow phones and the poison.
const CALM: Duration = Duration::from_secs(15);

pub async fn isolation(mut plan: Plan, duration: Duration) -> anyhow::Result<Verdict> {
    plan.slowness = SLOWNESS;
    plan.env.push(("GATEWAY_TIMEOUT", "30".to_owned()));
    let stand = Stand::prepare(&plan).await?;
    stand.start(&Role::ALL).await?;
    let clients = Arc::new(stand.clients(0));

    // What is usual on this machine at this hour; the claim is about what comes after it.
    let load = Running::begin(Arc::clone(&clients), RATE);
    sleep(CALM).await;
    let calm = stand.tape.account().latency;

    let stop = CancellationToken::new();
    let harmed_from = stand.tape.elapsed();
    let slow = TaskTracker::new();
    for number in 0..SLOW_PHONES {
        let clients = Arc::clone(&clients);
        slow.spawn(async move {
            let phone = slow_phone_of(number);
            for _ in 0..MESSAGES_EACH {
                // Nothing but an answer of 200 will do: what is not accepted need not be sent.
                while clients.ask_for(&phone).await != Reply::Accepted {
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
    let (places, ()) = tokio::join!(poison(&stand, &stop), timer);
    let places = places?;
    let offered = load.end().await?;
    let patience = SLOWNESS * u32::try_from(MESSAGES_EACH)? + Duration::from_secs(60);
    let done = stand.wait_until_done(patience).await;

    let account = stand.tape.account();
    let latency = stand.tape.latency_since(harmed_from);
    let graves = graves(&stand, &places).await?;
    let slow = stand.tape.slow_calls();
    let (mut slow_calls, mut slow_sent) = (0, 0);
    for ids in slow.values() {
        slow_calls += ids.len();
        slow_sent += ids.iter().collect::<BTreeSet<_>>().len();
    }
    let states = stand.states().await?;
    let bad = stand.stop().await;

    let mut verdict = Verdict::new("isolation");
    verdict.figure("messages accepted", account.accepted);
    verdict.figure("asked", offered.asked);
    verdict.figure("answered to called, before", calm);
    verdict.figure("answered to called, among them", latency);
    verdict.figure("poison records", format!("{} of {} kinds", places.len(), kinds().len()));
    for (kind, reasons) in &graves.reasons {
        let reasons: Vec<&str> = reasons.iter().map(String::as_str).collect();
        verdict.figure(format!("  {kind}"), reasons.join("; "));
    }
    verdict.figure("states", format!("{states:?}"));
    verdict.figure("backlog empty", format!("{done:.1?} after the load"));
    verdict.figure("  rows left in transit", stand.left_in_transit().await?);
    verdict.figure("longest waits (ms, at ms)", format!("{:?}", stand.tape.longest(3)));
    verdict.claim("p99 under 200 ms", latency.p99 < LIMIT, latency);
    verdict.claim(
        "all answers are 200 or 503",
        account.unclean() == 0,
        format!("{:?}", account.replies),
    );
    verdict.claim(
        "every poison record is in dead_letter with its place and a reason",
        graves.missing == 0 && graves.surplus == 0 && graves.reasons.len() == kinds().len(),
        format!("{} missing, {} rows too many", graves.missing, graves.surplus),
    );
    verdict.claim(
        "no good message is lost or doubled",
        account.lost == 0 && account.repeated == 0 && account.strangers == 0,
        format!(
            "{} lost, {} repeated, {} strangers",
            account.lost, account.repeated, account.strangers
        ),
    );
    let expected = usize::try_from(SLOW_PHONES)? * MESSAGES_EACH;
    verdict.claim(
        "the slow ones are sent in the end, once",
        slow_sent == expected && slow_calls == expected && done.is_some(),
        format!("{slow_sent} of {expected} messages in {slow_calls} calls"),
    );
    verdict.claim("all processes ended well", bad.is_empty(), bad.join(", "));
    Ok(verdict)
}
