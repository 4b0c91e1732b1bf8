//! The addresses that a server listens on.

use std::{
    fmt,
    future::poll_fn,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    str::FromStr,
    sync::atomic::{AtomicUsize, Ordering},
    task::{Context, Poll},
};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};

use super::{ServerTls, TrustedProxies};

/// The most connections that may wait to be accepted. Linux limits this to `net.core.somaxconn`.
pub(super) const BACKLOG: u16 = 4_096;

const V4_LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const V6_LOOPBACK: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);
const V6_ANY: IpAddr = IpAddr::V6(Ipv6Addr::UNSPECIFIED);

/// The addresses of this machine that a server listens on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Hosts {
    /// `*`: all addresses of IPv6 and IPv4, or of IPv4 on a machine without IPv6.
    #[default]
    All,
    /// `localhost`: `127.0.0.1`, and `::1` if the machine has it.
    Loopback,
    /// `::` also accepts IPv4, unless the list has an IPv4 address.
    These(Vec<IpAddr>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must be *, localhost, or IP addresses of this machine, separated by commas")]
pub struct InvalidHosts;

impl FromStr for Hosts {
    type Err = InvalidHosts;

    fn from_str(text: &str) -> Result<Self, InvalidHosts> {
        match text.trim() {
            "*" => Ok(Self::All),
            "localhost" => Ok(Self::Loopback),
            text => {
                let address = |text: &str| {
                    let text = text.trim();
                    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
                    let address: IpAddr = match bare {
                        Some(bare) => bare.parse::<Ipv6Addr>().map_err(|_| InvalidHosts)?.into(),
                        None => text.parse().map_err(|_| InvalidHosts)?,
                    };
                    Ok(address.to_canonical())
                };
                let mut addresses = text.split(',').map(address).collect::<Result<Vec<_>, _>>()?;
                addresses.sort_unstable();
                addresses.dedup();
                Ok(Self::These(addresses))
            }
        }
    }
}

impl fmt::Display for Hosts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("*"),
            Self::Loopback => f.write_str("localhost"),
            Self::These(addresses) => {
                let texts: Vec<_> = addresses.iter().map(ToString::to_string).collect();
                f.write_str(&texts.join(","))
            }
        }
    }
}

impl Hosts {
    /// Listens on `port` of each address.
    pub fn listen(&self, port: u16) -> io::Result<Listeners> {
        let one = |address, only_v6| listen((address, port).into(), only_v6);
        let listeners = match self {
            Self::All => vec![one(V6_ANY, false).or_else(|error| {
                if is_without_ipv6(&error) {
                    one(Ipv4Addr::UNSPECIFIED.into(), true)
                } else {
                    Err(error)
                }
            })?],
            Self::Loopback => {
                let mut listeners = vec![one(V4_LOOPBACK, true)?];
                match one(V6_LOOPBACK, true) {
                    Ok(listener) => listeners.push(listener),
                    Err(error) if is_without_ipv6(&error) => {}
                    Err(error) => return Err(error),
                }
                listeners
            }
            Self::These(addresses) => {
                let only_v6 = addresses.iter().any(IpAddr::is_ipv4);
                addresses
                    .iter()
                    .map(|address| one(*address, only_v6).map_err(|error| of(*address, &error)))
                    .collect::<io::Result<_>>()?
            }
        };
        Ok(listeners.into())
    }

    /// Returns whether only programs on this machine can connect.
    pub fn is_loopback(&self) -> bool {
        match self {
            Self::All => false,
            Self::Loopback => true,
            Self::These(addresses) => addresses.iter().all(IpAddr::is_loopback),
        }
    }

    /// Returns the addresses at which a local program can reach the server, the likeliest first.
    pub fn from_here(&self) -> Vec<IpAddr> {
        match self {
            Self::All | Self::Loopback => vec![V4_LOOPBACK, V6_LOOPBACK],
            Self::These(addresses) => addresses
                .iter()
                .map(|address| match address {
                    IpAddr::V4(address) if address.is_unspecified() => V4_LOOPBACK,
                    IpAddr::V6(address) if address.is_unspecified() => V6_LOOPBACK,
                    address => *address,
                })
                .collect(),
        }
    }
}

/// Adds the address, which the message of the system lacks.
fn of(address: IpAddr, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{address}: {error}"))
}

/// Returns whether the machine has no IPv6, or no IPv6 address.
fn is_without_ipv6(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::AddrNotAvailable
        || error.kind() == io::ErrorKind::Unsupported
        || error.raw_os_error().is_some_and(|code| NO_IPV6.contains(&code))
}

/// `EPROTONOSUPPORT` and `EAFNOSUPPORT`.
#[cfg(target_os = "linux")]
const NO_IPV6: [i32; 2] = [93, 97];
#[cfg(not(target_os = "linux"))]
const NO_IPV6: [i32; 2] = [43, 47];

fn listen(address: SocketAddr, only_v6: bool) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // Allows a port that was closed a moment ago, as `TcpListener::bind` does.
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(only_v6)?;
    }
    socket.bind(&address.into())?;
    socket.listen(BACKLOG.into())?;
    socket.set_nonblocking(true)?;
    TcpListener::from_std(socket.into())
}

/// The sockets that a server accepts connections on.
#[derive(Debug)]
pub struct Listeners {
    sockets: Vec<TcpListener>,
    /// The socket that is polled first. It changes, so that a flood at one address does not block
    /// the other addresses.
    next: AtomicUsize,
    tls: Option<ServerTls>,
    proxies: TrustedProxies,
    /// Whether the router learns the caller of each request.
    tells_callers: bool,
}

impl From<TcpListener> for Listeners {
    fn from(listener: TcpListener) -> Self {
        vec![listener].into()
    }
}

impl From<Vec<TcpListener>> for Listeners {
    fn from(sockets: Vec<TcpListener>) -> Self {
        Self {
            sockets,
            next: AtomicUsize::new(0),
            tls: None,
            proxies: TrustedProxies::default(),
            tells_callers: false,
        }
    }
}

impl fmt::Display for Listeners {
    /// Writes the addresses for the log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let texts: Vec<_> = self.addresses().iter().map(ToString::to_string).collect();
        f.write_str(&texts.join(", "))
    }
}

impl Listeners {
    /// Makes all connections speak TLS.
    #[must_use]
    pub fn with_tls(self, tls: ServerTls) -> Self {
        Self { tls: Some(tls), ..self }
    }

    /// Believes what these proxies report about the callers behind them.
    #[must_use]
    pub fn behind(self, proxies: TrustedProxies) -> Self {
        Self { proxies, ..self }
    }

    /// Passes the caller of each request to the router. [`operator_router`](crate::operator_router)
    /// needs it. It costs one allocation for each request.
    #[must_use]
    pub fn telling_callers(self) -> Self {
        Self { tells_callers: true, ..self }
    }

    pub(super) fn tells_callers(&self) -> bool {
        self.tells_callers
    }

    pub(super) fn proxies(&self) -> &TrustedProxies {
        &self.proxies
    }

    pub(super) fn tls(&self) -> Option<&ServerTls> {
        self.tls.as_ref()
    }

    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.sockets.iter().filter_map(|listener| listener.local_addr().ok()).collect()
    }

    pub(super) async fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        poll_fn(|cx| self.poll_accept(cx)).await
    }

    fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<(TcpStream, SocketAddr)>> {
        let next = self.next.load(Ordering::Relaxed);
        let (before, from_next) = self.sockets.split_at(next);
        for (index, listener) in from_next.iter().chain(before).enumerate() {
            if let Poll::Ready(accepted) = listener.poll_accept(cx) {
                let behind = (next + index + 1) % self.sockets.len();
                self.next.store(behind, Ordering::Relaxed);
                return Poll::Ready(accepted);
            }
        }
        Poll::Pending
    }

    pub(super) fn into_inner(self) -> Vec<TcpListener> {
        self.sockets
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hosts(text: &str) -> Hosts {
        text.parse().unwrap()
    }

    #[test]
    fn hosts_are_all_loopback_or_addresses() {
        let these = |addresses: &[&str]| {
            Hosts::These(addresses.iter().map(|address| address.parse().unwrap()).collect())
        };
        assert_eq!(hosts("*"), Hosts::All);
        assert_eq!(hosts("localhost"), Hosts::Loopback);
        assert_eq!(hosts("127.0.0.1"), these(&["127.0.0.1"]));
        assert_eq!(hosts("::1, 127.0.0.1,::1"), these(&["127.0.0.1", "::1"]));
        assert_eq!(hosts("[::1]"), these(&["::1"]));
        assert_eq!(hosts("::ffff:10.0.0.1"), these(&["10.0.0.1"]));
        for bad in
            ["", "example.com", "127.0.0.1:80", "[::1]:80", "[127.0.0.1]", "1.2.3", "a,b", "::1,"]
        {
            assert_eq!(bad.parse::<Hosts>(), Err(InvalidHosts), "{bad:?}");
        }
    }

    #[test]
    fn local_program_connects_to_loopback_of_the_right_family() {
        let from_here = |text: &str| -> Vec<String> {
            hosts(text).from_here().iter().map(ToString::to_string).collect()
        };
        assert_eq!(from_here("*"), ["127.0.0.1", "::1"]);
        assert_eq!(from_here("localhost"), ["127.0.0.1", "::1"]);
        assert_eq!(from_here("0.0.0.0"), ["127.0.0.1"]);
        assert_eq!(from_here("::"), ["::1"]);
        assert_eq!(from_here("192.0.2.1"), ["192.0.2.1"]);
    }

    #[test]
    fn only_loopback_addresses_are_loopback() {
        for (text, expected) in [
            ("*", false),
            ("localhost", true),
            ("127.0.0.2,::1", true),
            ("127.0.0.1,192.0.2.1", false),
            ("0.0.0.0", false),
            ("::", false),
        ] {
            assert_eq!(hosts(text).is_loopback(), expected, "{text}");
        }
    }

    #[tokio::test]
    async fn all_hosts_accept_both_families() {
        let listeners = Hosts::All.listen(0).unwrap();
        let port = listeners.addresses()[0].port();

        for address in Hosts::All.from_here() {
            let client = TcpStream::connect((address, port)).await.unwrap();
            let (_, peer) = listeners.accept().await.unwrap();
            assert_eq!(peer.ip().to_canonical(), client.local_addr().unwrap().ip());
        }
    }

    #[tokio::test]
    async fn loopback_accepts_loopback_only() {
        let listeners = hosts("127.0.0.1").listen(0).unwrap();
        let port = listeners.addresses()[0].port();

        assert!(TcpStream::connect((V4_LOOPBACK, port)).await.is_ok());
        assert!(TcpStream::connect((Ipv4Addr::new(127, 0, 0, 2), port)).await.is_err());
        assert!(TcpStream::connect((V6_LOOPBACK, port)).await.is_err());
    }

    #[tokio::test]
    async fn both_families_can_be_listed() {
        let port = hosts("127.0.0.1").listen(0).unwrap().addresses()[0].port();
        for text in ["0.0.0.0,::", "127.0.0.1,::", "localhost", "127.0.0.1,::1"] {
            let listeners = hosts(text).listen(port).unwrap();
            assert_eq!(listeners.addresses().len(), 2, "{text}");
            for address in [V4_LOOPBACK, V6_LOOPBACK] {
                TcpStream::connect((address, port)).await.unwrap();
                listeners.accept().await.unwrap();
            }
        }
    }

    #[tokio::test]
    async fn flood_at_one_address_does_not_block_another_address() {
        let port = hosts("127.0.0.1").listen(0).unwrap().addresses()[0].port();
        let listeners = hosts("127.0.0.1,127.0.0.2").listen(port).unwrap();
        let mut clients = Vec::new();
        for last in [1, 1, 1, 1, 2, 2] {
            clients.push(TcpStream::connect((Ipv4Addr::new(127, 0, 0, last), port)).await.unwrap());
        }

        let mut accepted = Vec::new();
        for _ in &clients {
            let (stream, _) = listeners.accept().await.unwrap();
            accepted.push(stream.local_addr().unwrap().ip().to_string());
        }

        assert_eq!(accepted[..4].iter().filter(|it| *it == "127.0.0.2").count(), 2);
    }

    #[tokio::test]
    async fn error_names_the_address() {
        let error = hosts("192.0.2.1").listen(0).unwrap_err().to_string();

        assert!(error.starts_with("192.0.2.1: "), "{error}");
    }

    #[test]
    fn missing_ipv6_is_distinguished_from_a_port_in_use() {
        assert!(is_without_ipv6(&io::Error::from_raw_os_error(NO_IPV6[1])));
        assert!(is_without_ipv6(&io::ErrorKind::AddrNotAvailable.into()));
        assert!(!is_without_ipv6(&io::ErrorKind::AddrInUse.into()));
        assert!(!is_without_ipv6(&io::ErrorKind::PermissionDenied.into()));
    }
}
