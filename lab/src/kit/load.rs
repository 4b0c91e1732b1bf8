//! Load: a closed loop for throughput, open loops for a steady rate.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{Mutex, mpsc},
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval},
};
use tokio_util::{
    sync::CancellationToken,
    task::{AbortOnDropHandle, TaskTracker},
};

/// How many requests of [`offer`] may be in flight: a process may not open any number of files.
const MOST_IN_FLIGHT: usize = 4_000;

/// One of the clients of a loop, with its connection and its results.
pub trait Worker: Send + 'static {
    /// Makes the request with this number, which was due at this time.
    fn work(&mut self, number: u64, due: Instant) -> impl Future<Output = io::Result<()>> + Send;
}

/// Workers that have done their work.
#[derive(Debug)]
pub struct Worked<W> {
    pub workers: Vec<W>,
    pub took: Duration,
}

/// Lets each worker make a request as soon as it has the answer to its last one. `goes_on` decides
/// by the next request's number, from `first` on, and by the time since the start.
pub async fn closed_loop<W: Worker>(
    workers: Vec<W>,
    first: u64,
    goes_on: impl Fn(u64, Duration) -> bool + Clone + Send + 'static,
) -> anyhow::Result<Worked<W>> {
    let next = Arc::new(AtomicU64::new(first));
    let begun = Instant::now();
    let mut tasks = JoinSet::new();
    for mut worker in workers {
        let (next, goes_on) = (Arc::clone(&next), goes_on.clone());
        tasks.spawn(async move {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if !goes_on(number, begun.elapsed()) {
                    return io::Result::Ok(worker);
                }
                worker.work(number, Instant::now()).await?;
            }
        });
    }
    gather(tasks, begun).await
}

/// Makes requests due at a steady rate, however long the answers take, from number `first` on.
///
/// A request that is due waits until a worker is free. Measure its latency from when it was due, so
/// that the wait counts.
pub async fn open_loop<W: Worker>(
    workers: Vec<W>,
    first: u64,
    rate: f64,
    duration: Duration,
) -> anyhow::Result<Worked<W>> {
    let (send, receive) = mpsc::unbounded_channel();
    let receive = Arc::new(Mutex::new(receive));
    let begun = Instant::now();
    // The runtime's timer has a resolution of a millisecond, a thread's sleep one of 60 µs.
    let clock = std::thread::spawn(move || {
        for number in 0_u32.. {
            let due = begun + Duration::from_secs_f64(f64::from(number) / rate);
            if due.duration_since(begun) >= duration {
                return;
            }
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            if send.send((first + u64::from(number), due)).is_err() {
                return;
            }
        }
    });
    let mut tasks = JoinSet::new();
    for mut worker in workers {
        let receive = Arc::clone(&receive);
        tasks.spawn(async move {
            loop {
                let next = receive.lock().await.recv().await;
                let Some((number, due)) = next else { return io::Result::Ok(worker) };
                worker.work(number, due).await?;
            }
        });
    }
    let worked = gather(tasks, begun).await;
    anyhow::ensure!(clock.join().is_ok(), "the clock's thread failed");
    worked
}

async fn gather<W: 'static>(
    mut tasks: JoinSet<io::Result<W>>,
    begun: Instant,
) -> anyhow::Result<Worked<W>> {
    let mut workers = Vec::with_capacity(tasks.len());
    while let Some(worker) = tasks.join_next().await {
        workers.push(worker??);
    }
    Ok(Worked { workers, took: begun.elapsed() })
}

/// The number of requests of an open loop.
#[derive(Debug, Clone, Copy, Default)]
pub struct Offered {
    pub asked: usize,
    /// Requests that were not made because too many were in flight.
    pub kept_back: usize,
}

/// Makes `rate` requests a second until `stop`, each in a task of its own, and waits for the
/// answers.
pub async fn offer<F>(
    rate: f64,
    stop: &CancellationToken,
    mut request: impl FnMut() -> F,
) -> Offered
where
    F: Future<Output = ()> + Send + 'static,
{
    let begun = Instant::now();
    let mut offered = Offered::default();
    let in_flight = Arc::new(AtomicUsize::new(0));
    let requests = TaskTracker::new();
    let mut ticks = interval(Duration::from_millis(1));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut due = 0.0;
    while stop.run_until_cancelled(ticks.tick()).await.is_some() {
        let now = begun.elapsed().as_secs_f64() * rate;
        while due < now {
            due += 1.0;
            if in_flight.load(Ordering::Relaxed) >= MOST_IN_FLIGHT {
                offered.kept_back += 1;
                continue;
            }
            offered.asked += 1;
            in_flight.fetch_add(1, Ordering::Relaxed);
            let (request, in_flight) = (request(), Arc::clone(&in_flight));
            requests.spawn(async move {
                request.await;
                in_flight.fetch_sub(1, Ordering::Relaxed);
            });
        }
    }
    requests.close();
    requests.wait().await;
    offered
}

/// A load of [`offer`] in the background.
#[derive(Debug)]
pub struct Running {
    stop: CancellationToken,
    task: AbortOnDropHandle<Offered>,
}

impl Running {
    pub fn begin<F>(rate: f64, request: impl FnMut() -> F + Send + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let task = tokio::spawn(async move { offer(rate, &stopped, request).await });
        Self { stop, task: AbortOnDropHandle::new(task) }
    }

    /// Makes no more requests, and waits for the answers.
    pub async fn end(self) -> anyhow::Result<Offered> {
        self.stop.cancel();
        Ok(self.task.await?)
    }
}
