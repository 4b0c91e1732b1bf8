use std::{convert::Infallible, io, net::SocketAddr, pin::pin, sync::Arc, time::Duration};

use axum::{
    Router,
    http::{HeaderValue, Request, header::CONNECTION},
    response::Response,
};
use futures_util::FutureExt;
use hyper::{
    body::Incoming,
    server::conn::http1,
    service::{Service, service_fn},
};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus::IntCounter;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpSocket, TcpStream},
    sync::{Notify, OwnedSemaphorePermit, Semaphore},
    task::{JoinSet, yield_now},
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

#[cfg(test)]
mod tests;

/// How long to wait after the system refused us a connection, for want of files or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(500);

/// How long those who came last have for their first request, once nothing more is accepted.
const LAST_REQUESTS: Duration = Duration::from_millis(50);

/// How long a connection that is to make room waits for a request, so that its answer can say so.
const LAST_ANSWER: Duration = Duration::from_secs(2);

/// How long a connection that is turned away may take to ask and to hear so, and how many there may
/// be of such at a time: as many as may come at once. More are closed unheard.
const TURNING_AWAY: Duration = Duration::from_secs(2);
const TURNED_AWAY: usize = BACKLOG as usize;

/// How often it is said that connections are turned away, and how often one has to make room.
const SAID: Duration = Duration::from_secs(10);
const MAKE_ROOM: Duration = Duration::from_millis(10);

const FULL: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\nconnection: close\r\n\
    content-type: application/json\r\ncontent-length: 32\r\n\r\n{\"error\":\"too many connections\"}";

/// Connections that may wait to be accepted. Linux takes no more than `net.core.somaxconn`.
const BACKLOG: u32 = 4_096;

/// What a connection holds of a request at a time: the whole head, or a part of the body.
const MAX_BUFFER: usize = 32 * 1024;

/// What a server lets its clients take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServerLimits {
    /// Connections at a time: under load each takes some 28 KiB. A further one is answered with
    /// 503, and the longest open one makes room: with its next answer, or after two seconds
    /// without one.
    pub max_connections: usize,
    /// How long a connection may be open without the complete head of its next request: it cuts
    /// a slow head as well as an idle connection.
    pub head_timeout: Duration,
    /// How long a client may leave what we sent unread or unacknowledged. Linux only.
    pub write_timeout: Duration,
    /// How long the server goes on once it is to stop: a client that asks within that time is
    /// answered, and told to close. A connection that stays idle is closed at its end.
    pub farewell: Duration,
    /// How long requests in flight may take to end after that.
    pub grace: Duration,
}

impl Default for ServerLimits {
    fn default() -> Self {
        Self {
            max_connections: 768,
            head_timeout: Duration::from_secs(10),
            write_timeout: Duration::from_secs(30),
            farewell: Duration::ZERO,
            grace: Duration::from_secs(10),
        }
    }
}

/// A listener for [`serve`].
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // A port that was left a moment ago is free, as `TcpListener::bind` has it too.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Serves HTTP/1 on `listener` until `stop`.
///
/// Then answers tell their clients to close, for `limits.farewell`; after that nothing more is
/// accepted, idle connections are closed, and requests in flight end, at most `limits.grace` long.
/// A connection is looked at once more for a request before it is closed.
/// Dropping the future drops every connection.
///
/// Connections beyond the limit are counted in `refused`.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    limits: ServerLimits,
    refused: IntCounter,
    stop: CancellationToken,
) {
    let http = http(limits);
    let slots = Arc::new(Semaphore::new(limits.max_connections));
    let (crowded, closing) = (Arc::new(Notify::new()), CancellationToken::new());
    let (mut connections, mut turned_away) = (JoinSet::new(), JoinSet::new());
    let mut crowd = Crowd::default();
    let mut stopped = pin!(async {
        stop.cancelled().await;
        sleep(limits.farewell).await;
    });
    let mut serve = |stream: TcpStream, slot: OwnedSemaphorePermit| {
        if let Err(error) = prepare(&stream, limits) {
            tracing::debug!(%error, "a connection was gone before it was served");
            return;
        }
        // The ended ones are taken out here, or the set would grow for ever.
        while connections.try_join_next().is_some() {}
        // Of the connection: that its answers tell the client to close.
        let told = stop.child_token();
        let service = answering(router.clone(), told.clone());
        let leave = leave(Arc::clone(&crowded), told, closing.clone());
        let ended = attend(http.clone(), TokioIo::new(stream), service, leave);
        connections.spawn(async move {
            if let Err(error) = ended.await {
                tracing::debug!(%error, "connection broken off");
            }
            drop(slot);
        });
    };
    let mut admit = |stream: TcpStream| {
        if let Ok(slot) = Arc::clone(&slots).try_acquire_owned() {
            // What nobody was left to hear must not send away the next that comes.
            crowded.notified().now_or_never();
            return serve(stream, slot);
        }
        refused.inc();
        if crowd.refuses() {
            crowded.notify_one();
        }
        while turned_away.try_join_next().is_some() {}
        if turned_away.len() < TURNED_AWAY {
            turned_away.spawn(timeout(TURNING_AWAY, turn_away(stream)));
        }
    };
    loop {
        tokio::select! {
            biased;
            () = &mut stopped => break,
            stream = accept(&listener) => admit(stream),
        }
    }
    // Those that the system has accepted for us already would be reset.
    for stream in backlog(listener) {
        admit(stream);
    }
    sleep(LAST_REQUESTS).await;
    closing.cancel();
    let ended = async {
        while connections.join_next().await.is_some() {}
        while turned_away.join_next().await.is_some() {}
    };
    if timeout(limits.grace, ended).await.is_err() {
        while connections.try_join_next().is_some() {}
        tracing::warn!(connections = connections.len(), "connections dropped after the grace time");
    }
}

fn http(limits: ServerLimits) -> http1::Builder {
    let mut http = http1::Builder::new();
    // hyper starts this clock when a connection opens and again after each answer.
    http.timer(TokioTimer::new()).header_read_timeout(limits.head_timeout).max_buf_size(MAX_BUFFER);
    http
}

/// Serves one connection to its end. From `leave` on, it ends as soon as it is idle.
async fn attend<S>(
    http: http1::Builder,
    io: impl hyper::rt::Read + hyper::rt::Write + Unpin,
    service: S,
    leave: impl Future<Output = ()>,
) -> hyper::Result<()>
where
    S: Service<Request<Incoming>, Response = Response, Error = Infallible>,
{
    let mut connection = pin!(http.serve_connection(io, service));
    tokio::select! {
        // What has arrived is read first: to hyper, a connection is idle until it has read.
        biased;
        ended = connection.as_mut() => ended,
        () = leave => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    }
}

/// Waits until a connection is to end: because all are, or because others wait for its slot. Then
/// its next answer says so; only a client that asks for nothing finds it closed.
async fn leave(crowded: Arc<Notify>, told: CancellationToken, closing: CancellationToken) {
    let make_room = async {
        crowded.notified().await;
        told.cancel();
        sleep(LAST_ANSWER).await;
    };
    tokio::select! {
        () = closing.cancelled() => {}
        () = make_room => {}
    }
    // The runtime asks the system what has arrived before it comes back to whoever yields, or
    // another of its threads is just doing so.
    yield_now().await;
}

/// A router is ready at any time, and a clone of it is a count.
fn answering(
    router: Router,
    told: CancellationToken,
) -> impl Service<Request<Incoming>, Response = Response, Error = Infallible, Future: Send> + Send {
    service_fn(move |request| {
        let answer = tower::Service::call(&mut router.clone(), request);
        let told = told.clone();
        async move {
            let mut answer = answer.await?;
            if told.is_cancelled() {
                answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            Ok(answer)
        }
    })
}

/// Waits for a connection. Gives the system time where it has none to give.
async fn accept(listener: &TcpListener) -> TcpStream {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return stream,
            Err(error) if is_the_clients(&error) => {}
            Err(error) => {
                tracing::warn!(%error, "no connection can be accepted");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Those for whom there was no slot.
#[derive(Debug, Default)]
struct Crowd {
    refused: u64,
    said: Option<Instant>,
    made_room: Option<Instant>,
}

impl Crowd {
    /// Counts one more. Whether a connection has to make room for the next.
    fn refuses(&mut self) -> bool {
        self.refused += 1;
        let now = Instant::now();
        let is_past = |last: Option<Instant>, pause| last.is_none_or(|last| now - last > pause);
        if is_past(self.said, SAID) {
            self.said = Some(now);
            tracing::warn!(
                refused = std::mem::take(&mut self.refused),
                "all connections are taken: further ones are answered with 503"
            );
        }
        let makes_room = is_past(self.made_room, MAKE_ROOM);
        if makes_room {
            self.made_room = Some(now);
        }
        makes_room
    }
}

/// Says that there is no slot. What is asked is read and forgotten: it takes no buffers of a
/// connection that is served.
async fn turn_away(mut stream: TcpStream) -> io::Result<()> {
    let mut asked = [0; 256];
    // A client takes no answer before it has asked.
    if stream.read(&mut asked).await? == 0 {
        return Ok(());
    }
    stream.write_all(FULL).await?;
    stream.shutdown().await?;
    // Closed with something unread it would be reset, and the answer with it.
    while stream.read(&mut asked).await? > 0 {}
    Ok(())
}

/// What the system has accepted on `listener`, which accepts nothing more then. Asked for directly,
/// as the runtime may not have heard of it yet.
fn backlog(listener: TcpListener) -> Vec<TcpStream> {
    let mut streams = Vec::new();
    let Ok(listener) = listener.into_std() else { return streams };
    loop {
        match listener.accept() {
            Ok((stream, _)) => streams.extend(from_std(stream)),
            Err(error) if is_the_clients(&error) => {}
            Err(_) => return streams,
        }
    }
}

fn from_std(stream: std::net::TcpStream) -> io::Result<TcpStream> {
    stream.set_nonblocking(true)?;
    TcpStream::from_std(stream)
}

/// Whether an error of `accept` is about the one connection, which its client gave up.
fn is_the_clients(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::Interrupted
    )
}

/// Answers are not held back to fill a packet, and a client that takes nothing is cut by the
/// system: one that sends requests and reads no answers would hold its slot for ever.
fn prepare(stream: &TcpStream, limits: ServerLimits) -> io::Result<()> {
    stream.set_nodelay(true)?;
    #[cfg(target_os = "linux")]
    socket2::SockRef::from(stream).set_tcp_user_timeout(Some(limits.write_timeout))?;
    Ok(())
}
