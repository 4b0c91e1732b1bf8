//! Calls of a webhook.
//!
//! This is one file, because all tests call the same fake gateway.

use std::{
    net::SocketAddr,
    time::{Duration, SystemTime},
};

use application::ports::{Sms, SmsGateway};
use base64::{Engine, engine::general_purpose::STANDARD};
use domain::{Message, MessageId};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    task::JoinHandle,
};

use super::*;
use crate::{
    answer::accepted,
    authorities::Authorities,
    client::{ClientSettings, KEEP_ALIVE},
    http_gateway::HttpGateway,
    testing::{self, AMPLE, SHORT, made, problems, read_request},
};

mod any_answer;

const PHONE: &str = "79991234567";
const CODE: &str = "482915";
const TRACE: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

fn sms() -> Sms {
    let message = Message {
        id: MessageId::of_record("test", 0, 1, 0),
        phone: PHONE.parse().unwrap(),
        code: CODE.parse().unwrap(),
    };
    let expires_at = SystemTime::UNIX_EPOCH + Duration::from_millis(1_700_000_000_123);
    let (code, text) = (CODE.parse().unwrap(), format!("Ваш код: {CODE}"));
    Sms { message, code, text, expires_at, trace: TRACE.parse().ok(), ..testing::sms() }
}

async fn listen() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/sms?key=k", listener.local_addr().unwrap());
    (listener, url)
}

fn gateway(url: &str, timeout: Duration) -> HttpGateway {
    kept_alive(url, timeout, KEEP_ALIVE)
}

fn kept_alive(url: &str, timeout: Duration, keep_alive: Duration) -> HttpGateway {
    let settings = ClientSettings { timeout, keep_alive, authorities: Authorities::Public };
    HttpGateway::new(made(&SPEC, &json!({"url": url})), settings).unwrap()
}

/// Answers one request with the bytes `answer`, and closes.
async fn answering(
    answer: impl Into<Vec<u8>>,
    timeout: Duration,
) -> (HttpGateway, SocketAddr, JoinHandle<String>) {
    let (listener, url) = listen().await;
    let address = listener.local_addr().unwrap();
    let answer = answer.into();
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let request = read_request(&mut stream).await;
        // The client may have closed the connection already.
        let _ = stream.write_all(&answer).await;
        let _ = stream.shutdown().await;
        // Wait until the client closes too, so that the connection is not reset before it reads.
        let _ = stream.read(&mut [0]).await;
        request
    });
    (gateway(&url, timeout), address, server)
}

async fn answer_to(answer: impl Into<Vec<u8>>) -> Result<Accepted, SendError> {
    let (gateway, _, server) = answering(answer, AMPLE).await;
    let outcome = gateway.send(&sms()).await;
    drop(gateway);
    server.await.unwrap();
    if let Err(error) = &outcome {
        assert_tells_nothing(&format!("{error} {error:?}"));
    }
    outcome
}

#[track_caller]
fn assert_tells_nothing(text: &str) {
    for secret in [PHONE, CODE, "k=", "=k", "secret"] {
        assert!(!text.contains(secret), "{text}");
    }
}

fn rejected(detail: &str) -> SendError {
    SendError::Rejected(detail.to_owned())
}

fn misconfigured(detail: &str) -> SendError {
    SendError::Misconfigured(detail.to_owned())
}

fn unavailable(detail: &str, seconds: Option<u64>) -> SendError {
    let retry_after = seconds.map(Duration::from_secs);
    SendError::Unavailable { detail: detail.to_owned(), retry_after }
}

#[tokio::test]
async fn request_has_the_documented_bytes() {
    let (gateway, host, server) =
        answering("HTTP/1.1 202 Accepted\r\ncontent-length: 0\r\n\r\n", AMPLE).await;

    gateway.send(&sms()).await.unwrap();
    drop(gateway);

    let id = sms().message.id;
    let body = format!(
        r#"{{"id":"{id}","phone":"{PHONE}","code":"{CODE}","text":"Ваш код: {CODE}","expires_at":"2023-11-14T22:13:20.123Z"}}"#
    );
    let expected = format!(
        "POST /sms?key=k HTTP/1.1\r\n\
         content-type: application/json\r\n\
         user-agent: messager/{}\r\n\
         idempotency-key: {id}\r\n\
         traceparent: {TRACE}\r\n\
         host: {host}\r\n\
         content-length: {}\r\n\r\n{body}",
        env!("CARGO_PKG_VERSION"),
        body.len(),
    );
    assert_eq!(server.await.unwrap(), expected);
}

#[tokio::test]
async fn request_without_a_trace_has_no_traceparent() {
    let (gateway, _, server) = answering("HTTP/1.1 200 OK\r\n\r\n", AMPLE).await;

    gateway.send(&Sms { trace: None, ..sms() }).await.unwrap();
    drop(gateway);

    assert!(!server.await.unwrap().contains("traceparent"));
}

#[tokio::test]
async fn credentials_are_sent_in_the_header_only() {
    let (listener, url) = listen().await;
    let url = url.replace("http://", "http://us%3Aer:p%40ss@");
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let request = read_request(&mut stream).await;
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
        request
    });

    gateway(&url, AMPLE).send(&sms()).await.unwrap();

    let request = server.await.unwrap();
    let expected = format!("authorization: Basic {}\r\n", STANDARD.encode("us:er:p@ss"));
    assert!(request.contains(&expected), "{request}");
    assert!(!request.contains("p%40ss"), "{request}");
}

#[test]
fn debug_shows_the_host_only() {
    let gateway = gateway("https://user:secret@sms.example:8443/secret?k=v", AMPLE);

    let shown = format!("{gateway:?}");

    assert!(shown.contains("sms.example"), "{shown}");
    assert_tells_nothing(&shown);
    assert!(!shown.contains("user"), "{shown}");
}

#[test]
fn url_needs_http_or_https_and_a_host() {
    let bad = ["/sms", "sms.example", "sms.example:80", "ftp://a.example/", "*", "http://a:0"];
    for url in bad {
        let problems = problems(&SPEC, &json!({"url": url}));
        let expected = "url must be a URL that begins with http:// or https:// and a host";
        assert_eq!(problems, [expected], "{url}");
    }
    for url in ["http://sms.example", "https://[::1]:8443/a", "HTTPS://u@sms.example/?q"] {
        made(&SPEC, &json!({"url": url}));
    }
}

#[tokio::test]
async fn status_2xx_is_accepted_with_its_reference() {
    let named = answer_to("HTTP/1.1 200 OK\r\ncontent-length: 20\r\n\r\n{\"message_id\":\"m-1\"}");
    assert_eq!(named.await, Ok(accepted("m-1")));

    for answer in [
        "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
        "HTTP/1.1 201 Created\r\ncontent-length: 5\r\n\r\n{\"me}",
        "HTTP/1.1 202 Accepted\r\n\r\nnot JSON, and as long as the connection",
        "HTTP/1.1 204 No Content\r\n\r\n",
        "HTTP/1.0 299 \r\n\r\n",
        "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
    ] {
        assert_eq!(answer_to(answer).await, Ok(Accepted::default()), "{answer:?}");
    }
}

#[tokio::test]
async fn answer_with_invalid_headers_counts_by_its_status() {
    let many = "x-many: 1\r\n".repeat(900);
    for odd in [many.as_str(), "what is this\r\n", "x y: 1\r\n", "x: 1\r\n  2\r\n", "x : 1\r\n"] {
        let answer = format!("HTTP/1.1 200 OK\r\n{odd}content-length: 0\r\n\r\n");
        assert_eq!(answer_to(answer).await, Ok(Accepted::default()), "{odd:?}");
    }
}

#[tokio::test]
async fn status_2xx_with_a_truncated_body_is_accepted() {
    for answer in [
        "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{\"message_id\":\"m-1\"}",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n14\r\n{\"message_id\":\"m-1\"}\r\n",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nwhat",
    ] {
        assert_eq!(answer_to(answer).await, Ok(Accepted::default()), "{answer:?}");
    }
}

#[tokio::test]
async fn status_2xx_with_a_huge_body_is_accepted_and_not_read_to_the_end() {
    let mut answer = b"HTTP/1.1 200 OK\r\ncontent-length: 8000020\r\n\r\n".to_vec();
    answer.extend_from_slice(b"{\"message_id\":\"m-1\"}");
    answer.resize(answer.len() + 8_000_000, b' ');

    assert_eq!(answer_to(answer).await, Ok(Accepted::default()));
}

#[tokio::test]
async fn status_2xx_with_a_slow_body_is_accepted_in_time() {
    let (listener, url) = listen().await;
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        read_request(&mut stream).await;
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n").await.unwrap();
        while stream.write_all(b" ").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });

    let outcome = gateway(&url, SHORT).send(&sms()).await;

    assert_eq!(outcome, Ok(Accepted::default()));
}

#[tokio::test]
async fn every_status_has_its_outcome() {
    for (status, expected) in [
        (300, misconfigured("status 300")),
        (301, misconfigured("status 301")),
        (304, misconfigured("status 304")),
        (308, misconfigured("status 308")),
        (400, rejected("status 400")),
        (401, misconfigured("status 401")),
        (402, misconfigured("status 402")),
        (403, misconfigured("status 403")),
        (404, misconfigured("status 404")),
        (405, misconfigured("status 405")),
        (406, misconfigured("status 406")),
        (407, rejected("status 407")),
        (408, SendError::Ambiguous("status 408".to_owned())),
        (409, rejected("status 409")),
        (410, misconfigured("status 410")),
        (415, misconfigured("status 415")),
        (422, rejected("status 422")),
        (499, rejected("status 499")),
        (500, SendError::Ambiguous("status 500".to_owned())),
        (502, SendError::Ambiguous("status 502".to_owned())),
        (504, SendError::Ambiguous("status 504".to_owned())),
        (599, SendError::Ambiguous("status 599".to_owned())),
        (700, SendError::Ambiguous("status 700".to_owned())),
    ] {
        let answer = format!(
            "HTTP/1.1 {status} {PHONE}\r\nretry-after: 9\r\ncontent-length: 18\r\n\r\n{PHONE} {CODE}"
        );
        assert_eq!(answer_to(answer).await, Err(expected));
    }
}

#[tokio::test]
async fn switching_protocols_is_not_accepted() {
    let outcome =
        answer_to("HTTP/1.1 101 Switching\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n").await;

    assert!(matches!(outcome, Err(SendError::Rejected(_) | SendError::Ambiguous(_))));
}

#[tokio::test]
async fn throttled_and_unavailable_have_the_retry_time() {
    let date = "date: Tue, 15 Nov 1994 08:12:31 GMT\r\n";
    for (header, seconds) in [
        ("retry-after: 30\r\n".to_owned(), Some(30)),
        (format!("retry-after: Tue, 15 Nov 1994 08:13:31 GMT\r\n{date}"), Some(60)),
        // Without a `Date` our clock counts, which is long after that.
        ("retry-after: Tue, 15 Nov 1994 08:13:31 GMT\r\n".to_owned(), Some(0)),
        ("retry-after: later\r\n".to_owned(), None),
        (String::new(), None),
    ] {
        let answer = |status: u16| format!("HTTP/1.1 {status} No\r\n{header}\r\n");
        let retry_after = seconds.map(Duration::from_secs);
        let throttled = SendError::Throttled { detail: "status 429".to_owned(), retry_after };
        assert_eq!(answer_to(answer(429)).await, Err(throttled));
        assert_eq!(answer_to(answer(503)).await, Err(unavailable("status 503", seconds)));
    }
}

#[tokio::test]
async fn redirect_is_not_followed() {
    let (elsewhere, url) = listen().await;
    let answer = format!("HTTP/1.1 307 There\r\nlocation: {url}\r\ncontent-length: 0\r\n\r\n");

    let outcome = answer_to(answer).await;

    assert_eq!(outcome, Err(misconfigured("status 307")));
    let asked = tokio::time::timeout(Duration::ZERO, elsewhere.accept()).await;
    assert!(asked.is_err(), "the redirect was followed");
}

#[tokio::test]
async fn closed_port_is_unavailable() {
    let (listener, url) = listen().await;
    drop(listener);

    let outcome = gateway(&url, AMPLE).send(&sms()).await;

    assert_eq!(outcome, Err(unavailable("could not connect: connection refused", None)));
}

#[tokio::test]
async fn host_without_an_address_is_unavailable() {
    let outcome = gateway("http://gateway.invalid/", AMPLE).send(&sms()).await;

    assert!(matches!(outcome, Err(SendError::Unavailable { .. })), "{outcome:?}");
}

#[tokio::test]
async fn server_without_tls_is_unavailable() {
    let (listener, url) = listen().await;
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        let _ = stream.read(&mut [0; 1024]).await;
    });

    let outcome = gateway(&url.replace("http:", "https:"), AMPLE).send(&sms()).await;

    assert!(matches!(outcome, Err(SendError::Unavailable { .. })), "{outcome:?}");
}

#[tokio::test]
async fn hanging_tls_handshake_is_unavailable() {
    let (listener, url) = listen().await;

    let outcome = gateway(&url.replace("http:", "https:"), SHORT).send(&sms()).await;

    drop(listener);
    assert!(matches!(outcome, Err(SendError::Unavailable { .. })), "{outcome:?}");
}

#[tokio::test]
async fn call_without_an_answer_in_time_is_ambiguous_and_closes_the_connection() {
    let (listener, url) = listen().await;
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        read_request(&mut stream).await;
        stream.read(&mut [0]).await
    });
    let gateway = gateway(&url, SHORT);

    let outcome = gateway.send(&sms()).await;

    assert_eq!(outcome, Err(SendError::Ambiguous("no answer in time".to_owned())));
    assert_eq!(server.await.unwrap().unwrap(), 0, "the connection is closed");
}

#[tokio::test]
async fn truncated_or_invalid_answer_is_ambiguous() {
    for answer in [
        "",
        "HTTP/1.1 2",
        "HTTP/1.1 200 OK\r\ncontent-len",
        "HTTP/1.1 2000 OK\r\n\r\n",
        "220 mail.example ESMTP 79991234567\r\n",
        "\u{0}\u{1}\u{2}\u{3}\r\n\r\n",
    ] {
        let outcome = answer_to(answer).await;
        assert!(matches!(outcome, Err(SendError::Ambiguous(_))), "{answer:?}: {outcome:?}");
    }
}

#[tokio::test]
async fn reset_connection_is_ambiguous() {
    let (listener, url) = listen().await;
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        // Closing with unread bytes resets the connection.
        stream.readable().await.unwrap();
        stream.read_exact(&mut [0]).await.unwrap();
    });

    let outcome = gateway(&url, AMPLE).send(&sms()).await;

    assert!(matches!(outcome, Err(SendError::Ambiguous(_))), "{outcome:?}");
}

#[tokio::test]
async fn consecutive_calls_share_a_connection() {
    let (listener, url) = listen().await;
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        drop(listener);
        for answer in [
            "HTTP/1.1 200 OK\r\ncontent-length: 20\r\n\r\n{\"message_id\":\"m-1\"}",
            "HTTP/1.1 503 No\r\ncontent-length: 4\r\n\r\nbusy",
            "HTTP/1.1 200 OK\r\ncontent-length: 20\r\n\r\n{\"message_id\":\"m-3\"}",
        ] {
            read_request(&mut stream).await;
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    });
    let gateway = gateway(&url, AMPLE);

    let first = gateway.send(&sms()).await;
    let second = gateway.send(&sms()).await;
    let third = gateway.send(&sms()).await;

    assert_eq!(first, Ok(accepted("m-1")));
    assert_eq!(second, Err(unavailable("status 503", None)));
    assert_eq!(third, Ok(accepted("m-3")));
    assert!(gateway.deduplicates());
}

/// Answers each request on a separate connection, and returns the requests.
async fn answering_one_request_a_connection(
    answer: &'static str,
) -> (String, JoinHandle<Vec<String>>) {
    let (listener, url) = listen().await;
    let server = tokio::spawn(async move {
        let mut requests = Vec::new();
        for _ in 0..2 {
            let (mut stream, _) = listener.accept().await.unwrap();
            requests.push(read_request(&mut stream).await);
            stream.write_all(answer.as_bytes()).await.unwrap();
            // The client closes the connection, or the test fails here by its deadline.
            let _ = stream.read(&mut [0]).await;
        }
        requests
    });
    (url, server)
}

#[tokio::test]
async fn each_call_opens_a_connection_if_keep_alive_is_zero() {
    let (url, server) =
        answering_one_request_a_connection("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
    let gateway = kept_alive(&url, AMPLE, Duration::ZERO);

    gateway.send(&sms()).await.unwrap();
    gateway.send(&sms()).await.unwrap();

    for request in server.await.unwrap() {
        assert!(request.contains("connection: close\r\n"), "{request}");
    }
}

#[tokio::test]
async fn connection_that_the_gateway_soon_closes_is_not_used_again() {
    const ANSWER: &str =
        "HTTP/1.1 200 OK\r\nkeep-alive: max=9, timeout=1\r\ncontent-length: 0\r\n\r\n";
    let (url, server) = answering_one_request_a_connection(ANSWER).await;
    let gateway = gateway(&url, AMPLE);

    gateway.send(&sms()).await.unwrap();
    gateway.send(&sms()).await.unwrap();

    assert_eq!(server.await.unwrap().len(), 2);
}

#[tokio::test]
async fn idle_connection_is_closed_before_common_servers_close_it() {
    let (listener, url) = listen().await;
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        read_request(&mut stream).await;
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
        tokio::time::timeout(Duration::from_secs(5), stream.read(&mut [0])).await
    });
    let gateway = gateway(&url, AMPLE);

    gateway.send(&sms()).await.unwrap();

    let read = server.await.unwrap().expect("the client closes within five seconds");
    assert_eq!(read.unwrap(), 0);
}
