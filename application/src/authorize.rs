use std::{
    collections::{HashMap, HashSet},
    mem,
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::Duration,
};

use autometrics::autometrics;
use domain::{ApiKeyId, ApiKeyText, Scope};
use tokio::time::Instant;

use crate::{
    BoxError, Chain,
    ports::{ApiKey, ApiKeys, StoreError},
};

/// Authenticates callers by their API key and checks scopes.
///
/// Keys are read every few seconds and kept in memory, so a revoked key stays valid until the next
/// read.
#[derive(Debug)]
pub struct Authorize<K> {
    keys: K,
    known: RwLock<Arc<KeySet>>,
    /// When the latest read ended, whether or not it succeeded. The lock allows one read at a time.
    reading: tokio::sync::Mutex<Option<Instant>>,
    used: Mutex<HashSet<ApiKeyId>>,
}

/// The reason why a caller is refused.
#[derive(Debug, thiserror::Error)]
pub enum AuthorizeError {
    /// The text is not a key, or the key is unknown or revoked.
    #[error("not a valid API key")]
    Unknown,
    #[error("the key lacks a scope")]
    Lacks(Scope),
    #[error("the API keys are not loaded yet")]
    Unavailable(#[source] BoxError),
}

/// The keys as they were last read.
#[derive(Debug, Default)]
struct KeySet {
    keys: HashMap<ApiKeyId, ApiKey>,
    /// Whether the keys were ever read.
    are_read: bool,
}

/// The minimum age of the keys at which an unknown key causes another read: it may have been created
/// just now.
const FRESH: Duration = Duration::from_secs(1);

impl<K: ApiKeys> Authorize<K> {
    pub fn new(keys: K) -> Self {
        Self {
            keys,
            known: RwLock::default(),
            reading: tokio::sync::Mutex::default(),
            used: Mutex::default(),
        }
    }

    /// Returns the id of the key `text`, if it is valid and has `scope`.
    #[autometrics(struct_name = "Authorize")]
    pub async fn execute(&self, text: &str, scope: Scope) -> Result<ApiKeyId, AuthorizeError> {
        let shown: ApiKeyText = text.parse().map_err(|_| AuthorizeError::Unknown)?;
        let mut known = self.known();
        if !known.keys.contains_key(&shown.id()) {
            known = self.read_if_older_than(FRESH).await?;
        }
        let key = known.keys.get(&shown.id()).ok_or(AuthorizeError::Unknown)?;
        if !shown.matches(&key.hash) || key.revoked_at.is_some() {
            return Err(AuthorizeError::Unknown);
        }
        if !key.scopes.allow(scope) {
            return Err(AuthorizeError::Lacks(scope));
        }
        self.used.lock().unwrap_or_else(PoisonError::into_inner).insert(key.id);
        Ok(key.id)
    }

    /// Whether a key that was accepted just now also has `scope`.
    pub fn allows(&self, id: ApiKeyId, scope: Scope) -> bool {
        self.known().keys.get(&id).is_some_and(|key| key.scopes.allow(scope))
    }

    /// Reads the keys. After an error, the previous keys stay in use.
    pub async fn refresh(&self) -> Result<(), StoreError> {
        let mut tried = self.reading.lock().await;
        let read = self.read().await;
        *tried = Some(Instant::now());
        read
    }

    /// Stores which keys were used since the last call.
    pub async fn note_use(&self) -> Result<(), StoreError> {
        let used = mem::take(&mut *self.used.lock().unwrap_or_else(PoisonError::into_inner));
        if used.is_empty() {
            return Ok(());
        }
        let ids: Vec<ApiKeyId> = used.into_iter().collect();
        let stored = self.keys.used(&ids).await;
        if stored.is_err() {
            self.used.lock().unwrap_or_else(PoisonError::into_inner).extend(ids);
        }
        stored
    }

    async fn read_if_older_than(&self, age: Duration) -> Result<Arc<KeySet>, AuthorizeError> {
        let mut tried = self.reading.lock().await;
        // A caller that waited for another read uses its result. Otherwise, while the database is
        // away, callers would wait for one read after another.
        if tried.is_none_or(|at| at.elapsed() >= age) {
            let read = self.read().await;
            *tried = Some(Instant::now());
            if let Err(error) = read {
                tracing::warn!(error = %Chain(&error), "the API keys could not be read");
            }
        }
        let known = self.known();
        if known.are_read {
            Ok(known)
        } else {
            Err(AuthorizeError::Unavailable("they could not be read".into()))
        }
    }

    async fn read(&self) -> Result<(), StoreError> {
        let keys = self.keys.all().await?.into_iter().map(|key| (key.id, key)).collect();
        let known = KeySet { keys, are_read: true };
        *self.known.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(known);
        Ok(())
    }

    fn known(&self) -> Arc<KeySet> {
        Arc::clone(&self.known.read().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;
    use crate::{ports::MockApiKeys, testing::START};

    fn text() -> ApiKeyText {
        ApiKeyText::generate(&mut StdRng::seed_from_u64(1))
    }

    fn key(scopes: &str) -> ApiKey {
        ApiKey {
            id: text().id(),
            name: "test".to_owned(),
            hash: text().hash(),
            scopes: scopes.parse().unwrap(),
            created_at: START,
            last_used_at: None,
            revoked_at: None,
        }
    }

    fn holding(keys: Vec<ApiKey>) -> MockApiKeys {
        let mut store = MockApiKeys::new();
        store.expect_all().returning(move || Ok(keys.clone()));
        store
    }

    fn down() -> StoreError {
        StoreError::Unavailable("down".into())
    }

    #[tokio::test]
    async fn a_key_is_accepted_for_its_scopes_only() {
        let authorize = Authorize::new(holding(vec![key("send,check")]));
        let text = text().reveal();

        let allowed = authorize.execute(&text, Scope::Send).await.unwrap();
        let lacking = authorize.execute(&text, Scope::Read).await.unwrap_err();

        assert_eq!(allowed, key("send").id);
        assert!(matches!(lacking, AuthorizeError::Lacks(Scope::Read)));
    }

    #[tokio::test]
    async fn unknown_forged_and_revoked_keys_are_refused() {
        let other = ApiKeyText::generate(&mut StdRng::seed_from_u64(2)).reveal();
        // A known id with another secret.
        let forged = format!("{}{}", &text().reveal()[..37], &other[37..]);
        let revoked = ApiKey { revoked_at: Some(START), ..key("admin") };

        for (keys, text) in [
            (vec![key("admin")], other),
            (vec![key("admin")], forged),
            (vec![key("admin")], "msk_".to_owned()),
            (vec![revoked], text().reveal()),
            (vec![], text().reveal()),
        ] {
            let error =
                Authorize::new(holding(keys)).execute(&text, Scope::Send).await.unwrap_err();
            assert!(matches!(error, AuthorizeError::Unknown), "{error:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_key_is_found_and_unknown_keys_cause_one_read_a_second() {
        let mut store = MockApiKeys::new();
        let mut readings = mockall::Sequence::new();
        store.expect_all().once().in_sequence(&mut readings).returning(|| Ok(Vec::new()));
        store.expect_all().once().in_sequence(&mut readings).returning(|| Ok(vec![key("send")]));
        let authorize = Authorize::new(store);
        let text = text().reveal();

        for _ in 0..100 {
            authorize.execute(&text, Scope::Send).await.unwrap_err();
        }
        tokio::time::advance(FRESH).await;

        authorize.execute(&text, Scope::Send).await.unwrap();
    }

    #[tokio::test]
    async fn a_revoked_key_is_refused_after_the_next_read() {
        let mut store = MockApiKeys::new();
        let mut readings = mockall::Sequence::new();
        store.expect_all().once().in_sequence(&mut readings).returning(|| Ok(vec![key("send")]));
        store
            .expect_all()
            .once()
            .in_sequence(&mut readings)
            .returning(|| Ok(vec![ApiKey { revoked_at: Some(START), ..key("send") }]));
        let authorize = Authorize::new(store);
        let text = text().reveal();
        authorize.execute(&text, Scope::Send).await.unwrap();

        authorize.refresh().await.unwrap();

        authorize.execute(&text, Scope::Send).await.unwrap_err();
    }

    #[tokio::test]
    async fn known_keys_stay_valid_while_the_database_is_away() {
        let mut store = MockApiKeys::new();
        let mut readings = mockall::Sequence::new();
        store.expect_all().once().in_sequence(&mut readings).returning(|| Err(down()));
        store.expect_all().once().in_sequence(&mut readings).returning(|| Ok(vec![key("send")]));
        store.expect_all().returning(|| Err(down()));
        let authorize = Authorize::new(store);
        let text = text().reveal();

        let first = authorize.execute(&text, Scope::Send).await.unwrap_err();
        assert!(matches!(first, AuthorizeError::Unavailable(_)));

        authorize.refresh().await.unwrap();
        authorize.refresh().await.unwrap_err();
        authorize.execute(&text, Scope::Send).await.unwrap();
    }

    #[tokio::test]
    async fn the_use_of_keys_is_stored_after_a_failure() {
        let mut store = holding(vec![key("send")]);
        let mut writes = mockall::Sequence::new();
        store.expect_used().once().in_sequence(&mut writes).returning(|_| Err(down()));
        store
            .expect_used()
            .withf(|ids| ids == [text().id()])
            .once()
            .in_sequence(&mut writes)
            .returning(|_| Ok(()));
        let authorize = Authorize::new(store);
        authorize.note_use().await.unwrap();
        authorize.execute(&text().reveal(), Scope::Send).await.unwrap();
        authorize.execute(&text().reveal(), Scope::Send).await.unwrap();

        authorize.note_use().await.unwrap_err();
        authorize.note_use().await.unwrap();
        authorize.note_use().await.unwrap();
    }
}
