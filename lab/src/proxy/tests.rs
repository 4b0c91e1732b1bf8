use tokio::time::timeout;

use super::*;

const SOON: Duration = Duration::from_secs(5);
/// Long enough for what must not come.
const WHILE: Duration = Duration::from_millis(100);

/// A proxy before a server that says what it hears.
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

/// Says a word and waits for it to come back.
async fn echo(stream: &mut TcpStream) -> io::Result<()> {
    stream.write_all(b"word").await?;
    let mut heard = [0; 4];
    timeout(SOON, stream.read_exact(&mut heard)).await.map_err(|_| io::ErrorKind::TimedOut)??;
    assert_eq!(&heard, b"word");
    Ok(())
}

#[tokio::test]
async fn passes_bytes_and_ends() {
    let (_proxy, port) = before_echo().await;
    let mut stream = connect(port).await.unwrap();

    echo(&mut stream).await.unwrap();
    stream.shutdown().await.unwrap();

    assert_eq!(timeout(SOON, stream.read(&mut [0])).await.unwrap().unwrap(), 0);
}

#[tokio::test]
async fn cuts_connections_and_refuses_new_ones_until_it_passes_again() {
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
async fn swallows_both_ways_and_resets_what_lost_bytes() {
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
async fn eats_an_answer_after_it_passed_the_request() {
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
async fn holds_bytes_back() {
    let (proxy, port) = before_echo().await;
    proxy.put(Effect::Delay(WHILE));
    let mut stream = connect(port).await.unwrap();

    let begun = tokio::time::Instant::now();
    echo(&mut stream).await.unwrap();

    assert!(begun.elapsed() >= 2 * WHILE);
}
