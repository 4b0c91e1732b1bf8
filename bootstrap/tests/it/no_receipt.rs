//! A gateway accepts SMS, and no receipt says that they arrive.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use axum::{Router, body::Bytes, extract::State, routing::post};
use domain::{GatewayName, Peppers};
use serde_json::{Value, json};
use tokio::{net::TcpListener, task::JoinHandle};

use super::support::{Binary, Client, Folder, Stack, eventually, post as post_to_api};

const PATIENCE: Duration = Duration::from_secs(30);
const PEPPER: &str = "p1:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
/// The time in which a receipt is expected: the shortest that the setting allows.
const WITHIN: Duration = Duration::from_secs(5);
const SETTINGS: [(&str, &str); 5] = [
    ("GATEWAYS_FILE", "gateways.toml"),
    ("PUBLIC_URL", "https://sms.example"),
    ("CODE_PEPPER", PEPPER),
    ("API_AUTH", "none"),
    ("LIMIT_PREFIX", "off"),
];

/// A provider that accepts all SMS.
struct Provider {
    name: &'static str,
    taken: Arc<Mutex<Vec<Taken>>>,
    url: String,
    server: JoinHandle<()>,
}

#[derive(Debug, Clone)]
struct Taken {
    phone: String,
    text: String,
    at: Instant,
}

async fn take(State(taken): State<Arc<Mutex<Vec<Taken>>>>, sms: Bytes) -> String {
    let sms: Value = serde_json::from_slice(&sms).unwrap();
    let text = |key: &str| sms[key].as_str().unwrap().to_owned();
    let mut taken = taken.lock().unwrap();
    taken.push(Taken { phone: text("destination"), text: text("text"), at: Instant::now() });
    json!({ "message_id": format!("42{}", taken.len()) }).to_string()
}

impl Provider {
    async fn start(name: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://127.0.0.1:{}", listener.local_addr().unwrap().port());
        let taken: Arc<Mutex<Vec<Taken>>> = Arc::default();
        let router =
            Router::new().route("/messaging/v1/SendSMS", post(take)).with_state(Arc::clone(&taken));
        let server = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { name, taken, url, server }
    }

    fn to(&self, phone: &str) -> Vec<Taken> {
        let taken = self.taken.lock().unwrap();
        taken.iter().filter(|sms| phone.ends_with(&sms.phone)).cloned().collect()
    }

    /// Waits for the only SMS to a phone.
    async fn one_to(&self, phone: &str) -> Taken {
        eventually("an SMS", PATIENCE, async || {
            let taken = self.to(phone);
            assert!(taken.len() <= 1, "{taken:?}");
            taken.into_iter().next()
        })
        .await
    }

    /// Reports what became of the SMS to a phone.
    async fn report(&self, service: &Client, phone: &str, status: &str) {
        let place = {
            let taken = self.taken.lock().unwrap();
            taken.iter().position(|sms| phone.ends_with(&sms.phone)).unwrap() + 1
        };
        let peppers: Peppers = PEPPER.parse().unwrap();
        let name: GatewayName = self.name.parse().unwrap();
        let token = peppers.first().receipt_token(&name);
        let receipt = json!({ "message_id": format!("42{place}"), "status": status });
        let path = format!("/v1/receipts/{name}?token={token}");
        assert_eq!(service.post(&path, &receipt).await.status, 204);
    }
}

impl Drop for Provider {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// Starts two providers, and writes the file of gateways.
async fn providers(folder: &Folder) -> (Provider, Provider) {
    let (first, second) = (Provider::start("first").await, Provider::start("second").await);
    let gateway = |provider: &Provider| {
        format!(
            "[gateway.{}]\nprovider = \"exolve\"\nurl = \"{}\"\napi_key = \"key\"\nfrom = \"7\"\n",
            provider.name, provider.url
        )
    };
    let seconds = WITHIN.as_secs();
    let failover = format!("[failover]\nno_receipt_within = \"{seconds}s\"\n");
    let text = format!("{}{}{failover}", gateway(&first), gateway(&second));
    std::fs::write(folder.path().join("gateways.toml"), text).unwrap();
    (first, second)
}

fn code_in(sms: &Taken) -> String {
    sms.text.chars().filter(char::is_ascii_digit).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn code_without_a_receipt_goes_through_the_next_gateway() {
    let folder = Folder::new();
    let (first, second) = providers(&folder).await;
    let binary = Binary::new("messager", folder.path());
    let messager = SETTINGS.iter().fold(binary, |binary, (name, value)| binary.env(name, value));
    let messager = messager.ready().await;
    let client = Client::new(messager.port);
    let [silent, delivered, undelivered, approved, of_api] =
        [1, 2, 3, 4, 5].map(|number| format!("+7999123456{number}"));
    let mut ids = Vec::new();
    for phone in [&silent, &delivered, &undelivered, &approved] {
        ids.push(client.start(phone).await.id());
        first.one_to(phone).await;
    }
    assert_eq!(post_to_api(messager.port, &of_api[1..]).await.0, 200);
    first.one_to(&of_api).await;

    eventually("the outcome is recorded", PATIENCE, async || {
        client.find(&ids[2]).await.events().contains(&"sent").then_some(())
    })
    .await;
    first.report(&client, &delivered, "delivered").await;
    first.report(&client, &undelivered, "undelivered").await;
    let code = code_in(&first.one_to(&approved).await);
    assert_eq!(client.check(&ids[3], &code).await.body["valid"], true);

    for phone in [&undelivered, &silent, &of_api] {
        let (sms, again) = (first.one_to(phone).await, second.one_to(phone).await);
        assert_eq!(again.text, sms.text, "it has the same code");
        let wait = again.at - sms.at;
        let is_in_time = if *phone == undelivered {
            wait < WITHIN
        } else {
            (WITHIN..WITHIN + Duration::from_secs(5)).contains(&wait)
        };
        assert!(is_in_time, "{wait:?}");
    }
    // Twice the time, and the second gateway, which is the last, reports nothing either.
    tokio::time::sleep(2 * WITHIN).await;
    for (phone, expected) in
        [(&silent, 1), (&delivered, 0), (&undelivered, 1), (&approved, 0), (&of_api, 1)]
    {
        assert_eq!((first.to(phone).len(), second.to(phone).len()), (1, expected), "{phone}");
    }

    let shown = client.find(&ids[0]).await;
    let expected = ["created", "queued", "published", "sent", "rerouted", "published", "sent"];
    assert_eq!(shown.events(), expected, "{}", shown.text);
    let events = shown.body["events"].as_array().unwrap();
    assert_eq!((&events[3]["gateway"], &events[6]["gateway"]), (&json!("first"), &json!("second")));
    assert_eq!(events[4]["gateway"], "first");
    assert_eq!(events[4]["reason"], "no-receipt");
    assert_eq!(shown.body["sends_left"], 3, "no resend is lost");
    assert_eq!(
        client.check(&ids[0], &code_in(&second.one_to(&silent).await)).await.body["valid"],
        true
    );
    for (gateway, reason, count) in
        [("first", "no-receipt", 2.0), ("first", "undelivered", 1.0), ("second", "no-receipt", 0.0)]
    {
        let name =
            format!(r#"messager_rerouted_messages_total{{gateway="{gateway}",reason="{reason}"}}"#);
        assert_eq!(messager.metric(&name).await, Some(count), "{gateway} {reason}");
    }
}

/// Blocks the statement that sends a code again.
const HOLD: &str = "
CREATE FUNCTION hold() RETURNS trigger LANGUAGE plpgsql AS
    'BEGIN PERFORM pg_sleep(60); RETURN NEW; END';
CREATE TRIGGER hold BEFORE INSERT ON extra_send FOR EACH ROW EXECUTE FUNCTION hold()";

const HELD: &str = "
SELECT count(*) FROM pg_stat_activity
WHERE datname = current_database() AND wait_event = 'PgSleep'";

/// Ends the sessions of a dead process.
const RELEASE: &str = "
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE datname = current_database() AND wait_event = 'PgSleep';
DROP TRIGGER hold ON extra_send;
DROP FUNCTION hold";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn code_is_sent_again_once_by_several_processes_of_which_one_is_killed() {
    let Some(stack) = Stack::new().await else { return };
    let (first, second) = providers(&stack.folder).await;
    let start = async |binary: &str| {
        let alone = stack.start(binary, &SETTINGS).without("GATEWAY").without("GATEWAY_URL");
        alone.ready().await
    };
    let _pipeline = (start("processor").await, start("consumer").await, start("consumer").await);
    let killed = start("api").await;
    let phone = "+79991234567";
    stack.postgres.execute(HOLD).await;
    Client::new(killed.port).start(phone).await.id();
    let sms = first.one_to(phone).await;
    eventually("the code is being sent again", PATIENCE, async || {
        (stack.postgres.number(HELD).await == 1).then_some(())
    })
    .await;

    killed.stop("KILL").await;
    stack.postgres.execute(RELEASE).await;
    assert_eq!(stack.postgres.number("SELECT count(*) FROM extra_send").await, 0);
    let _several = (start("api").await, start("api").await);

    assert_eq!(second.one_to(phone).await.text, sms.text);
    tokio::time::sleep(2 * WITHIN).await;
    assert_eq!((first.to(phone).len(), second.to(phone).len()), (1, 1));
    let sends = "SELECT (sends * 10 + extra_sends)::bigint FROM verification";
    assert_eq!(stack.postgres.number(sends).await, 21);
}
