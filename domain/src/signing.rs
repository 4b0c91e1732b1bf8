use std::{fmt, str::FromStr};

use base64::{Engine, engine::general_purpose::STANDARD};
use hmac::Mac;

use crate::secret::keyed;

/// What events are signed with, as Standard Webhooks has it: every secret signs, so that one can be
/// replaced while the other is still known.
#[derive(Clone)]
pub struct EventSecrets(Vec<Vec<u8>>);

/// Says nothing of the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("1 to 4 of whsec_ and base64 of 24 to 64 bytes, by comma")]
pub struct InvalidEventSecrets;

impl EventSecrets {
    /// The value of `webhook-signature` for a message sent at `timestamp` (seconds since 1970).
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
