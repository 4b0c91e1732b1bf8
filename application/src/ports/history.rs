use std::time::SystemTime;

use crate::ports::Verification;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct History {
    pub verification: Verification,
    pub events: Vec<Event>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Event {
    pub kind: EventKind,
    pub at: SystemTime,
}

/// What happens to a verification, in the order in which it does where the times are the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum EventKind {
    Created,
    /// A message is in the outbox.
    Queued,
    /// It is with the broker.
    Published,
    /// The gateway has it.
    Sent,
    /// The handset has it, says the gateway.
    Delivered,
    /// It will not come.
    Failed,
    Approved,
    Expired,
    Canceled,
    /// The guard refused to begin one. It is told to others only: there is no verification.
    Blocked,
}

/// What a gateway tells, some time later, of a message that it took.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Receipt {
    /// The handset has it.
    Delivered,
    /// The handset will not get it.
    Undelivered,
}

impl Receipt {
    pub const ALL: [Self; 2] = [Self::Delivered, Self::Undelivered];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Delivered => "delivered",
            Self::Undelivered => "undelivered",
        }
    }
}

impl EventKind {
    pub const ALL: [Self; 10] = [
        Self::Created,
        Self::Queued,
        Self::Published,
        Self::Sent,
        Self::Delivered,
        Self::Failed,
        Self::Approved,
        Self::Expired,
        Self::Canceled,
        Self::Blocked,
    ];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Queued => "queued",
            Self::Published => "published",
            Self::Sent => "sent",
            Self::Delivered => "delivered",
            Self::Failed => "failed",
            Self::Approved => "approved",
            Self::Expired => "expired",
            Self::Canceled => "canceled",
            Self::Blocked => "blocked",
        }
    }
}
