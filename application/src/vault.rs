use std::{
    str::FromStr,
    sync::{Arc, Mutex, PoisonError},
};

use autometrics::autometrics;
use domain::{PayloadKeys, Peppers, draw_key};
use rand_core::CryptoRng;
use tokio::sync::SetOnce;

use crate::ports::{Secrets, StoreError};

/// The keys of this process, once they are loaded.
///
/// Keys that no operator set are in the database, and a process starts even if the database is away.
#[derive(Debug, Clone, Default)]
pub struct Vault(Arc<SetOnce<Keys>>);

/// The keys of a process.
#[derive(Debug, Clone)]
pub struct Keys {
    /// `None` in a process that neither issues nor checks codes.
    pub peppers: Option<Peppers>,
    /// `None` if codes are carried in clear text.
    pub payload: Option<PayloadKeys>,
}

/// The keys are not loaded yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the keys are not loaded yet")]
pub struct VaultClosed;

/// Opens the vault with the keys that an operator set, and with drawn keys for the others.
#[derive(Debug)]
pub struct OpenVault<S, R> {
    secrets: S,
    rng: Mutex<R>,
    vault: Vault,
    settings: VaultSettings,
}

/// The sources of the keys of a process.
#[derive(Debug, Clone)]
pub struct VaultSettings {
    pub peppers: KeySource<Peppers>,
    pub payload: KeySource<PayloadKeys>,
}

/// The source of a kind of keys.
#[derive(Debug, Clone)]
pub enum KeySource<K> {
    /// An operator set them.
    Set(K),
    /// They are in the store. The first process draws and stores one.
    Drawn,
    /// The process has none.
    Absent,
}

/// Which keys were drawn, not set by an operator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DrawnKeys {
    pub pepper: bool,
    pub payload_key: bool,
}

/// The reason why the vault was not opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("the stored secret {0} is damaged")]
    Damaged(&'static str),
    #[error("the stored secrets are unavailable")]
    Store(#[source] StoreError),
}

/// The name under which a drawn pepper is stored.
pub const CODE_PEPPER: &str = "CODE_PEPPER";
/// The name under which a drawn payload key is stored.
pub const PAYLOAD_KEY: &str = "PAYLOAD_KEY";

impl Vault {
    /// Returns a vault that is open from the start.
    pub fn of(keys: Keys) -> Self {
        let vault = Self::default();
        vault.open(keys);
        vault
    }

    /// Opens the vault. A second call changes nothing.
    pub fn open(&self, keys: Keys) {
        // A second call has the same keys.
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

impl<S: Secrets, R: CryptoRng + Send + 'static> OpenVault<S, R> {
    /// `rng` must be seeded from the operating system: keys are drawn from it.
    pub fn new(secrets: S, rng: R, vault: Vault, settings: VaultSettings) -> Self {
        Self { secrets, rng: Mutex::new(rng), vault, settings }
    }

    /// Opens the vault. The caller may retry after an error.
    #[autometrics(struct_name = "OpenVault")]
    pub async fn execute(&self) -> Result<DrawnKeys, OpenError> {
        let VaultSettings { peppers, payload } = &self.settings;
        let drawn = DrawnKeys {
            pepper: matches!(peppers, KeySource::Drawn),
            payload_key: matches!(payload, KeySource::Drawn),
        };
        let peppers = self.keys(CODE_PEPPER, peppers).await?;
        let payload = self.keys(PAYLOAD_KEY, payload).await?;
        self.vault.open(Keys { peppers, payload });
        Ok(drawn)
    }

    async fn keys<K: FromStr + Clone>(
        &self,
        name: &'static str,
        source: &KeySource<K>,
    ) -> Result<Option<K>, OpenError> {
        match source {
            KeySource::Set(keys) => Ok(Some(keys.clone())),
            KeySource::Absent => Ok(None),
            KeySource::Drawn => {
                let drawn = self.draw();
                let kept = self.secrets.keep(name, &drawn).await.map_err(OpenError::Store)?;
                kept.parse().map(Some).map_err(|_| OpenError::Damaged(name))
            }
        }
    }

    fn draw(&self) -> String {
        draw_key(&mut *self.rng.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rand::{SeedableRng, rngs::StdRng};
    use tokio::time::timeout;

    use super::*;
    use crate::{ports::MockSecrets, testing};

    fn open(
        secrets: MockSecrets,
        vault: &Vault,
        settings: VaultSettings,
    ) -> OpenVault<MockSecrets, StdRng> {
        OpenVault::new(secrets, StdRng::seed_from_u64(1), vault.clone(), settings)
    }

    fn drawn() -> VaultSettings {
        VaultSettings { peppers: KeySource::Drawn, payload: KeySource::Absent }
    }

    #[tokio::test]
    async fn keys_that_are_set_are_not_read_from_the_store() {
        let settings = VaultSettings {
            peppers: KeySource::Set(testing::peppers()),
            payload: KeySource::Set(testing::PAYLOAD_KEY.parse().unwrap()),
        };
        let vault = Vault::default();

        let drawn = open(MockSecrets::new(), &vault, settings).execute().await.unwrap();

        assert_eq!(drawn, DrawnKeys { pepper: false, payload_key: false });
        let Keys { peppers, payload } = vault.opened().await;
        assert_eq!(peppers.as_ref().unwrap().first().id(), testing::peppers().first().id());
        assert!(payload.is_some());
    }

    #[tokio::test]
    async fn a_stored_key_is_used_instead_of_the_drawn_one() {
        let mut secrets = MockSecrets::new();
        secrets
            .expect_keep()
            .withf(|name, drawn| name == CODE_PEPPER && drawn.parse::<Peppers>().is_ok())
            .once()
            .returning(|_, _| Ok(testing::PEPPER.to_owned()));
        let vault = Vault::default();

        let drawn = open(secrets, &vault, drawn()).execute().await.unwrap();

        assert_eq!(drawn, DrawnKeys { pepper: true, payload_key: false });
        assert_eq!(vault.peppers().unwrap().first().id(), testing::peppers().first().id());
        assert!(vault.keys().unwrap().payload.is_none());
    }

    #[tokio::test]
    async fn a_vault_stays_closed_until_its_keys_can_be_read() {
        let mut secrets = MockSecrets::new();
        let mut tries = mockall::Sequence::new();
        secrets
            .expect_keep()
            .once()
            .in_sequence(&mut tries)
            .returning(|_, _| Err(StoreError::Unavailable("down".into())));
        secrets
            .expect_keep()
            .once()
            .in_sequence(&mut tries)
            .returning(|_, _| Ok("what is this".to_owned()));
        secrets.expect_keep().returning(|_, drawn| Ok(drawn.to_owned()));
        let vault = Vault::default();
        let open = open(secrets, &vault, drawn());

        assert!(matches!(open.execute().await, Err(OpenError::Store(_))));
        assert!(matches!(open.execute().await, Err(OpenError::Damaged(CODE_PEPPER))));
        assert!(vault.keys().is_none());
        assert!(timeout(Duration::from_millis(1), vault.opened()).await.is_err());
        open.execute().await.unwrap();
        assert!(vault.peppers().is_ok());
    }

    #[test]
    fn debug_shows_names_only() {
        let shown = format!("{:?}", testing::sealing_vault());

        assert!(shown.contains("p1") && shown.contains("k1"), "{shown}");
        assert!(!shown.contains("AAEC") && !shown.contains("[0, 1"), "{shown}");
    }
}
