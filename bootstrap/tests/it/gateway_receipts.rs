//! Providers report deliveries at `/v1/receipts/{gateway}`.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{Router, body::Bytes, extract::State, http::StatusCode, routing::post};
use domain::{GatewayName, Peppers};
use serde_json::{Value, json};
use tokio::{net::TcpListener, task::JoinHandle};

use super::support::{Answer, Binary, Client, Folder, eventually};

const PATIENCE: Duration = Duration::from_secs(30);
const PEPPER: &str = "p1:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

/// A provider whose receipts name only its own id. It reports the first SMS before it answers.
struct Provider {
    service: Client,
    taken: AtomicUsize,
    /// The URL at which Telnyx reports each SMS.
    callbacks: Mutex<Vec<String>>,
    /// The events that were received.
    told: Mutex<Vec<Value>>,
}

fn reference(number: usize) -> String {
    format!("4242{number}")
}

/// Returns the URL that the service gives to the provider of the only gateway.
fn receipts_url() -> String {
    receipts_url_of(&GatewayName::default())
}

fn receipts_url_of(gateway: &GatewayName) -> String {
    let peppers: Peppers = PEPPER.parse().unwrap();
    let token = peppers.first().receipt_token(gateway);
    format!("/v1/receipts/{gateway}?token={token}")
}

impl Provider {
    async fn report(&self, number: usize, status: &str) -> Answer {
        let receipt = json!({ "message_id": reference(number), "status": status });
        self.service.post(&receipts_url(), &receipt).await
    }
}

async fn take(State(provider): State<Arc<Provider>>) -> String {
    let number = provider.taken.fetch_add(1, Ordering::Relaxed) + 1;
    if number == 1 {
        assert_eq!(provider.report(number, "delivered").await.status, 204);
    }
    json!({ "message_id": reference(number) }).to_string()
}

async fn take_telnyx(State(provider): State<Arc<Provider>>, sms: Bytes) -> String {
    let sms: Value = serde_json::from_slice(&sms).unwrap();
    let callback = sms["webhook_url"].as_str().unwrap().to_owned();
    provider.callbacks.lock().unwrap().push(callback);
    json!({ "data": { "id": "t1", "to": [{ "status": "queued" }] } }).to_string()
}

async fn hear(State(provider): State<Arc<Provider>>, event: Bytes) -> StatusCode {
    provider.told.lock().unwrap().push(serde_json::from_slice(&event).unwrap());
    StatusCode::NO_CONTENT
}

async fn start(service: Client) -> (Arc<Provider>, String, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://127.0.0.1:{}", listener.local_addr().unwrap().port());
    let provider = Arc::new(Provider {
        service,
        taken: AtomicUsize::new(0),
        callbacks: Mutex::default(),
        told: Mutex::default(),
    });
    let router = Router::new()
        .route("/messaging/v1/SendSMS", post(take))
        .route("/v2/messages", post(take_telnyx))
        .route("/events", post(hear))
        .with_state(Arc::clone(&provider));
    (provider, url, tokio::spawn(async move { axum::serve(listener, router).await.unwrap() }))
}

#[tokio::test]
async fn receipt_of_the_provider_shows_in_the_timeline_the_events_and_the_metrics() {
    let folder = Folder::new();
    let binary = Binary::new("messager", folder.path());
    let client = Client::new(binary.port);
    let (provider, url, server) = start(client.clone()).await;
    let events = format!("{url}/events");
    let settings = [
        ("GATEWAY", "exolve"),
        ("EXOLVE_URL", &url),
        ("EXOLVE_API_KEY", "key"),
        ("EXOLVE_FROM", "79990000000"),
        ("PUBLIC_URL", "https://sms.example"),
        ("CODE_PEPPER", PEPPER),
        ("EVENTS_URL", &events),
        ("EVENTS_SECRET", "whsec_MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE="),
        ("EVENTS_ALLOW_PRIVATE", "true"),
    ];
    let with_settings = |binary: Binary| {
        settings.iter().fold(binary, |binary, (name, value)| binary.env(name, value))
    };
    let messager = with_settings(binary).ready().await;
    let shows = async |id: &str, kind: &str| {
        eventually(kind, PATIENCE, async || {
            client.find(id).await.events().contains(&kind).then_some(())
        })
        .await;
    };

    let printing = with_settings(Binary::new("messager", folder.path()));
    let printed = printing.args(&["gateways", "urls"]).output().await;
    let expected = format!("gateway\turl\ndefault\thttps://sms.example{}\n", receipts_url());
    assert_eq!(String::from_utf8(printed.stdout).unwrap(), expected, "{:?}", printed.stderr);

    // The first receipt comes before the answer to the call.
    let early = client.start("+79991234567").await.id();
    for kind in ["sent", "delivered"] {
        shows(&early, kind).await;
    }
    let late = client.start("+79991234568").await.id();
    shows(&late, "sent").await;
    assert_eq!(provider.report(2, "undelivered").await.status, 204);
    shows(&late, "failed").await;
    for _ in 0..2 {
        assert_eq!(provider.report(2, "delivered").await.status, 204);
    }
    shows(&late, "delivered").await;
    assert!(!client.find(&late).await.events().contains(&"failed"));

    assert_eq!(provider.report(3, "delivered").await.status, 204, "it may be of another service");
    assert_eq!(provider.report(2, "sent").await.status, 204, "it is not final");
    let forged = receipts_url().replace("token=", "token=A");
    let receipt = json!({ "message_id": reference(2), "status": "delivered" });
    let told = client.post(&forged, &receipt).await;
    assert_eq!(told.problem(), (403, "unverified-receipt"));
    let other = receipts_url().replace("default", "other");
    assert_eq!(client.post(&other, &receipt).await.problem(), (404, "not-found"));
    let told = client.post(&receipts_url(), &json!({ "hello": "world" })).await;
    assert_eq!(told.problem(), (400, "unreadable-receipt"));

    eventually("told", PATIENCE, async || {
        let told = provider.told.lock().unwrap();
        let is_told = |id: &String| {
            told.iter().any(|it| it["type"] == "verification.delivered" && it["data"]["id"] == **id)
        };
        [&early, &late].into_iter().all(is_told).then_some(())
    })
    .await;
    for (result, count) in [
        ("early", 2.0),
        ("undelivered", 1.0),
        ("delivered", 1.0),
        ("repeated", 1.0),
        ("unknown", 0.0),
        ("unverified", 1.0),
        ("unreadable", 1.0),
    ] {
        let name = format!(r#"messager_receipts_total{{gateway="default",result="{result}"}}"#);
        assert_eq!(messager.metric(&name).await, Some(count), "{result}");
    }
    let russian =
        r#"messager_receipts_by_region_total{gateway="default",receipt="delivered",region="RU"}"#;
    assert_eq!(messager.metric(russian).await, Some(1.0));
    let log = messager.stderr();
    assert!(!log.contains("9991234567") && !log.contains("token="), "{log}");
    server.abort();
}

#[tokio::test]
async fn provider_reports_to_the_url_that_it_got_with_the_sms() {
    let folder = Folder::new();
    let binary = Binary::new("messager", folder.path());
    let client = Client::new(binary.port);
    let (provider, url, server) = start(client.clone()).await;
    let _messager = [
        ("GATEWAY", "telnyx"),
        ("TELNYX_URL", &*url),
        ("TELNYX_API_KEY", "KEY1"),
        ("TELNYX_FROM", "+15550001111"),
        ("PUBLIC_URL", "https://sms.example/"),
    ]
    .into_iter()
    .fold(binary, |binary, (name, value)| binary.env(name, value))
    .ready()
    .await;

    let id = client.start("+79991234567").await.id();
    let callback =
        eventually("taken", PATIENCE, async || provider.callbacks.lock().unwrap().first().cloned())
            .await;
    let path = callback.strip_prefix("https://sms.example").unwrap();
    assert!(path.starts_with("/v1/receipts/default?id="), "{path}");
    let finalized = json!({ "data": {
        "event_type": "message.finalized",
        "payload": { "id": "t1", "to": [{ "status": "delivered" }] },
    } });
    assert_eq!(client.post(path, &finalized).await.status, 204);

    eventually("delivered", PATIENCE, async || {
        client.find(&id).await.events().contains(&"delivered").then_some(())
    })
    .await;
    server.abort();
}

#[tokio::test]
async fn api_takes_receipts_of_new_gateways_and_with_new_secrets_without_a_restart() {
    let folder = Folder::new();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    let gateway = |name: &str| {
        format!(
            "[gateway.{name}]\nprovider = \"exolve\"\napi_key = {{ file = \"key\" }}\n\
             from = \"79990000000\"\n"
        )
    };
    write("gateways.toml", &gateway("main"));
    write(".env", &format!("GATEWAYS_FILE=gateways.toml\nCODE_PEPPER={PEPPER}\n"));
    let migrated = Binary::new("messager", folder.path()).args(&["migrate", "up"]).output().await;
    assert!(migrated.status.success(), "{:?}", migrated.stderr);
    let api = Binary::new("api", folder.path()).ready().await;
    let client = Client::new(api.port);
    let report = async |gateway: &str| {
        let receipt = json!({ "message_id": "4242", "status": "delivered" });
        client.post(&receipts_url_of(&gateway.parse().unwrap()), &receipt).await
    };

    assert_eq!(report("main").await.problem(), (503, "temporary-reduced-capacity"));
    assert_eq!(report("second").await.problem(), (404, "not-found"));
    assert!(api.stderr().contains("receipts of the gateway are answered with 503"));

    write("key", "sesame");
    write("gateways.toml", &(gateway("main") + &gateway("second")));
    eventually("the changed gateways", PATIENCE, async || {
        let answers = [report("main").await.status, report("second").await.status];
        (answers == [204, 204]).then_some(())
    })
    .await;
}
