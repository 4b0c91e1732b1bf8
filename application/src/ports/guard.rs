use std::time::{Duration, SystemTime};

use domain::{GuardRule, GuardScope, Origin, PhoneNumber, Region, Rolling, VerificationId};

use crate::ports::StoreError;

/// Sends and approvals of all processes, by prefix, range and region.
#[cfg_attr(any(test, feature = "mocks"), mockall::automock)]
#[trait_variant::make(Send)]
pub trait GuardCounts: Sync + 'static {
    /// Adds what happened and stores the decisions, in one commit, and tells for each key of
    /// `deltas`, in any order, what all processes have counted in about the last two windows, and in
    /// about the last two days.
    ///
    /// A key may move by nothing, to be asked only. Buckets turn by the database's clock, as
    /// [`Rolling::later`] has it. A decision that blocked is told to others, where events are told.
    /// After an error it may have been stored all the same.
    async fn add(
        &self,
        deltas: &[GuardDelta],
        decisions: &[GuardDecision],
        window: Duration,
    ) -> Result<Vec<GuardTotal>, StoreError>;
}

/// What the guard has seen and decided, and what an operator says of it.
#[cfg_attr(any(test, feature = "mocks"), mockall::automock)]
#[trait_variant::make(Send)]
pub trait GuardRecords: Sync + 'static {
    /// Verifications of `/v1` of the last `since`, by when they were created: up to `limit` behind
    /// `after`, the latest one that the caller has.
    async fn past(
        &self,
        since: Duration,
        after: Option<(SystemTime, VerificationId)>,
        limit: usize,
    ) -> Result<Vec<PastVerification>, StoreError>;

    /// Decisions of the last `since`, newest first; those of one flush by rule and key.
    async fn decisions(
        &self,
        since: Duration,
        limit: usize,
    ) -> Result<Vec<StoredDecision>, StoreError>;

    /// Lets everything through to `keys` for so long, whatever the rules say.
    async fn allow(&self, keys: &[GuardKey], period: Duration) -> Result<(), StoreError>;
}

/// What sends are counted under.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GuardKey {
    pub scope: GuardScope,
    /// A prefix, a range, or a region.
    pub key: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuardDelta {
    pub key: GuardKey,
    pub sends: u64,
    pub approvals: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuardTotal {
    pub key: GuardKey,
    /// By the window.
    pub window: Rolling,
    /// By [`domain::Activity::DAY`].
    pub day: Rolling,
    /// Whether an operator lets everything through to it.
    pub allowed: bool,
}

/// A rule that fired, and on what. One in [`domain::GuardMode::Enforce`] has blocked a send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuardDecision {
    pub rule: GuardRule,
    /// What `key` is.
    pub scope: GuardScope,
    pub key: String,
    pub sends: u64,
    pub approvals: u64,
    /// The verification that went through all the same, if one did.
    pub verification: Option<VerificationId>,
    /// Masked: to be told to others, and not stored with the decision.
    pub phone: String,
}

/// A decision as it was noted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredDecision {
    pub decided_at: SystemTime,
    /// As [`GuardRule`] is shown.
    pub rule: String,
    pub key: String,
    pub sends: u64,
    pub approvals: u64,
    pub verification: Option<VerificationId>,
}

/// What a replay needs to know of a verification.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PastVerification {
    pub id: VerificationId,
    pub phone: PhoneNumber,
    pub region: Option<Region>,
    pub sends: u8,
    pub created_at: SystemTime,
    pub approved_at: Option<SystemTime>,
}

/// What the keys of `/api` begin with.
const API: &str = "api:";

impl GuardKey {
    /// Returns what a phone is counted under in a scope. `None` if the phone has no region, or if
    /// the scope is the world.
    pub(crate) fn of(
        scope: GuardScope,
        origin: Origin,
        phone: &PhoneNumber,
        region: Option<Region>,
    ) -> Option<Self> {
        let of_door = if origin == Origin::Api { API } else { "" };
        let key = match scope {
            GuardScope::Prefix => phone.prefix(),
            GuardScope::Range => phone.range(),
            GuardScope::Region => region.as_ref()?.as_str(),
            GuardScope::World => return None,
        };
        Some(Self { scope, key: format!("{of_door}{key}") })
    }

    /// The key that all messages and approvals of `/api` are counted under, whatever their phones.
    pub(crate) fn all_of_api() -> Self {
        Self { scope: GuardScope::World, key: API.to_owned() }
    }

    /// Whether `/api` counts under this key.
    pub(crate) fn is_of_api(&self) -> bool {
        self.key.starts_with(API)
    }
}
