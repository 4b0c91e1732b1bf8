//! The conditions that a run must not violate.

use std::fmt;

use serde::Serialize;

/// The conditions that must always hold. Reports use these names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Invariant {
    /// Every accepted message ends in one state, and the state is true.
    Lost,
    /// No gateway takes a message twice or is called again without a cause, and a second gateway
    /// takes it only if `ambiguous = "next"` allows it.
    Doubled,
    /// Messages take the second gateway soon after the first fails, and the first soon after it
    /// works again.
    Failover,
    /// Every message that is sent was asked for.
    Phantom,
    /// No stored offset goes back.
    Offset,
    /// No process writes after it lost its lease.
    Epoch,
    /// Messages to one phone keep their order.
    Order,
    /// After the faults, everything that waits gets done.
    Stuck,
    /// Memory and connections are bounded.
    Memory,
    /// The topic holds few copies.
    Repeats,
    /// An outcome is unknown only after an ambiguous call.
    Unknown,
    /// The API gives a documented answer in time.
    Answer,
    /// No number and no code is in a log.
    Log,
    /// No process ends by itself.
    Crash,
}

/// A broken promise.
#[derive(Debug, Clone, Serialize)]
pub struct Violation {
    pub invariant: Invariant,
    /// The message, the masked phone, the partition or the process.
    pub subject: String,
    /// The complaint, with the evidence.
    pub detail: String,
}

/// A message that ended as unknown, and the cause that allows it.
#[derive(Debug, Clone, Serialize)]
pub struct UnknownOutcome {
    pub id: String,
    pub cause: String,
}

/// The result of a check.
#[derive(Debug, Default)]
pub struct Judgement {
    pub violations: Vec<Violation>,
    pub unknowns: Vec<UnknownOutcome>,
}

impl Invariant {
    pub const ALL: [Self; 14] = [
        Self::Lost,
        Self::Doubled,
        Self::Failover,
        Self::Phantom,
        Self::Offset,
        Self::Epoch,
        Self::Order,
        Self::Stuck,
        Self::Memory,
        Self::Repeats,
        Self::Unknown,
        Self::Answer,
        Self::Log,
        Self::Crash,
    ];

    pub fn of_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|invariant| invariant.to_string() == name)
    }
}

impl fmt::Display for Invariant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Lost => "lost",
            Self::Doubled => "doubled",
            Self::Failover => "failover",
            Self::Phantom => "phantom",
            Self::Offset => "offset",
            Self::Epoch => "epoch",
            Self::Order => "order",
            Self::Stuck => "stuck",
            Self::Memory => "memory",
            Self::Repeats => "repeats",
            Self::Unknown => "unknown",
            Self::Answer => "answer",
            Self::Log => "log",
            Self::Crash => "crash",
        })
    }
}
