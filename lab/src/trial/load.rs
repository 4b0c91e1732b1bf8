//! Load at a steady rate, however long the answers take, or as fast as the answers come.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::time::{Instant, MissedTickBehavior, interval, sleep};
use tokio_util::{
    sync::CancellationToken,
    task::{AbortOnDropHandle, TaskTracker},
};

use super::{http::Clients, tape::Reply};

/// How many requests may be under way at a time; files are finite.
const MOST_UNDER_WAY: usize = 4_000;

/// What was offered.
#[derive(Debug, Clone, Copy, Default)]
pub struct Offered {
    pub asked: usize,
    /// Not asked: too many requests were under way.
    pub kept_back: usize,
}

/// A load that runs by itself.
#[derive(Debug)]
pub struct Running {
    stop: CancellationToken,
    task: AbortOnDropHandle<Offered>,
}

impl Running {
    /// Begins to ask so often a second.
    pub fn begin(clients: Arc<Clients>, rate: f64) -> Self {
        let stop = CancellationToken::new();
        let task = tokio::spawn(offer(clients, rate, stop.clone()));
        Self { stop, task: AbortOnDropHandle::new(task) }
    }

    /// Asks no more, and waits for the answers.
    pub async fn end(self) -> anyhow::Result<Offered> {
        self.stop.cancel();
        Ok(self.task.await?)
    }
}

async fn offer(clients: Arc<Clients>, rate: f64, stop: CancellationToken) -> Offered {
    let begun = Instant::now();
    let mut offered = Offered::default();
    let under_way = Arc::new(AtomicUsize::new(0));
    let asking = TaskTracker::new();
    let mut ticks = interval(Duration::from_millis(1));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut due = 0.0;
    while stop.run_until_cancelled(ticks.tick()).await.is_some() {
        let now = begun.elapsed().as_secs_f64() * rate;
        while due < now {
            due += 1.0;
            if under_way.load(Ordering::Relaxed) >= MOST_UNDER_WAY {
                offered.kept_back += 1;
                continue;
            }
            offered.asked += 1;
            under_way.fetch_add(1, Ordering::Relaxed);
            let (clients, under_way) = (Arc::clone(&clients), Arc::clone(&under_way));
            asking.spawn(async move {
                clients.ask().await;
                under_way.fetch_sub(1, Ordering::Relaxed);
            });
        }
    }
    asking.close();
    asking.wait().await;
    offered
}

/// Asks on so many connections, each as soon as it has its answer, for so long.
pub async fn ask_all_the_time(clients: &Arc<Clients>, connections: usize, duration: Duration) {
    let end = Instant::now() + duration;
    let asking = TaskTracker::new();
    for _ in 0..connections {
        let clients = Arc::clone(clients);
        asking.spawn(async move {
            while Instant::now() < end {
                if clients.ask().await != Reply::Accepted {
                    sleep(Duration::from_millis(10)).await;
                }
            }
        });
    }
    asking.close();
    asking.wait().await;
}

/// Asks so often, by a few connections, as fast as it goes.
pub async fn ask_times(clients: &Arc<Clients>, times: usize) {
    const CONNECTIONS: usize = 20;
    let asking = TaskTracker::new();
    for place in 0..CONNECTIONS {
        let clients = Arc::clone(clients);
        asking.spawn(async move {
            for _ in (place..times).step_by(CONNECTIONS) {
                clients.ask().await;
            }
        });
    }
    asking.close();
    asking.wait().await;
}
