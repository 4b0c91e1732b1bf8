use std::{fmt, time::Duration};

use application::{
    BoxError,
    ports::{Accepted, SendError, Sms, SmsGateway},
};
use autometrics::autometrics;
use bytes::Bytes;
use http::{HeaderValue, Request, Uri, header::HeaderName};
use http_body_util::Full;
use hyper_util::client::legacy::connect::dns::GaiResolver;

use crate::{
    client::{Client, KEEP_ALIVE, Target},
    http_gateway::unanswered,
    wire,
};

#[cfg(test)]
mod tests;

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// A provider that receives an SMS as a JSON request with an idempotency key.
pub struct WebhookGateway {
    client: Client,
    target: Target,
    deduplicates: bool,
}

#[derive(Clone)]
pub struct WebhookSettings {
    /// The URL to post to. A user and a password in it are sent as `Authorization: Basic`.
    pub url: Uri,
    /// The limit for one whole call, from name resolution to the last byte of the answer.
    pub timeout: Duration,
    /// Whether the gateway honours `Idempotency-Key`, that is, sends one SMS for each key.
    pub deduplicates: bool,
    /// How long a connection may be idle and still be used again. With zero each call opens a new
    /// connection.
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
    /// Makes a gateway. It connects at the first call.
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
        // The body is read for the reference only.
        let (head, body) =
            self.client.call(self.request(sms)).await.map_err(|none| unanswered(&none))?;
        wire::judge(head.status, &head.headers, body.as_deref())
    }

    /// Every request has the message's id as its idempotency key. The settings say whether the
    /// gateway honours it.
    fn deduplicates(&self) -> bool {
        self.deduplicates
    }
}

/// Leaves out the path and the query, where providers put keys.
impl fmt::Debug for WebhookGateway {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WebhookGateway")
            .field("host", &self.target.host())
            .field("timeout", &self.client.timeout())
            .finish_non_exhaustive()
    }
}

/// Leaves out the parts that may be secret: user, password, path and query.
impl fmt::Debug for WebhookSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WebhookSettings")
            .field("host", &self.url.host().unwrap_or_default())
            .field("timeout", &self.timeout)
            .finish_non_exhaustive()
    }
}
