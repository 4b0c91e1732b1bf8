//! Clients of the API.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{
    Request as HttpRequest,
    header::{CONTENT_TYPE, RETRY_AFTER},
};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use rand::{RngExt, rngs::StdRng};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    clock::now,
    history::{Recorder, Reply, Request},
    phones::Phones,
};

/// The API says 503 before that.
pub const LIMIT: Duration = Duration::from_secs(10);

const ACCEPTED: &[u8] = b"\"message successfuly sended\"";

/// Clients that ask at a steady rate, however long the answers take.
#[derive(Debug)]
pub struct Load {
    clients: Arc<Clients>,
    pace: Pace,
    phones: Phones,
}

/// How much clients ask for.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// Phones a second.
    pub rate: u32,
    /// The share of phones that get several messages, one after the other.
    pub sequences: f64,
}

#[derive(Debug)]
struct Clients {
    http: Client<HttpConnector, Full<Bytes>>,
    /// The ports of the API, asked in turn.
    ports: Vec<u16>,
    turn: AtomicUsize,
    recorder: Recorder,
    rng: Mutex<StdRng>,
}

impl Load {
    pub fn new(ports: Vec<u16>, pace: Pace, recorder: Recorder, mut rng: StdRng) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(Duration::from_secs(2)));
        let phones = Phones::new(&mut rng);
        let clients = Clients {
            http: Client::builder(TokioExecutor::new()).build(connector),
            ports,
            turn: AtomicUsize::new(0),
            recorder,
            rng: Mutex::new(rng),
        };
        Self { clients: Arc::new(clients), pace, phones }
    }

    /// Asks until `stop`, then waits for the answers.
    pub async fn run(&mut self, stop: &CancellationToken) {
        let mut ticks = interval(Duration::from_secs(1) / self.pace.rate.max(1));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
        let asking = TaskTracker::new();
        while stop.run_until_cancelled(ticks.tick()).await.is_some() {
            let phone = self.phones.draw();
            let clients = Arc::clone(&self.clients);
            let several = |rng: &mut StdRng| rng.random_bool(self.pace.sequences);
            let messages =
                self.clients.draw(|rng| if several(rng) { rng.random_range(2..=5) } else { 1 });
            let stop = stop.clone();
            asking.spawn(async move {
                if messages == 1 {
                    clients.ask(&phone).await;
                } else {
                    clients.ask_in_turn(phone, messages, &stop).await;
                }
            });
        }
        asking.close();
        asking.wait().await;
    }
}

impl Clients {
    fn draw<T>(&self, draw: impl FnOnce(&mut StdRng) -> T) -> T {
        draw(&mut self.rng.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Messages to one phone, each after the 200 of the one before.
    async fn ask_in_turn(&self, phone: String, messages: usize, stop: &CancellationToken) {
        self.recorder.history().sequences.push(phone.clone());
        for _ in 0..messages {
            if self.ask(&phone).await != Reply::Accepted {
                return;
            }
            let pause = Duration::from_millis(self.draw(|rng| rng.random_range(0..500)));
            if stop.run_until_cancelled(sleep(pause)).await.is_none() {
                return;
            }
        }
    }

    async fn ask(&self, phone: &str) -> Reply {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let port = self.ports[turn % self.ports.len()];
        let asked_at = now();
        let reply = timeout(LIMIT, self.request(port, phone)).await.unwrap_or(Reply::Silent);
        let request =
            Request { phone: phone.to_owned(), asked_at, ended_at: now(), reply: reply.clone() };
        self.recorder.history().requests.push(request);
        reply
    }

    async fn request(&self, port: u16, phone: &str) -> Reply {
        let request = HttpRequest::post(format!("http://127.0.0.1:{port}/api/"))
            .header(CONTENT_TYPE, "application/json")
            .body(Full::from(format!("{{\"phone\":\"{phone}\"}}")));
        let Ok(request) = request else { return Reply::Illegal("no request".to_owned()) };
        let Ok(answer) = self.http.request(request).await else { return Reply::Lost };
        let (head, body) = answer.into_parts();
        let Ok(body) = Limited::new(body, 64 * 1024).collect().await else { return Reply::Lost };
        let body = body.to_bytes();
        match head.status.as_u16() {
            200 if body == ACCEPTED => Reply::Accepted,
            503 if head.headers.contains_key(RETRY_AFTER) => Reply::Refused,
            status => Reply::Illegal(format!("{status} {}", body.escape_ascii())),
        }
    }
}
