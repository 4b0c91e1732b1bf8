//! Clients that hold connections, and the addresses that the service listens on.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
};

use super::support::{ACCEPTED, Binary, Folder, Running, Stack, eventually, get, phone, post, raw};

const PATIENCE: Duration = Duration::from_secs(10);
const HEAD: &str = "POST /api/ HTTP/1.1\r\nHost: it\r\nContent-Type: application/json\r\n";

/// Holds connections without a complete request, and opens each one again if the server closes it.
fn hold(port: u16, count: usize, begin: &str, then: &'static str) -> JoinSet<()> {
    let mut holders = JoinSet::new();
    for _ in 0..count {
        let begin = begin.to_owned();
        holders.spawn(async move {
            loop {
                let _ = hold_one(port, begin.as_bytes(), then.as_bytes()).await;
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        });
    }
    holders
}

async fn hold_one(port: u16, begin: &[u8], then: &[u8]) -> std::io::Result<()> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
    stream.write_all(begin).await?;
    let mut answer = [0; 1024];
    loop {
        match tokio::time::timeout(Duration::from_millis(200), stream.read(&mut answer)).await {
            Ok(read) => {
                if read? == 0 {
                    return Ok(());
                }
            }
            Err(_) => stream.write_all(then).await?,
        }
    }
}

/// Posts messages until one is accepted.
async fn is_served(messager: &Running, number: usize) {
    let phone = phone(number);
    eventually("served", PATIENCE, async || {
        let body = format!("{{\"phone\":\"{phone}\"}}");
        let length = body.len();
        let request = format!("{HEAD}Connection: close\r\nContent-Length: {length}\r\n\r\n{body}");
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, messager.port)).await.ok()?;
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.ok()?;
        answer.ends_with(ACCEPTED.as_bytes()).then_some(())
    })
    .await;
}

async fn is_alive(messager: &Running) {
    eventually("a probe's answer", PATIENCE, async || {
        (get(messager.metrics_port, "/readyz").await?.0 == 200).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_clients_do_not_block_other_clients() {
    let folder = Folder::new();
    let messager = Binary::new("messager", folder.path())
        .env("MAX_CONNECTIONS", "64")
        .env("API_AUTH", "all")
        .ready()
        .await;
    let keys = ["keys", "create", "--name", "it", "--scopes", "send"];
    let key = Binary::new("messager", folder.path()).args(&keys).output().await;
    let key = String::from_utf8(key.stdout).unwrap();
    let key = key.split_whitespace().find(|word| word.starts_with("msk_")).expect("a key");
    let authorized = format!("{HEAD}Authorization: Bearer {key}\r\n");
    let body = "Content-Length: 23\r\n\r\n{\"phone\"";

    for (begin, then) in [
        (HEAD.to_owned(), ""),
        (HEAD.to_owned(), "A: a\r\n"),
        (format!("{HEAD}{body}"), ""),
        (format!("{authorized}{body}"), ""),
        (format!("{authorized}Transfer-Encoding: chunked\r\n\r\n"), "1\r\n \r\n"),
    ] {
        let holders = hold(messager.port, 100, &begin, then);
        let ask = format!(
            "{authorized}Connection: close\r\nContent-Length: 23\r\n\r\n{{\"phone\":\"89999999999\"}}"
        );
        for _ in 0..3 {
            eventually("answered", PATIENCE, async || {
                let answer = raw_or_nothing(messager.port, ask.as_bytes()).await?;
                ["HTTP/1.1 200", "HTTP/1.1 429"]
                    .iter()
                    .any(|it| answer.starts_with(it))
                    .then_some(())
            })
            .await;
        }
        drop(holders);
    }
    let dropped = messager.metric("messager_connections_dropped_total").await;
    assert!(dropped > Some(0.0), "{dropped:?}");
}

async fn raw_or_nothing(port: u16, bytes: &[u8]) -> Option<String> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.ok()?;
    stream.write_all(bytes).await.ok()?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.ok()?;
    Some(String::from_utf8_lossy(&answer).into_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn probes_are_answered_despite_slow_clients() {
    let folder = Folder::new();
    // With this limit the metrics port has about a hundred connections.
    let messager = Binary::new("messager", folder.path()).with_descriptors(1_024).ready().await;
    let _holders = hold(messager.metrics_port, 200, "GET /healthz HTTP/1.1\r\n", "A: a\r\n");

    eventually("dropped", PATIENCE, async || {
        (messager.metric("messager_connections_dropped_total").await? > 0.0).then_some(())
    })
    .await;
    for _ in 0..3 {
        is_alive(&messager).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_leave_descriptors_for_the_database_and_the_queue() {
    let folder = Folder::new();
    let messager = Binary::new("messager", folder.path()).with_descriptors(256).ready().await;
    let holders = hold(messager.port, 400, HEAD, "");

    eventually("dropped", PATIENCE, async || {
        (messager.metric("messager_connections_dropped_total").await? > 0.0).then_some(())
    })
    .await;
    is_served(&messager, 1).await;
    eventually("shown", PATIENCE, async || messager.stdout().contains(&phone(1)).then_some(()))
        .await;
    is_alive(&messager).await;

    let log = messager.stderr();
    assert!(log.contains("the limit of open files is too low for MAX_CONNECTIONS=768"), "{log}");
    assert!(!log.contains("Too many open files"), "{log}");
    drop(holders);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_leave_descriptors_for_the_database_broker_and_gateway() {
    let Some(stack) = Stack::new().await else { return };
    // `messager` runs all roles, so it needs the privileges of each.
    let settings = [("API_AUTH", "none"), ("POSTGRES_USER", &*stack.postgres.user)];
    let messager = stack.start("messager", &settings).with_descriptors(256).ready().await;
    let _holders = hold(messager.port, 400, HEAD, "");

    eventually("dropped", PATIENCE, async || {
        (messager.metric("messager_connections_dropped_total").await? > 0.0).then_some(())
    })
    .await;
    is_served(&messager, 1).await;
    eventually("an SMS", Duration::from_secs(60), async || {
        stack.gateway.received().iter().any(|sms| sms.phone == phone(1)).then_some(())
    })
    .await;
    is_alive(&messager).await;
    let log = messager.stderr();
    assert!(!log.contains("Too many open files"), "{log}");
}

const V4: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const V6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);

/// Returns whether this machine has IPv6. Some containers have none.
fn has_ipv6() -> bool {
    std::net::TcpListener::bind((V6, 0)).is_ok()
}

#[tokio::test]
async fn service_listens_on_the_set_hosts_and_healthcheck_asks_there() {
    let elsewhere = IpAddr::from([127, 0, 0, 2]);
    let all: &[IpAddr] = &[V4, elsewhere, V6];
    let cases: [(Option<&str>, &[IpAddr]); 6] = [
        (None, all),
        (Some("::"), all),
        (Some("0.0.0.0"), &[V4, elsewhere]),
        (Some("127.0.0.1"), &[V4]),
        (Some("::1"), &[V6]),
        (Some("localhost"), &[V4, V6]),
    ];
    for (host, expected) in cases {
        let takes_v6 = host.is_some_and(|host| host.contains("::"));
        if takes_v6 && !has_ipv6() {
            eprintln!("skipped: no IPv6 for {host:?}");
            continue;
        }
        let folder = Folder::new();
        let with_host = |binary: Binary| {
            let Some(host) = host else { return binary };
            binary.env("APP_HOST", host).env("PROMETHEUS_SERVER_HOST", host)
        };
        let messager = with_host(Binary::new("messager", folder.path())).spawn();
        eventually("healthy", Duration::from_secs(30), async || {
            let asks = with_host(Binary::new("messager", folder.path()))
                .env("PROMETHEUS_SERVER_PORT", &messager.metrics_port.to_string())
                .args(&["healthcheck"])
                .output()
                .await;
            asks.status.success().then_some(())
        })
        .await;

        for address in [V4, elsewhere, V6].into_iter().filter(|it| it.is_ipv4() || has_ipv6()) {
            for port in [messager.port, messager.metrics_port] {
                let is_reached = TcpStream::connect((address, port)).await.is_ok();
                assert_eq!(is_reached, expected.contains(&address), "{host:?} {address}");
            }
        }
    }
}

#[tokio::test]
async fn both_ports_require_one_valid_host_header() {
    let folder = Folder::new();
    let messager = Binary::new("messager", folder.path()).ready().await;

    for port in [messager.port, messager.metrics_port] {
        for hosts in ["", "Host: a\r\nHost: a\r\n", "Host: a b\r\n"] {
            let answer =
                raw(port, format!("GET /healthz HTTP/1.1\r\n{hosts}\r\n").as_bytes()).await;
            assert!(answer.starts_with("HTTP/1.1 400 "), "{hosts:?}: {answer}");
            assert!(answer.ends_with("{\"error\":\"invalid Host header\"}"), "{answer}");
        }
        let answer = raw(port, b"GET /healthz HTTP/1.0\r\n\r\n").await;
        assert!(!answer.contains(" 400 "), "{answer}");
    }
    assert_eq!(post(messager.port, &phone(1)).await.0, 200);
}
