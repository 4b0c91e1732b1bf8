//! The key of a record.

use domain::PhoneNumber;

/// Returns the key of the messages to a phone: the FNV-1a hash (64 bits) of its digits, in
/// hexadecimal.
///
/// This function must never change. With another key, later messages to a phone would go to
/// another partition than its messages in flight. The hash only keeps numbers out of the listings
/// of tools: anyone who has it can find the number by trying all of them.
pub fn key_of(phone: &PhoneNumber) -> String {
    format!("{:016x}", fnv_1a(phone.as_str().as_bytes()))
}

fn fnv_1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_of_a_phone_never_changes() {
        assert_eq!(fnv_1a(b"a"), 0xaf63_dc4c_8601_ec8c, "a test vector of the hash's authors");
        assert_eq!(fnv_1a(b"foobar"), 0x8594_4171_f739_67e8, "a test vector of the hash's authors");

        for (phone, key) in
            [("79991234567", "7264d734cbe904bd"), ("899999999999999", "aab1227055988125")]
        {
            assert_eq!(key_of(&phone.parse().unwrap()), key);
        }
    }
}
