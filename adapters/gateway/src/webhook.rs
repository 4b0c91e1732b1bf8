use std::{error::Error, fmt, io, time::Duration};

use application::{
    BoxError, Chain,
    ports::{Accepted, SendError, Sms, SmsGateway},
};
use autometrics::autometrics;
use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::{
    HeaderValue, Method, Request, Uri,
    header::{AUTHORIZATION, CONTENT_TYPE, HeaderName, USER_AGENT},
    uri::{Authority, PathAndQuery, Scheme},
};
use http_body_util::{BodyExt, Full, Limited};
use hyper_rustls::{HttpsConnectorBuilder, MaybeHttpsStream};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioIo, TokioTimer},
};
use percent_encoding::percent_decode_str;
use tokio::{
    net::TcpStream,
    time::{Instant, timeout_at},
};
use tower::{ServiceBuilder, util::BoxCloneSyncService};

use crate::wire;

#[cfg(test)]
mod tests;

/// Name resolution, TCP and TLS together.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// Below the least that servers in use keep an idle connection open (60 s and more), so that we
/// do not write to one that the other end is about to close.
const IDLE_TIMEOUT: Duration = Duration::from_secs(50);

const TCP_KEEPALIVE: Duration = Duration::from_secs(30);

/// An answer has a name of a message in it and no more.
const MAX_RESPONSE: usize = 64 * 1024;

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const JSON: HeaderValue = HeaderValue::from_static("application/json");
const AGENT: HeaderValue =
    HeaderValue::from_static(concat!("messager/", env!("CARGO_PKG_VERSION")));

type Connector = BoxCloneSyncService<Uri, MaybeHttpsStream<TokioIo<TcpStream>>, BoxError>;

/// A provider that takes an SMS as a JSON request and knows it again by an idempotency key.
pub struct WebhookGateway {
    client: Client<Connector, Full<Bytes>>,
    target: Uri,
    authorization: Option<HeaderValue>,
    timeout: Duration,
    deduplicates: bool,
}

#[derive(Clone)]
pub struct WebhookSettings {
    /// Where to post. A user and a password in it are sent as `Authorization: Basic`.
    pub url: Uri,
    /// For one whole call, from name resolution to the last byte of the answer.
    pub timeout: Duration,
    /// Whether who is posted to heeds `Idempotency-Key`: a message that it has under that key is
    /// not sent again.
    pub deduplicates: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum InvalidWebhook {
    #[error("the gateway's URL does not begin with http:// or https:// and a host")]
    Url,
    #[error("TLS could not be set up")]
    Tls(#[source] BoxError),
}

impl WebhookSettings {
    /// Settings with a time-out of ten seconds, for one that heeds `Idempotency-Key`.
    pub const fn new(url: Uri) -> Self {
        Self { url, timeout: Duration::from_secs(10), deduplicates: true }
    }
}

impl WebhookGateway {
    /// Sets the client up. Nothing is connected before the first call.
    pub fn new(settings: WebhookSettings) -> Result<Self, InvalidWebhook> {
        let (target, authorization) = take_credentials(settings.url)?;
        let connect_timeout = CONNECT_TIMEOUT.min(settings.timeout / 2);
        let client = Client::builder(TokioExecutor::new())
            .timer(TokioTimer::new())
            // Without a timer of its own the pool never closes an idle connection.
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_TIMEOUT)
            .build(connector(connect_timeout)?);
        let WebhookSettings { timeout, deduplicates, .. } = settings;
        Ok(Self { client, target, authorization, timeout, deduplicates })
    }

    fn request(&self, sms: &Sms) -> Request<Full<Bytes>> {
        let id = sms.message.id.to_string();
        let mut request = Request::new(Full::new(wire::encode(sms, &id)));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.target.clone();
        let headers = request.headers_mut();
        headers.insert(CONTENT_TYPE, JSON);
        headers.insert(USER_AGENT, AGENT);
        headers.insert(IDEMPOTENCY_KEY, HeaderValue::try_from(id).expect("a UUID is ASCII"));
        if let Some(authorization) = &self.authorization {
            headers.insert(AUTHORIZATION, authorization.clone());
        }
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
        let deadline = Instant::now() + self.timeout;
        let response = timeout_at(deadline, self.client.request(self.request(sms)))
            .await
            .map_err(|_| SendError::Ambiguous("no answer in time".to_owned()))?
            .map_err(|error| unanswered(&error))?;

        // The status has decided by now. The body is read for the name in it, and to the end, so
        // that the connection can be used again; where that fails, nothing is lost but the name.
        let (head, body) = response.into_parts();
        let body = timeout_at(deadline, Limited::new(body, MAX_RESPONSE).collect()).await;
        let body = body.ok().and_then(Result::ok).map(http_body_util::Collected::to_bytes);
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
            .field("host", &self.target.host().unwrap_or_default())
            .field("timeout", &self.timeout)
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

/// HTTP/1.1 only: the client keeps one HTTP/2 connection to a host, whose limit on streams (often
/// 100) would then be our limit on calls at a time.
fn connector(connect_timeout: Duration) -> Result<Connector, InvalidWebhook> {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_keepalive(Some(TCP_KEEPALIVE));
    // Shared among the addresses of a host, so that a dead first one leaves time for the second.
    tcp.set_connect_timeout(Some(connect_timeout));
    let provider = rustls::crypto::ring::default_provider();
    let tls = HttpsConnectorBuilder::new()
        .with_provider_and_webpki_roots(provider)
        .map_err(|error| InvalidWebhook::Tls(error.into()))?
        .https_or_http()
        .enable_http1()
        .wrap_connector(tcp);
    // The time-out above knows neither of names nor of TLS.
    let connector = ServiceBuilder::new().timeout(connect_timeout).service(tls);
    Ok(BoxCloneSyncService::new(connector))
}

/// Splits a URL into what is asked for and who asks.
fn take_credentials(url: Uri) -> Result<(Uri, Option<HeaderValue>), InvalidWebhook> {
    let mut parts = url.into_parts();
    if ![Some(Scheme::HTTP), Some(Scheme::HTTPS)].contains(&parts.scheme) {
        return Err(InvalidWebhook::Url);
    }
    let authority = parts.authority.take().ok_or(InvalidWebhook::Url)?;
    let (credentials, host) = match authority.as_str().rsplit_once('@') {
        Some((credentials, host)) => (Some(credentials), host),
        None => (None, authority.as_str()),
    };
    parts.authority = Some(host.parse::<Authority>().map_err(|_| InvalidWebhook::Url)?);
    parts.path_and_query.get_or_insert(PathAndQuery::from_static("/"));
    let target = Uri::from_parts(parts).map_err(|_| InvalidWebhook::Url)?;
    if target.host().is_none_or(str::is_empty) {
        return Err(InvalidWebhook::Url);
    }
    Ok((target, credentials.map(basic)))
}

fn basic(credentials: &str) -> HeaderValue {
    let (user, password) = credentials.split_once(':').unwrap_or((credentials, ""));
    let pair: Vec<u8> =
        percent_decode_str(user).chain([b':']).chain(percent_decode_str(password)).collect();
    let mut value =
        HeaderValue::try_from(format!("Basic {}", STANDARD.encode(pair))).expect("base64 is ASCII");
    value.set_sensitive(true);
    value
}

/// What it means that there was no answer.
///
/// Only where no connection came about is it certain that the gateway knows nothing of the SMS.
fn unanswered(error: &hyper_util::client::legacy::Error) -> SendError {
    tracing::debug!(error = %Chain(error), "no answer from the gateway");
    let why = match io_error_kind(error) {
        Some(kind) => format!(": {kind}"),
        None => String::new(),
    };
    if error.is_connect() {
        SendError::Unavailable { detail: format!("could not connect{why}"), retry_after: None }
    } else {
        SendError::Ambiguous(format!("no answer came back{why}"))
    }
}

/// The kind only: its words are the standard library's and repeat nothing of ours.
fn io_error_kind(error: &(dyn Error + 'static)) -> Option<io::ErrorKind> {
    let mut causes = std::iter::successors(Some(error), |&error| error.source());
    causes.find_map(|cause| cause.downcast_ref::<io::Error>()).map(io::Error::kind)
}
