use std::{fmt, str::FromStr};

use base64::{Engine, engine::general_purpose::STANDARD};
use hmac::Mac;

use crate::secret::keyed;

/// The secrets that sign events, as Standard Webhooks specifies. Every secret signs each event, so
/// that an operator can replace one while receivers still know the other.
#[derive(Clone)]
pub struct EventSecrets(Vec<Vec<u8>>);

/// The error does not contain the text, because it is secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("1 to 4 comma-separated secrets, each whsec_ and the base64 of 24 to 64 bytes")]
pub struct InvalidEventSecrets;

impl EventSecrets {
    /// Returns the value of the `webhook-signature` header. `timestamp` is in seconds since 1970.
    pub fn sign(&self, id: &str, timestamp: u64, body: &[u8]) -> String {
        let signature = |secret: &Vec<u8>| {
            let mut mac = keyed(secret);
            for part in [id.as_bytes(), b".", timestamp.to_string().as_bytes(), b".", body] {
                mac.update(part);
            }
            format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes()))
        };
        self.0.iter().map(signature).collect::<Vec<_>>().join(" ")
    }
}

impl FromStr for EventSecrets {
    type Err = InvalidEventSecrets;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let secret = |text: &str| {
            let bytes = STANDARD.decode(text.trim().strip_prefix("whsec_")?).ok()?;
            (24..=64).contains(&bytes.len()).then_some(bytes)
        };
        let secrets: Option<Vec<_>> = text.split(',').map(secret).collect();
        secrets.filter(|secrets| secrets.len() <= 4).map(Self).ok_or(InvalidEventSecrets)
    }
}

impl fmt::Debug for EventSecrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EventSecrets({} …)", self.0.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

    /// The test vector of the Standard Webhooks reference libraries.
    #[test]
    fn a_signature_equals_the_standard_webhooks_vector() {
        let secrets: EventSecrets = SECRET.parse().unwrap();

        let signature =
            secrets.sign("msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, br#"{"test": 2432232314}"#);

        assert_eq!(signature, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    #[test]
    fn every_secret_signs_each_event() {
        let other = "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
        let secrets: EventSecrets = format!("{SECRET}, {other}").parse().unwrap();

        let signature = secrets.sign("evt_1", 1, b"{}");

        let alone = SECRET.parse::<EventSecrets>().unwrap().sign("evt_1", 1, b"{}");
        let signatures: Vec<&str> = signature.split(' ').collect();
        assert_eq!((signatures.len(), signatures[0]), (2, alone.as_str()));
        assert_ne!(signatures[0], signatures[1]);
    }

    #[test]
    fn a_secret_has_24_to_64_bytes() {
        let of = |bytes: usize| format!("whsec_{}", STANDARD.encode(vec![1; bytes]));
        for good in [of(24), of(64), format!("{},{}", of(24), of(25))] {
            assert!(good.parse::<EventSecrets>().is_ok(), "{good}");
        }
        for bad in [String::new(), of(23), of(65), of(24)[6..].to_owned(), format!("{},", of(24))] {
            assert!(bad.parse::<EventSecrets>().is_err(), "{bad}");
        }
    }

    #[test]
    fn debug_hides_secrets() {
        let secrets: EventSecrets = SECRET.parse().unwrap();

        assert_eq!(format!("{secrets:?}"), "EventSecrets(1 …)");
    }
}
