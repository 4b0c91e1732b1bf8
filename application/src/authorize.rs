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

/// Says who a caller is and what it may do.
///
/// Keys are read every few seconds and kept in memory: a key that is revoked is good for as long.
#[derive(Debug)]
pub struct Authorize<K> {
    keys: K,
    known: RwLock<Arc<KeySet>>,
    /// One reading at a time; when the latest one ended, well or not.
    reading: tokio::sync::Mutex<Option<Instant>>,
    used: Mutex<HashSet<ApiKeyId>>,
}

#[derive(Debug, thiserror::Error)]
pub enum AuthorizeError {
    /// It is not a key, or none that is known and not revoked.
    #[error("not a key")]
    Unknown,
    #[error("the key lacks a scope")]
    Lacks(Scope),
    #[error("the keys are not known yet")]
    Unavailable(#[source] BoxError),
}

#[derive(Debug, Default)]
struct KeySet {
    keys: HashMap<ApiKeyId, ApiKey>,
    /// Whether they were ever read.
    are_read: bool,
}

/// How old what is known may be before it is read again for a key that is not in it: one that was
/// made just now.
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

    /// Whose key `text` is, if it is good for `scope`.
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

    /// Whether a key that was shown just now is good for `scope`, too.
    pub fn allows(&self, id: ApiKeyId, scope: Scope) -> bool {
        self.known().keys.get(&id).is_some_and(|key| key.scopes.allow(scope))
    }

    /// Reads the keys. After an error, those that were known stay.
    pub async fn refresh(&self) -> Result<(), StoreError> {
        let mut tried = self.reading.lock().await;
        let read = self.read().await;
        *tried = Some(Instant::now());
        read
    }

    /// Stores which keys were used since the last time.
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
        // Whoever waited for another's reading has its outcome: with a database that is away, all
        // would wait for each other's.
        if tried.is_none_or(|at| at.elapsed() >= age) {
            let read = self.read().await;
            *tried = Some(Instant::now());
            if let Err(error) = read {
                tracing::warn!(error = %Chain(&error), "the keys of callers could not be read");
            }
        }
        let known = self.known();
        if known.are_read {
            Ok(known)
        } else {
            Err(AuthorizeError::Unavailable("the keys could not be read".into()))
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
    async fn a_key_is_good_for_its_scopes() {
        let authorize = Authorize::new(holding(vec![key("send,check")]));
        let text = text().reveal();

        let allowed = authorize.execute(&text, Scope::Send).await.unwrap();
        let lacking = authorize.execute(&text, Scope::Read).await.unwrap_err();

        assert_eq!(allowed, key("send").id);
        assert!(matches!(lacking, AuthorizeError::Lacks(Scope::Read)));
    }

    #[tokio::test]
    async fn whoever_is_not_known_is_not_known() {
        let other = ApiKeyText::generate(&mut StdRng::seed_from_u64(2)).reveal();
        // The known id with another secret.
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
    async fn a_key_that_was_made_just_now_is_found_and_unknown_ones_cost_little() {
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
    async fn a_revoked_key_is_no_good_after_the_next_reading() {
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
    async fn what_was_known_stays_when_the_database_is_away() {
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
    async fn notes_which_keys_were_used_and_forgets_none() {
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
