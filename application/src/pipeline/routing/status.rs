use domain::GatewayName;

use crate::ports::OutcomeClass;

/// The state of a gateway as this process sees it.
#[derive(Debug, Clone, PartialEq)]
pub struct GatewayStatus {
    pub name: GatewayName,
    pub state: GatewayState,
    /// The number of calls that are chosen or in progress.
    pub in_flight: usize,
    /// This process's share of the limit on them.
    pub in_flight_limit: Option<usize>,
    /// How many of the last calls failed, and how many calls that are: at most 20 since the breaker
    /// closed. Failed calls to one number count as one.
    pub failed_of_last: (usize, usize),
    pub failures_in_a_row: usize,
    /// Whether it is open, and has said since then that the account or a setting is wrong.
    pub is_misconfigured: bool,
    /// How often the breaker has opened since the process started.
    pub openings: u64,
    /// The calls that ended since the process started, by the class of their outcome.
    pub outcomes: Vec<(OutcomeClass, u64)>,
    /// The calls that ended in a second, averaged over about half a minute.
    pub per_second: f64,
}

/// Whether a gateway is given messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum GatewayState {
    /// It is given messages.
    Closed,
    /// It leaves calls without an outcome, and is given messages only if no other gateway can take them.
    Silent,
    /// It is given one message, which decides whether it gets more.
    HalfOpen,
    /// It is given no message.
    Open,
    /// An operator has taken it out.
    Drained,
}

impl GatewayState {
    pub const ALL: [Self; 5] =
        [Self::Closed, Self::Silent, Self::HalfOpen, Self::Open, Self::Drained];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Silent => "silent",
            Self::HalfOpen => "half_open",
            Self::Open => "open",
            Self::Drained => "drained",
        }
    }
}
