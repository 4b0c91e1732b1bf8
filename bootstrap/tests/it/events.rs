//! The processor posts status changes to the URL of the operator.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{Router, body::Bytes, extract::State, http::HeaderMap, routing::post};
use domain::EventSecrets;
use serde_json::{Value, json};
use tokio::{net::TcpListener, task::JoinHandle};

use super::support::{Client, Stack, code_for, eventually};

const SECRET: &str = "whsec_MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=";
const PHONE: &str = "+79991234567";

#[derive(Debug, Clone)]
struct Told {
    id: String,
    timestamp: u64,
    signature: String,
    body: String,
}

/// Answers the first post of each event with 500.
#[derive(Debug, Default)]
struct Book {
    told: Mutex<Vec<Told>>,
    known: Mutex<BTreeSet<String>>,
}

async fn take(
    State(book): State<Arc<Book>>,
    headers: HeaderMap,
    body: Bytes,
) -> axum::http::StatusCode {
    let text = |name: &str| headers[name].to_str().unwrap().to_owned();
    let told = Told {
        id: text("webhook-id"),
        timestamp: text("webhook-timestamp").parse().unwrap(),
        signature: text("webhook-signature"),
        body: String::from_utf8(body.to_vec()).unwrap(),
    };
    let is_new = book.known.lock().unwrap().insert(told.id.clone());
    book.told.lock().unwrap().push(told);
    if is_new {
        axum::http::StatusCode::INTERNAL_SERVER_ERROR
    } else {
        axum::http::StatusCode::NO_CONTENT
    }
}

#[tokio::test]
async fn events_are_signed_repeated_after_a_failure_and_contain_no_code() {
    let Some(stack) = Stack::new().await else { return };
    let book = Arc::new(Book::default());
    let (url, server) = listen(&book).await;
    let settings = settings(&url);
    let _consumer = stack.start("consumer", &settings).ready().await;
    let processor = stack.start("processor", &settings).ready().await;
    let api = stack.start("api", &settings).ready().await;
    let client = Client::new(api.port);

    let id = client.start(PHONE).await.id();
    let code = code_for(&stack.gateway, PHONE).await;
    eventually("sent", Duration::from_secs(10), async || {
        client.find(&id).await.events().contains(&"sent").then_some(())
    })
    .await;
    assert_eq!(client.check(&id, &code).await.body["valid"], true);

    let wanted = ["verification.approved", "verification.created", "verification.sent"];
    let told = eventually("told twice each", Duration::from_secs(30), async || {
        let told = book.told.lock().unwrap().clone();
        (told.len() >= 2 * wanted.len()).then_some(told)
    })
    .await;
    let mut kinds = BTreeSet::new();
    for told in &told {
        told.assert_signed();
        let body: Value = serde_json::from_str(&told.body).unwrap();
        assert_eq!(body["data"]["id"], *id);
        assert_eq!(body["data"]["phone"], "+7999*****67");
        assert!(!told.body.contains(&code) && !told.body.contains("9991234567"));
        kinds.insert(body["type"].as_str().unwrap().to_owned());
        let bodies: BTreeSet<_> =
            told_of(&book, &told.id).into_iter().map(|told| told.body).collect();
        assert_eq!(bodies.len(), 1, "another body at the second try");
    }
    assert_eq!(kinds.iter().map(String::as_str).collect::<Vec<_>>(), wanted);
    eventually("settled", Duration::from_secs(10), async || {
        (stack.postgres.number("SELECT count(*) FROM event").await == 0).then_some(())
    })
    .await;
    let delivered = processor.metric("messager_events_total{outcome=\"delivered\"}").await;
    assert_eq!(delivered, Some(3.0));
    let log = processor.stderr();
    for line in [
        "EVENTS_URL does not accept events; they will be retried",
        "EVENTS_URL accepts events again",
    ] {
        // A line is logged for each change, not for each post: three posts fail in up to three
        // rounds.
        assert!((1..=3).contains(&log.matches(line).count()), "{line}: {log}");
    }
    assert!(log.contains("status 500") && !log.contains("9991234567"), "{log}");
    server.abort();
}

#[tokio::test]
async fn receipt_of_the_gateway_is_posted_as_an_event_and_shown() {
    let Some(stack) = Stack::new().await else { return };
    let book = Arc::new(Book::default());
    let (url, server) = listen(&book).await;
    let settings = settings(&url);
    let _consumer = stack.start("consumer", &settings).ready().await;
    let _processor = stack.start("processor", &settings).ready().await;
    let api = stack.start("api", &settings).ready().await;
    let client = Client::new(api.port);

    // The receipt has the id of the SMS. It may arrive before the consumer has recorded the answer.
    let id = client.start(PHONE).await.id();
    code_for(&stack.gateway, PHONE).await;
    let message = stack.gateway.received().remove(0).id;
    let receipt = json!({ "id": message, "status": "delivered" });
    for _ in 0..2 {
        let noted = client.post("/v1/receipts", &receipt).await;
        assert_eq!((noted.status, &*noted.text), (204, ""));
    }
    let unknown =
        json!({ "id": message.replace(&message[..8], "00000000"), "status": "delivered" });
    assert_eq!(client.post("/v1/receipts", &unknown).await.problem(), (404, "not-found"));

    eventually("sent and delivered", Duration::from_secs(10), async || {
        let found = client.find(&id).await;
        ["sent", "delivered"].iter().all(|kind| found.events().contains(kind)).then_some(())
    })
    .await;
    let told = eventually("told", Duration::from_secs(10), async || {
        let told = book.told.lock().unwrap().clone();
        told.into_iter().find(|told| told.body.contains("\"verification.delivered\""))
    })
    .await;
    told.assert_signed();
    let body: Value = serde_json::from_str(&told.body).unwrap();
    assert_eq!((&body["data"]["id"], &body["data"]["delivery"]), (&json!(id), &json!("delivered")));
    server.abort();
}

async fn listen(book: &Arc<Book>) -> (String, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://127.0.0.1:{}/hooks", listener.local_addr().unwrap().port());
    let router = Router::new().route("/hooks", post(take)).with_state(Arc::clone(book));
    (url, tokio::spawn(async move { axum::serve(listener, router).await.unwrap() }))
}

fn settings(url: &str) -> [(&str, &str); 4] {
    [
        ("API_AUTH", "none"),
        ("EVENTS_URL", url),
        ("EVENTS_SECRET", SECRET),
        ("EVENTS_ALLOW_PRIVATE", "true"),
    ]
}

impl Told {
    #[track_caller]
    fn assert_signed(&self) {
        let secrets: EventSecrets = SECRET.parse().unwrap();
        assert_eq!(self.signature, secrets.sign(&self.id, self.timestamp, self.body.as_bytes()));
    }
}

fn told_of(book: &Book, id: &str) -> Vec<Told> {
    book.told.lock().unwrap().iter().filter(|told| told.id == id).cloned().collect()
}
