//! Load on one port, in a closed loop for throughput and in an open one for latency.

use std::{
    collections::BTreeMap,
    io,
    net::Ipv4Addr,
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::{Mutex, mpsc},
    task::JoinSet,
};

use super::report::Spread;
use crate::trial::http::{content_length, head_length};

/// Writes the n-th request into an empty buffer.
pub type Requests = Arc<dyn Fn(u64, &mut Vec<u8>) + Send + Sync>;

/// What came of a load.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Answers by status.
    pub answers: BTreeMap<u16, usize>,
    /// In microseconds, from the shortest on: from the moment at which the request was due.
    pub latencies: Vec<u32>,
    pub seconds: f64,
}

impl Outcome {
    /// Answers of 2xx a second.
    #[expect(clippy::cast_precision_loss, reason = "some millions")]
    pub fn rate(&self) -> f64 {
        self.good() as f64 / self.seconds
    }

    pub fn good(&self) -> usize {
        self.answers.range(200..300).map(|(_, count)| count).sum()
    }

    /// An error if there was another answer than 2xx.
    pub fn only_good(self) -> anyhow::Result<Self> {
        let others: Vec<_> = self.answers.iter().filter(|(status, _)| **status >= 300).collect();
        anyhow::ensure!(others.is_empty(), "other answers than 2xx: {others:?}");
        Ok(self)
    }

    /// A latency in milliseconds that so many in a thousand do not exceed.
    pub fn percentile(&self, thousandths: usize) -> f64 {
        let place = (self.latencies.len() * thousandths).div_ceil(1_000).max(1) - 1;
        self.latencies.get(place).map_or(f64::NAN, |micros| f64::from(*micros) / 1_000.0)
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
    load(port, connections, first, requests, move |_, elapsed| elapsed < duration).await
}

/// Sends each request of a range once, over so many connections.
pub async fn each(
    port: u16,
    connections: usize,
    numbers: Range<u64>,
    requests: &Requests,
) -> anyhow::Result<Outcome> {
    load(port, connections, numbers.start, requests, move |number, _| number < numbers.end).await
}

/// A closed loop that goes on while it is told so, for the next request's number and the time.
async fn load(
    port: u16,
    connections: usize,
    first: u64,
    requests: &Requests,
    goes_on: impl Fn(u64, Duration) -> bool + Clone + Send + 'static,
) -> anyhow::Result<Outcome> {
    let turn = Arc::new(AtomicU64::new(first));
    let mut streams = Vec::with_capacity(connections);
    for _ in 0..connections {
        streams.push(connect(port).await?);
    }
    let begun = Instant::now();
    let mut loads = JoinSet::new();
    for mut stream in streams {
        let (turn, requests) = (Arc::clone(&turn), Arc::clone(requests));
        let goes_on = goes_on.clone();
        loads.spawn(async move {
            let (mut request, mut answer) = (Vec::new(), Vec::new());
            let mut found = Vec::new();
            loop {
                let number = turn.fetch_add(1, Ordering::Relaxed);
                if !goes_on(number, begun.elapsed()) {
                    break;
                }
                request.clear();
                requests(number, &mut request);
                let sent = Instant::now();
                let status = exchange(&mut stream, &request, &mut answer).await?;
                found.push((status, micros(sent.elapsed())));
            }
            io::Result::Ok(found)
        });
    }
    gather(loads, begun).await
}

/// Sends requests from `first` on at a steady rate, however long the answers take.
///
/// A request's latency counts from when it was due, so that one that waits for a connection, or
/// for the machine, is not taken for a quick one.
pub async fn open(
    port: u16,
    rate: f64,
    duration: Duration,
    first: u64,
    requests: &Requests,
) -> anyhow::Result<Outcome> {
    const CONNECTIONS: usize = 256;
    let (tell, told) = mpsc::unbounded_channel();
    let told = Arc::new(Mutex::new(told));
    let mut streams = Vec::with_capacity(CONNECTIONS);
    for _ in 0..CONNECTIONS {
        streams.push(connect(port).await?);
    }
    let begun = Instant::now();
    // The runtime's timer has a resolution of a millisecond, a thread's sleep one of 60 µs.
    let clock = std::thread::spawn(move || {
        let mut number = 0_u32;
        loop {
            let due = begun + Duration::from_secs_f64(f64::from(number) / rate);
            if due.duration_since(begun) >= duration {
                return;
            }
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            if tell.send((first + u64::from(number), due)).is_err() {
                return;
            }
            number += 1;
        }
    });
    let mut loads = JoinSet::new();
    for mut stream in streams {
        let (told, requests) = (Arc::clone(&told), Arc::clone(requests));
        loads.spawn(async move {
            let (mut request, mut answer) = (Vec::new(), Vec::new());
            let mut found = Vec::new();
            loop {
                let next = told.lock().await.recv().await;
                let Some((number, due)) = next else { return io::Result::Ok(found) };
                request.clear();
                requests(number, &mut request);
                let status = exchange(&mut stream, &request, &mut answer).await?;
                found.push((status, micros(due.elapsed())));
            }
        });
    }
    let outcome = gather(loads, begun).await;
    anyhow::ensure!(clock.join().is_ok(), "the clock's thread failed");
    outcome
}

/// A request for a message to a phone of its own, for `POST /api`.
pub fn submissions() -> Requests {
    Arc::new(|number, request| {
        post(request, "/api/", &format!("{{\"phone\":\"790{number:010}\"}}"));
    })
}

/// Writes a request with a JSON body.
pub fn post(request: &mut Vec<u8>, path: &str, body: &str) {
    use std::io::Write;
    // Writing to memory does not fail.
    let _ = write!(
        request,
        "POST {path} HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
}

async fn gather(
    mut loads: JoinSet<io::Result<Vec<(u16, u32)>>>,
    begun: Instant,
) -> anyhow::Result<Outcome> {
    let mut outcome = Outcome::default();
    while let Some(load) = loads.join_next().await {
        for (status, latency) in load?? {
            *outcome.answers.entry(status).or_default() += 1;
            outcome.latencies.push(latency);
        }
    }
    outcome.seconds = begun.elapsed().as_secs_f64();
    outcome.latencies.sort_unstable();
    Ok(outcome)
}

async fn connect(port: u16) -> io::Result<TcpStream> {
    let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// The status of the answer, when it is all there. `answer` is scratch space.
async fn exchange(stream: &mut TcpStream, request: &[u8], answer: &mut Vec<u8>) -> io::Result<u16> {
    stream.write_all(request).await?;
    answer.clear();
    loop {
        if stream.read_buf(answer).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let Some(head) = head_length(answer) else { continue };
        if answer.len() >= head + content_length(&answer[..head]).unwrap_or(0) {
            let status = answer.get(9..12).and_then(|it| str::from_utf8(it).ok()?.parse().ok());
            return status.ok_or_else(|| io::ErrorKind::InvalidData.into());
        }
    }
}

fn micros(duration: Duration) -> u32 {
    u32::try_from(duration.as_micros()).unwrap_or(u32::MAX)
}

/// Percentiles of repeated loads.
pub fn percentiles(outcomes: &[Outcome], thousandths: usize) -> Spread {
    Spread::of(outcomes.iter().map(|outcome| outcome.percentile(thousandths)).collect())
}

/// Rates of repeated loads.
pub fn rates(outcomes: &[Outcome]) -> Spread {
    Spread::of(outcomes.iter().map(Outcome::rate).collect())
}
