use std::{collections::HashMap, fmt};

use serde::Serialize;

use crate::{
    chaos::history::{History, Incident},
    kit::{clock::Moment, tables::Ledger},
};

/// Within this time of a fault, messages that were accepted after it began leave through the second
/// gateway.
pub(super) const TO_SECOND: Moment = 5_000;
/// Within this time of its end, the first gateway is used again.
pub(super) const TO_FIRST: Moment = 60_000;

/// How messages went round a fault of the first gateway. Times are in milliseconds.
#[derive(Debug, Clone, Serialize)]
pub struct Failover {
    pub fault: String,
    /// From the beginning of the fault until the second gateway took a message that was accepted
    /// since.
    pub to_second: Option<Moment>,
    /// From the end of the fault until the first gateway took a message.
    pub to_first: Option<Moment>,
}

impl Failover {
    pub fn of(history: &History, ledger: &Ledger, outage: &Incident) -> Self {
        let Incident { kind, from, to, .. } = outage;
        let accepted: HashMap<&str, Moment> =
            ledger.entries.iter().map(|entry| (&*entry.id, entry.accepted_at)).collect();
        let is_later = |id: &str| accepted.get(id).is_some_and(|accepted_at| *accepted_at >= *from);
        let end = to.unwrap_or(Moment::MAX);
        let to_second = history
            .taken_by(1, *from)
            .find(|call| call.began_at <= end && is_later(&call.id))
            .map(|call| call.began_at - from);
        let to_first = history.taken_by(0, end).next().map(|call| call.began_at - end);
        Self { fault: kind.clone(), to_second, to_first }
    }
}

impl fmt::Display for Failover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |time: Option<Moment>| {
            time.map_or_else(|| "never".to_owned(), |time| format!("after {time} ms"))
        };
        let (second, first) = (shown(self.to_second), shown(self.to_first));
        write!(f, "the second gateway {second}, the first again {first}")
    }
}
