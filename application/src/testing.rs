use domain::Peppers;

use crate::{Keys, Vault};

pub(crate) const PEPPER: &str = "p1:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
pub(crate) const PAYLOAD_KEY: &str = "k1:Hx4dHBsaGRgXFhUUExIREA8ODQwLCgkIBwYFBAMCAQA=";

pub(crate) fn peppers() -> Peppers {
    PEPPER.parse().unwrap()
}

/// Codes are carried in clear.
pub(crate) fn vault() -> Vault {
    Vault::of(Keys { peppers: Some(peppers()), payload: None })
}

pub(crate) fn sealing_vault() -> Vault {
    Vault::of(Keys { peppers: Some(peppers()), payload: Some(PAYLOAD_KEY.parse().unwrap()) })
}
