//! A proxy that can fall silent.

use std::{net::SocketAddr, sync::Arc};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
};

/// Passes bytes between a client and a broker on the same machine.
pub(super) struct Proxy {
    address: SocketAddr,
    silent: Arc<watch::Sender<bool>>,
}

impl Proxy {
    pub(super) async fn start(broker: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let silent = Arc::new(watch::Sender::new(false));
        let broker: SocketAddr = broker.parse().unwrap();
        let hears = silent.subscribe();
        tokio::spawn(async move {
            loop {
                let (client, _) = listener.accept().await.unwrap();
                tokio::spawn(connection(client, broker, address, hears.clone()));
            }
        });
        Self { address, silent }
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Stops all traffic. Connections of now stay silent forever.
    pub(super) fn fall_silent(&self) {
        self.silent.send_replace(true);
    }

    pub(super) fn speak_again(&self) {
        self.silent.send_replace(false);
    }
}

async fn connection(
    client: TcpStream,
    broker: SocketAddr,
    proxy: SocketAddr,
    mut silent: watch::Receiver<bool>,
) {
    let server = TcpStream::connect(broker).await.unwrap();
    server.set_nodelay(true).unwrap();
    client.set_nodelay(true).unwrap();
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    tokio::select! {
        biased;
        () = async { drop(silent.wait_for(|silent| *silent).await) } => {}
        _ = async {
            tokio::join!(
                tokio::io::copy(&mut from_client, &mut to_server),
                answers(&mut from_server, &mut to_client, broker, proxy),
            )
        } => return,
    }
    // The connection stays open without another byte.
    std::future::pending::<()>().await;
}

/// Passes answers on, and replaces the address of the broker by ours.
async fn answers(
    from: &mut OwnedReadHalf,
    to: &mut OwnedWriteHalf,
    broker: SocketAddr,
    proxy: SocketAddr,
) -> std::io::Result<()> {
    let [theirs, ours] = [broker, proxy].map(|address| {
        [address.ip().to_string().as_bytes(), &u32::from(address.port()).to_be_bytes()].concat()
    });
    loop {
        let length = from.read_u32().await?;
        let mut frame = vec![0; usize::try_from(length).unwrap()];
        from.read_exact(&mut frame).await?;
        let found = frame.windows(theirs.len()).position(|window| window == theirs);
        if let Some(place) = found {
            frame[place..place + ours.len()].copy_from_slice(&ours);
        }
        to.write_u32(length).await?;
        to.write_all(&frame).await?;
    }
}
