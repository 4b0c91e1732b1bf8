//! The HTTP server: accepts connections, limits them, and shuts down in order.
//!
//! This is one file, because accepting, serving, refusing and the shutdown are one life of a
//! connection. The table of connections is in `connections`.

use std::{
    convert::Infallible,
    future::poll_fn,
    io,
    net::{IpAddr, SocketAddr},
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

pub(crate) use self::connections::Peer;
use self::{
    connections::{Connections, Entry, Link},
    refusals::Refusals,
    tls::{Opening, Stream},
    watched::{Body, Watched},
};
pub use self::{
    listen::{Hosts, InvalidHosts, Listeners},
    proxies::{InvalidProxies, TrustedProxies},
    tls::{CertificateFile, ServerCertificate, ServerTls},
};
use crate::{ConnectionMetrics, error::JSON};

mod connections;
mod host;
mod listen;
mod proxies;
mod refusals;
mod tls;
mod watched;

#[cfg(test)]
mod tests;

/// The pause after the system could not accept a connection for lack of descriptors or memory, and
/// the pause between two log lines about it.
const ACCEPT_PAUSE: Duration = Duration::from_millis(500);
const ACCEPT_LOG_PAUSE: Duration = Duration::from_secs(10);

/// How long the last accepted connections have for their first request at a shutdown.
const LAST_REQUESTS: Duration = Duration::from_millis(50);

/// How long a refused connection may take to send its request and to read the 503.
const TURNING_AWAY: Duration = Duration::from_secs(2);

/// How long a new connection waits until the connection that makes room for it is closed.
const CHANGING_PLACES: Duration = Duration::from_secs(1);

/// How often the deadlines of all connections are checked.
const SWEEP: Duration = Duration::from_millis(250);

const FULL: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\nconnection: close\r\n\
    content-type: application/json\r\ncontent-length: 32\r\n\r\n{\"error\":\"too many connections\"}";

/// The size of a connection's buffer, which must hold a whole head.
///
/// The buffer begins with 8 KiB and doubles each time that one read has filled it. So it grows only
/// for a client that sends this much at once.
const MAX_BUFFER: usize = 64 * 1024;

/// The most headers of a request. The default of the parser is 100. The Go service had no limit.
const MAX_HEADERS: usize = 256;

/// The limits of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServerLimits {
    /// The most connections at a time. Under load each takes some 28 KiB, and up to 80 KiB if its
    /// client sends a long head or body at once.
    ///
    /// A further connection takes the place of a connection that makes no progress. If there is
    /// none, the new connection gets a 503, and the longest open connection ends with its next
    /// answer.
    pub max_connections: usize,
    /// The most connections at a time from one IPv4 address, or from one /64 of IPv6.
    pub max_per_peer: usize,
    /// The most refused connections that get a 503 at a time. Further ones are closed. Half of
    /// these places are only for new connections, and not for connections that made room.
    pub max_turned_away: usize,
    /// How long a connection has for a request, head and body, while a new connection needs its
    /// place. A peer with more connections than the new connection's peer has a quarter of this
    /// time.
    pub patience: Duration,
    /// How long a connection may be idle while a new connection needs its place. A peer with more
    /// connections than the new connection's peer has a quarter of this time.
    pub idle_patience: Duration,
    /// How long a connection that must end with its next answer may take for that answer.
    pub last_answer: Duration,
    /// How long a new connection may send nothing. With TLS, how long it may take for the handshake
    /// and the first byte of a request.
    pub first_byte_timeout: Duration,
    /// How long a head may take from its first byte to its last.
    pub head_timeout: Duration,
    /// How long a connection may be idle between two requests.
    pub idle_timeout: Duration,
    /// How long a client may take to read an answer that does not fit into the system's buffers.
    /// On Linux, also how long it may leave sent bytes unacknowledged.
    pub write_timeout: Duration,
    /// How long the server still accepts connections at a shutdown. Its answers tell clients to
    /// close. At the end of this time it closes idle connections.
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
            // The most that the system may hand over at once.
            max_turned_away: listen::BACKLOG.into(),
            patience: Duration::from_millis(100),
            idle_patience: Duration::from_secs(1),
            last_answer: Duration::from_secs(2),
            first_byte_timeout: Duration::from_secs(10),
            head_timeout: Duration::from_secs(10),
            // More than the usual 60 s of load balancers and client pools, so that they close
            // first. The side that closes first loses no request.
            idle_timeout: Duration::from_secs(75),
            write_timeout: Duration::from_secs(30),
            farewell: Duration::ZERO,
            grace: Duration::from_secs(10),
        }
    }
}

/// Serves HTTP/1 on `listeners`, over TLS if they have it, until `stop`.
///
/// At a shutdown, answers tell their clients to close for `limits.farewell`. Then the server
/// accepts no more connections and closes idle ones. Requests in flight have `limits.grace` to end.
/// The server reads a connection once more before it closes it, so that no request is lost.
/// Dropping the future drops every connection.
///
/// `metrics` counts refused connections, and connections that make room.
pub async fn serve(
    listeners: impl Into<Listeners>,
    router: Router,
    limits: ServerLimits,
    metrics: ConnectionMetrics,
    stop: CancellationToken,
) {
    let listeners = listeners.into();
    let (tls, proxies) = (listeners.tls().cloned(), listeners.proxies().clone());
    let tells = listeners.tells_callers();
    let mut number = 0;
    let refusals = Arc::new(Refusals::default());
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
        // Removes ended tasks. Otherwise the sets would grow without limit.
        while tasks.try_join_next().is_some() {}
        while turned_away.try_join_next().is_some() {}
        let peer = peer.ip();
        let counted_as = if proxies.contains(peer) {
            number += 1;
            Peer::Proxied(peer, number)
        } else {
            peer.into()
        };
        let Some(entry) = connections.admit(counted_as) else {
            if let Some(permit) = turning_away.newcomer() {
                let unserved = Unserved::Opening(Opening::new(stream, tls.as_ref()));
                turned_away.spawn(unserved.turn_away(permit));
            }
            return;
        };
        if let Err(error) = prepare(&stream, limits) {
            tracing::debug!(%error, "a client closed its connection before it was served");
            return;
        }
        let (proxies, refusals) = (proxies.clone(), Arc::clone(&refusals));
        let callers = Callers { peer, proxies, refusals, tells };
        let (link, all) = (Arc::clone(&entry.link), Arc::clone(&connections));
        let service = answering(router.clone(), link, all, callers);
        let (http, link) = (http.clone(), Arc::clone(&entry.link));
        let opening = Opening::new(stream, tls.as_ref());
        let served = async move |opening| {
            let stream = match open(opening, &link).await {
                Ok(stream) => stream,
                Err(unserved) => return Ok(unserved),
            };
            let io = TokioIo::new(Watched::new(stream, Arc::clone(&link)));
            attend(http, io, service, link).await
        };
        let free = Arc::clone(&slots).try_acquire_owned().ok();
        let place = take_place(free, Arc::clone(&slots), entry, opening, served);
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

/// Serves a connection when the connection whose place it takes has ended. Returns it if it got no
/// place and no request was served.
async fn take_place(
    free: Option<OwnedSemaphorePermit>,
    slots: Arc<Semaphore>,
    entry: Entry,
    opening: Opening,
    serve: impl AsyncFnOnce(Opening) -> hyper::Result<Option<Unserved>>,
) -> Option<Unserved> {
    let slot = match free {
        Some(slot) => Some(slot),
        None => timeout(CHANGING_PLACES, slots.acquire_owned()).await.ok().and_then(Result::ok),
    };
    if slot.is_none() {
        tracing::debug!("closed a connection because its place did not become free in time");
        return Some(Unserved::Opening(opening));
    }
    let unserved = serve(opening).await.unwrap_or_else(|error| {
        tracing::debug!(%error, "a connection ended with an error");
        None
    });
    drop((entry, slot));
    unserved
}

/// The permits for connections that get a 503.
#[derive(Debug, Clone)]
struct TurningAway {
    permits: Arc<Semaphore>,
    max: usize,
}

impl TurningAway {
    fn new(max: usize) -> Self {
        Self { permits: Arc::new(Semaphore::new(max.min(Semaphore::MAX_PERMITS))), max }
    }

    /// Returns a permit for a connection that found all places taken.
    fn newcomer(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.permits).try_acquire_owned().ok()
    }

    /// Returns a permit for a connection that made room. Half of the permits are not for such
    /// connections, because an attacker may have opened many of them to block other clients.
    fn dropped(&self) -> Option<OwnedSemaphorePermit> {
        if self.permits.available_permits() > self.max / 2 { self.newcomer() } else { None }
    }
}

/// A connection without a place, of which no request was served.
enum Unserved {
    Opening(Opening),
    Open {
        stream: Stream,
        /// Whether a part of a request has arrived.
        has_asked: bool,
    },
}

fn http() -> http1::Builder {
    let mut http = http1::Builder::new();
    // `Connections::sweep` enforces all deadlines.
    http.header_read_timeout(None).max_buf_size(MAX_BUFFER).max_headers(MAX_HEADERS);
    http
}

/// Completes the TLS handshake, if the server has TLS. Returns what is left of the connection if it
/// must make room first.
///
/// For the table, a connection in its handshake has sent nothing. So it has the deadline of one, and
/// makes room as one.
async fn open(mut opening: Opening, link: &Link) -> Result<Stream, Option<Unserved>> {
    loop {
        tokio::select! {
            biased;
            opened = &mut opening => {
                link.repeat_order();
                return opened.map_err(|error| {
                    tracing::debug!(%error, "a client did not complete the TLS handshake");
                    None
                });
            }
            () = link.called() => {}
        }
        if link.is_to_go() {
            return Err(link.asks_in_vain().map(|_| Unserved::Opening(opening)));
        }
    }
}

/// Serves one connection until it ends or must make room. Returns it if it made room before its
/// request was complete.
async fn attend<S>(
    http: http1::Builder,
    io: TokioIo<Watched<Stream>>,
    service: S,
    link: Arc<Link>,
) -> hyper::Result<Option<Unserved>>
where
    S: Service<Request<Incoming>, Response = Response, Error = Infallible>,
{
    let mut connection = http.serve_connection(io, service);
    loop {
        tokio::select! {
            // Arrived bytes are read first. hyper takes a connection for idle until it has read
            // them.
            biased;
            ended = &mut connection => return ended.map(|()| None),
            () = link.called() => {}
        }
        // Take the stream before hyper closes it.
        if link.is_to_go()
            && let Some(has_asked) = link.asks_in_vain()
        {
            let stream = connection.into_parts().io.into_inner().into_inner();
            return Ok(Some(Unserved::Open { stream, has_asked }));
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

/// The address of the caller of a request, if the listeners pass it on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Caller(IpAddr);

impl Caller {
    pub(crate) fn of<B>(request: &Request<B>) -> Option<IpAddr> {
        request.extensions().get::<Self>().map(|caller| caller.0)
    }
}

/// Marks a 401 that is not logged: a browser sends its first request without credentials.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NoCredentials;

/// Finds the caller of each request on one connection.
struct Callers {
    /// The address at the other end.
    peer: IpAddr,
    proxies: TrustedProxies,
    refusals: Arc<Refusals>,
    /// Whether the router learns the caller of each request.
    tells: bool,
}

/// Returns the service of one connection. A router is always ready, and cheap to clone.
fn answering(
    router: Router,
    link: Arc<Link>,
    connections: Arc<Connections>,
    callers: Callers,
) -> impl Service<Request<Incoming>, Response = Response, Error = Infallible, Future: Send> + Send {
    service_fn(move |request: Request<Incoming>| {
        link.asked(!request.body().is_end_stream());
        let caller = callers.proxies.caller(callers.peer, request.headers());
        let refusals = Arc::clone(&callers.refusals);
        let answer = host::is_valid(request.version(), request.headers()).then(|| {
            let mut request = request.map(|body| Body::new(body, Arc::clone(&link)));
            if callers.tells {
                request.extensions_mut().insert(Caller(caller));
            }
            tower::Service::call(&mut router.clone(), request)
        });
        let (link, connections) = (Arc::clone(&link), Arc::clone(&connections));
        async move {
            let mut answer = match answer {
                Some(answer) => answer.await?,
                None => refuse_host(),
            };
            link.answered();
            let is_refused = answer.status() == StatusCode::UNAUTHORIZED;
            if is_refused && answer.extensions().get::<NoCredentials>().is_none() {
                refusals.note(caller);
            }
            if link.is_told() || connections.is_stopping() {
                answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            Ok(answer)
        }
    })
}

/// Refuses a request and closes the connection, because its later requests may be for another
/// server.
fn refuse_host() -> Response {
    let headers = [(CONTENT_TYPE, JSON), (CONNECTION, HeaderValue::from_static("close"))];
    (StatusCode::BAD_REQUEST, headers, r#"{"error":"invalid Host header"}"#).into_response()
}

/// Waits for a connection. Pauses if the system lacks descriptors or memory.
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
    /// Answers within [`TURNING_AWAY`] that there is no place.
    async fn turn_away(self, permit: OwnedSemaphorePermit) {
        // An error is ignored, because the client may have left.
        let _ = timeout(TURNING_AWAY, self.refuse()).await;
        drop(permit);
    }

    /// Reads the request without storing it, so that it needs no buffer of a served connection.
    async fn refuse(self) -> io::Result<()> {
        let (mut stream, has_asked) = match self {
            Self::Opening(opening) => (opening.await?, false),
            Self::Open { stream, has_asked } => (stream, has_asked),
        };
        let mut asked = [0; 256];
        // A client does not expect an answer before it has sent something.
        if !has_asked && stream.read(&mut asked).await? == 0 {
            return Ok(());
        }
        stream.write_all(FULL).await?;
        stream.shutdown().await?;
        // A close with unread bytes would reset the connection, and the client would lose the
        // answer.
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

/// Returns whether an error of `accept` only means that a client gave up its connection.
fn is_the_clients(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::Interrupted
    )
}

/// Makes the system send answers at once, and close connections whose clients read nothing. A
/// client that sends requests and reads no answers would otherwise keep its place.
fn prepare(stream: &TcpStream, limits: ServerLimits) -> io::Result<()> {
    stream.set_nodelay(true)?;
    #[cfg(target_os = "linux")]
    socket2::SockRef::from(stream).set_tcp_user_timeout(Some(limits.write_timeout))?;
    Ok(())
}
