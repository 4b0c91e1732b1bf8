use std::sync::Arc;

use domain::{PayloadKeys, Peppers};
use tokio::sync::SetOnce;

/// The keys of this process, from when they are known.
///
/// Those that nobody set stand in the database, and a process starts without it.
#[derive(Debug, Clone, Default)]
pub struct Vault(Arc<SetOnce<Keys>>);

#[derive(Debug, Clone)]
pub struct Keys {
    /// None where no codes are made or checked.
    pub peppers: Option<Peppers>,
    /// None: codes are carried in clear.
    pub payload: Option<PayloadKeys>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the keys are not there yet")]
pub struct VaultClosed;

impl Vault {
    /// One that is open from the start.
    pub fn of(keys: Keys) -> Self {
        let vault = Self::default();
        vault.open(keys);
        vault
    }

    /// Opens the vault. Whoever is second changes nothing.
    pub fn open(&self, keys: Keys) {
        // The same keys, read twice.
        let _ = self.0.set(keys);
    }

    pub fn keys(&self) -> Option<&Keys> {
        self.0.get()
    }

    /// Waits until the vault is open.
    pub async fn opened(&self) -> &Keys {
        self.0.wait().await
    }

    pub(crate) fn peppers(&self) -> Result<&Peppers, VaultClosed> {
        self.keys().and_then(|keys| keys.peppers.as_ref()).ok_or(VaultClosed)
    }
}
