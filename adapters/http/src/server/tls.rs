//! TLS of a server, whose certificate can be replaced while it serves.

use std::{
    fmt, io,
    path::Path,
    pin::Pin,
    sync::{Arc, PoisonError, RwLock},
    task::{Context, Poll},
    time::SystemTime,
};

pub use adapters_pem::CertificateFile;
use adapters_pem::{first_expiry, read_pair};
use rustls::{
    ServerConfig,
    crypto::ring,
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use tokio::net::TcpStream;
use tokio_rustls::{Accept, TlsAcceptor, server::TlsStream};
use tokio_util::either::Either;

/// A connection without TLS, or with it.
pub(super) type Stream = Either<TcpStream, Box<TlsStream<TcpStream>>>;

/// The certificate of a server with those of its authorities, and its key.
#[derive(Clone)]
pub struct ServerCertificate {
    pair: Arc<CertifiedKey>,
    expires: SystemTime,
}

impl ServerCertificate {
    /// Reads two PEM files: the certificate of the server with those of intermediate authorities
    /// behind it, and its key. Returns every problem, each with the file that has it.
    pub fn read(certificate: &Path, key: &Path) -> Result<Self, Vec<(CertificateFile, String)>> {
        let pair = read_pair(certificate, key)?;
        let Some(expires) = first_expiry(&pair.cert) else {
            let problem = format!("{}: a certificate is damaged", certificate.display());
            return Err(vec![(CertificateFile::Certificate, problem)]);
        };
        Ok(Self { pair: Arc::new(pair), expires })
    }

    /// Returns when the first certificate of the chain expires.
    pub fn expires(&self) -> SystemTime {
        self.expires
    }
}

/// Leaves out the key.
impl fmt::Debug for ServerCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerCertificate").field("expires", &self.expires).finish_non_exhaustive()
    }
}

/// TLS 1.2 and 1.3 for the connections of a server. Clones show the same certificate.
#[derive(Clone)]
pub struct ServerTls {
    acceptor: TlsAcceptor,
    shown: Arc<Shown>,
}

/// The certificate that new connections get.
#[derive(Debug)]
struct Shown(RwLock<Arc<CertifiedKey>>);

impl ServerTls {
    pub fn new(certificate: ServerCertificate) -> Self {
        let shown = Arc::new(Shown(RwLock::new(certificate.pair)));
        let mut config = ServerConfig::builder_with_provider(ring::default_provider().into())
            .with_safe_default_protocol_versions()
            .expect("the provider has the default versions")
            .with_no_client_auth()
            .with_cert_resolver(Arc::clone(&shown) as Arc<dyn ResolvesServerCert>);
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Self { acceptor: TlsAcceptor::from(Arc::new(config)), shown }
    }

    /// Shows another certificate to new connections. Returns whether it is another one.
    pub fn replace(&self, certificate: ServerCertificate) -> bool {
        let mut shown = self.shown.0.write().unwrap_or_else(PoisonError::into_inner);
        let before = std::mem::replace(&mut *shown, certificate.pair);
        before.cert != shown.cert
    }
}

impl fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerTls").finish_non_exhaustive()
    }
}

impl ResolvesServerCert for Shown {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner)))
    }
}

/// An accepted connection. As a future, it completes the TLS handshake, if the server has TLS.
pub(super) enum Opening {
    Plain(Option<TcpStream>),
    Tls(Box<Accept<TcpStream>>),
}

impl Opening {
    pub(super) fn new(stream: TcpStream, tls: Option<&ServerTls>) -> Self {
        match tls {
            Some(tls) => Self::Tls(Box::new(tls.acceptor.accept(stream))),
            None => Self::Plain(Some(stream)),
        }
    }
}

impl Future for Opening {
    type Output = io::Result<Stream>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.get_mut() {
            Self::Plain(stream) => {
                let stream = stream.take().expect("a future is not polled after its end");
                Poll::Ready(Ok(Either::Left(stream)))
            }
            Self::Tls(accept) => {
                Pin::new(accept.as_mut()).poll(cx).map_ok(|stream| Either::Right(Box::new(stream)))
            }
        }
    }
}
