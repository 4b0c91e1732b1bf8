//! TLS to PostgreSQL, with the modes of libpq.
//!
//! The relay also chooses among several hosts.
//!
//! sqlx supports only some of the modes, and it trusts the public authorities in addition to the
//! root certificate that is set. So sqlx connects in clear text to a socket inside this process,
//! and a relay forwards the bytes to the server. With the mode `disable` or a local socket, sqlx
//! connects to the server directly.
//!
//! This is one file, because the relay, its attempts and the bytes of the protocol are one path
//! from the socket to the server.

mod certificates;
mod hosts;
mod startup;

use std::{
    io::{self, ErrorKind},
    net::IpAddr,
    path::{Path, PathBuf},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime},
};

pub use adapters_pem::CertificateFile;
use adapters_pem::{first_expiry, read_certificates, read_pair};
use rustls::{
    ClientConfig,
    client::ResolvesClientCert,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
    sign::{CertifiedKey, SingleCertAndKey},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, copy, split},
    net::{TcpStream, UnixListener, UnixStream},
    task::{AbortHandle, spawn_blocking},
    time::{sleep, timeout},
};
use tokio_rustls::{TlsConnector, client::TlsStream};

pub(crate) use self::hosts::Hosts;
pub use self::hosts::PostgresHost;
use self::{
    certificates::{Certificates, Verifier},
    startup::{Opened, text_of_error},
};

/// Whether a connection to PostgreSQL has TLS, and what is verified: `sslmode` of libpq.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SslMode {
    /// Never TLS.
    Disable,
    /// TLS if the server refuses a connection without TLS.
    Allow,
    /// No TLS if the server does not support it or refuses a connection with TLS.
    Prefer,
    /// Always TLS.
    Require,
    /// Always TLS, and a trusted authority has signed the certificate.
    VerifyCa,
    /// As `VerifyCa`, and the certificate has the name of the host.
    VerifyFull,
}

/// The trusted authorities: `sslrootcert` of libpq. If they are set, the certificate is verified in
/// every mode that has TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SslRootCert {
    /// The authorities in a PEM file. The file is read for each connection, so it may be replaced.
    File(PathBuf),
    /// The authorities of the operating system.
    System,
}

impl SslRootCert {
    /// Checks that there are certificates, and that all of them can be read.
    pub fn check(&self) -> Result<(), String> {
        self.load().map(|_| ())
    }

    fn load(&self) -> Result<Certificates, String> {
        match self {
            Self::File(path) => read_pem(path),
            Self::System => {
                static SYSTEM: OnceLock<Result<Certificates, String>> = OnceLock::new();
                SYSTEM.get_or_init(read_system).clone()
            }
        }
    }
}

/// What proves to the server who the client is: `sslcert` and `sslkey` of libpq. The files are read
/// for each connection, so they may be replaced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SslClientCert {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

impl SslClientCert {
    /// Checks that both files can be read and fit together. Returns every problem.
    pub fn check(&self) -> Result<(), Vec<(CertificateFile, String)>> {
        read_pair(&self.certificate, &self.key).map(|_| ())
    }

    /// Returns when the certificate in the file expires. `None`: it cannot be read.
    pub fn expires(&self) -> Option<SystemTime> {
        first_expiry(&read_certificates(&self.certificate).ok()?)
    }

    fn load(&self) -> Result<CertifiedKey, String> {
        read_pair(&self.certificate, &self.key).map_err(|problems| {
            let named = problems.into_iter().map(|(file, problem)| match file {
                CertificateFile::Certificate => format!("the client certificate: {problem}"),
                CertificateFile::Key => format!("the key of the client certificate: {problem}"),
            });
            named.collect::<Vec<_>>().join("; ")
        })
    }
}

fn read_pem(path: &Path) -> Result<Certificates, String> {
    let told = |problem: String| format!("{}: {problem}", path.display());
    let text = std::fs::read(path).map_err(|error| told(error.to_string()))?;
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    let read = read.map_err(|error| told(format!("it is not a PEM file: {error}")))?;
    if read.is_empty() {
        return Err(told("there is no certificate in it".to_owned()));
    }
    Certificates::parse(&read).map_err(|error| told(format!("a certificate is damaged: {error}")))
}

fn read_system() -> Result<Certificates, String> {
    let found = rustls_native_certs::load_native_certs().certs;
    let certificates = Certificates::parse_readable(&found);
    if certificates.is_empty() {
        return Err("the operating system has no certificates of authorities".to_owned());
    }
    Ok(certificates)
}

/// The hosts that connections may go to, and their TLS mode.
#[derive(Debug)]
pub(crate) struct Route {
    pub(crate) hosts: Hosts,
    pub(crate) mode: SslMode,
    pub(crate) roots: Option<SslRootCert>,
    pub(crate) client: Option<SslClientCert>,
}

/// How long one of several hosts may take to accept a connection: one round trip.
const CONNECT: Duration = Duration::from_secs(1);

/// The pause after the system could not accept a connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(500);

/// A socket in this process that forwards connections to the server. It closes when this value is
/// dropped. Open connections stay.
#[derive(Debug)]
pub(crate) struct Relay {
    folder: String,
    hosts: usize,
    accepting: AbortHandle,
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl Relay {
    pub(crate) fn to(route: Route) -> Self {
        let (hosts, port) = (route.hosts.len(), route.hosts.current().1.port);
        let (folder, listener) = listen(port).expect("a process may have a socket");
        let accepting = tokio::spawn(async move {
            let route = Arc::new(route);
            loop {
                let near = match listener.accept().await {
                    Ok((near, _)) => near,
                    // The process may lack descriptors for a moment. Without the listener, it could
                    // not connect to the database until a restart.
                    Err(error) => {
                        tracing::warn!(
                            %error,
                            "cannot accept a connection for TLS to PostgreSQL; trying again"
                        );
                        sleep(ACCEPT_PAUSE).await;
                        continue;
                    }
                };
                // Other processes on this machine may find the socket.
                match near.peer_cred().map(|peer| peer.pid()) {
                    Ok(pid) if pid == own_pid() => {
                        let route = Arc::clone(&route);
                        tokio::spawn(async move { route.carry(near).await });
                    }
                    peer => tracing::warn!(
                        ?peer,
                        "refused a connection to the TLS socket that is not from this process"
                    ),
                }
            }
        });
        Self { folder, hosts, accepting: accepting.abort_handle() }
    }

    /// Returns how many hosts there are.
    pub(crate) fn hosts(&self) -> usize {
        self.hosts
    }

    /// Returns the name that sqlx uses as the folder of PostgreSQL's socket.
    pub(crate) fn folder(&self) -> &str {
        &self.folder
    }
}

fn own_pid() -> Option<i32> {
    std::process::id().try_into().ok()
}

/// Returns a socket with an abstract name. It needs no file system, which may be read-only.
fn listen(port: u16) -> io::Result<(String, UnixListener)> {
    const TRIES: usize = 1_000;
    static NEXT: AtomicU64 = AtomicU64::new(0);
    for _ in 0..TRIES {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let folder = format!("\0messager-{}-{number}", std::process::id());
        match UnixListener::bind(format!("{folder}/.s.PGSQL.{port}")) {
            Ok(listener) => return Ok((folder, listener)),
            Err(error) if error.kind() == ErrorKind::AddrInUse => {}
            Err(error) => return Err(error),
        }
    }
    Err(ErrorKind::AddrInUse.into())
}

/// A connection to the server, with TLS or without.
enum Far {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// The reason why there is no connection.
struct Failure {
    /// Whether the client may retry at once, because the server may be starting.
    transient: bool,
    why: String,
}

/// One way to connect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Attempt {
    Plain,
    Tls,
    /// TLS. If the server does not support it, no TLS on the same connection.
    TlsIfOffered,
}

impl SslMode {
    fn attempts(self) -> &'static [Attempt] {
        match self {
            Self::Disable => &[Attempt::Plain],
            Self::Allow => &[Attempt::Plain, Attempt::Tls],
            Self::Prefer => &[Attempt::TlsIfOffered, Attempt::Plain],
            Self::Require | Self::VerifyCa | Self::VerifyFull => &[Attempt::Tls],
        }
    }
}

impl Route {
    /// Forwards one connection from its beginning to its end.
    async fn carry(&self, mut near: UnixStream) {
        let Ok(startup) = read_startup(&mut near).await else { return };
        // A client that gives up closes its end. It sends nothing before it has an answer.
        // The host that is being tried. Another connection may have passed it over meanwhile.
        let tried = AtomicUsize::new(self.hosts.current().0);
        let begun = tokio::select! {
            begun = self.begin(&startup, &tried) => begun,
            () = left(&near) => {
                // It had no more time for this host.
                self.hosts.pass_over(tried.load(Ordering::Relaxed));
                return;
            }
        };
        match begun {
            Ok((host, Far::Plain(far), answer)) => self.open(near, host, far, answer).await,
            Ok((host, Far::Tls(far), answer)) => self.open(near, host, *far, answer).await,
            Err(failure) => {
                let _ = near.write_all(&failure.as_message()).await;
            }
        }
    }

    /// Forwards a connection that has begun at this host. If there are several hosts, a session that
    /// cannot write is closed before it is ready, and the client is told to try again.
    async fn open(
        &self,
        mut near: UnixStream,
        host: usize,
        mut far: impl AsyncRead + AsyncWrite + Unpin,
        answer: Vec<u8>,
    ) {
        /// The message with which a client ends a session.
        const TERMINATE: &[u8] = b"X\0\0\0\x04";
        if self.hosts.len() == 1 {
            return exchange(near, far, &answer).await;
        }
        match startup::open(&mut near, &mut far, answer).await {
            Ok(Opened::Writable(waiting)) => {
                if waiting.first() != Some(&ERROR) && self.hosts.note_used(host) {
                    let host = self.hosts.at(host);
                    tracing::info!(%host, "PostgreSQL is used at another host");
                }
                exchange(near, far, &waiting).await;
            }
            Ok(Opened::ReadOnly) => {
                self.hosts.pass_over(host);
                let why = format!("PostgreSQL at {} is read-only", self.hosts.at(host));
                let _ = near.write_all(&Failure { transient: true, why }.as_message()).await;
                let farewell = async {
                    far.write_all(TERMINATE).await?;
                    far.shutdown().await
                };
                let _ = timeout(FAREWELL, farewell).await;
            }
            Err(error) => {
                tracing::debug!(%error, "a session with PostgreSQL was not opened");
                self.hosts.pass_over(host);
            }
        }
    }

    /// Begins at the current host, or at the next one that accepts the connection. `tried` becomes the
    /// number of the host that is being tried.
    async fn begin(
        &self,
        startup: &[u8],
        tried: &AtomicUsize,
    ) -> Result<(usize, Far, Vec<u8>), Failure> {
        let (index, host) = self.hosts.current();
        if self.hosts.len() == 1 {
            return self.begin_at(host, startup).await.map(|(far, answer)| (index, far, answer));
        }
        let (mut transient, mut reasons) = (false, Vec::new());
        for _ in 0..self.hosts.len() {
            let (index, host) = self.hosts.current();
            tried.store(index, Ordering::Relaxed);
            let failure = match self.begin_at(host, startup).await {
                Ok((far, answer)) if answer.first() != Some(&ERROR) => {
                    return Ok((index, far, answer));
                }
                // A server that starts up says so.
                Ok((_, answer)) => Failure {
                    transient: true,
                    why: text_of_error(&answer).unwrap_or_else(|| "it refuses".to_owned()),
                },
                Err(failure) => failure,
            };
            self.hosts.pass_over(index);
            transient |= failure.transient;
            reasons.push(format!("{host}: {}", failure.why));
        }
        Err(Failure { transient, why: reasons.join("; ") })
    }

    /// Tries the attempts of the mode in order until the server accepts the connection. Also
    /// returns the beginning of the server's answer.
    async fn begin_at(
        &self,
        host: &PostgresHost,
        startup: &[u8],
    ) -> Result<(Far, Vec<u8>), Failure> {
        let mut refused = None;
        for attempt in self.mode.attempts() {
            let begun = match self.connect(host, *attempt).await {
                Ok(far) => begin_session(far, startup).await.map_err(|error| Failure {
                    transient: false,
                    why: format!("the server closed the connection: {error}"),
                }),
                Err(failure) => Err(failure),
            };
            match begun {
                Ok((far, answer)) if answer.first() != Some(&ERROR) => return Ok((far, answer)),
                // If the server is not reachable, the next attempt cannot succeed.
                Err(failure) if failure.transient => return Err(failure),
                // As libpq, the error of the last attempt is the one that is reported.
                refusal => {
                    if let Err(Failure { why, .. }) = &refusal {
                        tracing::debug!(
                            ?attempt,
                            why,
                            "an attempt to connect to PostgreSQL failed"
                        );
                    }
                    let was_plain = matches!(&refusal, Ok((Far::Plain(_), _)));
                    refused = Some(refusal);
                    if was_plain && *attempt == Attempt::TlsIfOffered {
                        break;
                    }
                }
            }
        }
        refused.unwrap_or_else(|| {
            Err(Failure { transient: false, why: "there is no way to connect".to_owned() })
        })
    }

    async fn connect(&self, host: &PostgresHost, attempt: Attempt) -> Result<Far, Failure> {
        let PostgresHost { name, port } = host;
        let transient = |error: io::Error| Failure {
            transient: true,
            why: format!("connect to {name} port {port}: {error}"),
        };
        let connecting = TcpStream::connect((&**name, *port));
        let connected = if self.hosts.len() == 1 {
            connecting.await
        } else {
            timeout(CONNECT, connecting).await.unwrap_or_else(|_| Err(ErrorKind::TimedOut.into()))
        };
        let mut stream = connected.map_err(transient)?;
        stream.set_nodelay(true).map_err(transient)?;
        if attempt == Attempt::Plain {
            return Ok(Far::Plain(stream));
        }
        let failed = |why: String| Failure { transient: false, why };
        let offered = offers_tls(&mut stream).await.map_err(|error| failed(error.to_string()))?;
        if !offered {
            if attempt == Attempt::TlsIfOffered {
                return Ok(Far::Plain(stream));
            }
            return Err(failed(format!(
                "the server does not support TLS, and DB_SSL_MODE={} needs it",
                self.mode.name()
            )));
        }
        let connector = self.connector(host).await.map_err(failed)?;
        match connector.connect(server_name(host), stream).await {
            Ok(stream) => Ok(Far::Tls(Box::new(stream))),
            Err(error) => Err(failed(format!("TLS to {name} failed: {error}"))),
        }
    }

    async fn connector(&self, host: &PostgresHost) -> Result<TlsConnector, String> {
        let roots = match &self.roots {
            Some(roots) => {
                let roots = roots.clone();
                let read = spawn_blocking(move || roots.load()).await;
                Some(read.map_err(|error| error.to_string())??)
            }
            // As libpq, these modes do not connect without trusted authorities.
            None if self.mode.verifies() => {
                return Err(format!("DB_SSL_MODE={} needs DB_SSL_ROOT_CERT", self.mode.name()));
            }
            None => None,
        };
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let host = (self.mode == SslMode::VerifyFull).then(|| host.name.clone());
        let verifier = Verifier::new(&provider, roots, host);
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier));
        let config = match self.client_cert().await? {
            Some(client) => config.with_client_cert_resolver(client),
            None => config.with_no_client_auth(),
        };
        Ok(TlsConnector::from(Arc::new(config)))
    }

    async fn client_cert(&self) -> Result<Option<Arc<dyn ResolvesClientCert>>, String> {
        let Some(client) = self.client.clone() else { return Ok(None) };
        let read =
            spawn_blocking(move || client.load()).await.map_err(|error| error.to_string())?;
        Ok(Some(Arc::new(SingleCertAndKey::from(read?))))
    }
}

/// Returns the name that is sent to the server (SNI). The verifier compares names.
fn server_name(host: &PostgresHost) -> ServerName<'static> {
    ServerName::try_from(host.name.clone())
        .unwrap_or(ServerName::IpAddress(IpAddr::from([0, 0, 0, 0]).into()))
}

impl SslMode {
    /// Returns the name of the mode in libpq.
    pub fn name(self) -> &'static str {
        match self {
            Self::Disable => "disable",
            Self::Allow => "allow",
            Self::Prefer => "prefer",
            Self::Require => "require",
            Self::VerifyCa => "verify-ca",
            Self::VerifyFull => "verify-full",
        }
    }

    /// Returns whether this mode connects only to a server with a verified certificate.
    pub fn verifies(self) -> bool {
        matches!(self, Self::VerifyCa | Self::VerifyFull)
    }
}

/// The first byte of an error message of the server.
const ERROR: u8 = b'E';

/// Reads the first message of a client, with its length.
async fn read_startup(near: &mut UnixStream) -> io::Result<Vec<u8>> {
    /// The longest startup message that the server accepts.
    const LONGEST: usize = 10_000;
    let mut length = [0; 4];
    near.read_exact(&mut length).await?;
    let whole = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
    if !(8..=LONGEST).contains(&whole) {
        return Err(ErrorKind::InvalidData.into());
    }
    let mut startup = vec![0; whole];
    startup[..4].copy_from_slice(&length);
    near.read_exact(&mut startup[4..]).await?;
    Ok(startup)
}

/// Waits until a client that waits for its answer has closed the connection.
async fn left(near: &UnixStream) {
    while near.readable().await.is_ok() {
        match near.try_read(&mut [0]) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            _ => return,
        }
    }
}

/// Asks the server for TLS, and returns whether it supports it.
async fn offers_tls(stream: &mut TcpStream) -> io::Result<bool> {
    const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];
    stream.write_all(&SSL_REQUEST).await?;
    // Read only one byte. An attacker may have added bytes after it, and they must not count as
    // bytes of the server.
    match stream.read_u8().await? {
        b'S' => Ok(true),
        b'N' => Ok(false),
        _ => Err(io::Error::other("the server answered the request for TLS with an error")),
    }
}

/// Sends the startup message, and reads the beginning of the answer.
async fn begin_session(far: Far, startup: &[u8]) -> io::Result<(Far, Vec<u8>)> {
    async fn ask(
        far: &mut (impl AsyncRead + AsyncWrite + Unpin),
        startup: &[u8],
    ) -> io::Result<Vec<u8>> {
        let sent = match far.write_all(startup).await {
            Ok(()) => far.flush().await,
            error => error,
        };
        let mut answer = vec![0; 1_024];
        // A server that refuses a client certificate says why and closes the connection. With TLS
        // 1.3 this may be before the startup message is sent.
        let length = far.read(&mut answer).await?;
        sent?;
        if length == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        answer.truncate(length);
        Ok(answer)
    }
    match far {
        Far::Plain(mut far) => {
            let answer = ask(&mut far, startup).await?;
            Ok((Far::Plain(far), answer))
        }
        Far::Tls(mut far) => {
            let answer = ask(&mut *far, startup).await?;
            Ok((Far::Tls(far), answer))
        }
    }
}

/// The limit for the last message and the end of TLS. A silent server may not read them.
const FAREWELL: Duration = Duration::from_secs(1);

/// Forwards both directions until one of them ends. Neither side closes only one direction.
async fn exchange(mut near: UnixStream, far: impl AsyncRead + AsyncWrite + Unpin, answer: &[u8]) {
    if near.write_all(answer).await.is_err() {
        return;
    }
    let (mut from_near, mut to_near) = near.split();
    let (mut from_far, mut to_far) = split(far);
    tokio::select! {
        _ = copy(&mut from_near, &mut to_far) => {
            let _ = timeout(FAREWELL, to_far.shutdown()).await;
        }
        _ = copy(&mut from_far, &mut to_near) => {}
    }
}

impl Failure {
    /// Returns the failure as an error message of the server.
    fn as_message(&self) -> Vec<u8> {
        /// `cannot_connect_now` and `connection_exception`.
        const CODES: [&str; 2] = ["57P03", "08000"];
        let code = CODES[usize::from(!self.transient)];
        let mut fields = Vec::new();
        for (kind, text) in [(b'S', "FATAL"), (b'V', "FATAL"), (b'C', code), (b'M', &*self.why)] {
            fields.push(kind);
            fields.extend(text.bytes().filter(|byte| *byte != 0));
            fields.push(0);
        }
        fields.push(0);
        let mut message = vec![ERROR];
        let length = u32::try_from(fields.len() + 4).unwrap_or(u32::MAX);
        message.extend(length.to_be_bytes());
        message.extend(fields);
        message
    }
}
