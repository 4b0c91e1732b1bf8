use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use http::{Request, header::CONTENT_TYPE};
use http_body_util::{BodyExt, Collected, Full};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
};

pub(super) type Http = Client<HttpConnector, Full<bytes::Bytes>>;

pub(crate) const ACCEPTED: &str = "\"message successfuly sended\"";

/// The answers of the API: how often each status came, and the phones that were accepted.
#[derive(Debug, Default)]
pub(crate) struct Answers {
    pub(crate) statuses: HashMap<u16, usize>,
    pub(crate) accepted: Vec<String>,
    /// The number of answers other than 200 without `Retry-After`.
    pub(crate) without_retry_after: usize,
    pub(crate) slowest: Duration,
}

pub(super) fn http() -> Http {
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    Client::builder(TokioExecutor::new()).build(connector)
}

/// Posts a request for a phone. Returns the status and the body.
pub(crate) async fn post(port: u16, phone: &str) -> (u16, String) {
    let answer = http().request(request(port, phone)).await.unwrap();
    let status = answer.status().as_u16();
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

/// Posts a request for each phone, in order, over this many connections at a time.
///
/// A request that failed counts as status 0.
pub(crate) async fn post_all(port: u16, phones: Vec<String>, connections: usize) -> Answers {
    let http = http();
    let phones = Arc::new(Mutex::new(phones.into_iter()));
    let answers = Arc::new(Mutex::new(Answers::default()));
    let mut clients = JoinSet::new();
    for _ in 0..connections {
        let (http, phones, answers) = (http.clone(), Arc::clone(&phones), Arc::clone(&answers));
        clients.spawn(async move {
            loop {
                let Some(phone) = phones.lock().unwrap().next() else { return };
                let begun = tokio::time::Instant::now();
                let answer = http.request(request(port, &phone)).await;
                let (status, retry_after, body) = match answer {
                    Ok(answer) => {
                        let status = answer.status().as_u16();
                        let retry_after = answer.headers().contains_key("retry-after");
                        let body = answer.into_body().collect().await;
                        (status, retry_after, body.map(Collected::to_bytes).unwrap_or_default())
                    }
                    Err(_) => (0, false, bytes::Bytes::new()),
                };
                let mut answers = answers.lock().unwrap();
                *answers.statuses.entry(status).or_default() += 1;
                answers.slowest = answers.slowest.max(begun.elapsed());
                if status == 200 {
                    assert_eq!(body, ACCEPTED);
                    answers.accepted.push(phone);
                } else if !retry_after {
                    answers.without_retry_after += 1;
                }
            }
        });
    }
    clients.join_all().await;
    Arc::into_inner(answers).unwrap().into_inner().unwrap()
}

fn request(port: u16, phone: &str) -> Request<Full<bytes::Bytes>> {
    Request::post(format!("http://127.0.0.1:{port}/api/"))
        .header(CONTENT_TYPE, "application/json")
        .body(Full::from(format!("{{\"phone\":\"{phone}\"}}")))
        .unwrap()
}

/// Sends a `GET`. Returns `None` if the server does not answer.
pub(crate) async fn get(port: u16, path: &str) -> Option<(u16, String)> {
    let request = Request::get(format!("http://127.0.0.1:{port}{path}")).body(Full::default());
    let answer = http().request(request.unwrap()).await.ok()?;
    let status = answer.status().as_u16();
    let body = answer.into_body().collect().await.ok()?.to_bytes();
    Some((status, String::from_utf8(body.to_vec()).unwrap()))
}

/// Sends raw bytes on a new connection, and returns the whole answer.
pub(crate) async fn raw(port: u16, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    let mut answer = Vec::new();
    let limit = Duration::from_secs(20);
    tokio::time::timeout(limit, stream.read_to_end(&mut answer)).await.unwrap().unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}
