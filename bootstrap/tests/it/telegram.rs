//! Telegram first, and SMS for numbers that are not there.

use std::{
    collections::HashMap,
    future::pending,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use axum::{Router, body::Bytes, extract::State, http::HeaderMap, routing::post};
use ring::{digest, hmac};
use serde_json::{Value, json};
use tokio::{net::TcpListener, task::JoinHandle};

use super::support::{Binary, Client, Folder, Gateway, Running, eventually};

/// Longer than the time after which an interrupted call is repeated.
const PATIENCE: Duration = Duration::from_secs(60);
const TOKEN: &str = "AAEtoken";
const ON_TELEGRAM: &str = "+79991234567";
const NOT_THERE: &str = "+79991234500";

/// When Telegram stops answering, once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Silence {
    /// It has checked the number, and reserved a request.
    Checked,
    /// It has not read the request that sends the code.
    Sending,
    /// It has sent the code.
    Sent,
}

/// Telegram, which sends once at most for each request.
#[derive(Debug, Default)]
struct Book {
    /// The codes that were sent, by the id of their request.
    requests: Mutex<HashMap<String, Option<Value>>>,
    silence: Mutex<Option<Silence>>,
    /// The moment at which it stopped answering.
    reached: Mutex<Option<Silence>>,
}

impl Book {
    async fn fall_silent_at(&self, moment: Silence) {
        let is_now = {
            let mut silence = self.silence.lock().unwrap();
            let is_now = *silence == Some(moment);
            if is_now {
                *silence = None;
            }
            is_now
        };
        if is_now {
            *self.reached.lock().unwrap() = Some(moment);
            pending::<()>().await;
        }
    }

    /// Returns the requests that sent a code.
    fn sent(&self) -> Vec<Value> {
        self.requests.lock().unwrap().values().flatten().cloned().collect()
    }
}

fn error(error: &str) -> String {
    json!({"ok": false, "error": error}).to_string()
}

fn result(id: &str, body: &Value) -> String {
    json!({"ok": true, "result": {
        "request_id": id, "phone_number": body["phone_number"], "request_cost": 0.01,
    }})
    .to_string()
}

async fn check(State(book): State<Arc<Book>>, headers: HeaderMap, body: Bytes) -> String {
    let body: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(headers["authorization"], format!("Bearer {TOKEN}"));
    if body["phone_number"] == NOT_THERE {
        return error("PHONE_NUMBER_NOT_FOUND");
    }
    let id = {
        let mut requests = book.requests.lock().unwrap();
        let id = format!("r{}", requests.len() + 1);
        requests.insert(id.clone(), None);
        id
    };
    book.fall_silent_at(Silence::Checked).await;
    result(&id, &body)
}

async fn send(State(book): State<Arc<Book>>, body: Bytes) -> String {
    let body: Value = serde_json::from_slice(&body).unwrap();
    book.fall_silent_at(Silence::Sending).await;
    let id = body["request_id"].as_str().unwrap().to_owned();
    match book.requests.lock().unwrap().get_mut(&id) {
        None => return error("REQUEST_ID_INVALID"),
        Some(Some(_)) => return error("MESSAGE_ALREADY_SENT"),
        Some(sent) => *sent = Some(body.clone()),
    }
    book.fall_silent_at(Silence::Sent).await;
    result(&id, &body)
}

struct Telegram {
    book: Arc<Book>,
    url: String,
    server: JoinHandle<()>,
}

impl Drop for Telegram {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Telegram {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://127.0.0.1:{}", listener.local_addr().unwrap().port());
        let book = Arc::new(Book::default());
        let router = Router::new()
            .route("/checkSendAbility", post(check))
            .route("/sendVerificationMessage", post(send))
            .with_state(Arc::clone(&book));
        let server = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { book, url, server }
    }
}

struct Service {
    telegram: Telegram,
    sms: Gateway,
    folder: Folder,
}

impl Service {
    async fn new() -> Self {
        let (telegram, sms) = (Telegram::start().await, Gateway::start().await);
        let folder = Folder::new();
        let text = format!(
            "[gateway.telegram]\nprovider = \"telegram\"\naccess_token = \"{TOKEN}\"\n\
             url = \"{}\"\ntimeout = 4\n\
             [gateway.main]\nprovider = \"webhook\"\nurl = \"{}\"\n\
             [[route]]\ngateways = [\"telegram\", \"main\"]\n",
            telegram.url,
            sms.url()
        );
        std::fs::write(folder.path().join("gateways.toml"), text).unwrap();
        Self { telegram, sms, folder }
    }

    async fn start(&self) -> (Running, Client) {
        let messager = Binary::new("messager", self.folder.path())
            .env("GATEWAYS_FILE", "gateways.toml")
            .env("PUBLIC_URL", "https://codes.example")
            .ready()
            .await;
        let client = Client::new(messager.port);
        (messager, client)
    }

    fn sent(&self) -> Vec<Value> {
        self.telegram.book.sent()
    }
}

/// Waits until the verification has an event, and returns its gateway and its channel, and the channel
/// of the verification.
async fn shown(client: &Client, id: &str, kind: &str) -> [Value; 3] {
    eventually(kind, PATIENCE, async || {
        let found = client.find(id).await;
        let events = found.body["events"].as_array().unwrap();
        let event = events.iter().find(|event| event["type"] == kind)?;
        let channel = found.body["channel"].clone();
        Some([event["gateway"].clone(), event["channel"].clone(), channel])
    })
    .await
}

fn signature(timestamp: &str, body: &Value) -> String {
    let key = digest::digest(&digest::SHA256, TOKEN.as_bytes());
    let key = hmac::Key::new(hmac::HMAC_SHA256, key.as_ref());
    let tag = hmac::sign(&key, format!("{timestamp}\n{body}").as_bytes());
    tag.as_ref().iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

#[expect(clippy::disallowed_methods, reason = "Telegram signs its own time")]
fn now() -> String {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs().to_string()
}

#[tokio::test]
async fn code_goes_to_telegram_and_its_signed_report_shows() {
    let service = Service::new().await;
    let (_messager, client) = service.start().await;

    let id = client.start(ON_TELEGRAM).await.id();
    assert_eq!(shown(&client, &id, "sent").await, ["telegram"; 3]);
    let [sent] = service.sent().try_into().unwrap();
    let callback = sent["callback_url"].as_str().unwrap();
    let path = callback.strip_prefix("https://codes.example").unwrap();
    let report = json!({"request_id": "r1", "payload": sent["payload"],
        "delivery_status": {"status": "read", "updated_at": 1_700_000_000}});
    let timestamp = now();
    let with = |signature: String| {
        let headers =
            vec![("x-request-timestamp", timestamp.clone()), ("x-request-signature", signature)];
        client.with_headers(headers)
    };
    let forged = with(signature(&timestamp, &json!({}))).post(path, &report).await;
    assert_eq!(forged.problem(), (403, "unverified-receipt"));
    let signed = with(signature(&timestamp, &report)).post(path, &report).await;
    assert_eq!(signed.status, 200, "Telegram repeats what is not answered with 200");

    assert_eq!(shown(&client, &id, "delivered").await, ["telegram"; 3]);
    let checked = client.check(&id, sent["code"].as_str().unwrap()).await;
    assert_eq!(checked.body["valid"], true, "{}", checked.text);
    assert_eq!(service.sms.count(), 0);
}

#[tokio::test]
async fn number_that_is_not_on_telegram_gets_an_sms() {
    let service = Service::new().await;
    let (messager, client) = service.start().await;

    let id = client.start(NOT_THERE).await.id();
    assert_eq!(shown(&client, &id, "sent").await, ["main", "sms", "sms"]);

    let [sms] = service.sms.received().try_into().unwrap();
    let checked = client.check(&id, &sms.code).await;
    assert_eq!(checked.body["valid"], true, "{}", checked.text);
    assert!(service.sent().is_empty());
    let unroutable = "messager_gateway_outcomes_total{class=\"unroutable\",gateway=\"telegram\"}";
    assert_eq!(messager.metric(unroutable).await, Some(1.0));
    for gateway in ["channel=\"telegram\",gateway=\"telegram\"", "channel=\"sms\",gateway=\"main\""]
    {
        let info = format!("messager_gateway_info{{{gateway}}}");
        assert_eq!(messager.metric(&info).await, Some(1.0), "{gateway}");
    }
}

/// Kills the service while Telegram is silent, and starts it again.
async fn code_is_sent_once_if_the_service_dies(moment: Silence) {
    let service = Service::new().await;
    let (messager, client) = service.start().await;
    *service.telegram.book.silence.lock().unwrap() = Some(moment);
    let id = client.start(ON_TELEGRAM).await.id();
    eventually("silent", PATIENCE, async || {
        (*service.telegram.book.reached.lock().unwrap() == Some(moment)).then_some(())
    })
    .await;
    messager.stop("KILL").await;

    let (_messager, client) = service.start().await;
    assert_eq!(shown(&client, &id, "sent").await, ["telegram"; 3]);

    let [sent] = service.sent().try_into().unwrap();
    let checked = client.check(&id, sent["code"].as_str().unwrap()).await;
    assert_eq!(checked.body["valid"], true, "{}", checked.text);
    assert_eq!(service.sms.count(), 0);
}

#[tokio::test]
async fn code_is_sent_once_if_the_service_dies_before_the_request_is_stored() {
    code_is_sent_once_if_the_service_dies(Silence::Checked).await;
}

#[tokio::test]
async fn code_is_sent_once_if_the_service_dies_between_the_two_calls() {
    code_is_sent_once_if_the_service_dies(Silence::Sending).await;
}

#[tokio::test]
async fn code_is_sent_once_if_the_service_dies_before_the_answer() {
    code_is_sent_once_if_the_service_dies(Silence::Sent).await;
}
