//! Clients that disconnect in the middle of a request.

use std::{io, sync::Arc, time::Duration};

use rand::{RngExt, SeedableRng, rngs::StdRng};
use tokio::{
    sync::Semaphore,
    time::{Instant, sleep},
};
use tokio_util::task::TaskTracker;

use super::verdict::Verdict;
use crate::kit::{
    http::{Connection, submission},
    process::Role,
    recorder::Reply,
    tables,
    tally::Tally,
    testbed::{Plan, Testbed},
};

const RATE: f64 = 100.0;
const AT_A_TIME: usize = 200;
const LONGEST_PAUSE: u64 = 30_000;

const IDLE: &str = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
    AND application_name LIKE 'messager%' AND state LIKE 'idle in transaction%'";

/// How much of a request a client sends before it disconnects.
#[derive(Debug, Clone, Copy)]
enum Step {
    Connected,
    Head,
    PartOfBody,
    Body,
}

pub async fn disconnect(plan: Plan, count: usize) -> anyhow::Result<Verdict> {
    let testbed = Testbed::prepare(&plan, Tally::default()).await?;
    testbed.start(&Role::ALL).await?;
    let clients = Arc::new(testbed.clients(0));
    let load = clients.begin_asking(RATE);

    let mut rng = StdRng::try_from_rng(&mut rand::rngs::SysRng)?;
    let places = Arc::new(Semaphore::new(AT_A_TIME));
    let leaving = TaskTracker::new();
    let begun = Instant::now();
    let mut most_idle = 0;
    for number in 0..count {
        let permit = Arc::clone(&places).acquire_owned().await?;
        let port = testbed.api_ports[number % testbed.api_ports.len()];
        let step =
            [Step::Connected, Step::Head, Step::PartOfBody, Step::Body][rng.random_range(0..4)];
        let pause = Duration::from_micros(rng.random_range(0..LONGEST_PAUSE));
        let (tally, reset) = (testbed.recorder.clone(), rng.random_bool(0.5));
        leaving.spawn(async move {
            let left = leave(port, &tally, step, pause, reset).await;
            drop(permit);
            left
        });
        if number % 500 == 0 {
            most_idle = most_idle.max(tables::count(&testbed.database, IDLE).await?);
        }
    }
    leaving.close();
    leaving.wait().await;
    let took = begun.elapsed();

    let begun = Instant::now();
    let mut answers = Vec::new();
    for _ in 0..2 * testbed.api_ports.len() {
        answers.push(clients.ask_new().await);
    }
    let answered = begun.elapsed();
    sleep(Duration::from_secs(1)).await;
    let offered = load.end().await?;
    let done = testbed.wait_until_done(Duration::from_secs(60)).await;
    let idle = tables::count(&testbed.database, IDLE).await?;
    let account = testbed.recorder.account();
    let states = tables::states(&testbed.database).await?;
    let bad = testbed.stop().await;

    let mut verdict = Verdict::new("disconnect");
    verdict.figure("clients that left", format!("{count} in {took:.1?}"));
    verdict.figure("  whose message was sent", account.unasked);
    verdict.figure("asked besides", offered.asked);
    verdict.figure("answers", format!("{:?}", account.replies));
    verdict.figure("answered to called", account.latency);
    verdict.figure("states", format!("{states:?}"));
    verdict.figure("idle in transaction, most seen", most_idle);
    verdict.figure("backlog empty", format!("{done:.1?} after the load"));
    verdict.figure("  rows left in the outbox", tables::left_in_outbox(&testbed.database).await?);
    for sample in &account.samples {
        verdict.figure("  unclean", sample);
    }
    verdict.claim(
        "afterwards each API answers 200 at once",
        answers.iter().all(|reply| *reply == Reply::Accepted) && answered < Duration::from_secs(1),
        format!("{answers:?} in {answered:.1?}"),
    );
    verdict.claim("no session is idle in a transaction", idle == 0, idle);
    verdict.claim(
        "all other clients get 200 or 503",
        account.unclean() == 0,
        format!("{} others", account.unclean()),
    );
    verdict.claim(
        "no accepted message is lost, none is sent twice",
        account.lost == 0 && account.repeated == 0 && account.strangers == 0 && done.is_some(),
        format!("{} lost, {} repeated", account.lost, account.repeated),
    );
    verdict.claim("all processes ended well", bad.is_empty(), bad.join(", "));
    Ok(verdict)
}

/// Sends part of a request, waits, and disconnects. With `reset`, by a reset of the connection.
async fn leave(
    port: u16,
    tally: &Tally,
    step: Step,
    pause: Duration,
    reset: bool,
) -> io::Result<()> {
    let phone = tally.new_phone();
    tally.answer(&phone, Reply::Left);
    let mut request = Vec::new();
    submission(&mut request, &phone);
    let head = request.windows(4).position(|window| window == b"\r\n\r\n").unwrap_or(0);
    let length = match step {
        Step::Connected => 0,
        Step::Head => head + 4,
        Step::PartOfBody => request.len() - 5,
        Step::Body => request.len(),
    };
    let mut connection = Connection::open(port).await?;
    connection.write(&request[..length]).await?;
    sleep(pause).await;
    if reset {
        connection.reset_at_end()?;
    }
    Ok(())
}
