//! Verifications through the three binaries.

use std::time::{Duration, Instant};

use serde_json::json;
use tokio::{task::JoinSet, time::sleep};

use super::support::{Client, Running, Stack, code_for, codes_for, environment, eventually, post};

const PHONE: &str = "+79991234567";
const PATIENCE: Duration = Duration::from_secs(30);

/// The three binaries, without API keys.
async fn service(stack: &Stack, more: &[(&str, &str)]) -> [Running; 3] {
    let settings: Vec<_> = [("API_AUTH", "none")].iter().chain(more).copied().collect();
    [
        stack.start("consumer", &settings).ready().await,
        stack.start("processor", &settings).ready().await,
        stack.start("api", &settings).ready().await,
    ]
}

fn wrong(code: &str) -> String {
    let digit = if code.starts_with('0') { '1' } else { '0' };
    format!("{digit}{}", &code[1..])
}

#[tokio::test]
async fn verification_works_through_three_binaries() {
    let Some(stack) = Stack::new().await else { return };
    let [_consumer, _processor, api] = service(&stack, &[]).await;
    let client = Client::new(api.port);

    let started = client.start(PHONE).await;
    let id = started.id();
    assert_eq!(started.headers["location"], format!("/v1/verifications/{id}"));
    assert_eq!(started.body["status"], "pending");
    assert_eq!(started.body["phone"], "+7999*****67");
    assert_eq!(started.body["channel"], "sms");
    assert_eq!(started.body["attempts_left"], 5);
    assert_eq!(started.body["sends_left"], 3);
    let code = code_for(&stack.gateway, PHONE).await;

    let answer = client.check(&id, &wrong(&code)).await;
    assert_eq!(
        (answer.status, answer.body),
        (200, json!({"valid": false, "status": "pending", "attempts_left": 4}))
    );
    // The consumer records the answer of the gateway a moment later.
    eventually("sent", PATIENCE, async || {
        client.find(&id).await.events().contains(&"sent").then_some(())
    })
    .await;
    let answer = client.check(&id, &code).await;
    assert_eq!((answer.status, answer.body), (200, json!({"valid": true, "status": "approved"})));

    let found = client.find(&id).await;
    assert_eq!(found.status, 200);
    assert_eq!(found.body["status"], "approved");
    assert_eq!(found.events(), ["created", "queued", "published", "sent", "approved"]);
    assert!(!found.text.contains(&code), "{}", found.text);
    assert_eq!(client.check(&id, &code).await.problem(), (409, "already-approved"));
    // A check by phone does not show that there was a verification.
    let answer = client.check_by_phone(PHONE, &code).await;
    assert_eq!((answer.status, &*answer.text), (200, r#"{"valid":false}"#));
}

#[tokio::test]
async fn code_of_api_is_checked_by_phone_and_the_newest_counts() {
    let Some(stack) = Stack::new().await else { return };
    let [_consumer, _processor, api] = service(&stack, &[]).await;
    let client = Client::new(api.port);
    let plain = PHONE.trim_start_matches('+');
    for _ in 0..2 {
        assert_eq!(post(api.port, plain).await.0, 200);
    }
    let codes = codes_for(&stack.gateway, PHONE, 2).await;
    assert_ne!(codes[0], codes[1]);

    let old = client.check_by_phone(PHONE, &codes[0]).await;
    assert_eq!((old.status, old.body), (200, json!({"valid": false})));
    let new = client.check_by_phone(PHONE, &codes[1]).await;
    assert_eq!((new.status, new.body), (200, json!({"valid": true, "status": "approved"})));
    let again = client.check_by_phone(PHONE, &codes[1]).await;
    assert_eq!((again.status, again.body), (200, json!({"valid": false})));
}

#[tokio::test]
async fn second_start_is_a_resend_with_the_same_code() {
    let Some(stack) = Stack::new().await else { return };
    let [_consumer, _processor, api] = service(&stack, &[("RESEND_AFTER", "2")]).await;
    let client = Client::new(api.port);
    let id = client.start(PHONE).await.id();

    let early = client.start(PHONE).await;
    assert_eq!(early.problem(), (429, "quota-exceeded"));
    assert_eq!(early.body["violated-policies"], json!(["resend"]));
    let wait: u64 = early.headers["retry-after"].parse().unwrap();
    assert!((1..=2).contains(&wait), "{wait}");
    sleep(Duration::from_secs(wait)).await;
    let again = client.start(PHONE).await;

    assert_eq!(again.id(), id);
    assert_eq!(again.body["sends_left"], 0);
    let codes = codes_for(&stack.gateway, PHONE, 2).await;
    assert_eq!(codes[0], codes[1]);
    assert_eq!(client.start(PHONE).await.problem(), (429, "quota-exceeded"));
    assert_eq!(client.check(&id, &codes[0]).await.body["valid"], true);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thousand_concurrent_right_checks_approve_once() {
    let Some(stack) = Stack::new().await else { return };
    // Each check has its own connection, and no connection must make room for another.
    let [_consumer, _processor, api] = service(&stack, &[("MAX_CONNECTIONS", "2000")]).await;
    let client = Client::new(api.port);
    let id = client.start(PHONE).await.id();
    let code = code_for(&stack.gateway, PHONE).await;

    let mut checks = JoinSet::new();
    for _ in 0..1_000 {
        let (client, id, code) = (client.clone(), id.clone(), code.clone());
        checks.spawn(async move { client.check(&id, &code).await });
    }
    let mut answers = checks.join_all().await;
    // If the machine is busy with other tests, the API refuses some checks. Such a client loses
    // nothing, and repeats its check.
    for answer in answers.iter_mut().filter(|answer| answer.status == 503) {
        *answer = client.check(&id, &code).await;
    }

    let (right, late): (Vec<_>, Vec<_>) =
        answers.into_iter().partition(|answer| answer.body["valid"] == true);
    assert_eq!(right.len(), 1);
    for answer in late {
        assert_eq!(answer.problem(), (409, "already-approved"));
    }
    let attempts = stack.postgres.number("SELECT sum(attempts) FROM verification").await;
    assert_eq!(attempts, 1);
}

/// `BRUTE_SECONDS` makes this test longer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn brute_force_gets_no_more_than_the_allowed_checks() {
    let seconds = optional("BRUTE_SECONDS").and_then(|text| text.parse().ok()).unwrap_or(4);
    let Some(stack) = Stack::new().await else { return };
    let [_consumer, _processor, api] =
        service(&stack, &[("LIMIT_PHONE", "off"), ("GUARD", "off")]).await;
    let client = Client::new(api.port);
    let begun = Instant::now();
    let mut attackers = JoinSet::new();
    for number in 0..64_u32 {
        let client = client.clone();
        attackers.spawn(async move {
            let (mut heard, mut asked, mut right) = (0, 0, 0);
            let mut guess = number;
            // Start a new verification as often as allowed, and send all guesses for the phone.
            while begun.elapsed() < Duration::from_secs(seconds) {
                if asked % 50 == 0 {
                    let started = client.start(PHONE).await;
                    if started.status == 202 {
                        let cancel = format!("/v1/verifications/{}/cancel", started.id());
                        if number % 2 == 0 {
                            client.post(&cancel, &json!({})).await;
                        }
                    }
                }
                let answer = client.check_by_phone(PHONE, &format!("{guess:06}")).await;
                asked += 1;
                guess = (guess + 64) % 1_000_000;
                match answer.status {
                    200 => {
                        heard += 1;
                        right += u32::from(answer.body["valid"] == true);
                    }
                    // 503: the machine is busy with other tests.
                    status => assert!(matches!(status, 429 | 503), "{answer:?}"),
                }
            }
            (heard, asked, right)
        });
    }

    let (mut heard, mut asked) = (0, 0);
    for (its, all, right) in attackers.join_all().await {
        heard += its;
        asked += all;
        // One of 100,000 such runs guesses a code by chance.
        assert_eq!(right, 0);
    }

    println!("{heard} guesses heard of {asked} in {seconds} s");
    assert!(asked > heard);
    // The default is ten an hour for all verifications of a phone, and ten if there is none.
    assert!(heard <= 20, "{heard} guesses");
    let attempts = stack.postgres.number("SELECT sum(attempts) FROM verification").await;
    assert!(attempts <= 10, "{attempts} attempts");
}

#[tokio::test]
async fn answers_to_an_unknown_phone_and_to_a_wrong_code_are_identical() {
    const EACH: usize = 160;
    // A verification does not count more guesses than this.
    const GUESSES: usize = 4;
    let Some(stack) = Stack::new().await else { return };
    let [_consumer, _processor, api] = service(&stack, &[("LIMIT_CHECK", "100000/1h")]).await;
    let client = Client::new(api.port);
    let (mut known, mut unknown) = (Vec::new(), Vec::new());
    for number in 0..EACH {
        let target = number / GUESSES;
        let (pending, without) = (format!("+7999123{target:04}"), format!("+7999321{target:04}"));
        if number % GUESSES == 0 {
            client.start(&pending).await.id();
        }
        for (phone, times) in [(pending, &mut known), (without, &mut unknown)] {
            let begun = Instant::now();
            let answer = client.check_by_phone(&phone, "000000").await;
            times.push(begun.elapsed());
            let mut headers: Vec<_> = answer.headers.keys().map(String::as_str).collect();
            headers.sort_unstable();
            assert_eq!(headers, ["cache-control", "content-length", "content-type", "date"]);
            assert_eq!((answer.status, &*answer.text), (200, r#"{"valid":false}"#));
        }
    }

    known.sort_unstable();
    unknown.sort_unstable();
    let ratio = known[EACH / 2].as_secs_f64() / unknown[EACH / 2].as_secs_f64();
    println!("medians: {:?} known, {:?} unknown", known[EACH / 2], unknown[EACH / 2]);
    let attempts = stack.postgres.number("SELECT sum(attempts) FROM verification").await;
    assert_eq!(attempts, i64::try_from(EACH).unwrap());
    // Both make one commit. The measurement is not more exact on a machine that runs other tests.
    assert!((0.7..1.4).contains(&ratio), "{ratio}");
}

#[tokio::test]
async fn test_numbers_send_nothing_and_are_refused_in_release() {
    let Some(stack) = Stack::new().await else { return };
    let settings = [("TEST_NUMBERS", "+79990000000:123456")];
    let release = [settings[0], ("APP_MODE", "release")];
    let refused = stack.start("api", &release).output().await;
    assert!(!refused.status.success());
    let told = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(told.contains("TEST_NUMBERS") && !told.contains("123456"), "{told}");

    let debug = [settings[0], ("APP_MODE", "debug")];
    let [_consumer, _processor, api] = service(&stack, &debug).await;
    let client = Client::new(api.port);
    for _ in 0..30 {
        let id = client.start("+79990000000").await.id();
        assert_eq!(client.check(&id, "123457").await.body["valid"], false);
        assert_eq!(client.check(&id, "123456").await.body["valid"], true);
    }

    assert_eq!(stack.postgres.number("SELECT count(*) FROM outbox").await, 0);
    assert_eq!(stack.gateway.count(), 0);
}

#[expect(clippy::disallowed_methods, reason = "tests are told of their length this way")]
fn optional(name: &str) -> Option<String> {
    // This lookup skips the test without servers, as in all other tests.
    environment("TEST_POSTGRES_URL")?;
    std::env::var(name).ok()
}
