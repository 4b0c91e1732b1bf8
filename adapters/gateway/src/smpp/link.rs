//! One connection to an SMSC that is made again whenever it ends.

use std::{io, sync::Arc, time::Duration};

use application::ports::SendError;
use bytes::BytesMut;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::{Semaphore, mpsc, watch},
    time::{Instant, sleep, timeout},
};

use super::{
    SmppSettings,
    listener::Listener,
    pdu::{self, Bind, Pdu},
    session::{Ended, Pace, Session, Submit},
    status,
    tls::{Stream, Tls},
};

/// The state of a link.
#[derive(Clone)]
pub(super) enum State {
    /// The first connection is being made.
    Connecting,
    Bound(Bound),
    /// There is no connection, for this reason.
    Down(SendError),
}

/// A bound session, as its callers see it.
#[derive(Clone)]
pub(super) struct Bound {
    pub(super) requests: mpsc::Sender<Submit>,
    /// The requests that may be unanswered at the same time.
    pub(super) window: Arc<Semaphore>,
}

impl Bound {
    /// Returns how many more requests may be unanswered.
    pub(super) fn room(&self) -> usize {
        self.window.available_permits()
    }
}

/// One of the connections of a gateway.
pub(super) struct Link {
    pub(super) settings: Arc<SmppSettings>,
    pub(super) tls: Option<Arc<Tls>>,
    pub(super) listener: Option<Listener>,
}

/// The wait before the first new attempt, which doubles after each failed one.
const FIRST_WAIT: Duration = Duration::from_secs(1);

/// The longest wait between attempts. A gateway that is healed is used again within a minute.
const LONGEST_WAIT: Duration = Duration::from_secs(15);

/// A session that lasted this long was a good one. The next connection is made at once.
const GOOD: Duration = Duration::from_secs(5);

impl Link {
    /// Keeps the connection until the sender of `stop` is gone.
    pub(super) async fn keep(self, state: watch::Sender<State>, mut stop: watch::Receiver<()>) {
        let mut wait = FIRST_WAIT;
        loop {
            let connected = tokio::select! {
                connected = self.connect() => connected,
                () = closed(&mut stop) => return,
            };
            let good = match connected {
                Ok((stream, input)) => self.serve(stream, input, &state, &mut stop).await,
                Err(error) => {
                    let host = &self.settings.host;
                    tracing::warn!(%host, %error, "no connection to the SMSC");
                    state.send_replace(State::Down(error));
                    false
                }
            };
            if good {
                wait = FIRST_WAIT;
                continue;
            }
            tokio::select! {
                () = sleep(wait) => {}
                () = closed(&mut stop) => return,
            }
            wait = (wait * 2).min(LONGEST_WAIT);
        }
    }

    /// Serves a bound connection to its end. Returns whether the next one is made at once.
    async fn serve(
        &self,
        stream: Box<dyn Stream>,
        input: BytesMut,
        state: &watch::Sender<State>,
        stop: &mut watch::Receiver<()>,
    ) -> bool {
        let begun = Instant::now();
        let host = &self.settings.host;
        tracing::info!(%host, "bound to the SMSC");
        let window = Arc::new(Semaphore::new(self.settings.window));
        let (requests, mut taken) = mpsc::channel(self.settings.window);
        state.send_replace(State::Bound(Bound { requests, window: Arc::clone(&window) }));
        let pace = Pace {
            enquire_link: self.settings.enquire_link_interval,
            answer: self.settings.timeout,
        };
        let session = Session::new(pace, self.listener.clone(), input);
        let ended = session.run(stream, &mut taken, stop).await;
        // A call that waits for a place learns at once that there is none.
        window.close();
        state.send_replace(State::Down(unavailable(ended.to_string())));
        match ended {
            Ended::Closed => {}
            Ended::Unbound => tracing::info!(%host, %ended, "connection to the SMSC ended"),
            ended => tracing::warn!(%host, %ended, "connection to the SMSC ended"),
        }
        begun.elapsed() >= GOOD
    }

    /// Connects and binds. Returns the connection and what arrived behind the bind's response.
    async fn connect(&self) -> Result<(Box<dyn Stream>, BytesMut), SendError> {
        let limit = self.settings.timeout;
        timeout(limit, async {
            let mut stream = self.open().await?;
            let input = self.bind(&mut stream).await?;
            Ok((stream, input))
        })
        .await
        .unwrap_or_else(|_| Err(unavailable("no connection in time")))
    }

    async fn open(&self) -> Result<Box<dyn Stream>, SendError> {
        let SmppSettings { host, port, .. } = &*self.settings;
        let failed = |error: io::Error| unavailable(format!("cannot connect: {}", error.kind()));
        let stream = TcpStream::connect((host.as_str(), *port)).await.map_err(failed)?;
        stream.set_nodelay(true).map_err(failed)?;
        let Some(tls) = &self.tls else { return Ok(Box::new(stream)) };
        let stream = tls.connector.connect(tls.name.clone(), stream).await;
        Ok(Box::new(stream.map_err(|error| no_tls(&error))?))
    }

    /// Binds, and returns what arrived behind the response.
    async fn bind(&self, stream: &mut Box<dyn Stream>) -> Result<BytesMut, SendError> {
        let SmppSettings { system_id, password, system_type, .. } = &*self.settings;
        let bind = Bind { system_id, password: password.expose(), system_type };
        write(stream, &bind.encode(BIND_SEQUENCE)).await?;
        let mut input = BytesMut::new();
        loop {
            while let Some(pdu) =
                Pdu::take(&mut input).map_err(|pdu::Malformed| unavailable(NO_BIND))?
            {
                let (id, status) = (pdu.header.command_id, pdu.header.command_status);
                match (id, status) {
                    (pdu::BIND_TRANSCEIVER_RESP, status::OK) => return Ok(input),
                    (pdu::GENERIC_NACK, status::OK) => {
                        return Err(status::of_bind(status::INVALID_COMMAND_ID));
                    }
                    (pdu::BIND_TRANSCEIVER_RESP | pdu::GENERIC_NACK, status) => {
                        return Err(status::of_bind(status));
                    }
                    (pdu::ENQUIRE_LINK, _) => {
                        let sequence = pdu.header.sequence_number;
                        let response = pdu::response(pdu::ENQUIRE_LINK, status::OK, sequence);
                        write(stream, &response).await?;
                    }
                    _ => {}
                }
            }
            match stream.read_buf(&mut input).await {
                Ok(1..) => {}
                Ok(0) | Err(_) => return Err(unavailable(NO_BIND)),
            }
        }
    }
}

/// The sequence number of the bind. A session counts on from it.
const BIND_SEQUENCE: u32 = 1;

const NO_BIND: &str = "the connection was lost during the bind";

/// Returns when the sender of `stop` is gone.
pub(super) async fn closed(stop: &mut watch::Receiver<()>) {
    while stop.changed().await.is_ok() {}
}

pub(super) fn unavailable(detail: impl Into<String>) -> SendError {
    SendError::Unavailable { detail: detail.into(), retry_after: None }
}

async fn write(stream: &mut Box<dyn Stream>, octets: &[u8]) -> Result<(), SendError> {
    let failed = |_| unavailable(NO_BIND);
    stream.write_all(octets).await.map_err(failed)?;
    stream.flush().await.map_err(failed)
}

/// An untrusted certificate needs an operator, so it counts as misconfigured.
fn no_tls(error: &io::Error) -> SendError {
    let cause = error.get_ref().and_then(|cause| cause.downcast_ref::<rustls::Error>());
    match cause {
        Some(rustls::Error::InvalidCertificate(_)) => {
            SendError::Misconfigured("the certificate of the SMSC is not trusted".to_owned())
        }
        _ => unavailable("TLS could not be set up with the SMSC"),
    }
}
