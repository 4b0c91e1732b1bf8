//! Clients of `POST /api`.

use std::{
    io,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::time::{Instant, sleep, timeout};

use super::{
    clock::now,
    http::{Connection, submission},
    load::{Running, Worker, closed_loop},
    recorder::{Recorder, Reply, Request},
    tally::Tally,
};

/// How long a client waits. The API answers 503 before that.
const LIMIT: Duration = Duration::from_secs(10);
const CONNECT_LIMIT: Duration = Duration::from_secs(2);

/// How long a client keeps an idle connection: less than the 30 s after which the API closes it, so
/// that no request meets the closing.
const KEPT_FOR: Duration = Duration::from_secs(20);

const ACCEPTED: &[u8] = b"\"message successfuly sended\"";

/// Clients of the APIs, which they ask in turn.
#[derive(Debug)]
pub struct Clients<R> {
    ports: Vec<u16>,
    /// Idle connections by port, with the end of their last use.
    kept: Vec<Mutex<Vec<(Instant, Connection)>>>,
    habits: Habits,
    turn: AtomicUsize,
    recorder: R,
}

/// How clients use the APIs.
#[derive(Debug, Clone, Copy)]
pub struct Habits {
    /// One of this many requests uses a new connection. With 0, a request uses a new connection
    /// only if none is free.
    pub fresh_every: usize,
    /// Whether a client asks the next API if one has no listener, as a load balancer does.
    pub tries_next: bool,
}

impl<R: Recorder> Clients<R> {
    pub fn new(ports: Vec<u16>, habits: Habits, recorder: R) -> Self {
        let kept = ports.iter().map(|_| Mutex::default()).collect();
        Self { ports, kept, habits, turn: AtomicUsize::new(0), recorder }
    }

    pub fn recorder(&self) -> &R {
        &self.recorder
    }

    /// Asks for a message to a phone, and records the outcome.
    pub async fn ask(&self, phone: &str) -> Reply {
        let asked_at = now();
        let asked = timeout(LIMIT, self.try_each(phone)).await;
        let (reply, detail) = asked.unwrap_or((Reply::Silent, None));
        let (ended_at, detail) = (now(), detail.as_deref());
        self.recorder.answered(&Request { phone, asked_at, ended_at, reply, detail });
        reply
    }

    async fn try_each(&self, phone: &str) -> (Reply, Option<String>) {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let fresh_every = self.habits.fresh_every;
        let fresh = fresh_every > 0 && (turn / self.ports.len()).is_multiple_of(fresh_every);
        let tries = if self.habits.tries_next { self.ports.len() } else { 1 };
        for step in 0..tries {
            let place = (turn + step) % self.ports.len();
            let kept = if fresh { None } else { self.take_kept(place) };
            let was_kept = kept.is_some();
            let connection = match kept {
                Some(connection) => connection,
                None => match connect(self.ports[place]).await {
                    Ok(connection) => connection,
                    Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => continue,
                    Err(error) => return (Reply::Lost, Some(format!("connect: {error}"))),
                },
            };
            return self.converse(place, connection, phone, was_kept).await;
        }
        (Reply::Nowhere, None)
    }

    /// Takes a connection that the API has not closed meanwhile, as far as this can be seen.
    fn take_kept(&self, place: usize) -> Option<Connection> {
        let mut kept = self.kept(place);
        while let Some((since, connection)) = kept.pop() {
            if since.elapsed() > KEPT_FOR {
                kept.clear();
                return None;
            }
            if connection.is_open() {
                return Some(connection);
            }
        }
        None
    }

    async fn converse(
        &self,
        place: usize,
        mut connection: Connection,
        phone: &str,
        was_kept: bool,
    ) -> (Reply, Option<String>) {
        let mut request = Vec::with_capacity(256);
        submission(&mut request, phone);
        let answer = match connection.exchange(&request).await {
            Ok(answer) => answer,
            Err(error) if was_kept => {
                return (Reply::LostOnKept, Some(format!("kept connection: {error}")));
            }
            Err(error) => return (Reply::Lost, Some(format!("new connection: {error}"))),
        };
        let outcome = match answer.status {
            200 if answer.body == ACCEPTED => (Reply::Accepted, None),
            503 if answer.has("retry-after") => (Reply::Refused, None),
            status => (Reply::Illegal, Some(format!("{status} {}", answer.body.escape_ascii()))),
        };
        if answer.keeps_connection() {
            self.kept(place).push((Instant::now(), connection));
        }
        outcome
    }

    fn kept(&self, place: usize) -> MutexGuard<'_, Vec<(Instant, Connection)>> {
        self.kept[place].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Clients<Tally> {
    /// Asks for a message to a phone that had none.
    pub async fn ask_new(&self) -> Reply {
        let phone = self.recorder.new_phone();
        self.ask(&phone).await
    }

    /// Asks `times` times, on a few connections.
    pub async fn ask_times(self: &Arc<Self>, times: u64) -> anyhow::Result<()> {
        self.ask_while(20, Duration::ZERO, move |number, _| number < times).await
    }

    /// Asks on so many connections for so long, each as soon as it has its answer.
    pub async fn ask_for(
        self: &Arc<Self>,
        connections: usize,
        duration: Duration,
    ) -> anyhow::Result<()> {
        let pause = Duration::from_millis(10);
        self.ask_while(connections, pause, move |_, elapsed| elapsed < duration).await
    }

    /// Asks on so many connections while `goes_on` says so, by the number of the request and the
    /// time since the start. Pauses after a request that is not accepted.
    pub async fn ask_while(
        self: &Arc<Self>,
        connections: usize,
        pause: Duration,
        goes_on: impl Fn(u64, Duration) -> bool + Clone + Send + 'static,
    ) -> anyhow::Result<()> {
        let client = |_| Asking { clients: Arc::clone(self), pause };
        closed_loop((0..connections).map(client).collect(), 0, goes_on).await.map(|_| ())
    }

    /// Asks at a steady rate in the background.
    pub fn begin_asking(self: &Arc<Self>, rate: f64) -> Running {
        let clients = Arc::clone(self);
        Running::begin(rate, move || {
            let clients = Arc::clone(&clients);
            async move {
                clients.ask_new().await;
            }
        })
    }
}

async fn connect(port: u16) -> io::Result<Connection> {
    timeout(CONNECT_LIMIT, Connection::open(port)).await?
}

/// A closed loop's client. It pauses for a moment if it is refused.
struct Asking {
    clients: Arc<Clients<Tally>>,
    pause: Duration,
}

impl Worker for Asking {
    async fn work(&mut self, _number: u64, _due: Instant) -> io::Result<()> {
        if self.clients.ask_new().await != Reply::Accepted {
            sleep(self.pause).await;
        }
        Ok(())
    }
}
