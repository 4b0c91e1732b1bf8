//! The same server over TLS.

use std::{fs, path::PathBuf, process::Command};

use adapters_pem::read_certificates;
use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion, version};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::*;

/// Certificates for `localhost`, which `ca.crt` has signed. The folder is removed at the end.
struct Certificates(PathBuf);

impl Drop for Certificates {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

impl Certificates {
    /// Makes the authority, `one.crt` and `two.crt`.
    fn make(test: &str) -> Self {
        const SCRIPT: &str = include_str!("certificates.sh");
        let folder = std::env::temp_dir().join(format!("messager-{test}-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let made = Command::new("sh").args(["-c", SCRIPT]).current_dir(&folder).output().unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        Self(folder)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn read(&self, name: &str) -> ServerCertificate {
        let [certificate, key] = ["crt", "key"].map(|it| self.path(&format!("{name}.{it}")));
        ServerCertificate::read(&certificate, &key).unwrap()
    }

    fn tls(&self) -> ServerTls {
        ServerTls::new(self.read("one"))
    }

    fn with_tls(&self) -> impl FnOnce(Listeners) -> Listeners + use<> {
        let tls = self.tls();
        |listeners| listeners.with_tls(tls)
    }

    fn connector(&self, version: &'static SupportedProtocolVersion) -> TlsConnector {
        let mut roots = RootCertStore::empty();
        roots.add(read_certificates(&self.path("ca.crt")).unwrap().remove(0)).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[version])
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        TlsConnector::from(Arc::new(config))
    }

    /// Completes the handshake.
    async fn shake(&self, stream: TcpStream) -> TlsStream<TcpStream> {
        let connector = self.connector(&version::TLS13);
        within(connector.connect("localhost".try_into().unwrap(), stream)).await.unwrap()
    }

    async fn connect(&self, server: &Server) -> TlsStream<TcpStream> {
        self.shake(server.connect().await).await
    }
}

/// Returns the common name in the certificate of the server.
fn shown(stream: &TlsStream<TcpStream>, certificates: &Certificates) -> &'static str {
    let shown = &stream.get_ref().1.peer_certificates().unwrap()[0];
    let is = |name: &&str| {
        let path = certificates.path(&format!("{name}.crt"));
        read_certificates(&path).unwrap()[0] == *shown
    };
    ["one", "two"].into_iter().find(is).unwrap()
}

#[tokio::test]
async fn each_version_of_tls_serves_requests_of_http_1_1() {
    let certificates = Certificates::make("tls-versions");
    let server = start_on(certificates.with_tls(), true, patient(), DEADLINE).await;

    for version in [&version::TLS12, &version::TLS13] {
        let connector = certificates.connector(version);
        let stream = server.connect().await;
        let mut stream =
            within(connector.connect("localhost".try_into().unwrap(), stream)).await.unwrap();
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
        for _ in 0..2 {
            send(&mut stream, [REQUEST, REQUEST].concat()).await;
            for _ in 0..2 {
                let text = answer(&mut stream).await;
                assert_answer(&text, "HTTP/1.1 200 OK\r\n", ACCEPTED);
            }
        }
    }
    server.stopped().await;
}

#[tokio::test]
async fn replaced_certificate_is_shown_to_new_connections_and_old_ones_go_on() {
    let certificates = Certificates::make("tls-replaced");
    let tls = certificates.tls();
    let server = start_on(|it| it.with_tls(tls.clone()), true, patient(), DEADLINE).await;
    let mut before = certificates.connect(&server).await;
    assert_eq!(shown(&before, &certificates), "one");

    assert!(!tls.replace(certificates.read("one")), "the same certificate");
    assert!(tls.replace(certificates.read("two")));

    let mut after = certificates.connect(&server).await;
    assert_eq!(shown(&after, &certificates), "two");
    for stream in [&mut before, &mut after] {
        send(stream, REQUEST).await;
        assert_answer(&answer(stream).await, "HTTP/1.1 200 OK\r\n", ACCEPTED);
    }
    server.stopped().await;
}

#[tokio::test]
async fn handshake_that_does_not_proceed_is_cut_and_delays_no_other_client() {
    let certificates = Certificates::make("tls-slow");
    let limits = ServerLimits { first_byte_timeout: SHORT, ..patient() };
    let server = start_on(certificates.with_tls(), true, limits, DEADLINE).await;
    let mut silent = server.connect().await;
    let mut half = server.connect().await;
    // The beginning of a record of 512 bytes.
    send(&mut half, b"\x16\x03\x01\x02\x00\x01").await;

    let mut good = certificates.connect(&server).await;
    send(&mut good, REQUEST).await;
    assert_answer(&answer(&mut good).await, "HTTP/1.1 200 OK\r\n", ACCEPTED);

    for stream in [&mut silent, &mut half] {
        assert_eq!(rest(stream).await, "");
    }
    // After the handshake the same time runs on until the first byte of a request.
    let mut opened = certificates.connect(&server).await;
    assert_eq!(rest(&mut opened).await, "");
    server.stopped().await;
}

#[tokio::test]
async fn client_that_speaks_no_tls_ends_its_own_connection_only() {
    let certificates = Certificates::make("tls-plain");
    let server = start_on(certificates.with_tls(), true, patient(), DEADLINE).await;
    let mut good = certificates.connect(&server).await;

    let mut plain = server.connect().await;
    send(&mut plain, REQUEST).await;
    let mut text = Vec::new();
    let _ = within(plain.read_to_end(&mut text)).await;
    assert!(!text.starts_with(b"HTTP/"), "{text:?}");

    send(&mut good, REQUEST).await;
    assert_answer(&answer(&mut good).await, "HTTP/1.1 200 OK\r\n", ACCEPTED);
    server.stopped().await;
}

/// The connection has sent nothing, is in its handshake, or has sent half of a request.
#[tokio::test]
async fn connection_that_makes_room_is_answered_503_over_tls() {
    let certificates = Certificates::make("tls-room");
    let limits =
        ServerLimits { max_connections: 1, patience: Duration::from_millis(10), ..patient() };
    for has_opened in [false, true] {
        let server = start_on(certificates.with_tls(), true, limits, DEADLINE).await;
        let early = server.connect().await;
        let early = if has_opened {
            let mut opened = certificates.shake(early).await;
            send(&mut opened, &REQUEST[..20]).await;
            Ok(opened)
        } else {
            Err(early)
        };
        sleep(Duration::from_millis(100)).await;

        let mut late = certificates.connect(&server).await;
        send(&mut late, REQUEST).await;
        assert_answer(&answer(&mut late).await, "HTTP/1.1 200 OK\r\n", ACCEPTED);
        assert_eq!(server.connections.dropped.get(), 1);

        let mut early = match early {
            Ok(opened) => opened,
            Err(stream) => certificates.shake(stream).await,
        };
        send(&mut early, &REQUEST[if has_opened { 20 } else { 0 }..]).await;
        assert!(rest(&mut early).await.starts_with("HTTP/1.1 503 "), "{has_opened}");
        server.stopped().await;
    }
}

#[tokio::test]
async fn connection_beyond_the_limit_is_answered_503_over_tls() {
    let certificates = Certificates::make("tls-full");
    let limits = ServerLimits { max_connections: 1, ..patient() };
    let mut server = start_on(certificates.with_tls(), false, limits, DEADLINE).await;
    let mut busy = certificates.connect(&server).await;
    send(&mut busy, REQUEST).await;
    within(server.entered.recv()).await.unwrap();

    let mut refused = certificates.connect(&server).await;
    send(&mut refused, REQUEST).await;
    assert!(rest(&mut refused).await.starts_with("HTTP/1.1 503 "));

    server.open.notify_one();
    assert_answer(&rest(&mut busy).await, "HTTP/1.1 200 OK\r\n", ACCEPTED);
    server.stopped().await;
}

#[tokio::test]
async fn shutdown_waits_for_no_handshake() {
    let certificates = Certificates::make("tls-shutdown");
    let limits =
        ServerLimits { grace: 10 * DEADLINE, patience: Duration::from_millis(100), ..patient() };
    let server = start_on(certificates.with_tls(), true, limits, DEADLINE).await;
    let mut silent = server.connect().await;
    let mut idle = certificates.connect(&server).await;
    send(&mut idle, REQUEST).await;
    answer(&mut idle).await;

    server.stopped().await;

    assert_eq!(rest(&mut silent).await, "");
    assert_eq!(rest(&mut idle).await, "");
}

#[test]
fn key_of_another_certificate_is_refused() {
    let certificates = Certificates::make("tls-mismatch");
    let read = |certificate: &str, key: &str| {
        ServerCertificate::read(&certificates.path(certificate), &certificates.path(key))
            .map(|_| ())
            .unwrap_err()
    };

    let mismatch = read("one.crt", "two.key");
    let swapped = read("one.key", "one.crt");

    let is_no_key = "is not the key of the certificate".to_owned();
    assert_eq!(mismatch, [(CertificateFile::Key, is_no_key)]);
    assert_eq!(swapped.len(), 2, "{swapped:?}");
    let files = swapped.iter().map(|it| it.0).collect::<Vec<_>>();
    assert_eq!(files, [CertificateFile::Certificate, CertificateFile::Key]);
}

#[test]
#[expect(clippy::disallowed_methods, reason = "certificates have dates of this machine's clock")]
fn certificate_knows_when_it_expires_and_shows_no_key() {
    let certificates = Certificates::make("tls-expiry");
    let certificate = certificates.read("one");

    let left = certificate.expires().duration_since(SystemTime::now()).unwrap();

    let day = Duration::from_secs(86_400);
    assert!(left > 9 * day && left < 11 * day, "{left:?}");
    assert!(!format!("{certificate:?}").contains("key"));
}
