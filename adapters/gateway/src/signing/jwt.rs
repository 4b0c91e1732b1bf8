//! JSON Web Tokens that are signed with a shared secret (RFC 7515, RFC 7519), as providers sign
//! receipts with them.

use std::time::{Duration, SystemTime};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use ring::hmac::{Algorithm, HMAC_SHA256, HMAC_SHA384, HMAC_SHA512};
use serde::{Deserialize, de::DeserializeOwned};

use super::is_hmac;

/// The difference that the clocks of the provider and of this machine may have.
const LEEWAY: Duration = Duration::from_secs(60);

#[derive(Deserialize)]
struct Header {
    alg: String,
}

/// The times in which a token is valid, in seconds since 1970.
#[derive(Deserialize)]
struct Times {
    exp: Option<f64>,
    nbf: Option<f64>,
}

/// Returns the claims of `token` if `secret` signed it and `now` is between its times.
///
/// The token may be signed with HS256, HS384 or HS512, and with nothing else: above all not with
/// `none`.
pub(crate) fn claims<T: DeserializeOwned>(
    token: &str,
    secret: &[u8],
    now: SystemTime,
) -> Option<T> {
    let (signed, signature) = token.rsplit_once('.')?;
    let (header, payload) = signed.split_once('.')?;
    let algorithm = algorithm(&decode::<Header>(header)?.alg)?;
    let signature = URL_SAFE_NO_PAD.decode(signature).ok()?;
    if !is_hmac(algorithm, secret, &[signed.as_bytes()], &signature) {
        return None;
    }
    decode::<Times>(payload).filter(|times| times.include(now))?;
    decode(payload)
}

impl Times {
    fn include(&self, now: SystemTime) -> bool {
        let now = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        let leeway = LEEWAY.as_secs_f64();
        self.exp.is_none_or(|exp| now < exp + leeway)
            && self.nbf.is_none_or(|nbf| nbf <= now + leeway)
    }
}

fn algorithm(name: &str) -> Option<Algorithm> {
    match name {
        "HS256" => Some(HMAC_SHA256),
        "HS384" => Some(HMAC_SHA384),
        "HS512" => Some(HMAC_SHA512),
        _ => None,
    }
}

fn decode<T: DeserializeOwned>(part: &str) -> Option<T> {
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).ok()?).ok()
}

/// Signs `claims` with HS256, as a provider does.
#[cfg(test)]
pub(crate) fn sign(claims: &serde_json::Value, secret: &[u8]) -> String {
    sign_with("HS256", claims, secret)
}

#[cfg(test)]
pub(crate) fn sign_with(alg: &str, claims: &serde_json::Value, secret: &[u8]) -> String {
    let header = serde_json::json!({ "alg": alg, "typ": "JWT" });
    let part = |value: &serde_json::Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let signed = format!("{}.{}", part(&header), part(claims));
    let algorithm = algorithm(alg).unwrap_or(HMAC_SHA256);
    let tag = super::hmac(algorithm, secret, &[signed.as_bytes()]);
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(tag))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const NOW: u64 = 1_700_000_000;

    fn read(token: &str, secret: &str) -> Option<Value> {
        claims(token, secret.as_bytes(), SystemTime::UNIX_EPOCH + Duration::from_secs(NOW))
    }

    /// The token of RFC 7515, appendix A.1, whose `exp` is in 2011.
    #[test]
    fn token_of_rfc_7515_is_valid_before_its_end() {
        const TOKEN: &str = "eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9.\
            eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ.\
            dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk";
        const KEY: &str = "AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow";
        let key = URL_SAFE_NO_PAD.decode(KEY).unwrap();
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);

        let valid: Option<Value> = claims(TOKEN, &key, at(1_300_819_379));

        assert_eq!(valid.unwrap()["iss"], "joe");
        assert_eq!(claims::<Value>(TOKEN, &key, at(1_300_819_380 + 60)), None);
        assert_eq!(claims::<Value>(TOKEN, &key[1..], at(1_300_819_379)), None);
    }

    #[test]
    fn other_digests_of_the_family_are_read() {
        for alg in ["HS256", "HS384", "HS512"] {
            let token = sign_with(alg, &json!({ "a": 1 }), b"key");

            assert_eq!(read(&token, "key"), Some(json!({ "a": 1 })), "{alg}");
        }
    }

    #[test]
    fn unsigned_and_foreign_tokens_are_refused() {
        let good = sign(&json!({ "a": 1 }), b"key");
        let (signed, _) = good.rsplit_once('.').unwrap();
        let none = URL_SAFE_NO_PAD.encode(r#"{"alg":"none"}"#);
        let payload = URL_SAFE_NO_PAD.encode(r#"{"a":1}"#);

        assert_eq!(read(&good, "other"), None);
        assert_eq!(read(&format!("{signed}."), "key"), None);
        assert_eq!(read(&format!("{none}.{payload}."), "key"), None);
        assert_eq!(read(&sign_with("none", &json!({ "a": 1 }), b"key"), "key"), None);
        assert_eq!(read(&sign_with("RS256", &json!({ "a": 1 }), b"key"), "key"), None);
        for token in ["", ".", "..", "a.b.c", "a.b"] {
            assert_eq!(read(token, "key"), None, "{token:?}");
        }
    }

    #[test]
    fn token_is_valid_between_its_times_with_a_minute_of_leeway() {
        let check = |claims: Value| read(&sign(&claims, b"key"), "key").is_some();

        assert!(check(json!({ "exp": NOW - 59, "nbf": NOW + 60 })));
        assert!(!check(json!({ "exp": NOW - 60 })));
        assert!(!check(json!({ "nbf": NOW + 61 })));
        assert!(!check(json!({ "exp": "soon" })));
    }
}
