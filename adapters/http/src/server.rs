use std::{convert::Infallible, io, pin::pin, sync::Arc, time::Duration};

use axum::{
    Router,
    http::{HeaderValue, header::CONNECTION},
};
use futures_util::FutureExt;
use hyper::{server::conn::http1, service::service_fn};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::GracefulShutdown,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    task::{JoinSet, coop::unconstrained},
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tower::Service;

#[cfg(test)]
mod tests;

/// How long to wait after the system refused us a connection, for want of files or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(500);

/// What a connection holds of a request at a time: the whole head, or a part of the body.
const MAX_BUFFER: usize = 32 * 1024;

/// What a server lets its clients take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServerLimits {
    /// Connections at a time. Further ones wait to be accepted.
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
            max_connections: 10_000,
            head_timeout: Duration::from_secs(10),
            write_timeout: Duration::from_secs(30),
            farewell: Duration::ZERO,
            grace: Duration::from_secs(10),
        }
    }
}

/// Serves HTTP/1 on `listener` until `stop`.
///
/// Then answers tell their clients to close, for `limits.farewell`; after that nothing more is
/// accepted, idle connections are closed, and requests in flight end, at most `limits.grace` long.
/// Dropping the future drops every connection.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    limits: ServerLimits,
    stop: CancellationToken,
) {
    let http = http(limits);
    let slots = Arc::new(Semaphore::new(limits.max_connections));
    let graceful = GracefulShutdown::new();
    let mut connections = JoinSet::new();
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
        let service = answering(router.clone(), stop.clone());
        let connection = graceful.watch(http.serve_connection(TokioIo::new(stream), service));
        connections.spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "connection broken off");
            }
            drop(slot);
        });
    };
    loop {
        tokio::select! {
            biased;
            () = &mut stopped => break,
            (stream, slot) = accept(&listener, &slots) => serve(stream, slot),
        }
    }
    // Those that the system has accepted for us already would be reset.
    while let Some((stream, slot)) = unconstrained(accept(&listener, &slots)).now_or_never() {
        serve(stream, slot);
    }
    drop(listener);
    if timeout(limits.grace, graceful.shutdown()).await.is_err() {
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

/// A router is ready at any time, and a clone of it is a count.
fn answering(
    router: Router,
    stop: CancellationToken,
) -> impl hyper::service::Service<
    hyper::Request<hyper::body::Incoming>,
    Response = axum::response::Response,
    Error = Infallible,
    Future: Send,
> + Send {
    service_fn(move |request| {
        let answer = router.clone().call(request);
        let stop = stop.clone();
        async move {
            let mut answer = answer.await?;
            if stop.is_cancelled() {
                answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            Ok(answer)
        }
    })
}

/// Waits for a free slot, then for a connection. Gives the system time where it has none to give.
async fn accept(
    listener: &TcpListener,
    slots: &Arc<Semaphore>,
) -> (TcpStream, OwnedSemaphorePermit) {
    let slot = slots.clone().acquire_owned().await.expect("the semaphore is never closed");
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return (stream, slot),
            Err(error) if is_the_clients(&error) => {}
            Err(error) => {
                tracing::warn!(%error, "no connection can be accepted");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
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
