use std::{fmt, time::Duration};

use application::{
    BoxError, Chain,
    ports::{Accepted, SendError, Sms, SmsGateway},
};
use autometrics::autometrics;
use bytes::Bytes;
use http::{HeaderValue, Request, Uri, header::HeaderName};
use http_body_util::Full;
use hyper_util::client::legacy::connect::dns::GaiResolver;

use crate::{
    client::{Client, KEEP_ALIVE, NoAnswer, Target},
    wire,
};

#[cfg(test)]
mod tests;

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// A provider that takes an SMS as a JSON request and knows it again by an idempotency key.
pub struct WebhookGateway {
    client: Client,
    target: Target,
    deduplicates: bool,
}

#[derive(Clone)]
pub struct WebhookSettings {
    /// Where to post. A user and a password in it are sent as `Authorization: Basic`.
    pub url: Uri,
    /// For one whole call, from name resolution to the last byte of the answer.
    pub timeout: Duration,
    /// Whether the gateway honours `Idempotency-Key`: it does not send a message again that it has
    /// under that key.
    pub deduplicates: bool,
    /// How long a connection may have been idle and still be used again. Zero gives each call a
    /// connection of its own.
    ///
    /// A gateway may close an idle connection just as a request arrives on it, and the outcome of
    /// that call is then unknown. A gateway that does not deduplicate should get zero.
    pub keep_alive: Duration,
}

#[derive(Debug, thiserror::Error)]
pub enum InvalidWebhook {
    #[error("the gateway's URL does not begin with http:// or https:// and a host")]
    Url,
    #[error("TLS could not be set up")]
    Tls(#[source] BoxError),
}

impl WebhookSettings {
    /// Settings with a time-out of ten seconds, for a gateway that honours `Idempotency-Key`.
    pub const fn new(url: Uri) -> Self {
        let timeout = Duration::from_secs(10);
        Self { url, timeout, deduplicates: true, keep_alive: KEEP_ALIVE }
    }
}

impl WebhookGateway {
    /// Sets the client up. Nothing is connected before the first call.
    pub fn new(settings: WebhookSettings) -> Result<Self, InvalidWebhook> {
        let target = Target::of(settings.url).ok_or(InvalidWebhook::Url)?;
        let WebhookSettings { timeout, keep_alive, .. } = settings;
        let client =
            Client::new(GaiResolver::new(), timeout, keep_alive).map_err(InvalidWebhook::Tls)?;
        Ok(Self { client, target, deduplicates: settings.deduplicates })
    }

    fn request(&self, sms: &Sms) -> Request<Full<Bytes>> {
        let id = sms.message.id.to_string();
        let mut request = self.target.post(wire::encode(sms, &id));
        let headers = request.headers_mut();
        headers.insert(IDEMPOTENCY_KEY, HeaderValue::try_from(id).expect("a UUID is ASCII"));
        if let Some(trace) = &sms.trace {
            let trace = HeaderValue::from_str(trace.as_str()).expect("a traceparent is ASCII");
            headers.insert(TRACEPARENT, trace);
        }
        request
    }
}

impl SmsGateway for WebhookGateway {
    #[autometrics(struct_name = "WebhookGateway")]
    async fn send(&self, sms: &Sms) -> Result<Accepted, SendError> {
        // The status has decided by the time the body is read, which is for the name in it.
        let (head, body) =
            self.client.call(self.request(sms)).await.map_err(|none| unanswered(&none))?;
        wire::judge(head.status, &head.headers, body.as_deref())
    }

    /// Every request carries the message's id as its idempotency key; whether that is heeded is
    /// for the settings to say.
    fn deduplicates(&self) -> bool {
        self.deduplicates
    }
}

/// Leaves the path and the query out: providers put keys there.
impl fmt::Debug for WebhookGateway {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WebhookGateway")
            .field("host", &self.target.host())
            .field("timeout", &self.client.timeout())
            .finish_non_exhaustive()
    }
}

/// Leaves out what may be secret: user, password, path and query.
impl fmt::Debug for WebhookSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WebhookSettings")
            .field("host", &self.url.host().unwrap_or_default())
            .field("timeout", &self.timeout)
            .finish_non_exhaustive()
    }
}

/// What it means that there was no answer.
///
/// Only where no connection came about is it certain that the gateway knows nothing of the SMS.
fn unanswered(none: &NoAnswer) -> SendError {
    tracing::debug!(error = %Chain(none), "no answer from the gateway");
    let detail = none.to_string();
    match none {
        NoAnswer::NotConnected(_) => SendError::Unavailable { detail, retry_after: None },
        NoAnswer::InTime | NoAnswer::BrokenOff(_) => SendError::Ambiguous(detail),
    }
}
