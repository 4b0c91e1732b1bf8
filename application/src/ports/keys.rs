use std::time::SystemTime;

use domain::{ApiKeyHash, ApiKeyId, Scopes};

use crate::ports::StoreError;

/// Keys that callers of the API show.
#[cfg_attr(any(test, feature = "mocks"), mockall::automock)]
#[trait_variant::make(Send)]
pub trait ApiKeys: Sync + 'static {
    /// All there are, the revoked ones too, oldest first.
    async fn all(&self) -> Result<Vec<ApiKey>, StoreError>;

    async fn create(&self, key: NewApiKey) -> Result<(), StoreError>;

    /// Says whether there is such a key. Revoking twice changes nothing.
    async fn revoke(&self, id: ApiKeyId) -> Result<bool, StoreError>;

    /// Notes that these were used just now.
    async fn used(&self, ids: &[ApiKeyId]) -> Result<(), StoreError>;
}

#[derive(Debug, Clone)]
pub struct NewApiKey {
    pub id: ApiKeyId,
    pub name: String,
    pub hash: ApiKeyHash,
    pub scopes: Scopes,
}

#[derive(Debug, Clone)]
pub struct ApiKey {
    pub id: ApiKeyId,
    pub name: String,
    pub hash: ApiKeyHash,
    pub scopes: Scopes,
    pub created_at: SystemTime,
    pub last_used_at: Option<SystemTime>,
    pub revoked_at: Option<SystemTime>,
}
