//! The API with TLS of its own.

use std::{fs, path::Path, process::Command, sync::Arc, time::Duration};

use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, pem::PemObject},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;

use super::support::{ACCEPTED, Binary, Folder, Running, eventually};

/// Makes `ca.crt`, and `one` and `two`, which it has signed for `localhost`.
const CERTIFICATES: &str = include_str!("../../../adapters/http/src/server/tests/certificates.sh");

/// Makes the pair that the service reads. Everyone may read its key.
const CURRENT: &str = "cp one.crt current.crt && cp one.key current.key && chmod 644 current.key";

/// Sends a request over a new connection. Returns the answer, and the certificate of the server.
async fn ask(running: &Running, folder: &Path, request: &str) -> (String, CertificateDer<'static>) {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(folder.join("ca.crt")).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let stream = TcpStream::connect(("127.0.0.1", running.port)).await.unwrap();
    let connector = TlsConnector::from(Arc::new(config));
    let mut stream = connector.connect("localhost".try_into().unwrap(), stream).await.unwrap();
    let certificate = stream.get_ref().1.peer_certificates().unwrap()[0].clone().into_owned();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    (answer, certificate)
}

#[tokio::test]
#[expect(clippy::disallowed_methods, reason = "certificates have dates of this machine's clock")]
async fn renewed_certificate_is_shown_without_a_restart() {
    const SEND: &str = "POST /api HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
                        Content-Type: application/json\r\n\
                        Content-Length: 23\r\n\r\n{\"phone\":\"79990000001\"}";
    const DOCS: &str = "GET /docs HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    let folder = Folder::new();
    let path = |name: &str| folder.path().join(name);
    let certificate = |name: &str| CertificateDer::from_pem_file(path(name)).unwrap();
    for script in [CERTIFICATES, CURRENT] {
        let made =
            Command::new("sh").args(["-c", script]).current_dir(folder.path()).output().unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    }
    let messager = Binary::new("messager", folder.path())
        .env("APP_TLS_CERT", "current.crt")
        .env("APP_TLS_KEY", "current.key")
        .ready()
        .await;
    assert!(messager.stderr().contains("APP_TLS_KEY names current.key, which every user"));

    let (answer, shown) = ask(&messager, folder.path(), SEND).await;
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with(ACCEPTED), "{answer}");
    assert_eq!(shown, certificate("one.crt"));
    let (docs, _) = ask(&messager, folder.path(), DOCS).await;
    assert!(docs.starts_with("HTTP/1.1 200 "), "{docs}");
    let name = "messager_certificate_expiry_timestamp_seconds{certificate=\"api\"}";
    let expires = messager.metric(name).await.unwrap();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let days = (expires - now.as_secs_f64()) / 86_400.0;
    assert!((9.0..11.0).contains(&days), "{days}");

    fs::copy(path("two.crt"), path("current.crt")).unwrap();
    fs::copy(path("two.key"), path("current.key")).unwrap();

    eventually("the renewed certificate", Duration::from_secs(20), async || {
        let (answer, shown) = ask(&messager, folder.path(), DOCS).await;
        assert!(answer.starts_with("HTTP/1.1 200 "));
        (shown == certificate("two.crt")).then_some(())
    })
    .await;
}
