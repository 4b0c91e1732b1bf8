//! An SMSC that speaks SMPP 3.4.
//!
//! The specification is "Short Message Peer to Peer Protocol Specification v3.4", issue 1.2, of the
//! SMPP Developers Forum; references like "§5.1.3" are to it. `smpp34` encodes and decodes, and the
//! session is our own (docs/adr/0056).

use std::{
    fmt,
    num::NonZeroUsize,
    sync::{Arc, OnceLock},
    time::Duration,
};

use application::ports::{Accepted, ReceiptSink, SendError, Sms, SmsGateway};
use autometrics::autometrics;
use domain::GatewayName;
use tokio::{
    sync::{oneshot, watch},
    time::{Instant, timeout_at},
};

use self::{
    address::Numbering,
    link::{Bound, Link, State, unavailable},
    listener::Listener,
    message::{ShortMessage, short_messages},
    receipt::ReceiptIds,
    session::{Answer, Submit},
    spelling::Spelling,
    text::DefaultAlphabet,
    tls::Tls,
};
use crate::{authorities::Authorities, fields::Secret};

mod address;
mod link;
mod listener;
mod message;
mod pdu;
mod receipt;
mod session;
mod settings;
mod spelling;
mod status;
#[cfg(test)]
mod tests;
mod text;
mod tls;

pub(crate) use self::{
    message::PARAMS,
    settings::{FIELDS, read},
};

/// A gateway that submits SMS to an SMSC over connections that it keeps.
///
/// The connections are made at the first call, or when a listener for receipts is set. They unbind
/// when the gateway is dropped.
pub(crate) struct SmppGateway {
    settings: Arc<SmppSettings>,
    tls: Option<Arc<Tls>>,
    listener: OnceLock<Listener>,
    links: OnceLock<Links>,
}

/// The address of the SMSC, our account, and the form of messages.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct SmppSettings {
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) tls: bool,
    pub(crate) system_id: String,
    pub(crate) password: Secret,
    pub(crate) system_type: String,
    pub(crate) service_type: String,
    /// The sender of messages whose route names none. If it is empty, the SMSC chooses.
    pub(crate) from: String,
    pub(crate) source: Numbering,
    pub(crate) destination: Numbering,
    /// How many messages may be unanswered on each connection.
    pub(crate) window: usize,
    pub(crate) connections: usize,
    pub(crate) enquire_link_interval: Duration,
    /// The limit for one call, for a bind, and for the answer to `enquire_link`.
    pub(crate) timeout: Duration,
    pub(crate) default_alphabet: DefaultAlphabet,
    /// Whether `validity_period` says how long the code is valid.
    pub(crate) validity: bool,
    /// Whether the SMSC is asked for receipts.
    pub(crate) receipts: bool,
    pub(crate) receipt_ids: ReceiptIds,
}

struct Links {
    states: Vec<watch::Receiver<State>>,
    /// Ends the links when it is dropped.
    _stop: watch::Sender<()>,
}

impl SmppGateway {
    /// Makes a gateway. It fails if TLS is wanted and the host has no name for a certificate.
    pub(crate) fn new(settings: SmppSettings, authorities: Authorities) -> Result<Self, String> {
        let tls = if settings.tls {
            Some(Arc::new(Tls::new(&settings.host, authorities)?))
        } else {
            None
        };
        let settings = Arc::new(settings);
        Ok(Self { settings, tls, listener: OnceLock::new(), links: OnceLock::new() })
    }

    /// Connects, and hands receipts to `sink` from now on. Only the first call counts, and only
    /// before the first message. Tokio must run.
    ///
    /// Without a listener no receipts are asked for, and the SMSC is told to repeat those that come.
    pub(crate) fn listen(&self, gateway: GatewayName, sink: Arc<dyn ReceiptSink>) {
        let spelling = Arc::new(Spelling::new(self.settings.receipt_ids));
        self.listener.get_or_init(|| Listener { gateway, sink, spelling });
        self.links();
    }

    /// Whether the SMSC is asked for receipts.
    pub(crate) fn reports_receipts(&self) -> bool {
        self.settings.receipts
    }

    /// The number of messages that may be unanswered on all connections.
    pub(crate) fn window(&self) -> Option<NonZeroUsize> {
        NonZeroUsize::new(self.settings.window.saturating_mul(self.settings.connections))
    }

    fn links(&self) -> &Links {
        self.links.get_or_init(|| {
            let (stop, stopped) = watch::channel(());
            let link = |_| {
                let (state, seen) = watch::channel(State::Connecting);
                let link = Link {
                    settings: Arc::clone(&self.settings),
                    tls: self.tls.clone(),
                    listener: self.listener.get().cloned(),
                };
                tokio::spawn(link.keep(state, stopped.clone()));
                seen
            };
            Links { states: (0..self.settings.connections).map(link).collect(), _stop: stop }
        })
    }

    /// Finds the connection with the most room. Waits while the first connection is being made.
    async fn bound(&self, deadline: Instant) -> Result<Bound, SendError> {
        loop {
            let (mut roomiest, mut connecting, mut down) = (None::<Bound>, None, None);
            for link in &self.links().states {
                match &*link.borrow() {
                    State::Bound(bound)
                        if roomiest.as_ref().is_none_or(|it| it.room() < bound.room()) =>
                    {
                        roomiest = Some(bound.clone());
                    }
                    State::Bound(_) => {}
                    State::Connecting => connecting = Some(link.clone()),
                    State::Down(error) => down = Some(error.clone()),
                }
            }
            if let Some(bound) = roomiest {
                return Ok(bound);
            }
            let Some(mut connecting) = connecting else {
                return Err(down.unwrap_or_else(|| unavailable("not connected")));
            };
            let changed = connecting.wait_for(|state| !matches!(state, State::Connecting));
            match timeout_at(deadline, changed).await {
                Ok(Ok(_)) => {}
                Ok(Err(_)) | Err(_) => return Err(unavailable("not connected in time")),
            }
        }
    }

    /// Submits one short message. Returns the id that the SMSC gave it.
    async fn submit(
        &self,
        bound: &Bound,
        message: ShortMessage,
        deadline: Instant,
    ) -> Result<Option<String>, SendError> {
        let place = match timeout_at(deadline, Arc::clone(&bound.window).acquire_owned()).await {
            Ok(Ok(place)) => place,
            Ok(Err(_)) => return Err(unavailable("the connection was lost")),
            Err(_) => return Err(unavailable("the window is full of unanswered messages")),
        };
        let (answer, answered) = oneshot::channel();
        let submit = Submit { message, answer, place };
        if bound.requests.send(submit).await.is_err() {
            return Err(unavailable("the connection was lost"));
        }
        match timeout_at(deadline, answered).await {
            Ok(Ok(Answer::Response { status: status::OK, id })) => {
                Ok(Some(receipt::canonical(&id)).filter(|id| !id.is_empty()))
            }
            Ok(Ok(Answer::Response { status, .. })) => Err(status::of_submit(status)),
            Ok(Ok(Answer::NotSent)) => Err(unavailable("the connection was lost")),
            Ok(Ok(Answer::Lost) | Err(_)) | Err(_) => {
                Err(SendError::Ambiguous("the SMSC took the message and did not answer".to_owned()))
            }
        }
    }
}

impl SmsGateway for SmppGateway {
    /// Submits the parts of an SMS one after the other. If one fails after another was accepted, the
    /// outcome is ambiguous: a repetition could show the recipient a text twice.
    #[autometrics(struct_name = "SmppGateway")]
    async fn send(&self, sms: &Sms) -> Result<Accepted, SendError> {
        let deadline = Instant::now() + self.settings.timeout;
        let receipts = self.settings.receipts && self.listener.get().is_some();
        let messages = short_messages(sms, &self.settings, receipts)?;
        let bound = self.bound(deadline).await?;
        let (mut reference, parts) = (None, messages.len());
        for (accepted, message) in messages.into_iter().enumerate() {
            reference = match self.submit(&bound, message, deadline).await {
                Ok(reference) => reference,
                Err(error) if accepted == 0 => return Err(error),
                Err(error) => {
                    return Err(SendError::Ambiguous(format!(
                        "{accepted} of {parts} parts accepted, then {error}"
                    )));
                }
            };
        }
        Ok(Accepted { receipts_by_reference: receipts && reference.is_some(), reference })
    }

    /// SMPP has no idempotency key.
    fn deduplicates(&self) -> bool {
        false
    }
}

/// Leaves out the credentials.
impl fmt::Debug for SmppGateway {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SmppGateway").field("settings", &self.settings).finish_non_exhaustive()
    }
}

/// Leaves out the credentials.
impl fmt::Debug for SmppSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SmppSettings")
            .field("host", &self.host)
            .field("port", &self.port)
            .field("tls", &self.tls)
            .field("connections", &self.connections)
            .field("window", &self.window)
            .field("timeout", &self.timeout)
            .finish_non_exhaustive()
    }
}
