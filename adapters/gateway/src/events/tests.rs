use std::{
    convert::Infallible,
    future::{Ready, ready},
    net::{IpAddr, Ipv4Addr},
    sync::{Arc, Mutex},
    task::{Context, Poll},
    vec,
};

use application::ports::{EventClaim, EventKind};
use domain::{Channel, Metadata};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

use super::*;
use crate::testing::{AMPLE, Certificates, SHORT, read_request};

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const OTHER_SECRET: &str = "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
const ID: &str = "6f2c1a529d3f4f0e8a550d2f6f3b9c11";

fn at(milliseconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_millis(milliseconds)
}

fn event() -> DueEvent {
    DueEvent {
        claim: EventClaim { sequence: 1, attempt: 1 },
        id: ID.to_owned(),
        kind: EventKind::Approved,
        at: at(1_700_000_000_123),
        claimed_at: at(1_700_000_007_999),
        verification: "ver_6f2c1a529d3f4f0e8a550d2f6f3b9c00".parse().ok(),
        phone: Some("+7999*****67".to_owned()),
        metadata: Some(Metadata::new(r#"{"user":"42","order":"ы"}"#.to_owned())),
        channel: Channel::Sms,
        test: false,
        delivery: None,
        reason: None,
    }
}

fn settings(url: &str, timeout: Duration) -> EventSinkSettings {
    EventSinkSettings {
        timeout,
        allow_private: true,
        ..EventSinkSettings::new(url.parse().unwrap(), SECRET.parse().unwrap())
    }
}

fn sink(url: &str, timeout: Duration) -> WebhookEventSink {
    WebhookEventSink::new(settings(url, timeout)).unwrap()
}

async fn listen() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/events?key=k", listener.local_addr().unwrap());
    (listener, url)
}

/// Answers one request and returns it.
async fn answer(listener: &TcpListener, answer: &[u8]) -> String {
    let (mut stream, _) = listener.accept().await.unwrap();
    let request = read_request(&mut stream).await;
    // The client may have closed the connection already.
    let _ = stream.write_all(answer).await;
    let _ = stream.shutdown().await;
    let _ = stream.read(&mut [0]).await;
    request
}

fn answering(listener: TcpListener, bytes: impl Into<Vec<u8>>) -> JoinHandle<String> {
    let bytes = bytes.into();
    tokio::spawn(async move { answer(&listener, &bytes).await })
}

async fn outcome_of(bytes: impl Into<Vec<u8>>) -> Result<(), PostError> {
    let (listener, url) = listen().await;
    let server = answering(listener, bytes);
    let sink = sink(&url, AMPLE);
    let outcome = sink.post(&event()).await;
    drop(sink);
    server.await.unwrap();
    if let Err(error) = &outcome {
        assert!(!format!("{error} {error:?}").contains("=k"), "{error:?}");
    }
    outcome
}

fn failed(detail: &str, seconds: Option<u64>) -> PostError {
    PostError::Failed { detail: detail.to_owned(), retry_after: seconds.map(Duration::from_secs) }
}

#[tokio::test]
async fn request_has_the_documented_bytes() {
    let (listener, url) = listen().await;
    let server = answering(listener, "HTTP/1.1 204 No Content\r\n\r\n");
    let secrets: EventSecrets = format!("{SECRET},{OTHER_SECRET}").parse().unwrap();
    let settings = EventSinkSettings { secrets: secrets.clone(), ..settings(&url, AMPLE) };
    let sink = WebhookEventSink::new(settings).unwrap();
    let host = sink.target.authority();

    sink.post(&event()).await.unwrap();
    drop(sink);

    let body = r#"{"type":"verification.approved","timestamp":"2023-11-14T22:13:20.123Z","data":{"id":"ver_6f2c1a529d3f4f0e8a550d2f6f3b9c00","phone":"+7999*****67","channel":"sms","metadata":{"order":"ы","user":"42"}}}"#;
    let signature = secrets.sign(&format!("evt_{ID}"), 1_700_000_007, body.as_bytes());
    let expected = format!(
        "POST /events?key=k HTTP/1.1\r\n\
         content-type: application/json\r\n\
         user-agent: messager/{}\r\n\
         webhook-id: evt_{ID}\r\n\
         webhook-timestamp: 1700000007\r\n\
         webhook-signature: {signature}\r\n\
         host: {host}\r\n\
         content-length: {}\r\n\r\n{body}",
        env!("CARGO_PKG_VERSION"),
        body.len(),
    );
    assert_eq!(server.await.unwrap(), expected);
    assert_eq!(signature.split(' ').count(), 2, "one signature for each secret");
}

#[test]
fn body_is_the_same_at_each_try() {
    let again = DueEvent {
        claim: EventClaim { sequence: 1, attempt: 7 },
        claimed_at: at(1_700_009_000_000),
        ..event()
    };

    assert_eq!(body(&again), body(&event()));
}

#[test]
fn body_describes_its_event() {
    let text = |event: &DueEvent| String::from_utf8(body(event).to_vec()).unwrap();

    let sent = DueEvent {
        kind: EventKind::Failed,
        channel: Channel::Telegram,
        metadata: None,
        delivery: Some("expired".to_owned()),
        ..event()
    };
    assert_eq!(
        text(&sent),
        r#"{"type":"verification.failed","timestamp":"2023-11-14T22:13:20.123Z","data":{"id":"ver_6f2c1a529d3f4f0e8a550d2f6f3b9c00","phone":"+7999*****67","channel":"telegram","delivery":"expired"}}"#
    );
    let unaffordable = DueEvent {
        kind: EventKind::Failed,
        metadata: None,
        delivery: Some("failed".to_owned()),
        reason: Some("budget-exhausted".to_owned()),
        ..event()
    };
    assert!(
        text(&unaffordable).ends_with(r#""delivery":"failed","reason":"budget-exhausted"}}"#),
        "{}",
        text(&unaffordable)
    );
    let rerouted = DueEvent {
        kind: EventKind::Rerouted,
        metadata: None,
        delivery: None,
        reason: Some("no-receipt".to_owned()),
        ..event()
    };
    assert_eq!(
        text(&rerouted),
        r#"{"type":"verification.rerouted","timestamp":"2023-11-14T22:13:20.123Z","data":{"id":"ver_6f2c1a529d3f4f0e8a550d2f6f3b9c00","phone":"+7999*****67","channel":"sms","reason":"no-receipt"}}"#
    );
    let of_a_test = DueEvent { metadata: None, test: true, ..event() };
    assert_eq!(
        text(&of_a_test),
        r#"{"type":"verification.approved","timestamp":"2023-11-14T22:13:20.123Z","data":{"id":"ver_6f2c1a529d3f4f0e8a550d2f6f3b9c00","phone":"+7999*****67","channel":"sms","test":true}}"#
    );
    let blocked =
        DueEvent { kind: EventKind::Blocked, verification: None, metadata: None, ..event() };
    assert_eq!(
        text(&blocked),
        r#"{"type":"verification.blocked","timestamp":"2023-11-14T22:13:20.123Z","data":{"phone":"+7999*****67"}}"#
    );
}

#[tokio::test]
async fn every_status_has_its_outcome() {
    for status in [200, 201, 202, 204, 299] {
        let bytes = format!("HTTP/1.1 {status} Yes\r\ncontent-length: 0\r\n\r\n");
        assert_eq!(outcome_of(bytes).await, Ok(()), "{status}");
    }
    for status in [300, 304, 400, 401, 403, 404, 408, 409, 422, 429, 500, 502, 503, 599] {
        let bytes = format!("HTTP/1.1 {status} No\r\ncontent-length: 0\r\n\r\n");
        let expected = failed(&format!("status {status}"), None);
        assert_eq!(outcome_of(bytes).await, Err(expected));
    }
    let gone = "HTTP/1.1 410 Gone\r\nretry-after: 5\r\ncontent-length: 0\r\n\r\n";
    assert_eq!(outcome_of(gone).await, Err(PostError::Gone));
}

#[tokio::test]
async fn failure_has_the_retry_time() {
    let date = "date: Tue, 15 Nov 1994 08:12:31 GMT\r\n";
    for (header, seconds) in [
        ("retry-after: 30\r\n".to_owned(), Some(30)),
        (format!("retry-after: Tue, 15 Nov 1994 08:13:31 GMT\r\n{date}"), Some(60)),
        ("retry-after: later\r\n".to_owned(), None),
    ] {
        let bytes = format!("HTTP/1.1 503 No\r\n{header}content-length: 0\r\n\r\n");
        assert_eq!(outcome_of(bytes).await, Err(failed("status 503", seconds)));
    }
}

#[tokio::test]
async fn redirect_is_not_followed() {
    let (elsewhere, url) = listen().await;
    let bytes = format!("HTTP/1.1 307 There\r\nlocation: {url}\r\ncontent-length: 0\r\n\r\n");

    let outcome = outcome_of(bytes).await;

    assert_eq!(outcome, Err(failed("status 307", None)));
    let asked = tokio::time::timeout(Duration::ZERO, elsewhere.accept()).await;
    assert!(asked.is_err(), "the redirect was followed");
}

#[tokio::test]
async fn answer_is_read_up_to_64_kib() {
    let mut bytes = b"HTTP/1.1 200 OK\r\ncontent-length: 8000000\r\n\r\n".to_vec();
    bytes.resize(bytes.len() + 8_000_000, b'x');

    assert_eq!(outcome_of(bytes).await, Ok(()));
}

#[tokio::test]
async fn post_without_an_answer_is_a_failure() {
    let (listener, url) = listen().await;
    let late = sink(&url, SHORT).post(&event()).await;
    assert_eq!(late, Err(failed("no answer in time", None)));

    drop(listener);
    let refused = sink(&url, AMPLE).post(&event()).await;
    assert_eq!(refused, Err(failed("could not connect: connection refused", None)));

    let broken = outcome_of("HTTP/1.1 2").await;
    let detail = matches!(&broken, Err(PostError::Failed { detail, .. }) if detail.starts_with("no answer came back"));
    assert!(detail, "{broken:?}");
}

#[test]
fn url_needs_a_host_and_a_public_one_unless_private_ones_are_allowed() {
    let open = |url: &str, allow_private| {
        let settings = EventSinkSettings { allow_private, ..settings(url, AMPLE) };
        WebhookEventSink::new(settings)
    };

    for url in ["/events", "events.example", "ftp://events.example/"] {
        assert!(matches!(open(url, true), Err(InvalidEventSink::Url)), "{url}");
    }
    for url in ["http://127.0.0.1/", "https://u:p@[::1]:8443/", "http://[::ffff:10.0.0.1]/"] {
        assert!(matches!(open(url, false), Err(InvalidEventSink::NotPublic)), "{url}");
        open(url, true).unwrap();
    }
    for url in ["https://8.8.8.8/", "https://events.example/a", "http://[2606:4700::1]:80"] {
        open(url, false).unwrap();
    }
}

#[test]
fn debug_shows_the_host_only() {
    let url = "https://user:pass@events.example:8443/path?key=k";

    let shown = format!("{:?} {:?}", settings(url, AMPLE), sink(url, AMPLE));

    assert!(shown.contains("events.example"), "{shown}");
    for secret in ["user:", "pass", "path", "key", "MfKQ"] {
        assert!(!shown.contains(secret), "{secret}: {shown}");
    }
}

/// A resolver that answers each question with the next addresses, and then always with the last.
#[derive(Debug, Clone)]
struct Names(Arc<Mutex<Vec<Vec<SocketAddr>>>>);

impl Names {
    fn new(answers: &[&[Ipv4Addr]]) -> Self {
        let addresses = |answer: &&[Ipv4Addr]| {
            answer.iter().map(|address| SocketAddr::from((*address, 0))).collect()
        };
        Self(Arc::new(Mutex::new(answers.iter().map(addresses).collect())))
    }

    fn left(&self) -> usize {
        self.0.lock().unwrap().len()
    }
}

impl Service<Name> for Names {
    type Response = vec::IntoIter<SocketAddr>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Name) -> Self::Future {
        let mut answers = self.0.lock().unwrap();
        let answer = if answers.len() > 1 { answers.remove(0) } else { answers[0].clone() };
        ready(Ok(answer.into_iter()))
    }
}

/// One loopback address that counts as public, and one that does not.
const PUBLIC: Ipv4Addr = Ipv4Addr::LOCALHOST;
const PRIVATE: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);

fn permits(address: IpAddr) -> bool {
    address == IpAddr::V4(PUBLIC) || is_public(address)
}

async fn resolved(url: &str, names: &Names) -> Result<(), PostError> {
    let names = Guarded::new(names.clone(), permits);
    WebhookEventSink::with_names(settings(url, AMPLE), names).unwrap().post(&event()).await
}

#[tokio::test]
async fn private_addresses_are_refused_and_cannot_be_rebound() {
    let not_public = || failed("not connected: the host has an address that is not public", None);
    let public = TcpListener::bind((PUBLIC, 0)).await.unwrap();
    let port = public.local_addr().unwrap().port();
    let private = TcpListener::bind((PRIVATE, port)).await.unwrap();
    let url = format!("http://events.example:{port}/");

    for answer in [&[PRIVATE][..], &[PUBLIC, PRIVATE], &[PRIVATE, PUBLIC]] {
        let outcome = resolved(&url, &Names::new(&[answer])).await;
        assert_eq!(outcome, Err(not_public()), "{answer:?}");
    }

    // The name changes its address between the check and the connection, and is not resolved again.
    let names = Names::new(&[&[PUBLIC], &[PRIVATE]]);
    let outcome = resolved(&url, &names);
    let served = answer(&public, b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n");
    let (outcome, _) = tokio::join!(outcome, served);
    assert_eq!((outcome, names.left()), (Ok(()), 1));
    // The next connection checks the other address.
    assert_eq!(resolved(&url, &names).await, Err(not_public()));

    for listener in [public, private] {
        let asked = tokio::time::timeout(Duration::ZERO, listener.accept()).await;
        assert!(asked.is_err(), "a private address was connected to");
    }
}

#[tokio::test]
async fn name_of_this_host_is_refused() {
    let (listener, url) = listen().await;
    let url = url.replace("127.0.0.1", "localhost");

    let settings = EventSinkSettings { allow_private: false, ..settings(&url, AMPLE) };
    let outcome = WebhookEventSink::new(settings).unwrap().post(&event()).await;

    let detail = "not connected: the host has an address that is not public";
    assert_eq!(outcome, Err(failed(detail, None)));
    let asked = tokio::time::timeout(Duration::ZERO, listener.accept()).await;
    assert!(asked.is_err(), "this host was connected to");
}

#[tokio::test]
async fn consecutive_posts_share_a_connection() {
    let (listener, url) = listen().await;
    tokio::spawn(async move {
        let (mut stream, _): (TcpStream, _) = listener.accept().await.unwrap();
        drop(listener);
        for bytes in [
            "HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nfine",
            "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
        ] {
            read_request(&mut stream).await;
            stream.write_all(bytes.as_bytes()).await.unwrap();
        }
    });
    let sink = sink(&url, AMPLE);

    assert_eq!(sink.post(&event()).await, Ok(()));
    assert_eq!(sink.post(&event()).await, Ok(()));
}

#[tokio::test]
async fn private_authority_is_trusted_if_it_is_set_and_private_addresses_stay_closed() {
    let certificates = Certificates::make("events-authority");
    let (listener, url) = listen().await;
    tokio::spawn(crate::testing::serve_tls(
        listener,
        certificates.read("server.crt"),
        certificates.read("server.key"),
    ));
    let url = url.replace("http://", "https://");
    let authorities = Authorities::read(&certificates.path("ca.crt")).unwrap();
    let private = EventSinkSettings { authorities, ..settings(&url, AMPLE) };

    let trusted = WebhookEventSink::new(private.clone()).unwrap().post(&event()).await;
    let unknown = sink(&url, AMPLE).post(&event()).await;
    let closed = WebhookEventSink::new(EventSinkSettings { allow_private: false, ..private });

    assert!(trusted.is_ok(), "{trusted:?}");
    assert!(matches!(unknown, Err(PostError::Failed { .. })), "{unknown:?}");
    assert!(matches!(closed, Err(InvalidEventSink::NotPublic)), "{closed:?}");
}
