//! A repeated request does nothing twice, although its first answer was lost.

use std::time::Duration;

use serde_json::{Value, json};

use super::support::{Answer, Client, Running, Stack, code_for, eventually};

const PHONE: &str = "+79991234567";
const PATIENCE: Duration = Duration::from_secs(30);
const SETTINGS: [(&str, &str); 2] = [("API_AUTH", "none"), ("RESEND_AFTER", "1,1,1")];

/// Blocks the statement that stores an answer.
const HOLD: &str = "
CREATE FUNCTION hold() RETURNS trigger LANGUAGE plpgsql AS
    'BEGIN PERFORM pg_sleep(60); RETURN NULL; END';
CREATE TRIGGER hold BEFORE UPDATE ON idempotency
    FOR EACH ROW WHEN (NEW.status IS NOT NULL) EXECUTE FUNCTION hold()";

const HELD: &str = "
SELECT count(*) FROM pg_stat_activity
WHERE datname = current_database() AND wait_event = 'PgSleep'";

/// Ends the sessions of a dead process, and expires its claim.
const RELEASE: &str = "
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE datname = current_database() AND wait_event = 'PgSleep';
DROP TRIGGER hold ON idempotency;
DROP FUNCTION hold;
UPDATE idempotency SET running_until = now() WHERE status IS NULL";

/// Sends a request with an idempotency key, kills `api` between the commit of its work and that of its
/// answer, and repeats the request.
async fn repeat_after_a_kill(
    stack: &Stack,
    api: Running,
    key: &str,
    path: &str,
    body: Value,
) -> (Running, Answer) {
    stack.postgres.execute(HOLD).await;
    let client = Client::new(api.port).once(key);
    let (asked, sent) = (path.to_owned(), body.clone());
    let unheard = tokio::spawn(async move { client.post(&asked, &sent).await });
    eventually("done and not answered", PATIENCE, async || {
        (stack.postgres.number(HELD).await == 1).then_some(())
    })
    .await;
    unheard.abort();
    api.stop("KILL").await;
    stack.postgres.execute(RELEASE).await;

    let api = stack.start("api", &SETTINGS).ready().await;
    let answer = Client::new(api.port).once(key).post(path, &body).await;
    (api, answer)
}

#[tokio::test]
async fn repeat_after_a_killed_api_does_nothing_twice() {
    let Some(stack) = Stack::new().await else { return };
    let _consumer = stack.start("consumer", &SETTINGS).ready().await;
    let _processor = stack.start("processor", &SETTINGS).ready().await;
    let api = stack.start("api", &SETTINGS).ready().await;
    let messages = async |count| {
        let sql = "SELECT sum(sends) FROM verification";
        assert_eq!(stack.postgres.number(sql).await, count);
    };

    let start = json!({ "phone": PHONE });
    let (api, started) =
        repeat_after_a_kill(&stack, api, "start", "/v1/verifications", start.clone()).await;
    let id = started.id();
    assert_eq!(started.headers["location"], format!("/v1/verifications/{id}"));
    assert!(!started.headers.contains_key("idempotent-replayed"));
    messages(1).await;
    let again = Client::new(api.port).once("start").post("/v1/verifications", &start).await;
    assert_eq!((again.id(), &*again.headers["idempotent-replayed"]), (id.clone(), "true"));
    let code = code_for(&stack.gateway, PHONE).await;

    // After this time the pace would allow a second resend.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let path = format!("/v1/verifications/{id}/resend");
    let (api, resent) = repeat_after_a_kill(&stack, api, "resend", &path, json!({})).await;
    assert_eq!((resent.id(), &resent.body["sends_left"]), (id.clone(), &json!(2)));
    messages(2).await;

    tokio::time::sleep(Duration::from_secs(1)).await;
    let (api, started) =
        repeat_after_a_kill(&stack, api, "start-2", "/v1/verifications", start).await;
    assert_eq!((started.id(), &started.body["sends_left"]), (id.clone(), &json!(1)));
    messages(3).await;

    let path = format!("/v1/verifications/{id}/checks");
    let body = json!({ "code": code });
    let (_api, checked) = repeat_after_a_kill(&stack, api, "check", &path, body).await;
    assert_eq!((checked.status, checked.body), (200, json!({"valid": true, "status": "approved"})));
}
