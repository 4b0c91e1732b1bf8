//! Signatures of requests and of receipts, on `ring`, which rustls brings anyway.

use std::{
    fmt::Write as _,
    time::{Duration, SystemTime},
};

use ring::{digest, hmac, signature};

pub(crate) mod jwt;
pub(crate) mod sigv4;

/// The greatest difference between the time of a signature and the present. A signature that is
/// older may be a copy.
const MAX_AGE: Duration = Duration::from_secs(300);

/// Returns the HMAC of the concatenated `parts`.
pub(crate) fn hmac(algorithm: hmac::Algorithm, key: &[u8], parts: &[&[u8]]) -> hmac::Tag {
    let mut context = hmac::Context::with_key(&hmac::Key::new(algorithm, key));
    for part in parts {
        context.update(part);
    }
    context.sign()
}

/// Whether `tag` is the HMAC of the concatenated `parts`. The comparison takes constant time.
pub(crate) fn is_hmac(algorithm: hmac::Algorithm, key: &[u8], parts: &[&[u8]], tag: &[u8]) -> bool {
    hmac::verify(&hmac::Key::new(algorithm, key), &parts.concat(), tag).is_ok()
}

/// Whether `signature` is the Ed25519 signature of `message` under `public_key`.
pub(crate) fn is_ed25519(public_key: &[u8], message: &[u8], signature: &[u8]) -> bool {
    signature::UnparsedPublicKey::new(&signature::ED25519, public_key)
        .verify(message, signature)
        .is_ok()
}

pub(crate) fn sha256_hex(bytes: &[u8]) -> String {
    hex(digest::digest(&digest::SHA256, bytes).as_ref())
}

/// Writes bytes as lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a String takes every text");
        text
    })
}

/// Reads hexadecimal digits of either case.
pub(crate) fn hex_decoded(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: &u8| char::from(*byte).to_digit(16).and_then(|it| u8::try_from(it).ok());
    let digits: Vec<u8> = text.as_bytes().iter().map(digit).collect::<Option<_>>()?;
    let (pairs, rest) = digits.as_chunks::<2>();
    rest.is_empty().then(|| pairs.iter().map(|[high, low]| high << 4 | low).collect())
}

/// Whether a signature of this time, in seconds since 1970, is not from long ago and not from the
/// future.
pub(crate) fn is_recent(seconds: u64, now: SystemTime) -> bool {
    let now = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    now.abs_diff(seconds) <= MAX_AGE.as_secs()
}

#[cfg(test)]
mod tests {
    use base64::{Engine, engine::general_purpose::STANDARD};
    use ring::hmac::{HMAC_SHA1_FOR_LEGACY_USE_ONLY, HMAC_SHA256};

    use super::*;

    /// RFC 4231, test case 2.
    #[test]
    fn hmac_sha256_is_that_of_rfc_4231() {
        const EXPECTED: &str = "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843";

        let tag = hmac(HMAC_SHA256, b"Jefe", &[b"what do ya ", b"want for nothing?"]);

        assert_eq!(hex(tag.as_ref()), EXPECTED);
    }

    /// RFC 2202, test case 2 of HMAC-SHA-1.
    #[test]
    fn hmac_is_compared_as_a_whole() {
        let tag: Vec<u8> = vec![
            0xef, 0xfc, 0xdf, 0x6a, 0xe5, 0xeb, 0x2f, 0xa2, 0xd2, 0x74, 0x16, 0xd5, 0xf1, 0x84,
            0xdf, 0x9c, 0x25, 0x9a, 0x7c, 0x79,
        ];
        let check = |tag: &[u8]| {
            is_hmac(HMAC_SHA1_FOR_LEGACY_USE_ONLY, b"Jefe", &[b"what do ya want for nothing?"], tag)
        };

        assert!(check(&tag));
        assert!(!check(&tag[..19]));
        assert!(!check(b""));
        let mut other = tag;
        other[19] ^= 1;
        assert!(!check(&other));
    }

    #[test]
    fn hexadecimal_digits_are_written_and_read() {
        assert_eq!(hex(&[0x00, 0xaf, 0x10]), "00af10");
        assert_eq!(hex_decoded("00aF10"), Some(vec![0x00, 0xaf, 0x10]));
        assert_eq!(hex_decoded(""), Some(Vec::new()));
        for text in ["0", "0g", "ы", "0x", " 0"] {
            assert_eq!(hex_decoded(text), None, "{text:?}");
        }
    }

    #[test]
    fn signature_is_recent_for_five_minutes_either_way() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        for (seconds, expected) in [
            (1_700_000_300, true),
            (1_700_000_301, false),
            (1_699_999_700, true),
            (1_699_999_699, false),
            (0, false),
            (u64::MAX, false),
        ] {
            assert_eq!(is_recent(seconds, now), expected, "{seconds}");
        }
    }

    /// RFC 8032, test 2 of section 7.1.
    #[test]
    fn ed25519_is_that_of_rfc_8032() {
        let decode = |text: &str| STANDARD.decode(text).unwrap();
        let key = decode("PUAXw+hDiVqStwqnTRt+vJyYLM8uxJaMwM1V8Sr0Zgw=");
        let signature = decode(
            "kqAJqfDUyrhyDoILX2QlQKKye1QWUD+Ps3YiI+vbadoIWsHkPhWZbkWPNhPQ8R2MOHsurrQwKu6wDSkWErsMAA==",
        );

        assert!(is_ed25519(&key, &[0x72], &signature));
        assert!(!is_ed25519(&key, &[0x73], &signature));
        assert!(!is_ed25519(&key, &[0x72], &signature[..63]));
        assert!(!is_ed25519(&key[1..], &[0x72], &signature));
    }
}
