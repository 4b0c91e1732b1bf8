//! A TCP proxy between two parts of the service, with faults on demand.

use std::{
    fmt, io,
    net::{Ipv4Addr, SocketAddr},
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    task::JoinHandle,
    time::sleep,
};

/// The effect of a proxy on connections and bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Effect {
    Pass,
    /// Resets every connection and refuses new ones.
    Cut,
    /// Delays bytes, in both directions.
    Delay(Duration),
    /// Keeps connections and accepts new ones, and drops all bytes in both directions. A connection
    /// that lost bytes is reset when this ends.
    HalfOpen,
    /// Passes requests. Drops the first answer and resets its connection.
    EatAnswers,
}

/// Passes connections on from its own port to another port of this machine.
#[derive(Debug)]
pub struct Proxy {
    port: u16,
    effect: watch::Sender<Effect>,
    task: JoinHandle<()>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Direction {
    Requests,
    Answers,
}

/// The time between a dropped answer and the reset: long enough for the request to be carried out.
const BEFORE_RESET: Duration = Duration::from_millis(50);

impl Proxy {
    /// Starts to pass connections on from `port` to `target`.
    pub async fn start(port: u16, target: u16) -> io::Result<Self> {
        let listener = listen(port).await?;
        let effect = watch::Sender::new(Effect::Pass);
        let task = tokio::spawn(serve(listener, port, target, effect.subscribe()));
        Ok(Self { port, effect, task })
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Puts an effect on all present and future connections.
    pub fn put(&self, effect: Effect) {
        self.effect.send_replace(effect);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl fmt::Display for Effect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pass => "pass",
            Self::Cut => "cut",
            Self::Delay(_) => "delay",
            Self::HalfOpen => "half-open",
            Self::EatAnswers => "eat-answers",
        })
    }
}

async fn listen(port: u16) -> io::Result<TcpListener> {
    TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).await
}

async fn serve(first: TcpListener, port: u16, target: u16, mut effect: watch::Receiver<Effect>) {
    let mut listener = Some(first);
    loop {
        if *effect.borrow_and_update() == Effect::Cut {
            // Without a listener the kernel refuses connections.
            listener = None;
            if effect.wait_for(|effect| *effect != Effect::Cut).await.is_err() {
                return;
            }
        }
        let Some(open) = &listener else {
            match listen(port).await {
                Ok(open) => listener = Some(open),
                Err(_) => sleep(Duration::from_millis(20)).await,
            }
            continue;
        };
        tokio::select! {
            accepted = open.accept() => {
                if let Ok((near, _)) = accepted {
                    tokio::spawn(connection(near, target, effect.clone()));
                }
            }
            changed = effect.changed() => if changed.is_err() { return },
        }
    }
}

async fn connection(near: TcpStream, target: u16, mut effect: watch::Receiver<Effect>) {
    if *effect.borrow_and_update() == Effect::HalfOpen {
        // The far end never learns of this connection.
        let _ = effect.wait_for(|effect| *effect != Effect::HalfOpen).await;
        let _ = near.set_zero_linger();
        return;
    }
    let Ok(far) = TcpStream::connect((Ipv4Addr::LOCALHOST, target)).await else {
        let _ = near.set_zero_linger();
        return;
    };
    let _ = (near.set_nodelay(true), far.set_nodelay(true));
    let lossy = AtomicBool::new(false);
    let (watched, requests, answers) = (effect.clone(), effect.clone(), effect);
    let (mut near_read, mut near_write) = near.into_split();
    let (mut far_read, mut far_write) = far.into_split();
    let passed = tokio::select! {
        passed = async {
            tokio::try_join!(
                pump(&mut near_read, &mut far_write, Direction::Requests, requests, &lossy),
                pump(&mut far_read, &mut near_write, Direction::Answers, answers, &lossy),
            )
        } => passed.map(|_| ()),
        () = broken(watched, &lossy) => Err(io::ErrorKind::ConnectionReset.into()),
    };
    if passed.is_err() {
        // A reset, not an orderly end, which dropping a half would send.
        let _ = (near_write.as_ref().set_zero_linger(), far_write.as_ref().set_zero_linger());
        near_write.forget();
        far_write.forget();
    }
}

/// Returns when the connection must be reset: it is cut, or it lost bytes and the loss is over.
async fn broken(mut effect: watch::Receiver<Effect>, lossy: &AtomicBool) {
    loop {
        match *effect.borrow_and_update() {
            Effect::Cut => return,
            Effect::HalfOpen => {}
            _ if lossy.load(Ordering::Relaxed) => return,
            _ => {}
        }
        if effect.changed().await.is_err() {
            return;
        }
    }
}

async fn pump(
    from: &mut OwnedReadHalf,
    to: &mut OwnedWriteHalf,
    direction: Direction,
    effect: watch::Receiver<Effect>,
    lossy: &AtomicBool,
) -> io::Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let count = from.read(&mut buffer).await?;
        let now = *effect.borrow();
        match now {
            Effect::Delay(pause) => sleep(pause).await,
            Effect::HalfOpen => {
                lossy.store(true, Ordering::Relaxed);
                if count == 0 {
                    // The other side does not learn of the end either.
                    return std::future::pending().await;
                }
                continue;
            }
            Effect::EatAnswers if direction == Direction::Answers => {
                sleep(BEFORE_RESET).await;
                return Err(io::ErrorKind::ConnectionReset.into());
            }
            Effect::Pass | Effect::Cut | Effect::EatAnswers => {}
        }
        if count == 0 {
            return to.shutdown().await;
        }
        to.write_all(&buffer[..count]).await?;
    }
}

#[cfg(test)]
mod tests;
