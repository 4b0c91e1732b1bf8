use std::time::SystemTime;

use domain::{ApiKeyHash, ApiKeyId, Scopes};

use crate::ports::StoreError;

/// The API keys of callers.
#[cfg_attr(any(test, feature = "mocks"), mockall::automock)]
#[trait_variant::make(Send)]
pub trait ApiKeys: Sync + 'static {
    /// Returns all keys, including revoked ones, oldest first.
    async fn all(&self) -> Result<Vec<ApiKey>, StoreError>;

    async fn create(&self, key: NewApiKey) -> Result<(), StoreError>;

    /// Revokes a key. Returns whether it exists. Safe to repeat.
    async fn revoke(&self, id: ApiKeyId) -> Result<bool, StoreError>;

    /// Records that keys were used just now.
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
