use std::time::{Duration, SystemTime};

use domain::{GuardRule, GuardScope, Origin, PhoneNumber, Region, Rolling, VerificationId};

use crate::ports::StoreError;

/// The messages and approvals that all processes have counted, by prefix, range and region.
#[cfg_attr(any(test, feature = "mocks"), mockall::automock)]
#[trait_variant::make(Send)]
pub trait GuardCounts: Sync + 'static {
    /// Adds counts and stores decisions in one commit. Returns for each key of `deltas`, in any
    /// order, what all processes have counted in about the last two windows and the last two days.
    ///
    /// A delta may be zero; then its key is only read. Buckets change by the database clock, as
    /// [`Rolling::later`] describes. If events are configured, each decision that blocked a message is
    /// also an event. After an error the counts may have been stored.
    async fn add(
        &self,
        deltas: &[GuardDelta],
        decisions: &[GuardDecision],
        window: Duration,
    ) -> Result<Vec<GuardTotal>, StoreError>;
}

/// The past and the decisions of the guard, for operators.
#[cfg_attr(any(test, feature = "mocks"), mockall::automock)]
#[trait_variant::make(Send)]
pub trait GuardRecords: Sync + 'static {
    /// Returns verifications of `/v1` of the last `since`, ordered by creation: up to `limit` after
    /// `after`, the last one that the caller has.
    async fn past(
        &self,
        since: Duration,
        after: Option<(SystemTime, VerificationId)>,
        limit: usize,
    ) -> Result<Vec<PastVerification>, StoreError>;

    /// Returns decisions of the last `since`, newest first. Decisions of one flush are ordered by rule
    /// and key.
    async fn decisions(
        &self,
        since: Duration,
        limit: usize,
    ) -> Result<Vec<StoredDecision>, StoreError>;

    /// Exempts `keys` from all rules for `period`.
    async fn allow(&self, keys: &[GuardKey], period: Duration) -> Result<(), StoreError>;
}

/// A key under which messages are counted.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GuardKey {
    pub scope: GuardScope,
    /// A prefix, a range or a region. Keys of `/api` begin with `api:`.
    pub key: String,
}

/// The numbers to add to the counts of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuardDelta {
    pub key: GuardKey,
    pub sends: u64,
    pub approvals: u64,
}

/// The counts of a key, over all processes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuardTotal {
    pub key: GuardKey,
    /// Counts by the window of the guard.
    pub window: Rolling,
    /// Counts by [`domain::Activity::DAY`].
    pub day: Rolling,
    /// Whether an operator has exempted the key from all rules.
    pub allowed: bool,
}

/// A rule that fired for a key. A rule in [`domain::GuardMode::Enforce`] blocked the message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuardDecision {
    pub rule: GuardRule,
    /// The kind of `key`.
    pub scope: GuardScope,
    pub key: String,
    pub sends: u64,
    pub approvals: u64,
    /// The verification whose message was sent although the rule fired.
    pub verification: Option<VerificationId>,
    /// The masked phone, for the event. It is not stored with the decision.
    pub phone: String,
}

/// A decision as it was stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredDecision {
    pub decided_at: SystemTime,
    /// The text of the [`GuardRule`].
    pub rule: String,
    pub key: String,
    pub sends: u64,
    pub approvals: u64,
    pub verification: Option<VerificationId>,
}

/// A verification of the past, as a replay needs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PastVerification {
    pub id: VerificationId,
    pub phone: PhoneNumber,
    pub region: Option<Region>,
    pub sends: u8,
    pub created_at: SystemTime,
    pub approved_at: Option<SystemTime>,
}

impl GuardKey {
    /// The prefix of the keys of `/api`.
    pub const API: &str = "api:";
    /// The region of digits that have none, on `/api`.
    pub const NO_REGION: &str = "?";

    /// Returns what a phone is counted under in a scope. `None` if the phone has no region, or if
    /// the scope is the world.
    ///
    /// On `/api`, a phone without a region is no number of any plan. All of these are one region, as
    /// they are to `LIMIT_REGION`.
    pub(crate) fn of(
        scope: GuardScope,
        origin: Origin,
        phone: &PhoneNumber,
        region: Option<Region>,
    ) -> Option<Self> {
        let of_origin = if origin == Origin::Api { Self::API } else { "" };
        let key = match scope {
            GuardScope::Prefix => phone.prefix(),
            GuardScope::Range => phone.range(),
            GuardScope::Region => match &region {
                Some(region) => region.as_str(),
                None if origin == Origin::Api => Self::NO_REGION,
                None => return None,
            },
            GuardScope::World => return None,
        };
        Some(Self { scope, key: format!("{of_origin}{key}") })
    }

    /// The key that all messages and approvals of `/api` are counted under, whatever their phones.
    pub(crate) fn all_of_api() -> Self {
        Self { scope: GuardScope::World, key: Self::API.to_owned() }
    }

    /// Whether `/api` counts under this key.
    pub(crate) fn is_of_api(&self) -> bool {
        self.key.starts_with(Self::API)
    }
}
