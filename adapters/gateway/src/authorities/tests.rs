use std::{fs, time::Duration};

use application::ports::{SendError, SmsGateway};
use serde_json::json;
use tokio::net::TcpListener;

use super::*;
use crate::{
    client::ClientSettings,
    http_gateway::HttpGateway,
    spec::ProviderSpec,
    testing::{AMPLE, Certificates, made, sms},
};

#[test]
fn file_that_cannot_be_used_is_named() {
    let certificates = Certificates::make("authorities");
    let path = certificates.path("ca.pem");
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

#[tokio::test]
async fn private_authority_is_trusted_if_it_is_set_and_no_other_is() {
    let certificates = Certificates::make("private-authority");
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}", listener.local_addr().unwrap());
    tokio::spawn(crate::testing::serve_tls(
        listener,
        certificates.read("server.crt"),
        certificates.read("server.key"),
    ));
    let send = async |authorities| {
        let provider = made(ProviderSpec::of("webhook").unwrap(), &json!({"url": &url}));
        let settings = ClientSettings { timeout: AMPLE, keep_alive: Duration::ZERO, authorities };
        HttpGateway::new(provider, settings).unwrap().send(&sms()).await
    };

    let trusted = send(Authorities::read(&certificates.path("ca.crt")).unwrap()).await;
    let unknown = send(Authorities::Public).await;

    assert!(trusted.is_ok(), "{trusted:?}");
    assert!(matches!(unknown, Err(SendError::Unavailable { .. })), "{unknown:?}");
}
