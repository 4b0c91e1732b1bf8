//! TLS, with certificates that OpenSSL makes.

use std::{path::PathBuf, process::Command};

use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use tokio_rustls::TlsAcceptor;

use super::{
    scripted::{Peer, Scripted},
    *,
};

/// Makes two authorities. `server` is signed by `ca` and valid for 127.0.0.1 only.
const CERTIFICATES: &str = r#"
set -e
key() { openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:prime256v1 -out "$1.key"; }
for ca in ca other; do
    key $ca
    openssl req -new -x509 -key $ca.key -subj "/CN=$ca" -days 100 -out $ca.crt
done
key server
openssl req -new -key server.key -subj "/CN=server" -out server.csr
printf 'subjectAltName=IP:127.0.0.1\n' >server.ext
openssl x509 -req -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 100 \
    -extfile server.ext -out server.crt
"#;

/// A folder with certificates, which is removed in the end. `None` without OpenSSL.
struct Certificates(PathBuf);

impl Certificates {
    fn make(name: &str) -> Option<Self> {
        let name = format!("messager-smpp-{name}-{}", std::process::id());
        let folder = Self(std::env::temp_dir().join(name));
        std::fs::create_dir_all(&folder.0).unwrap();
        let made = Command::new("sh").args(["-c", CERTIFICATES]).current_dir(&folder.0).output();
        if made.unwrap().status.success() {
            return Some(folder);
        }
        assert!(!required(), "openssl failed");
        eprintln!("skipped: openssl is missing");
        None
    }

    fn path(&self, file: &str) -> PathBuf {
        self.0.join(file)
    }

    fn acceptor(&self) -> TlsAcceptor {
        let read = |file| std::fs::read(self.path(file)).unwrap();
        let chain =
            CertificateDer::pem_slice_iter(&read("server.crt")).map(Result::unwrap).collect();
        let key = PrivateKeyDer::from_pem_slice(&read("server.key")).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap();
        Arc::new(config).into()
    }
}

#[expect(clippy::disallowed_methods, reason = "tests are told of their servers this way")]
fn required() -> bool {
    std::env::var_os("REQUIRE_SERVICES").is_some()
}

impl Drop for Certificates {
    fn drop(&mut self) {
        _ = std::fs::remove_dir_all(&self.0);
    }
}

#[tokio::test]
async fn a_message_goes_over_tls_if_the_authority_is_trusted() {
    let Some(certificates) = Certificates::make("trusted") else { return };
    let smsc = Scripted::start().await;
    let ca = Authorities::read(&certificates.path("ca.crt")).unwrap();
    let (gateway, _sink) = listening_with(SmppSettings { tls: true, ..smsc.settings() }, ca);
    let message = sms("a");

    let (outcome, peer) = tokio::join!(gateway.send(&message), async {
        let stream = certificates.acceptor().accept(smsc.accept().await).await.unwrap();
        let mut peer = Peer::new(stream);
        peer.accept_bind(b"").await;
        peer.accept_message("7").await;
        peer
    });

    assert_eq!(outcome.unwrap().reference.as_deref(), Some("7"));
    drop(peer);
}

#[tokio::test]
async fn a_certificate_of_another_authority_is_misconfigured() {
    let Some(certificates) = Certificates::make("other") else { return };
    let other = Authorities::read(&certificates.path("other.crt")).unwrap();
    for authorities in [other, Authorities::Public] {
        let smsc = Scripted::start().await;
        let settings = SmppSettings { tls: true, ..smsc.settings() };
        let (gateway, _sink) = listening_with(settings, authorities);
        let message = sms("a");

        let (outcome, refused) = tokio::join!(gateway.send(&message), async {
            certificates.acceptor().accept(smsc.accept().await).await.is_err()
        });

        let text = "the certificate of the SMSC is not trusted".to_owned();
        assert_eq!(outcome, Err(SendError::Misconfigured(text)));
        assert!(refused);
    }
}

#[test]
fn a_host_without_a_name_for_a_certificate_is_a_problem() {
    let settings = SmppSettings { tls: true, host: "a host".to_owned(), ..settings() };

    let problem = SmppGateway::new(settings, Authorities::Public).err();

    assert_eq!(problem.as_deref(), Some("is not a name that a certificate can have"));
}
