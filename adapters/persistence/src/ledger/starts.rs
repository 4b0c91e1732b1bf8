use std::time::Duration;

use application::ports::{Next, Start};
use domain::GatewayName;
use serde_json::{Map, Value};

use crate::{
    database::{Parameters, millis},
    events::reasons,
};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// The step of a statement. All entries that it names take it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    Fail,
    /// Ends only entries that a gateway may have.
    Unknown,
    Wait,
    /// Calls that daily limits must have room for.
    Buy,
    Call,
}

/// The entries of one statement. All have the same step.
#[derive(Debug, Clone, Copy)]
pub(super) struct Starts<'a>(pub(super) &'a [&'a Start]);

impl Step {
    /// In the order in which they are done. Calls come last, because a grant that is not answered costs
    /// an attempt.
    pub(super) const ALL: [Self; 5] =
        [Self::Fail, Self::Unknown, Self::Wait, Self::Buy, Self::Call];

    pub(super) fn of(start: &Start) -> Self {
        match start.next {
            Next::Fail(_) => Self::Fail,
            Next::Unknown(_) => Self::Unknown,
            Next::Wait(_) => Self::Wait,
            Next::Call(_) => Self::Call,
            Next::Buy(..) => Self::Buy,
        }
    }
}

impl Starts<'_> {
    /// Adds what the statement of a step needs to know of the entries.
    pub(super) fn with(self, step: Step, parameters: Parameters) -> Parameters {
        let parameters = self.with_ids(parameters);
        match step {
            Step::Buy | Step::Call => self.with_gateways(parameters),
            // At most a day, which no entry outlives.
            Step::Wait => parameters.with(
                "waits",
                self.by_id(|next| match next {
                    Next::Wait(wait) => Some(millis(DAY.min(*wait)).into()),
                    _ => None,
                }),
            ),
            Step::Fail | Step::Unknown => parameters
                .with("details", self.by_id(|next| detail(next).map(Value::from)))
                .with("reasons", reasons())
                .with("only_in_doubt", step == Step::Unknown),
        }
    }

    pub(super) fn with_ids(self, parameters: Parameters) -> Parameters {
        parameters.list("ids", self.0.iter().map(|start| start.id.as_uuid()))
    }

    /// Adds the gateway of the first call as `gateway`, and those of calls of another gateway as
    /// `others`.
    fn with_gateways(self, parameters: Parameters) -> Parameters {
        let usual = self.0.iter().find_map(|start| gateway(&start.next));
        let usual = usual.unwrap_or(GatewayName::DEFAULT);
        let others = self.by_id(|next| gateway(next).filter(|it| *it != usual).map(Value::from));
        parameters.with("gateway", usual).with("others", others)
    }

    /// An object with a value for some of the entries, by the id of the message.
    fn by_id(self, value: impl Fn(&Next) -> Option<Value>) -> Value {
        let entries = self.0.iter();
        let values = entries.filter_map(|it| Some((it.id.as_uuid().to_string(), value(&it.next)?)));
        Value::from(values.collect::<Map<_, _>>())
    }
}

fn gateway(next: &Next) -> Option<&str> {
    match next {
        Next::Call(gateway) | Next::Buy(gateway, _) => Some(gateway.as_str()),
        _ => None,
    }
}

fn detail(next: &Next) -> Option<&'static str> {
    match next {
        Next::Fail(reason) => Some(reason.detail()),
        Next::Unknown(detail) => Some(*detail),
        _ => None,
    }
}
