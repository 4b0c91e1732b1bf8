//! The ports: what the use cases need from outside.
//!
//! The doc comment of a port is the contract that every adapter is tested against: what is durable,
//! what is atomic, what may repeat, and which order holds. One method is one atomic step. A database
//! transaction begins and ends inside a method, and none is open while the service talks to a broker
//! or a gateway.

mod awaited_receipts;
mod backlog;
mod broker;
mod dead_letters;
mod events;
mod gateway;
mod go_table;
mod guard;
mod health;
mod history;
mod housekeeping;
mod idempotency;
mod keys;
mod leases;
mod ledger;
mod notes;
mod outbox;
mod receipts;
mod secrets;
mod store;
mod stream;
mod verification;
mod verifications;

pub use self::store::StoreError;

// The pipeline of messages.
pub use self::{
    backlog::{Backlog, BacklogSize, Found, Outgoing, Reached, Tenure},
    broker::{BrokerError, MessageBroker},
    dead_letters::{DeadLetter, DeadLetters, Revived},
    gateway::{Accepted, GatewayReceipt, Reported, SendError, Sms, SmsGateway},
    go_table::{GivingBack, GoCounts, GoRow, GoTable, Ids, Stored, Taking},
    health::{FactorChange, GatewayHealth, Measured, Minute, SampledMessage, StoredFactor},
    leases::{Lease, PartitionLeases, Renewed},
    ledger::{
        Admitted, AwaitedReceipt, Batch, Call, CallOutcome, Cost, DailyLimit, DeliveryLedger,
        DeliveryState, Due, FailureReason, LedgerError, Next, OutcomeClass, Past, Recorded, Start,
        Started, Verdict,
    },
    notes::{CallNotes, Noting},
    outbox::{Enqueued, NewSend, Outbox, Storing, Violation},
    stream::{Fetched, Incoming, MessageStream, Record, StartFrom, StreamError, Unreadable},
};

// Verifications.
pub use self::{
    awaited_receipts::{AwaitedReceipts, ExtraSend, Overdue, Rerouting},
    events::{DueEvent, EventClaim, EventOutbox, EventSink, PostError},
    guard::{
        GuardCounts, GuardDecision, GuardDelta, GuardKey, GuardRecords, GuardTotal,
        PastVerification, StoredDecision,
    },
    history::{Event, EventKind, EventReason, History, Receipt},
    housekeeping::Housekeeping,
    idempotency::{Answer, AnswerClaim, Answers, Begun},
    receipts::{NewReceipt, Noted, ReceiptSink, Receipts, StatusSource, Unsettled},
    verification::{CodeSecret, NewSecret, NewVerification, Verification},
    verifications::{
        Approval, Attempt, CheckOutcome, NewTest, Newest, Resend, Resent, Target, Verifications,
    },
};

// Keys of callers and of the service.
pub use self::{
    keys::{ApiKey, ApiKeys, NewApiKey},
    secrets::Secrets,
};

#[cfg(any(test, feature = "mocks"))]
pub use self::{
    awaited_receipts::MockAwaitedReceipts,
    backlog::MockBacklog,
    broker::MockMessageBroker,
    dead_letters::MockDeadLetters,
    events::{MockEventOutbox, MockEventSink},
    gateway::MockSmsGateway,
    go_table::MockGoTable,
    guard::{MockGuardCounts, MockGuardRecords},
    health::MockGatewayHealth,
    idempotency::MockAnswers,
    keys::MockApiKeys,
    leases::MockPartitionLeases,
    ledger::MockDeliveryLedger,
    outbox::MockOutbox,
    receipts::{MockReceipts, MockStatusSource},
    secrets::MockSecrets,
    stream::MockMessageStream,
    verifications::MockVerifications,
};
