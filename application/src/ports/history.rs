use std::{str::FromStr, time::SystemTime};

use domain::{Channel, GatewayName, UnknownWord};

use crate::ports::{FailureReason, Rerouting, Verification};

/// A verification with its events, in their order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct History {
    pub verification: Verification,
    pub events: Vec<Event>,
}

impl History {
    /// Returns the channel of the latest event that follows from a call, or SMS if there is none.
    pub fn channel(&self) -> Channel {
        self.events.iter().rev().find_map(|event| event.channel).unwrap_or_default()
    }
}

/// Something that happened to a verification.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    pub kind: EventKind,
    pub at: SystemTime,
    /// The gateway that was called last, if the event follows from a call. Of [`EventKind::Rerouted`], the
    /// gateway whose receipt is missing.
    pub gateway: Option<GatewayName>,
    /// The channel of that gateway.
    pub channel: Option<Channel>,
    /// Only of [`EventKind::Failed`] and [`EventKind::Rerouted`].
    pub reason: Option<EventReason>,
}

impl Event {
    pub const fn new(kind: EventKind, at: SystemTime) -> Self {
        Self { kind, at, gateway: None, channel: None, reason: None }
    }
}

/// The reason of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventReason {
    /// A message failed without a call.
    Failure(FailureReason),
    /// One more message was stored for another gateway.
    Rerouting(Rerouting),
}

impl EventReason {
    /// Returns the word for programs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Failure(reason) => reason.as_str(),
            Self::Rerouting(reason) => reason.as_str(),
        }
    }

    /// Returns all words.
    pub fn words() -> Vec<&'static str> {
        let failures = FailureReason::ALL.map(FailureReason::as_str);
        let reroutings = Rerouting::ALL.map(Rerouting::as_str);
        failures.into_iter().chain(reroutings).collect()
    }
}

/// The kind of an event. The order of the variants is the order of events at the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum EventKind {
    Created,
    /// A message was stored in the outbox.
    Queued,
    /// The broker has the message.
    Published,
    /// The gateway has accepted the message.
    Sent,
    /// The gateway reports that the handset has the message.
    Delivered,
    /// The message will not arrive.
    Failed,
    /// One more message with the code was stored, for another gateway, because a receipt is missing.
    Rerouted,
    Approved,
    Expired,
    Canceled,
    /// The guard blocked a message. This is only an outgoing event, because no verification exists.
    Blocked,
}

/// A delivery receipt: what a gateway later reports about a message that it accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Receipt {
    /// The handset has the message.
    Delivered,
    /// The handset will not receive the message.
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

impl FromStr for Receipt {
    type Err = UnknownWord;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|receipt| receipt.as_str() == text).ok_or(UnknownWord)
    }
}

impl EventKind {
    pub const ALL: [Self; 11] = [
        Self::Created,
        Self::Queued,
        Self::Published,
        Self::Sent,
        Self::Delivered,
        Self::Failed,
        Self::Rerouted,
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
            Self::Rerouted => "rerouted",
            Self::Approved => "approved",
            Self::Expired => "expired",
            Self::Canceled => "canceled",
            Self::Blocked => "blocked",
        }
    }
}

impl FromStr for EventKind {
    type Err = UnknownWord;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == text).ok_or(UnknownWord)
    }
}
