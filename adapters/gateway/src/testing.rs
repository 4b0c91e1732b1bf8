//! Helpers of the tests of gateways and of the event sink.

mod fake;
mod notes;
mod provided;
pub(crate) mod short;

use std::{
    collections::BTreeMap,
    path::PathBuf,
    process::Command,
    sync::Arc,
    time::{Duration, SystemTime},
};

use application::ports::Sms;
use domain::{Message, MessageId};
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};
use tokio_rustls::TlsAcceptor;

pub(crate) use self::{
    fake::{Fake, Received, Reply},
    notes::Notes,
    provided::{
        answer, check_unexplained, class_of, gateway, http_gateway, judge, judge_with, made,
        problems, receipt_call, receipts, request_of, status_of, written,
    },
};

/// A limit for answers that come, on a machine of any speed.
pub(crate) const AMPLE: Duration = Duration::from_secs(20);

/// A limit for answers that never come.
pub(crate) const SHORT: Duration = Duration::from_millis(200);

pub(crate) const PHONE: &str = "79991234567";
pub(crate) const CODE: &str = "482915";

/// Returns the time of the calls: 2023-11-14T22:13:20.123Z.
pub(crate) fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_millis(1_700_000_000_123)
}

/// An SMS to [`PHONE`] with [`CODE`], at [`now`] and good for five minutes more.
pub(crate) fn sms() -> Sms {
    let good_for = Duration::from_secs(300);
    Sms {
        message: Message {
            id: MessageId::of_record("test", 0, 1, 0),
            phone: PHONE.parse().unwrap(),
            code: CODE.parse().unwrap(),
        },
        code: CODE.parse().unwrap(),
        text: format!("Your code: {CODE}"),
        expires_at: now() + good_for,
        good_for,
        trace: None,
        sender: None,
        params: Arc::default(),
        callback: Some("https://messager.example/v1/receipts/main?id=1&token=t".to_owned()),
    }
}

/// The id of [`sms`].
pub(crate) fn message_id() -> MessageId {
    sms().message.id
}

/// The URL for receipts that names the message of [`sms`].
pub(crate) fn message_url() -> String {
    format!("https://messager.example/v1/receipts/main?id={}&token=t", message_id())
}

/// The same with a text that needs UCS-2.
pub(crate) fn cyrillic() -> Sms {
    Sms { text: format!("Ваш код: {CODE}"), ..sms() }
}

/// The same for a route with a sender and parameters.
pub(crate) fn routed(sender: &str, params: &[(&str, &str)]) -> Sms {
    let params: BTreeMap<String, String> =
        params.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    Sms { sender: Some(sender.into()), params: Arc::new(params), ..sms() }
}

/// Asserts that a text contains neither the number nor the code.
#[track_caller]
pub(crate) fn assert_tells_nothing(text: &str) {
    for secret in [PHONE, CODE] {
        assert!(!text.contains(secret), "{text}");
    }
}

/// A folder with `ca.crt` and a server's `server.crt` and `server.key`. It is removed at the end.
pub(crate) struct Certificates(PathBuf);

impl Drop for Certificates {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

impl Certificates {
    /// Makes an authority, and a certificate for 127.0.0.1 that it signs.
    pub(crate) fn make(test: &str) -> Self {
        const SCRIPT: &str = r#"
set -e
cd "$1"
key() { openssl ecparam -name prime256v1 -genkey -noout | openssl pkcs8 -topk8 -nocrypt -out "$1.key"; }
key ca
openssl req -new -x509 -key ca.key -subj /CN=ca -days 100 -out ca.crt
key server
openssl req -new -key server.key -subj /CN=server -out server.csr
printf 'subjectAltName=IP:127.0.0.1\n' >server.ext
openssl x509 -req -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 100 \
    -extfile server.ext -out server.crt
"#;
        let folder = std::env::temp_dir().join(format!("messager-{test}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let openssl = Command::new("sh").args(["-c", SCRIPT, "-"]).arg(&folder).output().unwrap();
        assert!(openssl.status.success(), "openssl makes the certificates");
        Self(folder)
    }

    pub(crate) fn path(&self, file: &str) -> PathBuf {
        self.0.join(file)
    }

    pub(crate) fn read(&self, file: &str) -> Vec<u8> {
        std::fs::read(self.path(file)).unwrap()
    }
}

/// Answers 200 to each connection over TLS.
pub(crate) async fn serve_tls(listener: TcpListener, certificates: Vec<u8>, key: Vec<u8>) {
    let certificates: Vec<_> =
        CertificateDer::pem_slice_iter(&certificates).collect::<Result<_, _>>().unwrap();
    let key = PrivateKeyDer::from_pem_slice(&key).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(certificates, key)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    while let Ok((stream, _)) = listener.accept().await {
        // A client that does not trust us gives up here.
        let Ok(mut stream) = acceptor.accept(stream).await else { continue };
        read_request(&mut stream).await;
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
        let _ = stream.shutdown().await;
    }
}

/// Reads the bytes of one request, head and body.
pub(crate) async fn read_request(stream: &mut (impl AsyncRead + Unpin)) -> String {
    let mut request = Vec::new();
    loop {
        let read = stream.read_buf(&mut request).await.unwrap();
        assert_ne!(read, 0, "the request breaks off: {}", request.escape_ascii());
        let text = String::from_utf8_lossy(&request);
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        if body.len() >= length.map_or(0, |length| length.parse().unwrap()) {
            return text.into_owned();
        }
    }
}
