//! The server with real connections.
//!
//! This is one file, because all tests use the same server and the same helpers for raw
//! connections.

use std::{future::pending, net::Ipv4Addr, time::SystemTime};

use application::{
    Authorize, Keys, SubmitMessage, SubmitSettings, Vault,
    ports::{Enqueued, MockApiKeys, NewSend, Outbox, StoreError},
};
use futures_util::FutureExt;
use prometheus::Registry;
use rand::{SeedableRng, rngs::StdRng};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpListener,
    sync::{Notify, mpsc},
    task::JoinHandle,
};

use super::*;
use crate::{ApiMetrics, ApiSettings};

mod any_bytes;
mod tls;

const REQUEST: &str = "POST /api HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\n\
                       Content-Length: 23\r\n\r\n{\"phone\":\"89999999999\"}";
const ACCEPTED: &str = "\"message successfuly sended\"";

/// A limit that no successful test reaches.
const DEADLINE: Duration = Duration::from_secs(20);

/// An outbox that stores a message when the test opens it.
struct Gate {
    entered: mpsc::UnboundedSender<()>,
    open: Arc<Notify>,
    always_open: bool,
}

impl Outbox for Gate {
    async fn enqueue(&self, _: NewSend) -> Result<Enqueued, StoreError> {
        let _ = self.entered.send(());
        if !self.always_open {
            self.open.notified().await;
        }
        Ok(Enqueued::Accepted { at: SystemTime::UNIX_EPOCH })
    }
}

struct Server {
    address: SocketAddr,
    stop: CancellationToken,
    /// A message for each request that has reached the outbox.
    entered: mpsc::UnboundedReceiver<()>,
    open: Arc<Notify>,
    connections: ConnectionMetrics,
    task: JoinHandle<()>,
}

async fn start(always_open: bool, limits: ServerLimits, body_timeout: Duration) -> Server {
    start_on(|listeners| listeners, always_open, limits, body_timeout).await
}

/// Starts a server on listeners that `adapt` returns.
async fn start_on(
    adapt: impl FnOnce(Listeners) -> Listeners,
    always_open: bool,
    limits: ServerLimits,
    body_timeout: Duration,
) -> Server {
    let (sender, entered) = mpsc::unbounded_channel();
    let open = Arc::new(Notify::new());
    let gate = Gate { entered: sender, open: open.clone(), always_open };
    let settings = SubmitSettings {
        code_length: 6.try_into().unwrap(),
        code_ttl: Duration::from_secs(600),
        rules: application::SendRules::NONE,
    };
    let peppers = domain::draw_key(&mut StdRng::seed_from_u64(2)).parse().ok();
    let vault = Vault::of(Keys { peppers, payload: None });
    let submit = SubmitMessage::new(
        gate,
        || SystemTime::UNIX_EPOCH,
        StdRng::seed_from_u64(1),
        vault,
        Arc::new(application::Guard::new(Vec::new(), Duration::from_secs(3_600))),
        settings,
    );
    let registry = Registry::new();
    let metrics = ApiMetrics::register(&registry).unwrap();
    let connections = ConnectionMetrics::register(&registry).unwrap();
    let keys = Arc::new(Authorize::new(MockApiKeys::new()));
    let settings = ApiSettings { body_timeout, ..ApiSettings::default() };
    let router = crate::router(Arc::new(submit), keys, metrics, settings);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let stop = CancellationToken::new();
    let listeners = adapt(Listeners::from(listener));
    let task = tokio::spawn(serve(listeners, router, limits, connections.clone(), stop.clone()));
    Server { address, stop, entered, open, connections, task }
}

/// Returns limits under which nothing times out.
fn patient() -> ServerLimits {
    ServerLimits {
        first_byte_timeout: DEADLINE,
        head_timeout: DEADLINE,
        idle_timeout: DEADLINE,
        write_timeout: DEADLINE,
        ..ServerLimits::default()
    }
}

const SHORT: Duration = Duration::from_millis(200);

async fn open_server() -> Server {
    start(true, patient(), DEADLINE).await
}

impl Server {
    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    async fn stopped(self) {
        self.stop.cancel();
        within(self.task).await.unwrap();
    }
}

async fn within<F: Future>(future: F) -> F::Output {
    timeout(DEADLINE, future).await.expect("the deadline of the test")
}

async fn send(stream: &mut (impl AsyncWrite + Unpin), text: impl AsRef<[u8]>) {
    within(stream.write_all(text.as_ref())).await.unwrap();
}

/// Reads one answer with its body, and no more bytes.
async fn answer(stream: &mut (impl AsyncRead + Unpin)) -> String {
    let mut text = String::new();
    loop {
        text.push(char::from(within(stream.read_u8()).await.unwrap()));
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
            if body.len() == length.map_or(0, |length| length.parse().unwrap()) {
                return text;
            }
        }
    }
}

/// Reads one answer, or nothing if the connection ends without one.
async fn rest_or_answer(stream: &mut TcpStream) -> String {
    let mut text = vec![0; 4096];
    let length = within(stream.read(&mut text)).await.unwrap_or(0);
    String::from_utf8_lossy(&text[..length]).into_owned()
}

/// Reads to the end of the connection. A reset is also an end.
async fn rest(stream: &mut (impl AsyncRead + Unpin)) -> String {
    let mut text = Vec::new();
    let _ = within(stream.read_to_end(&mut text)).await;
    String::from_utf8(text).unwrap()
}

#[track_caller]
fn assert_answer(text: &str, status: &str, body: &str) {
    assert!(text.starts_with(status), "{text}");
    assert_eq!(text.split_once("\r\n\r\n").unwrap().1, body);
}

#[tokio::test]
async fn connection_serves_several_requests() {
    let server = open_server().await;
    let mut stream = server.connect().await;

    for _ in 0..3 {
        send(&mut stream, REQUEST).await;
        assert_answer(&answer(&mut stream).await, "HTTP/1.1 200 OK\r\n", ACCEPTED);
    }

    server.stopped().await;
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let server = open_server().await;
    let mut stream = server.connect().await;

    let unknown = "GET /what HTTP/1.1\r\nHost: h\r\n\r\n";
    send(&mut stream, [REQUEST, unknown, REQUEST].concat()).await;

    assert_answer(&answer(&mut stream).await, "HTTP/1.1 200 OK\r\n", ACCEPTED);
    assert_answer(
        &answer(&mut stream).await,
        "HTTP/1.1 404 Not Found\r\n",
        r#"{"error":"not found"}"#,
    );
    assert_answer(&answer(&mut stream).await, "HTTP/1.1 200 OK\r\n", ACCEPTED);
    server.stopped().await;
}

#[tokio::test]
async fn http_1_0_is_answered_and_closed() {
    let server = open_server().await;
    let mut stream = server.connect().await;

    send(&mut stream, REQUEST.replace("HTTP/1.1", "HTTP/1.0").replace("Host: h\r\n", "")).await;

    assert_answer(&rest(&mut stream).await, "HTTP/1.0 200 OK\r\n", ACCEPTED);
    server.stopped().await;
}

#[tokio::test]
async fn expect_100_continue_is_answered() {
    let server = open_server().await;
    let mut stream = server.connect().await;
    let (head, body) = REQUEST.split_once("\r\n\r\n").unwrap();

    send(&mut stream, format!("{head}\r\nExpect: 100-continue\r\n\r\n")).await;
    let leave = answer(&mut stream).await;
    send(&mut stream, body).await;

    assert_eq!(leave, "HTTP/1.1 100 Continue\r\n\r\n");
    assert_answer(&answer(&mut stream).await, "HTTP/1.1 200 OK\r\n", ACCEPTED);
    server.stopped().await;
}

#[tokio::test]
async fn too_long_body_with_expect_is_refused_before_it_is_sent() {
    let server = open_server().await;
    let mut stream = server.connect().await;

    let head = "POST /api HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\n";
    let head = format!("{head}Content-Length: 1048576\r\nExpect: 100-continue\r\n\r\n");
    send(&mut stream, head).await;

    let refused = rest(&mut stream).await;
    let body = r#"{"error":"invalid request body"}"#;
    assert_answer(&refused, "HTTP/1.1 400 Bad Request\r\n", body);
    server.stopped().await;
}

#[tokio::test]
async fn client_that_sends_one_mebibyte_gets_its_refusal() {
    let server = open_server().await;
    let mut stream = server.connect().await;

    let head = "POST /api HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\n";
    send(&mut stream, format!("{head}Content-Length: 1048576\r\n\r\n")).await;
    send(&mut stream, vec![b' '; 1024 * 1024]).await;

    let body = r#"{"error":"invalid request body"}"#;
    assert_answer(&answer(&mut stream).await, "HTTP/1.1 400 Bad Request\r\n", body);
    send(&mut stream, REQUEST).await;
    assert_answer(&answer(&mut stream).await, "HTTP/1.1 200 OK\r\n", ACCEPTED);
    server.stopped().await;
}

#[tokio::test]
async fn chunked_body_is_read() {
    let server = open_server().await;
    let mut stream = server.connect().await;

    let head = REQUEST.split_once("\r\n\r\n").unwrap().0;
    let head = head.replace("Content-Length: 23", "Transfer-Encoding: chunked");
    send(&mut stream, format!("{head}\r\n\r\n9\r\n{{\"phone\":\r\n")).await;
    send(&mut stream, "e\r\n\"89999999999\"}\r\n0\r\n\r\n").await;

    assert_answer(&answer(&mut stream).await, "HTTP/1.1 200 OK\r\n", ACCEPTED);
    server.stopped().await;
}

#[tokio::test]
async fn slow_head_is_cut() {
    let server = start(true, ServerLimits { head_timeout: SHORT, ..patient() }, DEADLINE).await;
    let mut stream = server.connect().await;

    send(&mut stream, "POST /api HTTP/1.1\r\nHost:").await;

    assert_eq!(rest(&mut stream).await, "");
    server.stopped().await;
}

#[tokio::test]
async fn dripping_head_is_cut() {
    let server = start(true, ServerLimits { head_timeout: SHORT, ..patient() }, DEADLINE).await;
    let (mut reader, mut writer) = server.connect().await.into_split();
    let dripping = tokio::spawn(async move {
        writer.write_all(b"POST /api HTTP/1.1\r\n").await.unwrap();
        while writer.write_all(b"A: a\r\n").await.is_ok() {
            sleep(Duration::from_millis(5)).await;
        }
    });

    let _ = within(reader.read_to_end(&mut Vec::new())).await;

    within(dripping).await.unwrap();
    server.stopped().await;
}

#[tokio::test]
async fn silent_connection_is_cut() {
    let limits = ServerLimits { first_byte_timeout: SHORT, ..patient() };
    let server = start(true, limits, DEADLINE).await;
    let mut fresh = server.connect().await;
    let mut used = server.connect().await;
    send(&mut used, REQUEST).await;
    answer(&mut used).await;

    assert_eq!(rest(&mut fresh).await, "");
    send(&mut used, REQUEST).await;
    assert_answer(&answer(&mut used).await, "HTTP/1.1 200 OK\r\n", ACCEPTED);
    server.stopped().await;
}

#[tokio::test]
async fn slow_body_is_answered_408_and_cut() {
    let server = start(true, patient(), Duration::from_millis(200)).await;
    let mut stream = server.connect().await;

    send(&mut stream, &REQUEST[..REQUEST.len() - 1]).await;

    let text = rest(&mut stream).await;
    let body = r#"{"error":"request body took too long"}"#;
    assert_answer(&text, "HTTP/1.1 408 Request Timeout\r\n", body);
    assert!(text.contains("connection: close\r\n"), "{text}");
    server.stopped().await;
}

#[tokio::test]
async fn idle_connection_is_cut() {
    let server = start(true, ServerLimits { idle_timeout: SHORT, ..patient() }, DEADLINE).await;
    let mut stream = server.connect().await;
    send(&mut stream, REQUEST).await;
    answer(&mut stream).await;

    assert_eq!(rest(&mut stream).await, "");
    server.stopped().await;
}

#[tokio::test]
async fn too_long_head_is_431() {
    let server = open_server().await;
    let mut stream = server.connect().await;

    let head = format!("POST /api HTTP/1.1\r\nA: {}\r\n\r\n", "a".repeat(2 * MAX_BUFFER));
    send(&mut stream, head).await;

    let text = rest(&mut stream).await;
    assert!(text.starts_with("HTTP/1.1 431 "), "{text}");
    server.stopped().await;
}

#[tokio::test]
async fn a_head_may_have_60_kib() {
    let server = open_server().await;
    let mut stream = server.connect().await;

    let cookie = format!("Host: h\r\nCookie: {}\r\n", "a".repeat(60 * 1024));
    let many = format!("Host: h\r\n{}", format!("A: {}\r\n", "a".repeat(300)).repeat(150));
    for headers in [cookie, many] {
        send(&mut stream, REQUEST.replace("Host: h\r\n", &headers)).await;
        assert_answer(&answer(&mut stream).await, "HTTP/1.1 200 OK\r\n", ACCEPTED);
    }
    server.stopped().await;
}

#[tokio::test]
async fn request_has_at_most_256_headers() {
    let server = open_server().await;
    let with = |count: usize| {
        REQUEST.replace("Host: h\r\n", &format!("Host: h\r\n{}", "A: a\r\n".repeat(count)))
    };

    let mut stream = server.connect().await;
    send(&mut stream, with(150)).await;
    assert_answer(&answer(&mut stream).await, "HTTP/1.1 200 OK\r\n", ACCEPTED);
    send(&mut stream, with(256)).await;
    let text = rest(&mut stream).await;
    assert!(text.starts_with("HTTP/1.1 431 "), "{text}");
    server.stopped().await;
}

#[tokio::test]
async fn garbage_ends_its_own_connection_only() {
    let server = open_server().await;
    let mut good = server.connect().await;
    let mut bad = server.connect().await;

    send(&mut bad, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n").await;

    assert!(rest(&mut bad).await.starts_with("HTTP/1.1 400 "));
    send(&mut good, REQUEST).await;
    assert_answer(&answer(&mut good).await, "HTTP/1.1 200 OK\r\n", ACCEPTED);
    server.stopped().await;
}

#[tokio::test]
async fn connection_beyond_the_limit_is_503_and_the_oldest_one_is_told_to_close() {
    // A handler runs for the first connection, so it is not dropped even without patience.
    let patience = Duration::ZERO;
    let limits =
        ServerLimits { max_connections: 1, patience, idle_patience: patience, ..patient() };
    let mut server = start(false, limits, DEADLINE).await;
    let mut first = server.connect().await;
    send(&mut first, REQUEST).await;
    within(server.entered.recv()).await.unwrap();

    let mut second = server.connect().await;
    send(&mut second, [REQUEST, &"x".repeat(100_000)].concat()).await;
    let refused = rest(&mut second).await;
    let body = r#"{"error":"too many connections"}"#;
    assert_answer(&refused, "HTTP/1.1 503 Service Unavailable\r\n", body);
    assert!(refused.contains(&format!("content-length: {}\r\n", body.len())), "{refused}");
    assert!(refused.contains("retry-after: 1\r\n"), "{refused}");
    assert_eq!(server.connections.refused.get(), 1);
    assert_eq!(server.connections.dropped.get(), 0);

    // The longest open connection is told to close with its next answer.
    server.open.notify_one();
    let last = rest(&mut first).await;
    assert_answer(&last, "HTTP/1.1 200 OK\r\n", ACCEPTED);
    assert!(last.contains("connection: close"), "{last}");
    let mut third = server.connect().await;
    send(&mut third, REQUEST).await;
    within(server.entered.recv()).await.unwrap();
    server.open.notify_one();
    assert_answer(&answer(&mut third).await, "HTTP/1.1 200 OK\r\n", ACCEPTED);
    server.stopped().await;
}

/// Another client's request takes the place of each connection without a complete request.
#[tokio::test]
async fn client_without_progress_makes_room() {
    let head = REQUEST.split_once("\r\n\r\n").unwrap().0;
    let chunked = head.replace("Content-Length: 23", "Transfer-Encoding: chunked");
    let expecting = format!("{head}\r\nExpect: 100-continue\r\n\r\n");
    let cases = [
        ("nothing", "", ""),
        ("half a head", &head[..20], ""),
        ("a head line by line", "POST /api HTTP/1.1\r\n", "A: a\r\n"),
        ("half a body", &REQUEST[..REQUEST.len() - 5], ""),
        ("a body byte by byte", &format!("{chunked}\r\n\r\n"), "1\r\n \r\n"),
        ("trailers", &format!("{chunked}\r\n\r\n2\r\n{{}}\r\n0\r\n"), "A: a\r\n"),
        ("no body after leave to send", &expecting, ""),
        ("a TLS hello", "\x16\x03", ""),
        (
            "an unknown path with half a body",
            "POST /x HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\n",
            "",
        ),
    ];
    for (what, first, then) in cases {
        let limits = ServerLimits { max_connections: 1, ..patient() };
        let server = start(true, limits, DEADLINE).await;
        let (mut reader, mut writer) = server.connect().await.into_split();
        writer.write_all(first.as_bytes()).await.unwrap();
        let (first, then) = (first.to_owned(), then.to_owned());
        let dripping = tokio::spawn(async move {
            while !then.is_empty() && writer.write_all(then.as_bytes()).await.is_ok() {
                sleep(Duration::from_millis(5)).await;
            }
            (writer, first)
        });

        let answered = async {
            loop {
                let mut other = server.connect().await;
                send(&mut other, REQUEST).await;
                let text = rest_or_answer(&mut other).await;
                if text.starts_with("HTTP/1.1 200 ") {
                    return;
                }
                assert!(text.starts_with("HTTP/1.1 503 "), "{what}: {text}");
                sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(Duration::from_secs(2), answered).await.expect(what);

        let _ = within(reader.read_to_end(&mut Vec::new())).await;
        within(dripping).await.unwrap();
        server.stopped().await;
    }
}

/// A connection pool opens its connections before it sends requests.
#[tokio::test]
async fn connection_that_makes_room_before_its_request_gets_503() {
    let limits =
        ServerLimits { max_connections: 1, patience: Duration::from_millis(10), ..patient() };
    for begun in ["", &REQUEST[..20]] {
        let server = start(true, limits, DEADLINE).await;
        let mut early = server.connect().await;
        send(&mut early, begun).await;
        sleep(Duration::from_millis(100)).await;

        let mut late = server.connect().await;
        send(&mut late, REQUEST).await;
        assert_answer(&answer(&mut late).await, "HTTP/1.1 200 OK\r\n", ACCEPTED);
        assert_eq!(server.connections.dropped.get(), 1);

        send(&mut early, &REQUEST[begun.len()..]).await;
        let told = rest(&mut early).await;
        let body = r#"{"error":"too many connections"}"#;
        assert_answer(&told, "HTTP/1.1 503 Service Unavailable\r\n", body);
        server.stopped().await;
    }
}

/// The connection that must make room completes its request at the same moment.
#[tokio::test]
async fn new_connection_whose_place_stays_taken_gets_503() {
    let limits =
        ServerLimits { max_connections: 1, patience: Duration::from_millis(10), ..patient() };
    let mut server = start(false, limits, DEADLINE).await;
    let mut first = server.connect().await;
    send(&mut first, &REQUEST[..REQUEST.len() - 1]).await;
    sleep(Duration::from_millis(100)).await;

    // Both arrive before the server runs again.
    let address = server.address;
    let late = std::net::TcpStream::connect(address).unwrap();
    first.try_write(&REQUEST.as_bytes()[REQUEST.len() - 1..]).unwrap();
    late.set_nonblocking(true).unwrap();
    let mut late = TcpStream::from_std(late).unwrap();
    send(&mut late, REQUEST).await;
    within(server.entered.recv()).await.unwrap();

    let told = rest(&mut late).await;
    let body = r#"{"error":"too many connections"}"#;
    assert_answer(&told, "HTTP/1.1 503 Service Unavailable\r\n", body);
    server.open.notify_one();
    assert_answer(&rest(&mut first).await, "HTTP/1.1 200 OK\r\n", ACCEPTED);
    server.stopped().await;
}

#[tokio::test]
async fn client_that_reads_no_answers_makes_room() {
    let limits = ServerLimits { max_connections: 1, ..patient() };
    let server = start(true, limits, DEADLINE).await;
    let greedy = server.connect().await;
    let requests = "GET / HTTP/1.1\r\nHost: h\r\n\r\n".repeat(1000);
    let (_reader, mut writer) = greedy.into_split();
    let pouring =
        tokio::spawn(async move { while writer.write_all(requests.as_bytes()).await.is_ok() {} });

    within(async {
        loop {
            let mut other = server.connect().await;
            send(&mut other, REQUEST).await;
            if rest_or_answer(&mut other).await.starts_with("HTTP/1.1 200 ") {
                return;
            }
            sleep(Duration::from_millis(20)).await;
        }
    })
    .await;

    within(pouring).await.unwrap();
    server.stopped().await;
}

#[tokio::test]
async fn connection_that_makes_room_is_dropped_unless_its_handler_runs() {
    let last_answer = Duration::from_millis(100);
    let limits = ServerLimits { max_connections: 2, patience: DEADLINE, last_answer, ..patient() };
    let mut server = start(false, limits, DEADLINE).await;
    let mut busy = server.connect().await;
    send(&mut busy, REQUEST).await;
    within(server.entered.recv()).await.unwrap();
    let mut slow = server.connect().await;
    send(&mut slow, &REQUEST[..REQUEST.len() - 1]).await;

    within(async {
        // The connections are told one after the other, at most one in 10 ms.
        while server.connections.refused.get() < 2 {
            let mut other = server.connect().await;
            send(&mut other, REQUEST).await;
            assert!(rest(&mut other).await.starts_with("HTTP/1.1 503 "));
            sleep(Duration::from_millis(20)).await;
        }
    })
    .await;

    assert_eq!(rest(&mut slow).await, "");
    server.open.notify_one();
    let last = rest(&mut busy).await;
    assert_answer(&last, "HTTP/1.1 200 OK\r\n", ACCEPTED);
    server.stopped().await;
}

#[tokio::test]
async fn peer_has_at_most_its_share_of_connections() {
    let limits = ServerLimits { max_per_peer: 1, ..patient() };
    let mut server = start(false, limits, DEADLINE).await;
    let mut first = server.connect().await;
    send(&mut first, REQUEST).await;
    within(server.entered.recv()).await.unwrap();

    let mut second = server.connect().await;
    send(&mut second, REQUEST).await;
    assert!(rest(&mut second).await.starts_with("HTTP/1.1 503 "));

    server.open.notify_one();
    assert_answer(&rest(&mut first).await, "HTTP/1.1 200 OK\r\n", ACCEPTED);
    server.stopped().await;
}

#[tokio::test]
async fn connections_of_a_trusted_proxy_are_clients_of_their_own() {
    let limits = ServerLimits { max_per_peer: 1, idle_patience: DEADLINE, ..patient() };
    for (trusted, served) in [("127.0.0.0/8", 3), ("127.0.0.2", 1)] {
        let behind = |listeners: Listeners| listeners.behind(trusted.parse().unwrap());
        let mut server = start_on(behind, false, limits, DEADLINE).await;
        let mut streams = Vec::new();
        for _ in 0..3 {
            let mut stream = server.connect().await;
            send(&mut stream, REQUEST).await;
            if streams.len() < served {
                within(server.entered.recv()).await.unwrap();
                server.open.notify_one();
            }
            let text = answer(&mut stream).await;
            let status = if streams.len() < served { "200" } else { "503" };
            assert!(text.starts_with(&format!("HTTP/1.1 {status} ")), "{trusted}: {text}");
            streams.push(stream);
        }
        drop(streams);
        server.stopped().await;
    }
}

#[tokio::test]
async fn incomplete_request_does_not_delay_the_shutdown() {
    let limits =
        ServerLimits { grace: 10 * DEADLINE, patience: Duration::from_millis(100), ..patient() };
    let server = start(true, limits, DEADLINE).await;
    let mut head = server.connect().await;
    send(&mut head, &REQUEST[..20]).await;
    let mut body = server.connect().await;
    send(&mut body, &REQUEST[..REQUEST.len() - 1]).await;

    server.stopped().await;
}

#[tokio::test]
async fn request_without_one_valid_host_is_400() {
    let server = open_server().await;
    let hosts = |lines: &str| REQUEST.replace("Host: h\r\n", lines);
    let bad =
        ["", "Host: h\r\nHost: h\r\n", "Host: a b\r\n", "Host: a\r\nhost: b\r\n", "Host: u@h\r\n"];
    for lines in bad {
        let mut stream = server.connect().await;
        send(&mut stream, hosts(lines)).await;
        let refused = rest(&mut stream).await;
        let body = r#"{"error":"invalid Host header"}"#;
        assert_answer(&refused, "HTTP/1.1 400 Bad Request\r\n", body);
        assert!(refused.contains("connection: close"), "{lines:?}: {refused}");
    }
    for lines in ["Host:\r\n", "HOST: [::1]:8080\r\n"] {
        let mut stream = server.connect().await;
        send(&mut stream, hosts(lines)).await;
        assert_answer(&answer(&mut stream).await, "HTTP/1.1 200 OK\r\n", ACCEPTED);
    }
    server.stopped().await;
}

#[tokio::test]
async fn longest_idle_connection_makes_room_first() {
    let limits = ServerLimits { max_connections: 2, ..patient() };
    let server = start(true, limits, DEADLINE).await;
    let mut kept = [server.connect().await, server.connect().await];
    for stream in &mut kept {
        send(stream, REQUEST).await;
        answer(stream).await;
    }

    let mut refused = server.connect().await;
    send(&mut refused, REQUEST).await;
    assert!(rest(&mut refused).await.starts_with("HTTP/1.1 503 "));

    let [first, second] = &mut kept;
    assert_eq!(rest(first).await, "");
    let mut again = server.connect().await;
    for stream in [second, &mut again] {
        send(stream, REQUEST).await;
        assert_answer(&answer(stream).await, "HTTP/1.1 200 OK\r\n", ACCEPTED);
    }
    server.stopped().await;
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn client_that_reads_nothing_is_cut() {
    let limits = ServerLimits { write_timeout: Duration::from_millis(300), ..patient() };
    let server = start(true, limits, DEADLINE).await;
    let mut stream = server.connect().await;

    let requests = "GET / HTTP/1.1\r\nHost: h\r\n\r\n".repeat(1000);
    let cut = within(async {
        loop {
            if let Err(error) = stream.write_all(requests.as_bytes()).await {
                return error;
            }
        }
    });

    let kind = cut.await.kind();
    assert!(matches!(kind, io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe), "{kind}");
    server.stopped().await;
}

#[tokio::test]
async fn shutdown_finishes_requests_in_flight_and_closes_idle_connections() {
    let mut server = start(false, patient(), DEADLINE).await;
    let mut fresh = server.connect().await;
    let mut idle = server.connect().await;
    let mut busy = server.connect().await;
    send(&mut idle, "GET / HTTP/1.1\r\nHost: h\r\n\r\n").await;
    answer(&mut idle).await;
    send(&mut busy, REQUEST).await;
    within(server.entered.recv()).await.unwrap();

    server.stop.cancel();

    assert_eq!(rest(&mut fresh).await, "");
    assert_eq!(rest(&mut idle).await, "");
    assert!(TcpStream::connect(server.address).await.is_err(), "nothing more is accepted");
    assert!(!server.task.is_finished());
    server.open.notify_one();
    assert_answer(&rest(&mut busy).await, "HTTP/1.1 200 OK\r\n", ACCEPTED);
    within(server.task).await.unwrap();
}

#[tokio::test]
async fn new_client_during_the_farewell_is_answered_and_told_to_close() {
    let limits = ServerLimits { farewell: Duration::from_secs(1), ..patient() };
    let server = start(true, limits, DEADLINE).await;
    let mut kept = server.connect().await;
    send(&mut kept, REQUEST).await;
    assert!(!answer(&mut kept).await.contains("connection: close"));

    server.stop.cancel();
    let mut new = server.connect().await;
    for stream in [&mut kept, &mut new] {
        send(stream, REQUEST).await;
        let last = rest(stream).await;
        assert_answer(&last, "HTTP/1.1 200 OK\r\n", ACCEPTED);
        assert!(last.contains("connection: close"), "{last}");
    }

    within(server.task).await.unwrap();
    assert!(TcpStream::connect(server.address).await.is_err(), "nothing more is accepted");
}

#[tokio::test]
async fn request_that_arrives_with_the_close_is_answered() {
    for is_dropped in [false, true] {
        let address = Ipv4Addr::LOCALHOST;
        let listener = TcpListener::bind((address, 0)).await.unwrap();
        let mut client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (ours, _) = listener.accept().await.unwrap();
        let stop = CancellationToken::new();
        let limits = ServerLimits { max_connections: 1, patience: Duration::ZERO, ..patient() };
        let metrics = ConnectionMetrics::register(&Registry::new()).unwrap();
        let connections = Connections::new(limits, metrics, stop.clone());
        let address = IpAddr::from(address);
        let peer = address.into();
        let entry = connections.admit(peer).unwrap();
        let link = Arc::clone(&entry.link);
        let callers = Callers {
            peer: address,
            proxies: TrustedProxies::default(),
            refusals: Arc::default(),
            tells: false,
        };
        let (own, all) = (Arc::clone(&link), Arc::clone(&connections));
        let service = answering(Router::new(), own, all, callers);
        let stream = open(Opening::new(ours, None), &link).await.ok().unwrap();
        let io = TokioIo::new(Watched::new(stream, Arc::clone(&link)));

        let mut attending = pin!(attend(http(), io, service, link));
        assert!(attending.as_mut().now_or_never().is_none(), "there is nothing to be read yet");

        // The runtime does not know of these bytes when it polls the connection again.
        std::io::Write::write_all(&mut client, b"GET / HTTP/1.1\r\nHost: h\r\n\r\n").unwrap();
        if is_dropped {
            assert!(connections.admit(peer).is_some());
        } else {
            stop.cancel();
            connections.close();
        }
        within(attending).await.unwrap();

        let mut text = String::new();
        std::io::Read::read_to_string(&mut client, &mut text).unwrap();
        assert!(text.starts_with("HTTP/1.1 404 Not Found\r\n"), "{text}");
        assert!(text.contains("connection: close"), "{text}");
    }
}

#[tokio::test]
async fn shutdown_takes_no_longer_than_the_grace_time() {
    let limits = ServerLimits { grace: Duration::from_millis(100), ..patient() };
    let mut server = start(false, limits, DEADLINE).await;
    let mut busy = server.connect().await;
    send(&mut busy, REQUEST).await;
    within(server.entered.recv()).await.unwrap();

    server.stop.cancel();

    within(server.task).await.unwrap();
    assert_eq!(rest(&mut busy).await, "");
}

#[tokio::test]
async fn shutdown_does_not_wait_for_a_slot() {
    let limits = ServerLimits { max_connections: 0, grace: Duration::ZERO, ..patient() };
    let server = start(true, limits, DEADLINE).await;
    let _waiting = server.connect().await;

    server.stopped().await;
}

#[tokio::test]
async fn disconnect_drops_the_handler() {
    struct Dropped(mpsc::UnboundedSender<()>);
    impl Drop for Dropped {
        fn drop(&mut self) {
            let _ = self.0.send(());
        }
    }
    let (sender, mut dropped) = mpsc::unbounded_channel();
    let router = Router::new().fallback(async move || {
        let _dropped = Dropped(sender.clone());
        pending::<()>().await;
    });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let metrics = ConnectionMetrics::register(&Registry::new()).unwrap();
    let stop = CancellationToken::new();
    let server = tokio::spawn(serve(listener, router, patient(), metrics, stop));
    let mut stream = TcpStream::connect(address).await.unwrap();
    send(&mut stream, REQUEST).await;

    drop(stream);

    within(dropped.recv()).await.unwrap();
    server.abort();
}
