//! The `Host` header as RFC 9112 (section 3.2) requires it.

use axum::http::{HeaderMap, Version, header::HOST};

/// Returns whether a request has one valid `Host`. HTTP/1.0 needs none.
pub(super) fn is_valid(version: Version, headers: &HeaderMap) -> bool {
    let mut hosts = headers.get_all(HOST).iter();
    match (hosts.next(), hosts.next()) {
        (None, _) => version < Version::HTTP_11,
        (Some(host), None) => is_host(host.as_bytes()),
        (Some(_), Some(_)) => false,
    }
}

/// Returns whether a value is `uri-host [ ":" port ]` of RFC 3986. It may be empty.
fn is_host(value: &[u8]) -> bool {
    let (host_is_good, rest) = if let Some(literal) = value.strip_prefix(b"[") {
        let Some(end) = literal.iter().position(|byte| *byte == b']') else { return false };
        (is_literal(&literal[..end]), &literal[end + 1..])
    } else {
        let end = value.iter().position(|byte| *byte == b':').unwrap_or(value.len());
        (is_name(&value[..end]), &value[end..])
    };
    let port_is_good = match rest.split_first() {
        None => true,
        Some((b':', port)) => port.iter().all(u8::is_ascii_digit),
        Some(_) => false,
    };
    host_is_good && port_is_good
}

/// Returns whether a literal is an IPv6 address, or an address of a future version.
fn is_literal(literal: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(literal) else { return false };
    let is_later = || {
        let (version, address) = text.strip_prefix(['v', 'V'])?.split_once('.')?;
        let is_hex = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_hexdigit());
        let is_address = |b: u8| is_unreserved(b) || is_delimiter(b) || b == b':';
        Some(is_hex(version) && !address.is_empty() && address.bytes().all(is_address))
    };
    text.parse::<std::net::Ipv6Addr>().is_ok() || is_later().unwrap_or(false)
}

fn is_name(name: &[u8]) -> bool {
    let mut rest = name;
    while let Some((byte, behind)) = rest.split_first() {
        rest = match (*byte, behind) {
            (b'%', [a, b, behind @ ..]) if a.is_ascii_hexdigit() && b.is_ascii_hexdigit() => behind,
            (byte, behind) if is_unreserved(byte) || is_delimiter(byte) => behind,
            _ => return false,
        };
    }
    true
}

fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~".contains(&byte)
}

fn is_delimiter(byte: u8) -> bool {
    b"!$&'()*+,;=".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_is_a_name_or_an_address_with_an_optional_port() {
        for good in [
            "",
            "h",
            "example.com",
            "example.com:8080",
            "example.com:",
            "127.0.0.1:1",
            "[::1]",
            "[::1]:8080",
            "[v1.fe80::a+en1]",
            "a_b",
            "a%20b",
            ":8080",
            "xn--e1afmkfd.example",
        ] {
            assert!(is_host(good.as_bytes()), "{good:?}");
        }
        for bad in [
            "a b", "a/b", "user@a", "a:b", "a:1:2", "::1", "[::1", "[::1]x", "[a]", "[]", "a%2",
            "a%zz", "a?b", "a#b", "a, b", "http://a", "\"a\"", "a\\b", "é", "[v.1]",
        ] {
            assert!(!is_host(bad.as_bytes()), "{bad:?}");
        }
    }

    #[test]
    fn host_is_required_once_except_in_http_1_0() {
        #[track_caller]
        fn check(version: Version, hosts: &[&str], expected: bool) {
            let mut headers = HeaderMap::new();
            for host in hosts {
                headers.append(HOST, host.parse().unwrap());
            }
            assert_eq!(is_valid(version, &headers), expected, "{version:?} {hosts:?}");
        }

        check(Version::HTTP_11, &["a"], true);
        check(Version::HTTP_11, &[], false);
        check(Version::HTTP_11, &["a", "a"], false);
        check(Version::HTTP_11, &["a b"], false);
        check(Version::HTTP_10, &[], true);
        check(Version::HTTP_10, &["a"], true);
        check(Version::HTTP_10, &["a", "b"], false);
        check(Version::HTTP_10, &["a b"], false);
    }
}
