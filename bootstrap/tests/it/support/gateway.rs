use std::sync::{
    Arc, Mutex,
    atomic::{AtomicU16, AtomicU64, Ordering},
};

use axum::{
    Router,
    body::Bytes,
    extract::State,
    http::{HeaderMap, StatusCode},
    routing::post,
};
use tokio::{net::TcpListener, task::JoinHandle};

/// An SMS as the gateway received it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Sms {
    pub(crate) id: String,
    pub(crate) phone: String,
    pub(crate) code: String,
    pub(crate) text: String,
    pub(crate) traceparent: Option<String>,
}

/// A gateway that records every SMS.
#[derive(Debug)]
pub(crate) struct Gateway {
    pub(crate) port: u16,
    book: Arc<Book>,
    server: JoinHandle<()>,
}

#[derive(Debug, Default)]
struct Book {
    received: Mutex<Vec<Sms>>,
    /// Milliseconds before an answer.
    delay: AtomicU64,
    /// The status with which SMS are refused. 0 accepts them.
    refusal: AtomicU16,
}

impl Gateway {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let book = Arc::new(Book::default());
        let router = Router::new().route("/send", post(take)).with_state(Arc::clone(&book));
        let server = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { port, book, server }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}/send", self.port)
    }

    /// The SMS in the order of their arrival.
    pub(crate) fn received(&self) -> Vec<Sms> {
        self.book.received.lock().unwrap().clone()
    }

    pub(crate) fn count(&self) -> usize {
        self.book.received.lock().unwrap().len()
    }

    /// Refuses SMS with this status, and records none of them. 0 accepts them again.
    pub(crate) fn refuse_with(&self, status: u16) {
        self.book.refusal.store(status, Ordering::Relaxed);
    }

    pub(crate) fn answer_after(&self, milliseconds: u64) {
        self.book.delay.store(milliseconds, Ordering::Relaxed);
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn take(
    State(book): State<Arc<Book>>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<&'static str, StatusCode> {
    let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
    let mut keys: Vec<_> = body.as_object().unwrap().keys().map(String::as_str).collect();
    keys.sort_unstable();
    assert_eq!(keys, ["code", "expires_at", "id", "phone", "text"]);
    let text = |key: &str| body[key].as_str().unwrap().to_owned();
    assert_eq!(headers["idempotency-key"], text("id"));
    let traceparent = headers.get("traceparent").map(|it| it.to_str().unwrap().to_owned());
    let sms = Sms {
        id: text("id"),
        phone: text("phone"),
        code: text("code"),
        text: text("text"),
        traceparent,
    };
    if let Ok(refusal) = StatusCode::from_u16(book.refusal.load(Ordering::Relaxed)) {
        return Err(refusal);
    }
    book.received.lock().unwrap().push(sms);
    let delay = book.delay.load(Ordering::Relaxed);
    if delay > 0 {
        tokio::time::sleep(std::time::Duration::from_millis(delay)).await;
    }
    Ok("{\"message_id\":\"gw\"}")
}
