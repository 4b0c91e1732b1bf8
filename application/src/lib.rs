//! What the service does, and what it needs from outside.
//!
//! A use case is a struct with one `execute` (or, if it runs on while it waits, `wait` and `act`):
//! one round, which returns what happened. Loops, timers and signals are in `bootstrap`.
//!
//! `pipeline` takes a message from the outbox to the gateway. `verification` issues codes and checks
//! them. [`ports`] declares what both need from outside; adapters implement it.

mod authorize;
mod error;
mod pipeline;
pub mod ports;
#[cfg(test)]
mod testing;
mod trace;
mod vault;
mod verification;

pub use self::{
    authorize::{Authorize, AuthorizeError},
    error::{BoxError, Chain},
    pipeline::{
        AfterAmbiguous, BudgetStatus, Budgets, DeliverMessages, DeliverSettings, Delivered,
        GatewayLimits, GatewayState, GatewayStatus, GiveBack, GiveBackError, JudgeGateways, Judged,
        Preference, ReceiptsInTime, RegionOf, RelayBatch, RelayError, RelaySettings, Relayed,
        Retried, RetryDeadLetter, RetryError, Route, RoutedGateway, Router, RoutingTable,
        SharePartitions, ShareSettings, Shared, Spent, Submission, SubmitError, SubmitMessage,
        SubmitSettings, TakeOver, TakeOverClaimed, TakeOverError, TakenOver, Tariff,
    },
    trace::{
        Attribute, InvalidTraceParent, Messaging, OpenSpan, Sampler, Span, SpanKind, Spans,
        TraceParent, TracedMessages, Tracer,
    },
    vault::{
        CODE_PEPPER, DrawnKeys, KeySource, Keys, OpenError, OpenVault, PAYLOAD_KEY, Vault,
        VaultClosed, VaultSettings,
    },
    verification::{
        Admission, AnswerError, AnswerOnce, Approved, AskStatus, Asked, Caller, CancelError,
        CancelVerification, CheckCode, CheckError, Checked, Clock, CodeOf, CodeSender, Counting,
        DeliverEvents, EventSettings, FindVerification, FlushGuard, Flushed, Guard,
        NoteGatewayReceipt, NoteReceipt, Posted, ReceiptUrls, Repeatable, ReplayGuard, Replayed,
        ResendError, ResendPolicy, ResendVerification, SendElsewhere, SendPermit, SendRules,
        SendSettings, SentElsewhere, StartError, StartRequest, StartVerification,
    },
};
