//! The database, the gateway or the broker is down, and comes back.

use std::{collections::HashSet, time::Duration};

use tokio::time::{Instant, sleep};

use super::support::{Kafka, Proxy, Stack, eventually, phone, post_all};

const PATIENCE: Duration = Duration::from_secs(120);
/// How long the database, the gateway or the broker is down.
const OUTAGE: Duration = Duration::from_secs(10);

/// Posts messages to new phones, a few at a time, until `until`.
async fn load_until(port: u16, first: usize, until: Instant) -> super::support::Answers {
    let mut all = super::support::Answers::default();
    let mut number = first;
    while Instant::now() < until {
        let phones = (number..number + 50).map(phone).collect();
        number += 50;
        let answers = post_all(port, phones, 10).await;
        for (status, count) in answers.statuses {
            *all.statuses.entry(status).or_default() += count;
        }
        all.accepted.extend(answers.accepted);
        all.without_retry_after += answers.without_retry_after;
        all.slowest = all.slowest.max(answers.slowest);
        // The pace of the load. No condition is waited for.
        sleep(Duration::from_millis(200)).await;
    }
    all
}

/// Waits until every accepted message was received.
async fn all_received(stack: &Stack, accepted: &[String]) {
    let received =
        || -> Vec<String> { stack.gateway.received().into_iter().map(|sms| sms.phone).collect() };
    eventually("all received", PATIENCE, async || {
        let received: HashSet<_> = received().into_iter().collect();
        accepted.iter().all(|phone| received.contains(phone)).then_some(())
    })
    .await;
}

#[tokio::test]
async fn requests_are_refused_while_the_database_is_down_and_accepted_afterwards() {
    let Some(stack) = Stack::new().await else { return };
    let proxy = Proxy::to(stack.postgres.port).await;
    let through = [("POSTGRES_PORT", &*proxy.port.to_string())];
    let api = stack.start("api", &through).ready().await;
    let _processor = stack.start("processor", &through).ready().await;
    let _consumer = stack.start("consumer", &through).ready().await;

    let load = tokio::spawn(load_until(api.port, 0, Instant::now() + 2 * OUTAGE));
    sleep(Duration::from_secs(2)).await;
    proxy.cut();
    sleep(OUTAGE).await;
    proxy.mend();
    let answers = load.await.unwrap();

    println!("{:?}, slowest {:?}", answers.statuses, answers.slowest);
    assert!(answers.statuses.keys().all(|status| [200, 503].contains(status)));
    assert!(answers.statuses[&503] > 0 && answers.without_retry_after == 0);
    assert!(answers.slowest < Duration::from_secs(8));
    all_received(&stack, &answers.accepted).await;
    let ids: Vec<_> = stack.gateway.received().into_iter().map(|sms| sms.id).collect();
    assert_eq!(ids.iter().collect::<HashSet<_>>().len(), ids.len(), "one was sent twice");
}

#[tokio::test]
async fn no_message_is_lost_while_the_gateway_is_down() {
    let Some(stack) = Stack::new().await else { return };
    let proxy = Proxy::to(stack.gateway.port).await;
    let url = format!("http://127.0.0.1:{}/send", proxy.port);
    let api = stack.start("api", &[]).ready().await;
    let _processor = stack.start("processor", &[]).ready().await;
    let _consumer = stack.start("consumer", &[("GATEWAY_URL", &url)]).ready().await;

    let load = tokio::spawn(load_until(api.port, 0, Instant::now() + OUTAGE + OUTAGE / 2));
    sleep(Duration::from_secs(2)).await;
    proxy.cut();
    sleep(OUTAGE).await;
    proxy.mend();
    let answers = load.await.unwrap();

    assert!(answers.statuses.keys().eq([&200]));
    all_received(&stack, &answers.accepted).await;
    eventually("all recorded", PATIENCE, async || {
        let sql = "SELECT count(*) FROM delivery WHERE state = 'sent'";
        let sent = usize::try_from(stack.postgres.number(sql).await).unwrap();
        (sent == answers.accepted.len()).then_some(())
    })
    .await;
}

#[tokio::test]
async fn api_accepts_messages_while_the_broker_is_down() {
    let Some(mut kafka) = Kafka::start().await else { return };
    let Some(stack) = Stack::on(&kafka).await else { return };
    let api = stack.start("api", &[]).ready().await;
    let _processor = stack.start("processor", &[]).ready().await;
    let _consumer = stack.start("consumer", &[]).ready().await;

    let load = tokio::spawn(load_until(api.port, 0, Instant::now() + 2 * OUTAGE));
    sleep(Duration::from_secs(1)).await;
    kafka.stop().await;
    sleep(OUTAGE).await;
    kafka.start_again().await;
    let answers = load.await.unwrap();

    println!("{:?}, slowest {:?}", answers.statuses, answers.slowest);
    assert!(answers.statuses.keys().eq([&200]));
    all_received(&stack, &answers.accepted).await;
    let ids: Vec<_> = stack.gateway.received().into_iter().map(|sms| sms.id).collect();
    assert_eq!(ids.iter().collect::<HashSet<_>>().len(), ids.len(), "one was sent twice");
}
