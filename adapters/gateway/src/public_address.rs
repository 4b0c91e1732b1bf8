//! Tells public addresses from private ones.
//!
//! The operator sets the URL for events, and a name server resolves it. Neither of them may lead
//! a request into the network of this process.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    pin::Pin,
    task::{Context, Poll},
    vec,
};

use application::BoxError;
use http::Uri;
use hyper_util::client::legacy::connect::dns::Name;
use tower::Service;

/// A resolver that fails unless all addresses of a name are permitted.
///
/// The client connects to the addresses that this resolver returns and does not resolve the name
/// again, so a later answer of the name server has no effect. A literal address is not resolved:
/// see [`Self::permits_literal`].
#[derive(Debug, Clone)]
pub(crate) struct Guarded<R> {
    names: R,
    permits: fn(IpAddr) -> bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the host has an address that is not public")]
pub(crate) struct NotPublic;

impl<R> Guarded<R> {
    pub(crate) fn new(names: R, permits: fn(IpAddr) -> bool) -> Self {
        Self { names, permits }
    }

    /// Whether the host of a URL is a name, or an address that is permitted.
    pub(crate) fn permits_literal(&self, host: &str) -> bool {
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        bare.parse().map_or(true, self.permits)
    }
}

impl<R> Service<Name> for Guarded<R>
where
    R: Service<Name>,
    R::Response: Iterator<Item = SocketAddr>,
    R::Error: Into<BoxError>,
    R::Future: Send + 'static,
{
    type Response = vec::IntoIter<SocketAddr>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.names.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, name: Name) -> Self::Future {
        let (found, permits) = (self.names.call(name), self.permits);
        Box::pin(async move {
            let addresses: Vec<SocketAddr> = found.await.map_err(Into::into)?.collect();
            if addresses.iter().all(|address| permits(address.ip())) {
                Ok(addresses.into_iter())
            } else {
                Err(NotPublic.into())
            }
        })
    }
}

/// Whether the host of a URL is an address that is not public.
pub fn has_private_address(url: &Uri) -> bool {
    url.host().is_some_and(|host| !Guarded::new((), is_public).permits_literal(host))
}

/// Whether an address is a public unicast address, by the registries of special addresses
/// (RFC 6890).
pub(crate) fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let [first, second, third, _] = address.octets();
    !matches!(
        (first, second, third),
        // This network, private, loopback; multicast and reserved.
        (0 | 10 | 127 | 224..=255, ..)
            // Shared by a carrier's customers.
            | (100, 64..=127, _)
            // Link-local.
            | (169, 254, _)
            // Private.
            | (172, 16..=31, _)
            | (192, 168, _)
            // Protocol assignments, documentation, and the abandoned relays to IPv6.
            | (192, 0, 0 | 2)
            | (192, 88, 99)
            // Benchmarks.
            | (198, 18..=19, _)
            // Documentation.
            | (198, 51, 100)
            | (203, 0, 113)
    )
}

/// Global unicast is `2000::/3`. Unique local, link-local and multicast are outside of it.
fn is_public_v6(address: Ipv6Addr) -> bool {
    let within = |high: u16, low: u16| {
        is_public_v4(Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low)))
    };
    match address.segments() {
        // Mapped, NAT64, 6to4: the IPv4 address inside counts.
        [0, 0, 0, 0, 0, 0xffff, high, low]
        | [0x64, 0xff9b, 0, 0, 0, 0, high, low]
        | [0x2002, high, low, ..] => within(high, low),
        // Protocol assignments (such as Teredo), and documentation.
        [0x2001, 0..=0x1ff | 0xdb8, ..] | [0x3fff, 0..=0xfff, ..] => false,
        [0x2000..=0x3fff, ..] => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn check(expected: bool, addresses: &[&str]) {
        for address in addresses {
            assert_eq!(is_public(address.parse().unwrap()), expected, "{address}");
        }
    }

    #[test]
    fn private_addresses_are_not_public() {
        for (private, public) in [
            (["0.0.0.0", "0.255.255.255"], ["1.0.0.0", "9.255.255.255"]),
            (["10.0.0.0", "10.255.255.255"], ["9.255.255.255", "11.0.0.0"]),
            (["100.64.0.0", "100.127.255.255"], ["100.63.255.255", "100.128.0.0"]),
            (["127.0.0.1", "127.255.255.255"], ["126.255.255.255", "128.0.0.0"]),
            (["169.254.0.0", "169.254.169.254"], ["169.253.255.255", "169.255.0.0"]),
            (["172.16.0.0", "172.31.255.255"], ["172.15.255.255", "172.32.0.0"]),
            (["192.0.0.0", "192.0.0.255"], ["191.255.255.255", "192.0.1.0"]),
            (["192.0.2.0", "192.0.2.255"], ["192.0.1.255", "192.0.3.0"]),
            (["192.88.99.0", "192.88.99.255"], ["192.88.98.255", "192.88.100.0"]),
            (["192.168.0.0", "192.168.255.255"], ["192.167.255.255", "192.169.0.0"]),
            (["198.18.0.0", "198.19.255.255"], ["198.17.255.255", "198.20.0.0"]),
            (["198.51.100.0", "198.51.100.255"], ["198.51.99.255", "198.51.101.0"]),
            (["203.0.113.0", "203.0.113.255"], ["203.0.112.255", "203.0.114.0"]),
            (["224.0.0.0", "255.255.255.255"], ["223.255.255.255", "8.8.8.8"]),
            (["::", "::1"], ["2000::", "2a00:1450::1"]),
            (["fc00::", "fdff:ffff::1"], ["2606:4700::1", "3ffe::1"]),
            (["fe80::1", "fec0::1"], ["2003::1", "2400::1"]),
            (["ff00::", "ff02::1"], ["2620::1", "3ffe:ffff::1"]),
            (["2001:db8::", "2001:db8:ffff::1"], ["2001:db7::1", "2001:db9::1"]),
            (["2001::1", "2001:1ff:ffff::1"], ["2001:200::1", "2001:4860::1"]),
            (["3fff::1", "3fff:fff::1"], ["3ffe:ffff::1", "3fff:1000::1"]),
            (["1fff::1", "4000::1"], ["2000::1", "3fff:ffff::1"]),
            (["::ffff:127.0.0.1", "::ffff:10.0.0.1"], ["::ffff:8.8.8.8", "::ffff:1.1.1.1"]),
            (["64:ff9b::10.0.0.1", "64:ff9b::a9fe:a9fe"], ["64:ff9b::8.8.8.8", "64:ff9b::101:101"]),
            (["2002:a00:1::1", "2002:7f00:1::"], ["2002:808:808::1", "2002:101:101::"]),
            // IPv4-compatible (deprecated), NAT64 of a local network, and discard-only.
            (["::7f00:1", "::8.8.8.8"], ["2600::1", "2a01::1"]),
            (["64:ff9b:1::1", "100::1"], ["2c0f::1", "2800::1"]),
        ] {
            check(false, &private);
            check(true, &public);
        }
    }

    #[test]
    fn literal_address_is_checked_and_a_name_is_not() {
        let guarded = Guarded::new((), is_public);

        for host in ["127.0.0.1", "[::1]", "[::ffff:10.0.0.1]", "192.168.1.1"] {
            assert!(!guarded.permits_literal(host), "{host}");
        }
        for host in ["8.8.8.8", "[2606:4700::1]", "localhost", "127.0.0.1.example", "2130706433"] {
            assert!(guarded.permits_literal(host), "{host}");
        }
    }

    proptest! {
        #[test]
        fn embedded_ipv4_address_is_as_public_as_alone(bits: u32) {
            let inside = Ipv4Addr::from_bits(bits);
            let expected = is_public(inside.into());

            let bits = u128::from(bits);
            let prefixes = [0xffff << 32, 0x64_ff9b << 96];
            for outside in prefixes.map(|prefix| prefix | bits).into_iter().chain([0x2002 << 112 | bits << 80]) {
                let outside = Ipv6Addr::from_bits(outside);
                prop_assert_eq!(is_public(outside.into()), expected, "{}", outside);
            }
        }
    }
}
