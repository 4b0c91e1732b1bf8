use crate::ports::StoreError;

/// Secrets that no operator set. The service draws and stores them.
#[cfg_attr(any(test, feature = "mocks"), mockall::automock)]
#[trait_variant::make(Send)]
pub trait Secrets: Sync + 'static {
    /// Returns the secret that is stored under `name`. If there is none, stores and returns `drawn`.
    /// Processes that race get the same secret.
    async fn keep(&self, name: &str, drawn: &str) -> Result<String, StoreError>;

    async fn find(&self, name: &str) -> Result<Option<String>, StoreError>;

    /// Removes a secret. Returns whether it existed.
    async fn forget(&self, name: &str) -> Result<bool, StoreError>;
}
