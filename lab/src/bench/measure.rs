//! Measured load on one port: a closed loop for throughput, an open loop for latency.

use std::{collections::BTreeMap, io, ops::Range, sync::Arc, time::Duration};

use tokio::time::Instant;

use super::report::Spread;
use crate::kit::{
    clock::micros,
    http::{Connection, submission},
    load::{Worked, Worker, closed_loop, open_loop},
    phones::Numbered,
};

/// Writes the n-th request into an empty buffer.
pub type Requests = Arc<dyn Fn(u64, &mut Vec<u8>) + Send + Sync>;

/// The connections of the open loop.
const OPEN_CONNECTIONS: usize = 256;

/// The result of a load.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Answers by status.
    pub answers: BTreeMap<u16, usize>,
    /// The latencies in microseconds, the shortest first. Each counts from when its request was
    /// due.
    pub latencies: Vec<u32>,
    pub seconds: f64,
}

impl Outcome {
    /// Returns answers of 2xx a second.
    #[expect(clippy::cast_precision_loss, reason = "some millions")]
    pub fn rate(&self) -> f64 {
        self.good() as f64 / self.seconds
    }

    /// Counts answers of 2xx.
    pub fn good(&self) -> usize {
        self.answers.range(200..300).map(|(_, count)| count).sum()
    }

    /// Returns an error if there was an answer other than 2xx.
    pub fn only_good(self) -> anyhow::Result<Self> {
        let others: Vec<_> = self.answers.iter().filter(|(status, _)| **status >= 300).collect();
        anyhow::ensure!(others.is_empty(), "answers other than 2xx: {others:?}");
        Ok(self)
    }

    /// Returns the latency in milliseconds that this many in a thousand do not exceed.
    pub fn percentile(&self, thousandths: usize) -> f64 {
        percentile(&self.latencies, thousandths)
    }
}

/// Sends requests from `first` on over so many connections, each as soon as it has its answer.
pub async fn closed(
    port: u16,
    connections: usize,
    duration: Duration,
    first: u64,
    requests: &Requests,
) -> anyhow::Result<Outcome> {
    let clients = connect(port, connections, requests).await?;
    closed_loop(clients, first, move |_, elapsed| elapsed < duration).await.map(Outcome::from)
}

/// Sends each request of a range once, over so many connections.
pub async fn each(
    port: u16,
    connections: usize,
    numbers: Range<u64>,
    requests: &Requests,
) -> anyhow::Result<Outcome> {
    let clients = connect(port, connections, requests).await?;
    let Range { start, end } = numbers;
    closed_loop(clients, start, move |number, _| number < end).await.map(Outcome::from)
}

/// Sends requests from `first` on at a steady rate, however long the answers take.
pub async fn open(
    port: u16,
    rate: f64,
    duration: Duration,
    first: u64,
    requests: &Requests,
) -> anyhow::Result<Outcome> {
    let clients = connect(port, OPEN_CONNECTIONS, requests).await?;
    open_loop(clients, first, rate, duration).await.map(Outcome::from)
}

/// Returns requests of `POST /api`, each for a message to another phone.
pub fn submissions() -> Requests {
    Arc::new(|number, request| submission(request, &Numbered::Quick(number).to_string()))
}

/// Returns the latency in milliseconds that this many in a thousand do not exceed. The latencies are
/// in microseconds, the shortest first.
pub fn percentile(latencies: &[u32], thousandths: usize) -> f64 {
    let place = (latencies.len() * thousandths).div_ceil(1_000).max(1) - 1;
    latencies.get(place).map_or(f64::NAN, |micros| f64::from(*micros) / 1_000.0)
}

/// Returns percentiles of repeated loads.
pub fn percentiles(outcomes: &[Outcome], thousandths: usize) -> Spread {
    Spread::of(outcomes.iter().map(|outcome| outcome.percentile(thousandths)).collect())
}

/// Returns rates of repeated loads.
pub fn rates(outcomes: &[Outcome]) -> Spread {
    Spread::of(outcomes.iter().map(Outcome::rate).collect())
}

/// A connection that measures its requests.
struct Client {
    connection: Connection,
    requests: Requests,
    request: Vec<u8>,
    /// The status and the latency in microseconds of each answer.
    found: Vec<(u16, u32)>,
}

impl Worker for Client {
    async fn work(&mut self, number: u64, due: Instant) -> io::Result<()> {
        self.request.clear();
        (self.requests)(number, &mut self.request);
        let status = self.connection.exchange(&self.request).await?.status;
        self.found.push((status, micros(due.elapsed())));
        Ok(())
    }
}

async fn connect(port: u16, count: usize, requests: &Requests) -> io::Result<Vec<Client>> {
    let mut clients = Vec::with_capacity(count);
    for _ in 0..count {
        let connection = Connection::open(port).await?;
        let (request, found) = (Vec::new(), Vec::new());
        clients.push(Client { connection, requests: Arc::clone(requests), request, found });
    }
    Ok(clients)
}

impl From<Worked<Client>> for Outcome {
    fn from(worked: Worked<Client>) -> Self {
        let mut outcome = Self { seconds: worked.took.as_secs_f64(), ..Self::default() };
        for (status, latency) in worked.workers.into_iter().flat_map(|client| client.found) {
            *outcome.answers.entry(status).or_default() += 1;
            outcome.latencies.push(latency);
        }
        outcome.latencies.sort_unstable();
        outcome
    }
}
