//! Digests that old interfaces sign receipts with, and a comparison that takes constant time.

use md5::{Digest, Md5};
use ring::{
    digest::{SHA1_FOR_LEGACY_USE_ONLY, digest},
    hmac::HMAC_SHA256,
};

use crate::signing::{hex, hmac, is_hmac};

pub(crate) fn md5_hex(text: &str) -> String {
    hex(&Md5::digest(text.as_bytes()))
}

pub(crate) fn sha1_hex(text: &str) -> String {
    hex(digest(&SHA1_FOR_LEGACY_USE_ONLY, text.as_bytes()).as_ref())
}

/// Whether two texts of hexadecimal digits are the same, whatever the case of the letters.
///
/// The time does not depend on the place of the first difference: tags of the texts are compared.
pub(crate) fn is_same(expected: &str, given: &str) -> bool {
    let tag = hmac(HMAC_SHA256, b"", &[expected.to_ascii_lowercase().as_bytes()]);
    is_hmac(HMAC_SHA256, b"", &[given.to_ascii_lowercase().as_bytes()], tag.as_ref())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 1321 §A.5 and RFC 3174 §7.3.
    #[test]
    fn digests_are_those_of_their_standards() {
        assert_eq!(md5_hex("abc"), "900150983cd24fb0d6963f7d28e17f72");
        assert_eq!(sha1_hex("abc"), "a9993e364706816aba3e25717850c26c9cd0d89d");
    }

    #[test]
    fn comparison_ignores_case_and_nothing_else() {
        assert!(is_same("00ff", "00FF"));
        for other in ["00fe", "00f", "00ff0", ""] {
            assert!(!is_same("00ff", other), "{other}");
        }
    }
}
