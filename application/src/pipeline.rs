//! The way of a message: into the outbox, to the broker, and to a gateway.

mod dead_letters;
mod deliver;
mod health;
mod relay;
mod routing;
mod share;
mod submit;
mod take_over;

pub use self::{
    dead_letters::{Retried, RetryDeadLetter, RetryError},
    deliver::{DeliverMessages, DeliverSettings, Delivered},
    health::{JudgeGateways, Judged},
    relay::{RelayBatch, RelayError, RelaySettings, Relayed},
    routing::{
        AfterAmbiguous, BudgetStatus, Budgets, GatewayLimits, GatewayState, GatewayStatus,
        Preference, ReceiptsInTime, RegionOf, Route, RoutedGateway, Router, RoutingTable, Spent,
        Tariff,
    },
    share::{SharePartitions, ShareSettings, Shared},
    submit::{Submission, SubmitError, SubmitMessage, SubmitSettings},
    take_over::{GiveBack, GiveBackError, TakeOver, TakeOverClaimed, TakeOverError, TakenOver},
};
