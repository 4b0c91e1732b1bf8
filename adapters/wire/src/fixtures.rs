//! Messages and settings of this crate's tests.

use std::time::{Duration, SystemTime};

use application::ports::{Incoming, Outgoing};
use domain::{Message, PayloadKeys, Validity};

use crate::{DecodeSettings, Place};

pub(crate) const TTL: Duration = Duration::from_secs(600);
pub(crate) const PLACE: Place<'_> =
    Place { topic: "message", partition: 1, offset: 42, written_at: 1_700_000_000_123 };
pub(crate) const TRACE: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

pub(crate) const KEY: &str = "k1:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
pub(crate) const OTHER_KEY: &str = "k2:Hx4dHBsaGRgXFhUUExIREA8ODQwLCgkIBwYFBAMCAQA=";

/// The settings without a payload key.
pub(crate) const CLEAR: DecodeSettings<'_> =
    DecodeSettings { default_ttl: TTL, keys: None, require_sealed: false };

pub(crate) fn keys(text: &str) -> PayloadKeys {
    text.parse().unwrap()
}

pub(crate) fn with_keys(keys: &PayloadKeys) -> DecodeSettings<'_> {
    DecodeSettings { keys: Some(keys), ..CLEAR }
}

/// A message whose code is in clear.
pub(crate) fn outgoing() -> Outgoing {
    Outgoing {
        sequence: 7,
        message: Message {
            id: "6f2c1a52-9d3f-4f0e-8a55-0d2f6f3b9c11".parse().unwrap(),
            phone: "79991234567".parse().unwrap(),
            code: "048291".parse().unwrap(),
        },
        validity: Validity::starting_at(at(1_790_000_000_005), TTL),
        trace: TRACE.parse().unwrap(),
        age: Duration::ZERO,
    }
}

/// The same message, sealed with [`KEY`].
pub(crate) fn sealed() -> Outgoing {
    let Outgoing { message: Message { id, phone, .. }, .. } = outgoing();
    let (code, template) = ("048291".parse().unwrap(), "login/de".parse().ok());
    let code = keys(KEY).seal(id, &phone, &code, template.as_ref(), [9; 24]);
    Outgoing { message: Message { id, phone, code }, ..outgoing() }
}

/// The message as a consumer receives it.
pub(crate) fn received(outgoing: Outgoing) -> Incoming {
    Incoming {
        message: outgoing.message,
        validity: Some(outgoing.validity),
        trace: Some(outgoing.trace),
        sequence: Some(outgoing.sequence),
    }
}

pub(crate) fn at(milliseconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_millis(milliseconds)
}
