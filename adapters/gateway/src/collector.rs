//! Sends spans to an OpenTelemetry collector, as OTLP over HTTP specifies.

mod message;

use std::{fmt, str::FromStr, time::Duration};

use application::{BoxError, Chain, Span};
use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Request, StatusCode, Uri,
    header::{
        CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HOST, TE, TRAILER,
        TRANSFER_ENCODING, UPGRADE, USER_AGENT,
    },
};
use hyper_util::client::legacy::connect::dns::GaiResolver;
use percent_encoding::percent_decode_str;
use prost::Message;

use self::message::{Answer, Resource, request};
use crate::{
    authorities::Authorities,
    client::{AGENT, Client, ClientSettings, KEEP_ALIVE, Target},
};

/// Posts batches of spans to a collector.
pub struct SpanCollector {
    client: Client,
    target: Target,
    headers: HeaderMap,
    resource: Resource,
}

#[derive(Clone)]
pub struct SpanCollectorSettings {
    /// The address of the collector. `/v1/traces` is added to its path.
    pub endpoint: Uri,
    pub headers: CollectorHeaders,
    /// The authorities that sign the certificate of the collector.
    pub authorities: Authorities,
    /// Attributes that describe this process, such as its name.
    pub resource: Vec<(&'static str, String)>,
}

/// Headers of each request to a collector. They are secret: they may hold a key.
#[derive(Clone, Default)]
pub struct CollectorHeaders(HeaderMap);

/// The error of a text that is not a list of headers. It does not repeat the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "headers are name=value pairs, separated by commas, with percent-encoded values, without \
     those that the exporter sets itself, such as host and content-length"
)]
pub struct InvalidCollectorHeaders;

#[derive(Debug, thiserror::Error)]
pub enum InvalidSpanCollector {
    #[error("the address of the collector is not http:// or https:// with a host and no query")]
    Url,
    #[error("TLS could not be set up")]
    Tls(#[source] BoxError),
}

/// The reason why the collector did not accept a batch.
#[derive(Debug, thiserror::Error)]
pub enum NotCollected {
    /// A retry may succeed.
    #[error("{0}")]
    Unavailable(String),
    /// A retry will not succeed.
    #[error("{0}")]
    Refused(String),
}

/// The limit for one request. It is the default of `OTEL_EXPORTER_OTLP_TIMEOUT`.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Headers that the exporter sets itself, or that would break a request.
const RESERVED: [HeaderName; 10] = [
    CONNECTION,
    CONTENT_ENCODING,
    CONTENT_LENGTH,
    CONTENT_TYPE,
    HOST,
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    UPGRADE,
    USER_AGENT,
];

const PROTOBUF: HeaderValue = HeaderValue::from_static("application/x-protobuf");

impl SpanCollector {
    /// Makes a client of the collector. It connects at the first batch.
    pub fn new(settings: SpanCollectorSettings) -> Result<Self, InvalidSpanCollector> {
        let SpanCollectorSettings { endpoint, headers, authorities, resource } = settings;
        let url = traces_of(&endpoint).ok_or(InvalidSpanCollector::Url)?;
        let target = Target::of(url).ok_or(InvalidSpanCollector::Url)?;
        let client = ClientSettings { timeout: TIMEOUT, keep_alive: KEEP_ALIVE, authorities };
        let client = Client::new(GaiResolver::new(), client).map_err(InvalidSpanCollector::Tls)?;
        Ok(Self { client, target, headers: headers.0, resource: Resource::of(resource) })
    }

    /// Returns the bytes of a batch.
    pub fn encode(&self, spans: Vec<Span>) -> Bytes {
        request(self.resource.clone(), spans).encode_to_vec().into()
    }

    /// Posts a batch. Returns the number of spans that the collector rejected.
    pub async fn post(&self, batch: Bytes) -> Result<u64, NotCollected> {
        let (head, body) = self.client.call(self.request(batch)).await.map_err(|none| {
            tracing::debug!(error = %Chain(&none), "the collector did not answer");
            NotCollected::Unavailable(none.to_string())
        })?;
        judge(head.status, body.unwrap_or_default())
    }

    fn request(&self, batch: Bytes) -> Request<Bytes> {
        let mut request = self.target.post(batch);
        let headers = request.headers_mut();
        // Replaces `authorization` of the URL, and keeps repeated headers.
        headers.extend(self.headers.clone());
        headers.insert(CONTENT_TYPE, PROTOBUF);
        headers.insert(USER_AGENT, AGENT);
        request
    }
}

/// Reads the answer of the collector. Returns the number of spans that it rejected.
fn judge(status: StatusCode, body: Bytes) -> Result<u64, NotCollected> {
    let detail = || format!("status {}", status.as_u16());
    if status.is_success() {
        let answer = Answer::decode(body).unwrap_or_default();
        let rejected = answer.partial_success.map_or(0, |partial| partial.rejected_spans);
        return Ok(rejected.try_into().unwrap_or_default());
    }
    match status.as_u16() {
        // OTLP allows a retry after these.
        429 | 502..=504 => Err(NotCollected::Unavailable(detail())),
        _ => Err(NotCollected::Refused(detail())),
    }
}

/// Appends the path of traces to the endpoint of a collector. Returns `None` if a query follows the
/// path.
fn traces_of(endpoint: &Uri) -> Option<Uri> {
    if endpoint.query().is_some() {
        return None;
    }
    let mut parts = endpoint.clone().into_parts();
    let path = format!("{}/v1/traces", endpoint.path().trim_end_matches('/'));
    parts.path_and_query = Some(path.parse().ok()?);
    Uri::from_parts(parts).ok()
}

impl CollectorHeaders {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromStr for CollectorHeaders {
    type Err = InvalidCollectorHeaders;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut headers = HeaderMap::new();
        for pair in text.split(',').filter(|pair| !pair.trim().is_empty()) {
            let (name, value) = pair.split_once('=').ok_or(InvalidCollectorHeaders)?;
            let name: HeaderName = name.trim().parse().map_err(|_| InvalidCollectorHeaders)?;
            if RESERVED.contains(&name) {
                return Err(InvalidCollectorHeaders);
            }
            let value: Vec<u8> = percent_decode_str(value.trim()).collect();
            let mut value = HeaderValue::from_bytes(&value).map_err(|_| InvalidCollectorHeaders)?;
            value.set_sensitive(true);
            headers.append(name, value);
        }
        Ok(Self(headers))
    }
}

/// Leaves out the values.
impl fmt::Debug for CollectorHeaders {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// Leaves out what may be secret: user, password, path and headers.
impl fmt::Debug for SpanCollector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SpanCollector").field("host", &self.target.host()).finish_non_exhaustive()
    }
}

/// Leaves out what may be secret: user, password, path and headers.
impl fmt::Debug for SpanCollectorSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SpanCollectorSettings")
            .field("host", &self.endpoint.host().unwrap_or_default())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
