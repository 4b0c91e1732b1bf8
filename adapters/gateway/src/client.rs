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

/// Name resolution, TCP and TLS together.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// How long a connection may have been idle and still be used again.
///
/// A server that closes an idle connection just as a request arrives on it leaves the client
/// without an answer. Common servers close after 5 s (Node.js, uvicorn, Apache httpd) or 2 s
/// (gunicorn), counted from their last write; a second leaves room for the way there and back.
pub(crate) const KEEP_ALIVE: Duration = Duration::from_secs(1);

/// What the way of a request and of the answer before it may take, of the time that a server says
/// it keeps an idle connection open.
const KEEP_ALIVE_MARGIN: Duration = Duration::from_secs(1);

/// Headers of an answer that we read. The parser's own limit is 100, and an answer above it is
/// lost with its status.
const MAX_HEADERS: usize = 1024;

const TCP_KEEPALIVE: Duration = Duration::from_secs(30);

/// What is read of an answer at most: there is a name in it, or nothing for us.
const MAX_RESPONSE: usize = 64 * 1024;

const JSON: HeaderValue = HeaderValue::from_static("application/json");
const AGENT: HeaderValue =
    HeaderValue::from_static(concat!("messager/", env!("CARGO_PKG_VERSION")));

type Connector = BoxCloneSyncService<Uri, MaybeHttpsStream<TokioIo<TcpStream>>, BoxError>;

/// Posts, follows no redirects, and waits for no answer longer than it may.
pub(crate) struct Client {
    http: legacy::Client<Connector, Full<Bytes>>,
    timeout: Duration,
    keep_alive: Duration,
}

/// Where to post, and as whom.
pub(crate) struct Target {
    url: Uri,
    authorization: Option<HeaderValue>,
}

/// Why there is no answer. `Display` has no word of the other end's.
#[derive(Debug)]
pub(crate) enum NoAnswer {
    /// It got nothing of the request.
    NotConnected(legacy::Error),
    BrokenOff(legacy::Error),
    InTime,
}

impl Client {
    /// `timeout` is for one whole call, from name resolution to the last byte of the answer.
    /// A connection is used again if it has been idle for less than `keep_alive`; zero gives each
    /// call a connection of its own.
    pub(crate) fn new<R>(
        names: R,
        timeout: Duration,
        keep_alive: Duration,
    ) -> Result<Self, BoxError>
    where
        R: Service<Name> + Clone + Send + Sync + 'static,
        R::Response: Iterator<Item = SocketAddr>,
        R::Error: Into<BoxError>,
        R::Future: Send,
    {
        let http = legacy::Client::builder(TokioExecutor::new())
            .timer(TokioTimer::new())
            // Without a timer of its own the pool never closes an idle connection.
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(keep_alive)
            .pool_max_idle_per_host(if keep_alive.is_zero() { 0 } else { usize::MAX })
            // The status decides. What else is wrong with an answer must not hide it.
            .http1_max_headers(MAX_HEADERS)
            .http1_ignore_invalid_headers_in_responses(true)
            .http1_allow_obsolete_multiline_headers_in_responses(true)
            .http1_allow_spaces_after_header_name_in_responses(true)
            .build(connector(names, CONNECT_TIMEOUT.min(timeout / 2))?);
        Ok(Self { http, timeout, keep_alive })
    }

    pub(crate) fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Makes one request. The body is none where it is too long, or breaks off: it is read to the
    /// end, so that the connection can be used again, and where that fails only it is lost.
    pub(crate) async fn call(
        &self,
        mut request: Request<Full<Bytes>>,
    ) -> Result<(Parts, Option<Bytes>), NoAnswer> {
        if self.keep_alive.is_zero() {
            // The server closes first then, and the port on our side is free at once.
            request.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        let connection = capture_connection(&mut request);
        let deadline = Instant::now() + self.timeout;
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
    /// Splits a URL into what is asked for and who asks: a user and a password in it are sent as
    /// `Authorization: Basic`. None if it does not begin with `http://` or `https://` and a host.
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
        parts.authority = Some(host.parse::<Authority>().ok()?);
        parts.path_and_query.get_or_insert(PathAndQuery::from_static("/"));
        let url = Uri::from_parts(parts).ok()?;
        if url.host().is_none_or(str::is_empty) {
            return None;
        }
        Some(Self { url, authorization: credentials.map(basic) })
    }

    /// A request that posts this JSON there.
    pub(crate) fn post(&self, body: Bytes) -> Request<Full<Bytes>> {
        let mut request = Request::new(Full::new(body));
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
        // The kind only: its words are the standard library's and repeat nothing of ours.
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

/// HTTP/1.1 only: the client keeps one HTTP/2 connection to a host, whose limit on streams (often
/// 100) would then be our limit on calls at a time.
fn connector<R>(names: R, connect_timeout: Duration) -> Result<Connector, BoxError>
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
    // Shared among the addresses of a host, so that a dead first one leaves time for the second.
    tcp.set_connect_timeout(Some(connect_timeout));
    let provider = rustls::crypto::ring::default_provider();
    let tls = HttpsConnectorBuilder::new()
        .with_provider_and_webpki_roots(provider)?
        .https_or_http()
        .enable_http1()
        .wrap_connector(tcp);
    // The time-out above knows neither of names nor of TLS.
    let connector = ServiceBuilder::new().timeout(connect_timeout).service(tls);
    Ok(BoxCloneSyncService::new(connector))
}

/// How long the server says it keeps an idle connection open: `Keep-Alive: timeout=5, max=100`.
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
