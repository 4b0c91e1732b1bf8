use std::{error::Error, fmt, io, net::SocketAddr, time::Duration};

use application::BoxError;
use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Uri,
    header::{AUTHORIZATION, CONNECTION, CONTENT_TYPE, USER_AGENT},
    response::Parts,
    uri::{Authority, PathAndQuery, Scheme},
};
use http_body_util::{BodyExt, Full, Limited};
use hyper_rustls::{HttpsConnectorBuilder, MaybeHttpsStream};
use hyper_util::{
    client::legacy::{
        self,
        connect::{Connected, HttpConnector, capture_connection, dns::Name},
    },
    rt::{TokioExecutor, TokioIo, TokioTimer},
};
use percent_encoding::percent_decode_str;
use tokio::{
    net::TcpStream,
    time::{Instant, timeout_at},
};
use tower::{Service, ServiceBuilder, util::BoxCloneSyncService};

use crate::authorities::Authorities;

/// The limit for name resolution, TCP and TLS together.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// The longest time for which a connection may be idle and still be used again.
///
/// A server that closes an idle connection just as a request arrives on it leaves the client
/// without an answer. Common servers close after 5 s (Node.js, uvicorn, Apache httpd) or 2 s
/// (gunicorn), counted from their last write. One second leaves room for the round trip.
pub(crate) const KEEP_ALIVE: Duration = Duration::from_secs(1);

/// The part of the time that a server announces for idle connections which the previous answer and
/// the next request may spend on the network.
const KEEP_ALIVE_MARGIN: Duration = Duration::from_secs(1);

/// The largest number of headers in an answer. The parser's default is 100, and it drops an answer
/// with more headers together with the status.
const MAX_HEADERS: usize = 1024;

const TCP_KEEPALIVE: Duration = Duration::from_secs(30);

/// The longest answer that is read. Only a message id in it is of use.
const MAX_RESPONSE: usize = 64 * 1024;

const JSON: HeaderValue = HeaderValue::from_static("application/json");
pub(crate) const AGENT: HeaderValue =
    HeaderValue::from_static(concat!("messager/", env!("CARGO_PKG_VERSION")));

type Connector = BoxCloneSyncService<Uri, MaybeHttpsStream<TokioIo<TcpStream>>, BoxError>;

/// An HTTP client that posts. It follows no redirects and limits the time of each call.
pub(crate) struct Client {
    http: legacy::Client<Connector, Full<Bytes>>,
    timeout: Duration,
    keep_alive: Duration,
}

#[derive(Debug, Clone)]
pub(crate) struct ClientSettings {
    /// The limit for one whole call, from name resolution to the last byte of the answer.
    pub(crate) timeout: Duration,
    /// How long a connection may be idle and still be used again. With zero each call opens a new
    /// connection.
    pub(crate) keep_alive: Duration,
    pub(crate) authorities: Authorities,
}

/// The URL to post to, and the credentials.
pub(crate) struct Target {
    url: Uri,
    authorization: Option<HeaderValue>,
}

/// The reason why there is no answer. `Display` contains no text of the server.
#[derive(Debug)]
pub(crate) enum NoAnswer {
    /// The server received nothing of the request.
    NotConnected(legacy::Error),
    BrokenOff(legacy::Error),
    InTime,
}

impl Client {
    pub(crate) fn new<R>(names: R, settings: ClientSettings) -> Result<Self, BoxError>
    where
        R: Service<Name> + Clone + Send + Sync + 'static,
        R::Response: Iterator<Item = SocketAddr>,
        R::Error: Into<BoxError>,
        R::Future: Send,
    {
        let ClientSettings { timeout, keep_alive, authorities } = settings;
        let http = legacy::Client::builder(TokioExecutor::new())
            .timer(TokioTimer::new())
            // Without this timer the pool never closes an idle connection.
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(keep_alive)
            .pool_max_idle_per_host(if keep_alive.is_zero() { 0 } else { usize::MAX })
            // The status decides. Other errors in an answer must not hide it.
            .http1_max_headers(MAX_HEADERS)
            .http1_ignore_invalid_headers_in_responses(true)
            .http1_allow_obsolete_multiline_headers_in_responses(true)
            .http1_allow_spaces_after_header_name_in_responses(true)
            .build(connector(names, authorities, CONNECT_TIMEOUT.min(timeout / 2))?);
        Ok(Self { http, timeout, keep_alive })
    }

    pub(crate) fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Sends one request and returns the answer, within the limit for one call.
    pub(crate) async fn call(
        &self,
        request: Request<Bytes>,
    ) -> Result<(Parts, Option<Bytes>), NoAnswer> {
        self.call_until(request, self.deadline()).await
    }

    /// Returns the end of a call that begins now.
    pub(crate) fn deadline(&self) -> Instant {
        Instant::now() + self.timeout
    }

    /// Sends one request and returns the answer, if it comes before `deadline`.
    ///
    /// The body is read so that the connection can be used again. If it is too long or breaks off,
    /// the body is none and the head is still returned.
    pub(crate) async fn call_until(
        &self,
        request: Request<Bytes>,
        deadline: Instant,
    ) -> Result<(Parts, Option<Bytes>), NoAnswer> {
        let mut request = request.map(Full::new);
        if self.keep_alive.is_zero() {
            // Then the server closes first, and our port is free at once.
            request.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        let connection = capture_connection(&mut request);
        let response = timeout_at(deadline, self.http.request(request))
            .await
            .map_err(|_| NoAnswer::InTime)?
            .map_err(|error| {
                if error.is_connect() {
                    NoAnswer::NotConnected(error)
                } else {
                    NoAnswer::BrokenOff(error)
                }
            })?;
        let (head, body) = response.into_parts();
        if announced_keep_alive(&head.headers)
            .is_some_and(|kept| kept < self.keep_alive + KEEP_ALIVE_MARGIN)
        {
            connection.connection_metadata().as_ref().map(Connected::poison);
        }
        let body = timeout_at(deadline, Limited::new(body, MAX_RESPONSE).collect()).await;
        Ok((head, body.ok().and_then(Result::ok).map(http_body_util::Collected::to_bytes)))
    }
}

impl Target {
    /// Splits a URL into the address and the credentials, which are sent as `Authorization: Basic`.
    ///
    /// Returns none if the URL does not begin with `http://` or `https://` and a host, or if its port
    /// cannot exist.
    pub(crate) fn of(url: Uri) -> Option<Self> {
        let mut parts = url.into_parts();
        if ![Some(Scheme::HTTP), Some(Scheme::HTTPS)].contains(&parts.scheme) {
            return None;
        }
        let authority = parts.authority.take()?;
        let (credentials, host) = match authority.as_str().rsplit_once('@') {
            Some((credentials, host)) => (Some(credentials), host),
            None => (None, authority.as_str()),
        };
        let host = host.parse::<Authority>().ok().filter(has_good_port)?;
        parts.authority = Some(host);
        parts.path_and_query.get_or_insert(PathAndQuery::from_static("/"));
        let url = Uri::from_parts(parts).ok()?;
        if url.host().is_none_or(str::is_empty) {
            return None;
        }
        Some(Self { url, authorization: credentials.map(basic) })
    }

    /// Makes a request that posts this JSON.
    pub(crate) fn post(&self, body: Bytes) -> Request<Bytes> {
        let mut request = Request::new(body);
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.url.clone();
        let headers = request.headers_mut();
        headers.insert(CONTENT_TYPE, JSON);
        headers.insert(USER_AGENT, AGENT);
        if let Some(authorization) = &self.authorization {
            headers.insert(AUTHORIZATION, authorization.clone());
        }
        request
    }

    pub(crate) fn host(&self) -> &str {
        self.url.host().unwrap_or_default()
    }

    #[cfg(test)]
    pub(crate) fn authority(&self) -> String {
        self.url.authority().map(ToString::to_string).unwrap_or_default()
    }
}

impl fmt::Display for NoAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let error = match self {
            Self::InTime => return f.write_str("no answer in time"),
            Self::NotConnected(error) => {
                f.write_str("could not connect")?;
                error
            }
            Self::BrokenOff(error) => {
                f.write_str("no answer came back")?;
                error
            }
        };
        // Only the kind: its text comes from the standard library and contains no secret.
        match find_cause::<io::Error>(error).map(io::Error::kind) {
            Some(kind) => write!(f, ": {kind}"),
            None => Ok(()),
        }
    }
}

impl Error for NoAnswer {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::NotConnected(error) | Self::BrokenOff(error) => Some(error),
            Self::InTime => None,
        }
    }
}

/// Makes a connector for HTTP/1.1 only.
///
/// With HTTP/2 the client keeps one connection to a host. The server's limit on streams (often 100)
/// would then limit our concurrent calls.
fn connector<R>(
    names: R,
    authorities: Authorities,
    connect_timeout: Duration,
) -> Result<Connector, BoxError>
where
    R: Service<Name> + Clone + Send + Sync + 'static,
    R::Response: Iterator<Item = SocketAddr>,
    R::Error: Into<BoxError>,
    R::Future: Send,
{
    let mut tcp = HttpConnector::new_with_resolver(names);
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_keepalive(Some(TCP_KEEPALIVE));
    // The addresses of a host share this time, so that a dead first one leaves time for the second.
    tcp.set_connect_timeout(Some(connect_timeout));
    let tls = HttpsConnectorBuilder::new()
        .with_tls_config(authorities.client_config()?)
        .https_or_http()
        .enable_http1()
        .wrap_connector(tcp);
    // The time-out above covers neither name resolution nor TLS.
    let connector = ServiceBuilder::new().timeout(connect_timeout).service(tls);
    Ok(BoxCloneSyncService::new(connector))
}

/// Returns how long the server keeps an idle connection open: `Keep-Alive: timeout=5, max=100`.
fn announced_keep_alive(headers: &HeaderMap) -> Option<Duration> {
    const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
    let values = headers.get_all(KEEP_ALIVE).into_iter().filter_map(|value| value.to_str().ok());
    let parameters = values.flat_map(|value| value.split(',')).filter_map(|it| it.split_once('='));
    parameters
        .filter(|(name, _)| name.trim().eq_ignore_ascii_case("timeout"))
        .filter_map(|(_, seconds)| seconds.trim().trim_matches('"').parse().ok())
        .map(Duration::from_secs)
        .min()
}

/// Whether there is no port, or one that exists.
pub(crate) fn has_good_port(host: &Authority) -> bool {
    let port = host.as_str().strip_prefix(host.host()).unwrap_or_default();
    port.is_empty() || host.port_u16().is_some_and(|port| port > 0)
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

pub(crate) fn find_cause<'a, E: Error + 'static>(
    error: &'a (dyn Error + 'static),
) -> Option<&'a E> {
    std::iter::successors(Some(error), |&error| error.source())
        .find_map(|cause| cause.downcast_ref())
}
