use std::{
    collections::HashSet,
    time::{Duration, SystemTime},
};

use domain::{Message, MessageId, PhoneNumber};

use crate::{
    BoxError, TraceParent,
    ports::{Incoming, Lease, Record, Unreadable},
};

/// What a group knows of the delivery of each message: once it stands here, it is the ledger's,
/// and the ledger sees to it that it ends as exactly one of sent, failed, expired, unknown.
///
/// Each group has its own. Entries are *open* (pending, or calling while the gateway is called)
/// until they end; a code is wiped when its entry ends.
#[cfg_attr(any(test, feature = "mocks"), mockall::automock)]
#[trait_variant::make(Send)]
pub trait DeliveryLedger: Sync + 'static {
    /// Takes a fetched batch over, in one commit: an entry for each message that has none yet,
    /// a dead letter for each unreadable record, and the offset to go on from.
    ///
    /// A message that the ledger cannot store becomes a dead letter, and stays where it was in the
    /// outbox; those beside it are taken over, then in more than one commit.
    ///
    /// Takes the messages out of the outbox. Returns, in any order, which of them are new: those
    /// that may be called for at once, as by [`start`](Self::start), since the intent is recorded
    /// with the entry; those that are still to be sent; and those that have expired already, and
    /// so end here. Entries that ended long ago may have been deleted: a record that is read again
    /// after that counts as new, but its message has expired.
    async fn admit(&self, lease: &Lease, batch: &Batch) -> Result<Admitted, LedgerError>;

    /// Records the intent to call the gateway, before the call, for at most `call_limit`.
    ///
    /// Only those calls that it returns may be made. Entries that have expired end here; one that
    /// has ended, or that another consumer is calling for, is left alone.
    ///
    /// A caller does not name what it is calling for. So one that is recorded as called for under
    /// this very lease is granted again: its intent was committed and its caller never heard.
    ///
    /// An entry whose intent cannot be stored ends as failed, or as unknown if it was being called
    /// for.
    async fn start(
        &self,
        lease: &Lease,
        ids: &[MessageId],
        call_limit: Duration,
    ) -> Result<Started, LedgerError>;

    /// Records the outcomes of calls, also after the partition went to another consumer. The entry
    /// keeps the class of each.
    ///
    /// An outcome whose call is no longer the latest of its entry is passed over. A retry that
    /// would come after the message expires ends it as expired. An outcome whose texts cannot be
    /// stored is recorded without them.
    async fn finish(&self, outcomes: &[CallOutcome]) -> Result<Vec<Recorded>, LedgerError>;

    /// How many open entries each phone has in a partition that was just taken over.
    async fn open(&self, lease: &Lease) -> Result<Vec<(PhoneNumber, usize)>, LedgerError>;

    /// Open entries that wait for a call now: for each phone its oldest, and only if its time
    /// has come. Those that would be called for the first time come first.
    ///
    /// What is recorded as called for under this very lease is among them: the caller knows for
    /// which of them it is calling, and that nobody is for the others.
    ///
    /// Fenced: an owner of before must not take the calls of the present one for interrupted.
    async fn due(&self, lease: &Lease, limit: usize) -> Result<Vec<Due>, LedgerError>;
}

/// What one fetch brought.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Batch {
    /// In the order of their offsets.
    pub records: Vec<Record>,
    pub next_offset: i64,
    /// How long a message may be sent whose record says nothing of time.
    pub default_ttl: Duration,
    /// Messages to call for with their admission, if they are new, for at most `call_limit`.
    pub call_now: HashSet<MessageId>,
    pub call_limit: Duration,
}

impl Batch {
    pub fn messages(&self) -> impl Iterator<Item = &Incoming> + Clone {
        self.records.iter().filter_map(|record| record.content.as_ref().ok())
    }

    pub fn unreadable(&self) -> impl Iterator<Item = (i64, &Unreadable)> {
        self.records
            .iter()
            .filter_map(|record| Some((record.offset, record.content.as_ref().err()?)))
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Admitted {
    pub calls: Vec<Call>,
    pub fresh: Vec<MessageId>,
    pub expired: Vec<Recorded>,
    /// Messages that the ledger cannot store.
    pub refused: usize,
}

/// A message in the ledger, still to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Due {
    pub message: Message,
    pub trace: Option<TraceParent>,
    /// A call was begun, under another lease, of which no outcome was recorded in its time.
    pub interrupted: bool,
    /// Calls begun so far.
    pub attempt: u32,
    /// It can only be ended: `start` will say so.
    pub expired: bool,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Started {
    pub calls: Vec<Call>,
    /// What ended instead.
    pub ended: Vec<Recorded>,
}

/// A right to call the gateway once. `attempt` fences its outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Call {
    pub id: MessageId,
    pub attempt: u32,
    pub expires_at: SystemTime,
    /// From the moment of the grant until the message expires.
    pub good_for: Duration,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CallOutcome {
    pub id: MessageId,
    pub attempt: u32,
    pub class: OutcomeClass,
    pub verdict: Verdict,
    /// What the gateway said, in our words: what an operator needs.
    pub detail: String,
}

/// What a call of the gateway came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum OutcomeClass {
    /// The gateway has the SMS.
    Accepted,
    /// The gateway will never take this message.
    Rejected,
    /// The gateway takes nothing from us as things are set up.
    Misconfigured,
    /// The gateway does not take it now, and has not taken it.
    Throttled,
    /// The gateway is out of order, and has not taken it.
    Unavailable,
    /// The gateway may have taken it.
    Ambiguous,
}

impl OutcomeClass {
    pub const ALL: [Self; 6] = [
        Self::Accepted,
        Self::Rejected,
        Self::Misconfigured,
        Self::Throttled,
        Self::Unavailable,
        Self::Ambiguous,
    ];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Rejected => "rejected",
            Self::Misconfigured => "misconfigured",
            Self::Throttled => "throttled",
            Self::Unavailable => "unavailable",
            Self::Ambiguous => "ambiguous",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The gateway has accepted it, under a name of its own if it gave one.
    Sent { reference: Option<String> },
    /// The gateway will never accept it.
    Failed,
    /// The gateway may have accepted it, and a repeat could send it twice.
    Unknown,
    /// It was not accepted, or a repeat is safe: call again after a while.
    Retry { after: Duration },
}

/// What became of an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recorded {
    pub id: MessageId,
    pub state: DeliveryState,
    /// Since the message was accepted.
    pub age: Duration,
}

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

#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    #[error("the delivery ledger is unavailable")]
    Unavailable(#[source] BoxError),
    /// The partition has another owner now. Nothing was written.
    #[error("partition {partition} has another owner")]
    Fenced { partition: i32 },
}
