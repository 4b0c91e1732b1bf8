use crate::ports::StoreError;

/// Secrets that nobody set and that were drawn instead.
#[cfg_attr(any(test, feature = "mocks"), mockall::automock)]
#[trait_variant::make(Send)]
pub trait Secrets: Sync + 'static {
    /// What is stored under `name`; or `drawn`, which then is stored. All processes that race get
    /// the same.
    async fn keep(&self, name: &str, drawn: &str) -> Result<String, StoreError>;

    async fn find(&self, name: &str) -> Result<Option<String>, StoreError>;

    /// Removes it. Says whether it was there.
    async fn forget(&self, name: &str) -> Result<bool, StoreError>;
}
