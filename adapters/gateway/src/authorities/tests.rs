use std::{fs, path::PathBuf, process::Command, time::Duration};

use application::ports::{SendError, SmsGateway};
use serde_json::json;
use tokio::net::TcpListener;

use super::*;
use crate::{
    client::ClientSettings,
    http_gateway::HttpGateway,
    spec::ProviderSpec,
    testing::{AMPLE, made, sms},
};

/// A folder that is removed at the end of the test.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn folder(name: &str) -> Folder {
    let path = std::env::temp_dir().join(format!("messager-{name}-{}", std::process::id()));
    fs::create_dir_all(&path).unwrap();
    Folder(path)
}

#[test]
fn file_that_cannot_be_used_is_named() {
    let folder = folder("authorities");
    let path = folder.0.join("ca.pem");
    let problem = || Authorities::read(&path).unwrap_err();

    let missing = problem();
    fs::write(&path, "no certificate").unwrap();
    let empty = problem();
    fs::write(&path, "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n").unwrap();
    let broken = problem();
    fs::write(&path, "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").unwrap();
    let wrong = problem();

    for (problem, expected) in [
        (missing, "No such file"),
        (empty, "it contains no certificate"),
        (broken, "it is not a PEM file"),
        (wrong, "BadEncoding"),
    ] {
        assert!(problem.contains("ca.pem") && problem.contains(expected), "{problem}");
    }
}

/// Makes an authority, and a certificate for 127.0.0.1 that it signs.
const CERTIFICATES: &str = r#"
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

#[tokio::test]
async fn private_authority_is_trusted_if_it_is_set_and_no_other_is() {
    let folder = folder("private-authority");
    let openssl = Command::new("sh").args(["-c", CERTIFICATES, "-"]).arg(&folder.0).output();
    assert!(openssl.unwrap().status.success(), "openssl makes the certificates");
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}", listener.local_addr().unwrap());
    tokio::spawn(crate::testing::serve_tls(
        listener,
        fs::read(folder.0.join("server.crt")).unwrap(),
        fs::read(folder.0.join("server.key")).unwrap(),
    ));
    let send = async |authorities| {
        let provider = made(ProviderSpec::of("webhook").unwrap(), &json!({"url": &url}));
        let settings = ClientSettings { timeout: AMPLE, keep_alive: Duration::ZERO, authorities };
        HttpGateway::new(provider, settings).unwrap().send(&sms()).await
    };

    let trusted = send(Authorities::read(&folder.0.join("ca.crt")).unwrap()).await;
    let unknown = send(Authorities::Public).await;

    assert!(trusted.is_ok(), "{trusted:?}");
    assert!(matches!(unknown, Err(SendError::Unavailable { .. })), "{unknown:?}");
}
