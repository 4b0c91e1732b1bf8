use std::time::Duration;

use application::ports::{Next, Start};
use domain::GatewayName;
use serde_json::{Map, Value};

use crate::database::{Parameters, millis};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// What one statement begins: all are calls, or all wait.
#[derive(Debug, Clone, Copy)]
pub(super) struct Starts<'a>(pub(super) &'a [&'a Start]);

pub(super) fn is_call(start: &Start) -> bool {
    matches!(start.next, Next::Call(_))
}

impl Starts<'_> {
    /// Adds the gateway of the first call as `gateway`, and those of calls of another gateway as
    /// `others`.
    pub(super) fn with_gateways(self, parameters: Parameters) -> Parameters {
        let gateways = self.0.iter().filter_map(|start| match &start.next {
            Next::Call(gateway) => Some((start, gateway)),
            Next::Wait(_) => None,
        });
        let usual = gateways.clone().next().map(|(_, gateway)| gateway);
        let others = gateways
            .filter(|(_, gateway)| Some(*gateway) != usual)
            .map(|(start, gateway)| (start.id.as_uuid().to_string(), gateway.as_str().into()));
        let usual = usual.map_or(GatewayName::DEFAULT, GatewayName::as_str);
        self.with_ids(parameters)
            .with("gateway", usual)
            .with("others", Value::from(others.collect::<Map<_, _>>()))
    }

    /// Adds the milliseconds to wait as `waits`: at most a day, which no entry outlives.
    pub(super) fn with_waits(self, parameters: Parameters) -> Parameters {
        let waits = self.0.iter().filter_map(|start| match start.next {
            Next::Wait(wait) => Some((start.id, millis(wait.min(DAY)))),
            Next::Call(_) => None,
        });
        let waits = waits.map(|(id, wait)| (id.as_uuid().to_string(), wait.into()));
        self.with_ids(parameters).with("waits", Value::from(waits.collect::<Map<_, _>>()))
    }

    fn with_ids(self, parameters: Parameters) -> Parameters {
        parameters.list("ids", self.0.iter().map(|start| start.id.as_uuid()))
    }
}
