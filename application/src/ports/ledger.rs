use std::{
    collections::HashMap,
    time::{Duration, SystemTime},
};

use domain::{GatewayName, Message, MessageId, PhoneNumber};

use crate::{
    BoxError, TraceParent,
    ports::{Incoming, Lease, Record, Unreadable},
};

/// The delivery ledger of a group: an entry for each message that a consumer of the group has taken
/// over. Each entry ends as exactly one of sent, failed, expired or unknown.
///
/// Entries are *open* until they end: pending, or calling while the gateway is called. The code is
/// wiped when the entry ends.
#[cfg_attr(any(test, feature = "mocks"), mockall::automock)]
#[trait_variant::make(Send)]
pub trait DeliveryLedger: Sync + 'static {
    /// Takes a fetched batch over in one commit: an entry for each message without one, a dead letter
    /// for each unreadable record, and the next offset. Also removes the messages from the outbox.
    ///
    /// A message that the ledger cannot store becomes a dead letter and stays in the outbox. The
    /// others are still taken over, but in more than one commit.
    ///
    /// Returns the new messages, in any order. A message may have its call granted at once, as by
    /// [`start`](Self::start), because the intent is recorded with the entry. It may wait for its
    /// call. Or it has already expired and ends here.
    ///
    /// Entries that ended long ago may have been deleted. A record that is read again after that
    /// counts as new, but its message has expired.
    async fn admit(&self, lease: &Lease, batch: &Batch) -> Result<Admitted, LedgerError>;

    /// Records the intent to call a gateway, with its name, before the call. A call lasts at most
    /// `call_limit`. Or records that an entry waits, or ends.
    ///
    /// The caller may make only the calls that this returns, each of the gateway that it named. Expired
    /// entries end here, whatever was to come next. An entry that has ended, or for which another
    /// consumer calls, is not changed. An interrupted call is recorded as ambiguous.
    ///
    /// The caller must not name a message for which it is calling now. An entry that is recorded as
    /// calling under the same lease is therefore granted again: its intent was committed, but the
    /// caller did not receive the answer.
    ///
    /// An entry whose intent cannot be stored ends as failed, or as unknown if a call for it was in
    /// progress.
    ///
    /// Ends, waits and calls may be recorded in separate commits.
    async fn start(
        &self,
        lease: &Lease,
        starts: &[Start],
        call_limit: Duration,
    ) -> Result<Started, LedgerError>;

    /// Records the outcomes of calls, even if another consumer now owns the partition. The entry keeps
    /// the class of each outcome, and which gateways may have the message because an outcome was
    /// ambiguous.
    ///
    /// An outcome is skipped if its call is no longer the latest call of its entry. If a retry would
    /// come after the message expires, the entry ends as expired. If the texts of an outcome cannot
    /// be stored, it is recorded without them.
    async fn finish(&self, outcomes: &[CallOutcome]) -> Result<Vec<Recorded>, LedgerError>;

    /// Counts the open entries of each phone in a partition.
    async fn open(&self, lease: &Lease) -> Result<Vec<(PhoneNumber, usize)>, LedgerError>;

    /// Returns open entries that are due for a call: the oldest of each phone, if its time has come.
    /// Entries that have never been called for come first.
    ///
    /// Entries that are recorded as calling under the same lease are included. The caller knows for
    /// which of them it is calling. No process is calling for the rest.
    ///
    /// Fails with [`LedgerError::Fenced`] for an earlier owner, which would otherwise take the calls
    /// of the present owner for interrupted ones.
    async fn due(&self, lease: &Lease, limit: usize) -> Result<Vec<Due>, LedgerError>;

    /// Returns the gateways that messages must not go through, because those had the code before and
    /// no receipt came: see [`AwaitedReceipts`](crate::ports::AwaitedReceipts). A message that may go
    /// through all gateways is left out.
    async fn passed_over(
        &self,
        messages: &[MessageId],
    ) -> Result<HashMap<MessageId, Vec<GatewayName>>, LedgerError>;
}

/// The records of one fetch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Batch {
    /// In the order of their offsets.
    pub records: Vec<Record>,
    pub next_offset: i64,
    /// The time to live of a message whose record has no time.
    pub default_ttl: Duration,
    /// Messages whose call is granted with their admission, if they are new, and the gateway to call.
    pub call_now: HashMap<MessageId, GatewayName>,
    /// How long such a call lasts at most.
    pub call_limit: Duration,
}

impl Batch {
    pub fn messages(&self) -> impl Iterator<Item = &Incoming> + Clone {
        self.records.iter().filter_map(Record::message)
    }

    pub fn unreadable(&self) -> impl Iterator<Item = (i64, &Unreadable)> {
        self.records
            .iter()
            .filter_map(|record| Some((record.offset, record.content.as_ref().err()?)))
    }
}

/// The result of [`DeliveryLedger::admit`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Admitted {
    /// Calls that the caller may make now.
    pub calls: Vec<Call>,
    /// New messages that are still to be sent.
    pub fresh: Vec<MessageId>,
    /// New messages that had already expired.
    pub expired: Vec<Recorded>,
    /// Messages that the ledger cannot store.
    pub refused: usize,
    /// The time since the acceptance of each message of `calls` and `fresh`, in any order.
    pub ages: Vec<Duration>,
}

/// The next step of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Start {
    pub id: MessageId,
    pub next: Next,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// Call this gateway.
    Call(GatewayName),
    /// Call this gateway, if each of its daily limits has room for the cost, which is reserved in the same
    /// commit.
    ///
    /// A gateway that may have the message is not paid again for a repeat. If the outcome says that the
    /// gateway does not have the message, `finish` gives the cost back. After a crash in between, the next
    /// call does.
    Buy(GatewayName, Cost),
    /// Be due again after this time, or when the message expires. The message is then pending.
    Wait(Duration),
    /// End without a call, because no gateway takes the message: as failed, or as unknown if a gateway may
    /// have it.
    Fail(FailureReason),
    /// End as unknown, because a gateway may have the message and no call is safe. If none may have it any
    /// more, because a late outcome said so, nothing changes.
    Unknown(&'static str),
}

/// The cost of a call, and the limits that must have room for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cost {
    /// In millionths of the currency.
    pub amount: u64,
    pub limits: Vec<DailyLimit>,
}

/// A limit on what the calls of a gateway cost on a day in UTC.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DailyLimit {
    /// The region or the group of regions that the limit is for. Empty: all of them.
    pub scope: String,
    /// In millionths of the currency.
    pub limit: u64,
}

/// A message in the ledger, still to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Due {
    pub message: Message,
    pub trace: Option<TraceParent>,
    /// Whether a call began under another lease and its outcome was not recorded in time.
    pub interrupted: bool,
    /// Whether the message has expired. `start` will end it.
    pub expired: bool,
    pub past: Past,
}

/// The earlier calls of a message.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Past {
    /// The number of calls that have begun. It is the fencing token of the latest call.
    pub attempts: u32,
    /// The gateway of each call, in order. An interrupted call is included. A grant that the caller did
    /// not receive is not. Of more than 100 calls, the first and the latest are kept.
    pub tried: Vec<GatewayName>,
    /// The gateways that may have the message: a call was interrupted, or its outcome was ambiguous.
    /// Each is named once, and none is forgotten.
    pub ambiguous: Vec<GatewayName>,
    /// The gateways that do not deliver to the number: a call was unroutable. Of more than 100 calls,
    /// the first and the latest are known.
    pub unroutable: Vec<GatewayName>,
    /// The gateways that the message must not go through: see [`DeliveryLedger::passed_over`].
    /// [`DeliveryLedger::due`] leaves them out.
    pub passed_over: Vec<GatewayName>,
}

impl Past {
    /// Whether every gateway may be called for the message.
    pub fn is_new(&self) -> bool {
        self.tried.is_empty() && self.passed_over.is_empty()
    }

    /// Returns how often a gateway was called.
    pub fn tries(&self, gateway: &GatewayName) -> usize {
        self.tried.iter().filter(|tried| *tried == gateway).count()
    }

    /// Notes that a gateway may have the message.
    pub fn may_have(&mut self, gateway: GatewayName) {
        if !self.ambiguous.contains(&gateway) {
            self.ambiguous.push(gateway);
        }
    }
}

/// The result of [`DeliveryLedger::start`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Started {
    /// Calls that the caller may make now.
    pub calls: Vec<Call>,
    /// Entries that ended: those that were to end, and those that have expired.
    pub ended: Vec<Recorded>,
    /// Entries whose cost a daily limit has no room for. They wait as before.
    pub unaffordable: Vec<MessageId>,
}

/// The right to call the named gateway once. `attempt` is the fencing token of its outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Call {
    pub id: MessageId,
    pub attempt: u32,
    pub expires_at: SystemTime,
    /// The time from the grant until the message expires.
    pub good_for: Duration,
}

/// The outcome of a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CallOutcome {
    pub id: MessageId,
    pub attempt: u32,
    pub class: OutcomeClass,
    pub verdict: Verdict,
    /// The gateway's answer in our own words, for operators.
    pub detail: String,
}

/// The class of an outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum OutcomeClass {
    /// The gateway has accepted the SMS.
    Accepted,
    /// No gateway will ever accept this message.
    Rejected,
    /// The gateway does not deliver to this number.
    Unroutable,
    /// The gateway accepts no message with our present settings.
    Misconfigured,
    /// The gateway has not accepted the message, because of a rate limit.
    Throttled,
    /// The gateway is out of order and has not accepted the message.
    Unavailable,
    /// The gateway may have accepted the message.
    Ambiguous,
}

impl OutcomeClass {
    pub const ALL: [Self; 7] = [
        Self::Accepted,
        Self::Rejected,
        Self::Unroutable,
        Self::Misconfigured,
        Self::Throttled,
        Self::Unavailable,
        Self::Ambiguous,
    ];

    /// Whether the gateway surely does not have the message.
    pub const fn is_refusal(self) -> bool {
        !matches!(self, Self::Accepted | Self::Ambiguous)
    }

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Rejected => "rejected",
            Self::Unroutable => "unroutable",
            Self::Misconfigured => "misconfigured",
            Self::Throttled => "throttled",
            Self::Unavailable => "unavailable",
            Self::Ambiguous => "ambiguous",
        }
    }
}

/// The consequence of an outcome.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The gateway has accepted the message. `reference` is the id that it gave, if any. If receipts
    /// name the message by it only, [`Receipts`](crate::ports::Receipts) find the message from this
    /// commit on.
    ///
    /// If a receipt is `awaited`, the same commit hands the message to
    /// [`AwaitedReceipts`](crate::ports::AwaitedReceipts), unless it is delivered already.
    Sent { reference: Option<String>, receipts_by_reference: bool, awaited: Option<AwaitedReceipt> },
    /// The gateway will never accept the message.
    Failed,
    /// The gateway may have accepted the message, and a retry could send it twice.
    Unknown,
    /// The message was not accepted, or a retry is safe: call again after `after`.
    Retry { after: Duration },
}

/// The reason why a message fails without a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FailureReason {
    /// No route has a gateway for the number.
    NoRoute,
    /// Every gateway of the route has used its daily budget up.
    BudgetExhausted,
    /// Every gateway of the route had the code before.
    NoOtherGateway,
}

impl FailureReason {
    pub const ALL: [Self; 3] = [Self::NoRoute, Self::BudgetExhausted, Self::NoOtherGateway];

    /// Returns the word for programs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NoRoute => "no-route",
            Self::BudgetExhausted => "budget-exhausted",
            Self::NoOtherGateway => "no-other-gateway",
        }
    }

    /// Returns the detail for operators.
    pub const fn detail(self) -> &'static str {
        match self {
            Self::NoRoute => "not called: no route has a gateway for this number",
            Self::BudgetExhausted => "not called: the daily budget is used up",
            Self::NoOtherGateway => "not called: every gateway of the route had the code before",
        }
    }

    /// Returns the reason that has this detail.
    pub fn of_detail(detail: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.detail() == detail)
    }
}

/// The receipt that a message needs in time. Without it, the code is sent again through another gateway.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AwaitedReceipt {
    pub within: Duration,
    /// The gateways that the next message must not go through: the one that accepted this message, and
    /// those that may have the code or that do not deliver to the number.
    pub passed_over: Vec<GatewayName>,
}

/// The state of an entry after a change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recorded {
    pub id: MessageId,
    pub state: DeliveryState,
    /// The time since the message was accepted.
    pub age: Duration,
}

/// The state of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DeliveryState {
    Pending,
    Calling,
    Sent,
    Failed,
    Expired,
    Unknown,
}

impl DeliveryState {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Calling => "calling",
            Self::Sent => "sent",
            Self::Failed => "failed",
            Self::Expired => "expired",
            Self::Unknown => "unknown",
        }
    }
}

/// The reason why the ledger did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    #[error("the delivery ledger is unavailable")]
    Unavailable(#[source] BoxError),
    /// Another consumer owns the partition now. Nothing was written.
    #[error("partition {partition} has another owner")]
    Fenced { partition: i32 },
}
