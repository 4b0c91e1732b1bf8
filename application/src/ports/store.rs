use crate::BoxError;

/// The reason why the database did not do what a port asked of it.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Too much work is already waiting for the database. Nothing was stored.
    ///
    /// Only ports that queue their work return this.
    #[error("too much work is waiting for the database")]
    Full,
    /// The database did not confirm in time, or not at all. The change may have been stored.
    #[error("the database is unavailable")]
    Unavailable(#[source] BoxError),
}
