//! Daily budgets of gateways.

use std::{collections::HashSet, time::Duration};

use serde_json::{Value, json};

use super::support::{
    Binary, Client, Folder, Gateway, Running, Stack, eventually, phone, post, post_all,
};

const PATIENCE: Duration = Duration::from_secs(60);
const REFUSED: (u16, &str) =
    (403, r#"{"error":"messages to this number cannot be paid for today"}"#);

/// Returns the row of the gateway that a command lists first.
async fn listed(command: Binary) -> Value {
    let output = command.args(&["gateways", "--json"]).output().await;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice::<Value>(&output.stdout).unwrap()[0].clone()
}

/// Posts until the answer is 200, or until it is the refusal for a budget.
async fn eventually_answers(port: u16, status: u16, from: usize) {
    let mut number = from;
    eventually("the answer", PATIENCE, async || {
        number += 1;
        let (found, text) = post(port, &phone(number)).await;
        assert!(found == 200 || (found, &*text) == REFUSED, "{found} {text}");
        tokio::time::sleep(Duration::from_millis(100)).await;
        (found == status).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn budget_is_used_up_and_not_exceeded_while_consumers_are_killed() {
    const BUDGET: usize = 100;
    const MESSAGES: usize = 300;
    let Some(stack) = Stack::new().await else { return };
    let settings = [
        ("GATEWAY_PRICE", "1"),
        ("GATEWAY_DAILY_BUDGET", "100"),
        ("GATEWAY_TIMEOUT", "2"),
        ("GATEWAY_MAX_PER_SECOND", "60"),
        ("CONSUMER_AUTO_OFFSET_RESET", "earliest"),
    ];
    // Some calls are in flight when a consumer dies.
    stack.gateway.answer_after(200);
    let api = stack.start("api", &settings).ready().await;
    let _processor = stack.start("processor", &settings).ready().await;
    let mut consumers = Vec::new();
    for _ in 0..2 {
        consumers.push(stack.start("consumer", &settings).ready().await);
    }

    let load = tokio::spawn(post_all(api.port, (0..MESSAGES).map(phone).collect(), 64));
    let taken = || stack.gateway.received().into_iter().map(|sms| sms.id).collect::<HashSet<_>>();
    for killed_at in [10, 35, 60] {
        eventually("calls", PATIENCE, async || (taken().len() >= killed_at).then_some(())).await;
        consumers.remove(0).stop("KILL").await;
        consumers.push(stack.start("consumer", &settings).spawn());
    }
    let answers = load.await.unwrap();

    eventually_answers(api.port, 403, MESSAGES).await;
    // A repeat of an interrupted call is paid already, and the gateway recognises it.
    let number = async |sql: &str| stack.postgres.number(sql).await;
    let sms = eventually("every cost is that of an SMS", PATIENCE, async || {
        let sms = taken().len();
        let calling = number("SELECT count(*) FROM delivery WHERE state = 'calling'").await;
        let spent = number("SELECT sum(spent)::bigint FROM gateway_spending").await;
        (calling == 0 && spent == i64::try_from(sms).unwrap() * 1_000_000).then_some(sms)
    })
    .await;
    assert!((95..=BUDGET).contains(&sms), "{sms} went out");
    let others = answers.statuses.iter().filter(|(status, _)| !matches!(status, 200 | 403));
    assert_eq!(others.count(), 0, "{:?}", answers.statuses);

    let row = listed(stack.start("messager", &settings)).await;
    assert_eq!(row["budgets"], json!([{ "scope": "total", "spent": sms, "limit": 100 }]));
    let metric = "messager_gateway_budget_spent{gateway=\"default\",scope=\"total\"}";
    #[expect(clippy::cast_precision_loss, reason = "a count far below 2^52")]
    let expected = sms as f64;
    assert_eq!(api.metric(metric).await, Some(expected));
    let refusals = api.metric("messager_budget_refusals_total{origin=\"api\"}").await;
    assert!(refusals.unwrap() >= 1.0);
}

/// Starts the whole service with a gateway that has this budget. A segment costs 1.
async fn embedded(folder: &Folder, url: &str, budget: &str, more: &[(&str, &str)]) -> Running {
    write(folder, url, budget);
    let start = Binary::new("messager", folder.path()).env("GATEWAYS_FILE", "gateways.toml");
    more.iter().fold(start, |start, (name, value)| start.env(name, value)).ready().await
}

fn write(folder: &Folder, url: &str, budget: &str) {
    let text = format!(
        "[gateway.hook]\nprovider = \"webhook\"\nurl = \"{url}\"\nprice = 1\n\
         daily_budget = {budget}\n"
    );
    std::fs::write(folder.path().join("gateways.toml"), text).unwrap();
}

#[tokio::test]
async fn raised_budget_lets_messages_through_without_a_restart() {
    let (gateway, folder) = (Gateway::start().await, Folder::new());
    let messager = embedded(&folder, &gateway.url(), "2", &[]).await;
    let client = Client::new(messager.port);

    eventually_answers(messager.port, 403, 0).await;
    assert_eq!(client.start("+79991234567").await.problem(), (403, "budget-exhausted"));
    assert!(gateway.count() <= 2, "{}", gateway.count());

    write(&folder, &gateway.url(), "1000");
    eventually_answers(messager.port, 200, 1_000).await;
    assert_eq!(client.start("+79991234567").await.status, 202);
}

#[tokio::test]
async fn message_that_fails_for_the_budget_says_so() {
    let (gateway, folder) = (Gateway::start().await, Folder::new());
    // The budget has room for one segment, and the text takes two.
    let text = format!("{} {{code}}", "word ".repeat(40));
    let more = [("SMS_TEMPLATE", &*text), ("SMS_MAX_SEGMENTS", "2")];
    let messager = embedded(&folder, &gateway.url(), "1.5", &more).await;
    let client = Client::new(messager.port);

    let id = client.start("+79991234567").await.id();

    let failed = eventually("failed", PATIENCE, async || {
        let found = client.find(&id).await.body;
        let events = found["events"].as_array().unwrap();
        events.iter().find(|event| event["type"] == "failed").cloned()
    })
    .await;
    assert_eq!((&failed["reason"], gateway.count()), (&json!("budget-exhausted"), 0));
    assert_eq!(messager.metric("messager_budget_failures_total").await, Some(1.0));
}
