//! The proxies in front of a server, and the address of a caller behind them.

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    str::FromStr,
    sync::Arc,
};

use axum::http::HeaderMap;

/// The header in which a proxy reports the addresses of the callers before it, the nearest last.
const FORWARDED_FOR: &str = "x-forwarded-for";

/// The proxies whose `X-Forwarded-For` is believed. By default, there is none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TrustedProxies(Arc<[Network]>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Network {
    /// Its first address. An IPv4 address that is mapped into IPv6 is an IPv4 address here.
    address: IpAddr,
    /// The number of bits that its addresses have in common.
    prefix: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must be IP addresses or networks such as 10.0.0.0/8, separated by commas")]
pub struct InvalidProxies;

impl FromStr for TrustedProxies {
    type Err = InvalidProxies;

    fn from_str(text: &str) -> Result<Self, InvalidProxies> {
        Ok(Self(text.split(',').map(|network| network.trim().parse()).collect::<Result<_, _>>()?))
    }
}

impl fmt::Display for TrustedProxies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let texts: Vec<_> =
            self.0.iter().map(|it| format!("{}/{}", it.address, it.prefix)).collect();
        f.write_str(&texts.join(","))
    }
}

impl TrustedProxies {
    pub(super) fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.0.iter().any(|network| network.contains(address))
    }

    /// Returns the address of the caller whose request came from `peer`.
    ///
    /// Each trusted proxy appends the address that called it to the header. So the caller is the last
    /// address that is not a trusted proxy: a client can forge every entry before it. If an entry is not
    /// an address, the proxy that passed it on counts as the caller.
    pub(super) fn caller(&self, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
        let mut caller = peer.to_canonical();
        if !self.contains(caller) {
            return caller;
        }
        for value in headers.get_all(FORWARDED_FOR).iter().rev() {
            let Ok(value) = value.to_str() else { return caller };
            for entry in value.rsplit(',').map(str::trim).filter(|entry| !entry.is_empty()) {
                let Some(address) = address_of(entry) else { return caller };
                caller = address;
                if !self.contains(caller) {
                    return caller;
                }
            }
        }
        caller
    }
}

impl FromStr for Network {
    type Err = InvalidProxies;

    fn from_str(text: &str) -> Result<Self, InvalidProxies> {
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => {
                // `parse` takes a sign.
                let is_number = prefix.bytes().all(|byte| byte.is_ascii_digit());
                (
                    address,
                    Some(prefix.parse::<u8>().ok().filter(|_| is_number).ok_or(InvalidProxies)?),
                )
            }
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| InvalidProxies)?;
        let longest = longest_prefix(address);
        let prefix = prefix.unwrap_or(longest);
        if prefix > longest {
            return Err(InvalidProxies);
        }
        let (address, prefix) = match (address.to_canonical(), prefix.checked_sub(96)) {
            (address @ IpAddr::V4(_), Some(rest)) if longest == 128 => (address, rest),
            // It has other addresses than IPv4 ones, too.
            (IpAddr::V4(_), None) if longest == 128 => (address, prefix),
            (address, _) => (address, prefix),
        };
        Ok(Self { address: first_of(address, prefix), prefix })
    }
}

impl Network {
    fn contains(&self, address: IpAddr) -> bool {
        self.address.is_ipv4() == address.is_ipv4()
            && first_of(address, self.prefix) == self.address
    }
}

const fn longest_prefix(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

/// Clears the bits behind the prefix.
fn first_of(address: IpAddr, prefix: u8) -> IpAddr {
    let behind = u32::from(longest_prefix(address).saturating_sub(prefix));
    match address {
        IpAddr::V4(address) => {
            let mask = u32::MAX.checked_shl(behind).unwrap_or(0);
            IpAddr::V4((address.to_bits() & mask).into())
        }
        IpAddr::V6(address) => {
            let mask = u128::MAX.checked_shl(behind).unwrap_or(0);
            IpAddr::V6((address.to_bits() & mask).into())
        }
    }
}

/// Reads an address, which may have a port. With a port, an IPv6 address stands in brackets.
fn address_of(entry: &str) -> Option<IpAddr> {
    let bare = |text: &str| text.parse::<IpAddr>().ok();
    let in_brackets = |text: &str| {
        let inner = text.strip_prefix('[')?.strip_suffix(']')?;
        inner.parse::<Ipv6Addr>().ok().map(IpAddr::from)
    };
    let with_port = |text: &str| text.parse::<SocketAddr>().ok().map(|it| it.ip());
    let address = bare(entry).or_else(|| in_brackets(entry)).or_else(|| with_port(entry))?;
    Some(address.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxies(text: &str) -> TrustedProxies {
        text.parse().unwrap()
    }

    /// The caller of a request that came from `peer` with these headers.
    fn caller(trusted: &str, peer: &str, headers: &[&str]) -> String {
        let mut map = HeaderMap::new();
        for value in headers {
            map.append(FORWARDED_FOR, value.parse().unwrap());
        }
        let trusted = if trusted.is_empty() { TrustedProxies::default() } else { proxies(trusted) };
        trusted.caller(peer.parse().unwrap(), &map).to_string()
    }

    #[test]
    fn caller_is_the_last_address_that_is_no_trusted_proxy() {
        #[track_caller]
        fn check(headers: &[&str], expected: &str) {
            assert_eq!(caller("10.0.0.0/8,2001:db8::/32", "10.0.0.1", headers), expected);
        }

        check(&["203.0.113.7"], "203.0.113.7");
        check(&["203.0.113.7, 10.1.2.3"], "203.0.113.7");
        check(&["203.0.113.7", "10.1.2.3"], "203.0.113.7");
        // A caller invents the entries before the one that the first proxy adds.
        check(&["198.51.100.1, 203.0.113.7"], "203.0.113.7");
        check(&["10.9.9.9, 203.0.113.7, 10.1.2.3"], "203.0.113.7");
        check(&["198.51.100.1", "203.0.113.7"], "203.0.113.7");
        // The request of a proxy itself.
        check(&["10.4.4.4, 10.1.2.3"], "10.4.4.4");
        check(&[], "10.0.0.1");
        check(&[""], "10.0.0.1");
        check(&["203.0.113.7,, ,"], "203.0.113.7");
    }

    #[test]
    fn entries_may_have_ports_and_either_family() {
        #[track_caller]
        fn check(entry: &str, expected: &str) {
            assert_eq!(caller("10.0.0.0/8", "10.0.0.1", &[entry]), expected, "{entry}");
        }

        check("203.0.113.7:4711", "203.0.113.7");
        check("2001:db8::7", "2001:db8::7");
        check("[2001:db8::7]", "2001:db8::7");
        check("[2001:db8::7]:4711", "2001:db8::7");
        check("::ffff:203.0.113.7", "203.0.113.7");
        check("[::ffff:203.0.113.7]:80", "203.0.113.7");
    }

    #[test]
    fn entry_that_is_no_address_ends_the_search() {
        for bad in
            ["unknown", "_hidden", "203.0.113.7:x", "[203.0.113.7]", "1.2.3", "a.b", "\"1.2.3.4\""]
        {
            let before = format!("203.0.113.7, {bad}");
            assert_eq!(caller("10.0.0.0/8", "10.0.0.1", &[bad]), "10.0.0.1", "{bad}");
            assert_eq!(caller("10.0.0.0/8", "10.0.0.1", &[&before]), "10.0.0.1", "{bad}");
            let behind = format!("{bad}, 203.0.113.7");
            assert_eq!(caller("10.0.0.0/8", "10.0.0.1", &[&behind]), "203.0.113.7", "{bad}");
        }
        let mut headers = HeaderMap::new();
        headers.append(FORWARDED_FOR, "203.0.113.7".parse().unwrap());
        headers.append(FORWARDED_FOR, axum::http::HeaderValue::from_bytes(b"\xff").unwrap());
        let caller = proxies("10.0.0.1").caller("10.0.0.1".parse().unwrap(), &headers);
        assert_eq!(caller.to_string(), "10.0.0.1");
    }

    #[test]
    fn header_of_another_peer_is_not_believed() {
        assert_eq!(caller("10.0.0.0/8", "192.0.2.1", &["203.0.113.7"]), "192.0.2.1");
        assert_eq!(caller("", "10.0.0.1", &["203.0.113.7"]), "10.0.0.1");
        assert_eq!(caller("10.0.0.1", "::ffff:10.0.0.1", &["203.0.113.7"]), "203.0.113.7");
        assert_eq!(caller("10.0.0.1", "::ffff:10.0.0.2", &["203.0.113.7"]), "10.0.0.2");
    }

    #[test]
    fn only_the_header_of_proxies_is_believed() {
        let mut headers = HeaderMap::new();
        for name in ["forwarded", "x-real-ip", "cf-connecting-ip", "x-forwarded-host"] {
            headers.append(name, "203.0.113.7".parse().unwrap());
        }

        let caller = proxies("10.0.0.1").caller("10.0.0.1".parse().unwrap(), &headers);

        assert_eq!(caller.to_string(), "10.0.0.1");
    }

    #[test]
    fn networks_contain_the_addresses_of_their_prefix() {
        for (network, inside, outside) in [
            ("10.0.0.0/8", "10.255.255.255", "11.0.0.0"),
            ("10.9.9.9/8", "10.0.0.0", "9.255.255.255"),
            ("192.0.2.1", "192.0.2.1", "192.0.2.2"),
            ("192.0.2.0/31", "192.0.2.1", "192.0.2.2"),
            ("0.0.0.0/0", "203.0.113.7", "2001:db8::1"),
            ("::/0", "2001:db8::1", "203.0.113.7"),
            ("2001:db8::/32", "2001:db8:ffff::", "2001:db9::"),
            ("::1", "::1", "::2"),
            ("::ffff:10.0.0.0/104", "10.255.0.1", "11.0.0.1"),
            ("::ffff:10.0.0.1", "10.0.0.1", "10.0.0.2"),
        ] {
            let trusted = proxies(network);
            assert!(trusted.contains(inside.parse().unwrap()), "{network} {inside}");
            assert!(!trusted.contains(outside.parse().unwrap()), "{network} {outside}");
        }
        assert_eq!(proxies("10.9.9.9/8, ::1").to_string(), "10.0.0.0/8,::1/128");
    }

    #[test]
    fn other_texts_are_refused() {
        for bad in [
            "",
            "proxy",
            "10.0.0.0/33",
            "::/129",
            "10.0.0.0/",
            "10.0.0.0/+8",
            "10.0.0.0/-1",
            "10.0.0.0/8/8",
            "10.0.0.1:80",
            "[::1]",
            "10.0.0.1,",
            "10/8",
            "10.0.0.0 10.0.0.1",
        ] {
            assert_eq!(bad.parse::<TrustedProxies>(), Err(InvalidProxies), "{bad:?}");
        }
    }
}
