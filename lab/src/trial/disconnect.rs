//! Clients that go away in the middle of a request.

use std::{io, net::Ipv4Addr, sync::Arc, time::Duration};

use rand::{RngExt, SeedableRng, rngs::StdRng};
use tokio::{
    io::AsyncWriteExt,
    net::TcpStream,
    sync::Semaphore,
    time::{Instant, sleep},
};
use tokio_util::task::TaskTracker;

use super::{
    http::request,
    load::Running,
    phones::phone_of,
    stand::{Plan, Stand},
    tape::{Reply, Tape},
    verdict::Verdict,
};
use crate::process::Role;

const RATE: f64 = 100.0;
const AT_A_TIME: usize = 200;
const LONGEST_PAUSE: u64 = 30_000;

const IDLE: &str = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
    AND application_name LIKE 'messager%' AND state LIKE 'idle in transaction%'";

/// How far a client goes before it goes away.
#[derive(Debug, Clone, Copy)]
enum Step {
    Connected,
    Head,
    PartOfBody,
    Body,
}

pub async fn disconnect(plan: Plan, count: usize) -> anyhow::Result<Verdict> {
    let stand = Stand::prepare(&plan).await?;
    stand.start(&Role::ALL).await?;
    let clients = Arc::new(stand.clients(0));
    let load = Running::begin(Arc::clone(&clients), RATE);

    let mut rng = StdRng::try_from_rng(&mut rand::rngs::SysRng)?;
    let places = Arc::new(Semaphore::new(AT_A_TIME));
    let leaving = TaskTracker::new();
    let begun = Instant::now();
    let mut most_idle = 0;
    for number in 0..count {
        let permit = Arc::clone(&places).acquire_owned().await?;
        let port = stand.api_ports[number % stand.api_ports.len()];
        let step =
            [Step::Connected, Step::Head, Step::PartOfBody, Step::Body][rng.random_range(0..4)];
        let pause = Duration::from_micros(rng.random_range(0..LONGEST_PAUSE));
        let (tape, reset) = (stand.tape.clone(), rng.random_bool(0.5));
        leaving.spawn(async move {
            let left = leave(port, &tape, step, pause, reset).await;
            drop(permit);
            left
        });
        if number % 500 == 0 {
            most_idle = most_idle.max(stand.count(IDLE).await?);
        }
    }
    leaving.close();
    leaving.wait().await;
    let took = begun.elapsed();

    let begun = Instant::now();
    let mut answers = Vec::new();
    for _ in 0..2 * stand.api_ports.len() {
        answers.push(clients.ask().await);
    }
    let answered = begun.elapsed();
    sleep(Duration::from_secs(1)).await;
    let offered = load.end().await?;
    let done = stand.wait_until_done(Duration::from_secs(60)).await;
    let idle = stand.count(IDLE).await?;
    let account = stand.tape.account();
    let states = stand.states().await?;
    let bad = stand.stop().await;

    let mut verdict = Verdict::new("disconnect");
    verdict.figure("clients that left", format!("{count} in {took:.1?}"));
    verdict.figure("  whose message was sent", account.unasked);
    verdict.figure("asked besides", offered.asked);
    verdict.figure("answers", format!("{:?}", account.replies));
    verdict.figure("answered to called", account.latency);
    verdict.figure("states", format!("{states:?}"));
    verdict.figure("idle in transaction, most seen", most_idle);
    verdict.figure("backlog empty", format!("{done:.1?} after the load"));
    verdict.figure("  rows left in transit", stand.left_in_transit().await?);
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
        "the others see 200 and 503 only",
        account.unclean() == 0,
        format!("{} others", account.unclean()),
    );
    verdict.claim(
        "nothing accepted is lost, nothing is sent twice",
        account.lost == 0 && account.repeated == 0 && account.strangers == 0 && done.is_some(),
        format!("{} lost, {} repeated", account.lost, account.repeated),
    );
    verdict.claim("all processes ended well", bad.is_empty(), bad.join(", "));
    Ok(verdict)
}

/// Goes so far with a request, waits, and is gone; with `reset` in the rude way.
async fn leave(port: u16, tape: &Tape, step: Step, pause: Duration, reset: bool) -> io::Result<()> {
    let number = tape.ask();
    tape.answer(number, Reply::Left);
    let request = request(&phone_of(number));
    let head = request.find("\r\n\r\n").unwrap_or(0);
    let length = match step {
        Step::Connected => 0,
        Step::Head => head + 4,
        Step::PartOfBody => request.len() - 5,
        Step::Body => request.len(),
    };
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
    stream.set_nodelay(true)?;
    stream.write_all(&request.as_bytes()[..length]).await?;
    sleep(pause).await;
    if reset {
        stream.set_zero_linger()?;
    }
    Ok(())
}
