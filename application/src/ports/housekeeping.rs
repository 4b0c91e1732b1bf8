use std::time::Duration;

use crate::ports::StoreError;

/// Regular work on verifications that no request does.
///
/// Several processes may do it at a time.
#[trait_variant::make(Send)]
pub trait Housekeeping: Sync + 'static {
    /// Ends some of the verifications that have expired. Returns how many; zero means that none is
    /// left.
    async fn expire(&self) -> Result<u64, StoreError>;

    /// Deletes some of the verifications and guard decisions that are older than `retention`, and
    /// some of the phones, counters and answers that are no longer needed. Returns how many rows;
    /// zero means that none is left.
    async fn prune(&self, retention: Duration) -> Result<u64, StoreError>;
}
