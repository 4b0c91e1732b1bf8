use std::{
    convert::Infallible,
    future::poll_fn,
    io,
    net::SocketAddr,
    pin::{Pin, pin},
    sync::Arc,
    task::Poll,
    time::Duration,
};

use axum::{
    Router,
    http::{
        HeaderValue, Request, StatusCode,
        header::{CONNECTION, CONTENT_TYPE},
    },
    response::{IntoResponse, Response},
};
use hyper::{
    body::{Body as _, Incoming},
    server::conn::http1,
    service::{Service, service_fn},
};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

pub use self::listen::{Hosts, InvalidHosts, Listeners};
use self::{
    connections::{Connections, Entry, Link},
    watched::{Body, Watched},
};
use crate::{ConnectionMetrics, error::JSON};

mod connections;
mod host;
mod listen;
mod watched;

#[cfg(test)]
mod tests;

/// The pause after the system refused a connection for lack of descriptors or memory, and the pause
/// between two lines of the log about it.
const ACCEPT_PAUSE: Duration = Duration::from_millis(500);
const ACCEPT_LOG_PAUSE: Duration = Duration::from_secs(10);

/// How long the last accepted connections have for their first request at a shutdown.
const LAST_REQUESTS: Duration = Duration::from_millis(50);

/// How long a refused connection may take to send its request and to read the 503.
const TURNING_AWAY: Duration = Duration::from_secs(2);

/// How long a connection waits until the one that makes room for it is closed.
const CHANGING_PLACES: Duration = Duration::from_secs(1);

/// How often the deadlines of all connections are checked.
const SWEEP: Duration = Duration::from_millis(250);

const FULL: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\nconnection: close\r\n\
    content-type: application/json\r\ncontent-length: 32\r\n\r\n{\"error\":\"too many connections\"}";

/// The buffer of a connection, which has to hold a whole head.
///
/// The buffer begins with 8 KiB and doubles each time that one read has filled it, so only a client
/// that sends so much at once makes it grow.
const MAX_BUFFER: usize = 64 * 1024;

/// The most headers of a request. The parser's default is 100, and the Go service had no limit.
const MAX_HEADERS: usize = 256;

/// The limits of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServerLimits {
    /// Connections at a time: under load each takes some 28 KiB, and up to 80 KiB if its client
    /// sends a long head or body at once. A further one takes the place of one that does not
    /// proceed. If there is none, it is answered with 503, and the longest open one ends with its
    /// next answer.
    pub max_connections: usize,
    /// Connections at a time from one IPv4 address, or from one /64 of IPv6.
    pub max_per_peer: usize,
    /// Refused connections that are answered with 503 at a time. Further ones are closed. Half of the
    /// answers are for newcomers, and not for connections that were dropped to make room.
    pub max_turned_away: usize,
    /// How long a connection has for a request, head and body, while others wait for its place. A
    /// peer with more connections than theirs has a quarter of it.
    pub patience: Duration,
    /// How long a connection may be idle while others wait for its place. A peer with more
    /// connections than theirs has a quarter of it.
    pub idle_patience: Duration,
    /// How long a connection that must end with its next answer may go without an answer.
    pub last_answer: Duration,
    /// How long a new connection may send nothing.
    pub first_byte_timeout: Duration,
    /// How long a head may take from its first byte to its last.
    pub head_timeout: Duration,
    /// How long a connection may be idle between two requests.
    pub idle_timeout: Duration,
    /// How long a client may take to read an answer that does not fit into the system's buffers.
    /// On Linux, also how long it may leave sent bytes unacknowledged.
    pub write_timeout: Duration,
    /// How long the server goes on accepting at a shutdown. Its answers tell clients to close. Idle
    /// connections are closed at the end of this time.
    pub farewell: Duration,
    /// How long requests in flight may take after that.
    pub grace: Duration,
}

impl ServerLimits {
    /// Returns how many connections may be leaving at a time, in addition to `max_connections`.
    pub fn max_leaving(&self) -> usize {
        self.max_connections.div_ceil(8)
    }
}

impl Default for ServerLimits {
    fn default() -> Self {
        Self {
            max_connections: 768,
            max_per_peer: usize::MAX,
            // As many as the system may hand over at once.
            max_turned_away: listen::BACKLOG.into(),
            patience: Duration::from_millis(100),
            idle_patience: Duration::from_secs(1),
            last_answer: Duration::from_secs(2),
            first_byte_timeout: Duration::from_secs(10),
            head_timeout: Duration::from_secs(10),
            // More than the usual 60 s of load balancers and client pools: the side that closes
            // first loses no request.
            idle_timeout: Duration::from_secs(75),
            write_timeout: Duration::from_secs(30),
            farewell: Duration::ZERO,
            grace: Duration::from_secs(10),
        }
    }
}

/// Serves HTTP/1 on `listeners` until `stop`.
///
/// At a shutdown, answers tell their clients to close for `limits.farewell`. Then nothing more is
/// accepted, idle connections are closed, and requests in flight have `limits.grace` to end. A
/// connection is read once more before it is closed, so that no request is lost.
/// Dropping the future drops every connection.
///
/// `metrics` counts refused connections, and those that make room.
pub async fn serve(
    listeners: impl Into<Listeners>,
    router: Router,
    limits: ServerLimits,
    metrics: ConnectionMetrics,
    stop: CancellationToken,
) {
    let listeners = listeners.into();
    let http = http();
    let slots = Arc::new(Semaphore::new(limits.max_connections));
    let connections = Connections::new(limits, metrics, stop.clone());
    let turning_away = TurningAway::new(limits.max_turned_away);
    let (mut tasks, mut turned_away) = (JoinSet::new(), JoinSet::new());
    let mut sweeper = JoinSet::new();
    sweeper.spawn(sweep(Arc::clone(&connections)));
    let mut stopped = pin!(async {
        stop.cancelled().await;
        sleep(limits.farewell).await;
    });
    let mut admit = |(stream, peer): (TcpStream, SocketAddr)| {
        // Removes ended tasks, or the sets would grow for ever.
        while tasks.try_join_next().is_some() {}
        while turned_away.try_join_next().is_some() {}
        let Some(entry) = connections.admit(peer.ip().into()) else {
            if let Some(permit) = turning_away.newcomer() {
                let unserved = Unserved { stream, has_asked: false };
                turned_away.spawn(unserved.turn_away(permit));
            }
            return;
        };
        if let Err(error) = prepare(&stream, limits) {
            tracing::debug!(%error, "a client closed its connection before it was served");
            return;
        }
        let service = answering(router.clone(), Arc::clone(&entry.link), Arc::clone(&connections));
        let (http, link) = (http.clone(), Arc::clone(&entry.link));
        let served = async move |stream| {
            let io = TokioIo::new(Watched::new(stream, Arc::clone(&link)));
            attend(http, io, service, link).await
        };
        let free = Arc::clone(&slots).try_acquire_owned().ok();
        let place = take_place(free, Arc::clone(&slots), entry, stream, served);
        let turning_away = turning_away.clone();
        tasks.spawn(async move {
            if let Some(unserved) = place.await
                && let Some(permit) = turning_away.dropped()
            {
                unserved.turn_away(permit).await;
            }
        });
    };
    loop {
        tokio::select! {
            biased;
            () = &mut stopped => break,
            accepted = accept(&listeners) => admit(accepted),
        }
    }
    // Without this, connections that the system has already accepted would be reset.
    for accepted in backlog(listeners) {
        admit(accepted);
    }
    sleep(LAST_REQUESTS).await;
    connections.close();
    let ended = async {
        while tasks.join_next().await.is_some() {}
        while turned_away.join_next().await.is_some() {}
    };
    if timeout(limits.grace, ended).await.is_err() {
        tracing::warn!(
            connections = connections.len(),
            "dropped connections whose requests did not end within the grace time"
        );
    }
}

/// Drops connections whose deadline has passed.
async fn sweep(connections: Arc<Connections>) {
    let mut ticks = interval(SWEEP);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        connections.sweep();
    }
}

/// Serves a connection once the one whose place it takes has ended. Returns it if no request
/// of it was served for want of a place.
async fn take_place(
    free: Option<OwnedSemaphorePermit>,
    slots: Arc<Semaphore>,
    entry: Entry,
    stream: TcpStream,
    serve: impl AsyncFnOnce(TcpStream) -> hyper::Result<Option<Unserved>>,
) -> Option<Unserved> {
    let slot = match free {
        Some(slot) => Some(slot),
        None => timeout(CHANGING_PLACES, slots.acquire_owned()).await.ok().and_then(Result::ok),
    };
    if slot.is_none() {
        tracing::debug!("closed a connection because its place did not become free in time");
        return Some(Unserved { stream, has_asked: false });
    }
    let unserved = serve(stream).await.unwrap_or_else(|error| {
        tracing::debug!(%error, "a connection ended with an error");
        None
    });
    drop((entry, slot));
    unserved
}

/// How many connections are answered with 503 at a time.
#[derive(Debug, Clone)]
struct TurningAway {
    permits: Arc<Semaphore>,
    max: usize,
}

impl TurningAway {
    fn new(max: usize) -> Self {
        Self { permits: Arc::new(Semaphore::new(max.min(Semaphore::MAX_PERMITS))), max }
    }

    /// For a connection that found all places taken.
    fn newcomer(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.permits).try_acquire_owned().ok()
    }

    /// For one that made room. Half of the permits are not for these: many of them were opened to
    /// keep others out.
    fn dropped(&self) -> Option<OwnedSemaphorePermit> {
        if self.permits.available_permits() > self.max / 2 { self.newcomer() } else { None }
    }
}

/// A connection of which no request was served for want of a place.
struct Unserved {
    stream: TcpStream,
    /// Whether a part of a request has arrived.
    has_asked: bool,
}

fn http() -> http1::Builder {
    let mut http = http1::Builder::new();
    // `Connections::sweep` enforces all deadlines.
    http.header_read_timeout(None).max_buf_size(MAX_BUFFER).max_headers(MAX_HEADERS);
    http
}

/// Serves one connection to its end, or until it has to go. Returns it if it made room before
/// its request was there.
async fn attend<S>(
    http: http1::Builder,
    io: TokioIo<Watched<TcpStream>>,
    service: S,
    link: Arc<Link>,
) -> hyper::Result<Option<Unserved>>
where
    S: Service<Request<Incoming>, Response = Response, Error = Infallible>,
{
    let mut connection = http.serve_connection(io, service);
    loop {
        tokio::select! {
            // Bytes that have arrived are read first: to hyper, a connection is idle until it has
            // read them.
            biased;
            ended = &mut connection => return ended.map(|()| None),
            () = link.called() => {}
        }
        // Before hyper closes it.
        if link.is_to_go()
            && let Some(has_asked) = link.asks_in_vain()
        {
            let stream = connection.into_parts().io.into_inner().into_inner();
            return Ok(Some(Unserved { stream, has_asked }));
        }
        Pin::new(&mut connection).graceful_shutdown();
        let polled = poll_fn(|cx| Poll::Ready(Pin::new(&mut connection).poll(cx))).await;
        if let Poll::Ready(ended) = polled {
            return ended.map(|()| None);
        }
        if link.is_to_go() {
            return Ok(None);
        }
    }
}

/// Returns the service of one connection. A router is always ready, and cheap to clone.
fn answering(
    router: Router,
    link: Arc<Link>,
    connections: Arc<Connections>,
) -> impl Service<Request<Incoming>, Response = Response, Error = Infallible, Future: Send> + Send {
    service_fn(move |request: Request<Incoming>| {
        link.asked(!request.body().is_end_stream());
        let answer = host::is_valid(request.version(), request.headers()).then(|| {
            let request = request.map(|body| Body::new(body, Arc::clone(&link)));
            tower::Service::call(&mut router.clone(), request)
        });
        let (link, connections) = (Arc::clone(&link), Arc::clone(&connections));
        async move {
            let mut answer = match answer {
                Some(answer) => answer.await?,
                None => refuse_host(),
            };
            link.answered();
            if link.is_told() || connections.is_stopping() {
                answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            Ok(answer)
        }
    })
}

/// Refuses a request and closes, because later requests on the connection may be meant for another
/// server.
fn refuse_host() -> Response {
    let headers = [(CONTENT_TYPE, JSON), (CONNECTION, HeaderValue::from_static("close"))];
    (StatusCode::BAD_REQUEST, headers, r#"{"error":"invalid Host header"}"#).into_response()
}

/// Waits for a connection, and pauses if the system is short of descriptors or memory.
async fn accept(listeners: &Listeners) -> (TcpStream, SocketAddr) {
    let mut logged: Option<Instant> = None;
    loop {
        match listeners.accept().await {
            Ok(accepted) => return accepted,
            Err(error) if is_the_clients(&error) => {}
            Err(error) => {
                if logged.is_none_or(|logged| logged.elapsed() > ACCEPT_LOG_PAUSE) {
                    tracing::warn!(%error, "cannot accept connections; check the limit of open files");
                    logged = Some(Instant::now());
                }
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

impl Unserved {
    /// Says that there is no slot, within [`TURNING_AWAY`].
    async fn turn_away(self, permit: OwnedSemaphorePermit) {
        // Whether the client hears it is its own affair.
        let _ = timeout(TURNING_AWAY, self.refuse()).await;
        drop(permit);
    }

    /// What is asked is read and forgotten: it takes no buffers of a connection that is served.
    async fn refuse(self) -> io::Result<()> {
        let Self { mut stream, has_asked } = self;
        let mut asked = [0; 256];
        // A client does not expect an answer before it has sent something.
        if !has_asked && stream.read(&mut asked).await? == 0 {
            return Ok(());
        }
        stream.write_all(FULL).await?;
        stream.shutdown().await?;
        // Closing with unread bytes would reset the connection, and the client would lose the answer.
        while stream.read(&mut asked).await? > 0 {}
        Ok(())
    }
}

/// Returns the connections that the system has already accepted, and closes the listeners. It asks
/// the system directly, because the runtime may not know of them yet.
fn backlog(listeners: Listeners) -> Vec<(TcpStream, SocketAddr)> {
    let mut accepted = Vec::new();
    for listener in listeners.into_inner().into_iter().filter_map(|it| it.into_std().ok()) {
        loop {
            match listener.accept() {
                Ok((stream, peer)) => {
                    accepted.extend(from_std(stream).map(|stream| (stream, peer)));
                }
                Err(error) if is_the_clients(&error) => {}
                Err(_) => break,
            }
        }
    }
    accepted
}

fn from_std(stream: std::net::TcpStream) -> io::Result<TcpStream> {
    stream.set_nonblocking(true)?;
    TcpStream::from_std(stream)
}

/// Whether an error of `accept` means only that a client gave up its connection.
fn is_the_clients(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::Interrupted
    )
}

/// Sends answers at once, and lets the system cut clients that read nothing: a client that sends
/// requests and reads no answers would hold its slot for ever.
fn prepare(stream: &TcpStream, limits: ServerLimits) -> io::Result<()> {
    stream.set_nodelay(true)?;
    #[cfg(target_os = "linux")]
    socket2::SockRef::from(stream).set_tcp_user_timeout(Some(limits.write_timeout))?;
    Ok(())
}
