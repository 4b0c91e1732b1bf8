use std::time::Duration;

use domain::{Factor, GatewayName, HealthCounts, PhoneNumber, RegionalGateway};

use crate::ports::StoreError;

/// What becomes of messages, by gateway, and the factors that follow from it.
///
/// Messages belong to the minute in which their verification began, by the clock that its id was drawn
/// with. All other times are those of the database. Once a method returns `Ok`, what it changed is
/// durable.
#[cfg_attr(any(test, feature = "mocks"), mockall::automock)]
#[trait_variant::make(Send)]
pub trait GatewayHealth: Sync + 'static {
    /// Claims the latest minute that ended at least `after` ago. Returns `None` if it is claimed
    /// already: only one caller gets a minute.
    async fn claim(&self, after: Duration) -> Result<Option<Minute>, StoreError>;

    /// Returns what became of messages of a minute: of those among its first `limit` that a gateway
    /// accepted, that no other gateway may have, and that are the first of their verification. A later
    /// one goes to a user whom the first did not help.
    ///
    /// A receipt is in time if it came at most `in_time` after the gateway accepted the message.
    async fn sample(
        &self,
        minute: Minute,
        in_time: Duration,
        limit: u32,
    ) -> Result<Vec<SampledMessage>, StoreError>;

    /// Stores the counts of a minute. A repeat changes nothing.
    async fn record(&self, measured: &[Measured]) -> Result<(), StoreError>;

    /// Returns the counts of the minutes of the last `period`.
    async fn measured(&self, period: Duration) -> Result<Vec<Measured>, StoreError>;

    /// Returns the factors that have ever changed. All others are full.
    async fn factors(&self) -> Result<Vec<StoredFactor>, StoreError>;

    /// Changes a factor, if it still has the value that the change expects, and has had it for `pause`.
    /// Returns whether it changed: of several callers, one changes it.
    async fn change(&self, change: &FactorChange, pause: Duration) -> Result<bool, StoreError>;
}

/// A minute, by its number since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Minute(pub u64);

/// What became of one message that a gateway accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SampledMessage {
    pub gateway: GatewayName,
    pub phone: PhoneNumber,
    /// Whether a receipt came.
    pub reported: bool,
    /// Whether a receipt said in time that it was delivered.
    pub in_time: bool,
    /// Whether its code was approved without a resend.
    pub approved: bool,
}

/// The counts of a minute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Measured {
    pub minute: Minute,
    pub of: RegionalGateway,
    pub counts: HealthCounts,
}

/// A factor that holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredFactor {
    pub of: RegionalGateway,
    pub factor: Factor,
    /// The time since it changed.
    pub age: Duration,
    /// The first minute that began after the change.
    pub since: Minute,
}

/// A change of a factor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FactorChange {
    pub of: RegionalGateway,
    pub from: Factor,
    pub to: Factor,
}
