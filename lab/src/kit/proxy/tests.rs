use tokio::time::timeout;

use super::*;

const SOON: Duration = Duration::from_secs(5);
/// Long enough to show that something does not come.
const WHILE: Duration = Duration::from_millis(100);

/// Starts a proxy before a server that echoes.
async fn before_echo() -> (Proxy, u16) {
    let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = server.local_addr().unwrap().port();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = server.accept().await.unwrap();
            tokio::spawn(async move {
                let (mut read, mut write) = stream.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
            });
        }
    });
    let port = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    (Proxy::start(port, target).await.unwrap(), port)
}

async fn connect(port: u16) -> io::Result<TcpStream> {
    TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await
}

/// Sends a word and waits for its echo.
async fn echo(stream: &mut TcpStream) -> io::Result<()> {
    stream.write_all(b"word").await?;
    let mut heard = [0; 4];
    timeout(SOON, stream.read_exact(&mut heard)).await.map_err(|_| io::ErrorKind::TimedOut)??;
    assert_eq!(&heard, b"word");
    Ok(())
}

#[tokio::test]
async fn bytes_and_ends_pass() {
    let (_proxy, port) = before_echo().await;
    let mut stream = connect(port).await.unwrap();

    echo(&mut stream).await.unwrap();
    stream.shutdown().await.unwrap();

    assert_eq!(timeout(SOON, stream.read(&mut [0])).await.unwrap().unwrap(), 0);
}

#[tokio::test]
async fn a_cut_resets_connections_and_refuses_new_ones_until_it_ends() {
    let (proxy, port) = before_echo().await;
    let mut stream = connect(port).await.unwrap();
    echo(&mut stream).await.unwrap();

    proxy.put(Effect::Cut);

    let cut = timeout(SOON, stream.read(&mut [0])).await.unwrap().unwrap_err();
    assert_eq!(cut.kind(), io::ErrorKind::ConnectionReset);
    let refused = async {
        while connect(port).await.is_ok() {
            tokio::task::yield_now().await;
        }
    };
    timeout(SOON, refused).await.unwrap();

    proxy.put(Effect::Pass);

    let passes = async {
        loop {
            if let Ok(mut stream) = connect(port).await {
                return echo(&mut stream).await;
            }
        }
    };
    timeout(SOON, passes).await.unwrap().unwrap();
}

#[tokio::test]
async fn half_open_drops_both_ways_and_resets_connections_that_lost_bytes() {
    let (proxy, port) = before_echo().await;
    let mut used = connect(port).await.unwrap();
    let mut idle = connect(port).await.unwrap();
    echo(&mut used).await.unwrap();
    echo(&mut idle).await.unwrap();

    proxy.put(Effect::HalfOpen);

    let mut new = connect(port).await.unwrap();
    for stream in [&mut used, &mut new] {
        stream.write_all(b"word").await.unwrap();
        assert!(timeout(WHILE, stream.read(&mut [0])).await.is_err());
    }

    proxy.put(Effect::Pass);

    for stream in [&mut used, &mut new] {
        timeout(SOON, stream.read(&mut [0])).await.unwrap().unwrap_err();
    }
    echo(&mut idle).await.unwrap();
}

#[tokio::test]
async fn eat_answers_drops_the_answer_after_the_request_has_passed() {
    let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = server.local_addr().unwrap().port();
    let port = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let proxy = Proxy::start(port, target).await.unwrap();
    proxy.put(Effect::EatAnswers);

    let mut client = connect(port).await.unwrap();
    client.write_all(b"word").await.unwrap();
    let (mut far, _) = server.accept().await.unwrap();
    let mut heard = [0; 4];
    timeout(SOON, far.read_exact(&mut heard)).await.unwrap().unwrap();
    far.write_all(b"answer").await.unwrap();

    timeout(SOON, client.read(&mut [0])).await.unwrap().unwrap_err();
}

#[tokio::test]
async fn a_delay_holds_for_both_directions() {
    let (proxy, port) = before_echo().await;
    proxy.put(Effect::Delay(WHILE));
    let mut stream = connect(port).await.unwrap();

    let begun = tokio::time::Instant::now();
    echo(&mut stream).await.unwrap();

    assert!(begun.elapsed() >= 2 * WHILE);
}
