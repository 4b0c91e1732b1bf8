//! The ports that store things, on PostgreSQL and on SQLite.
//!
//! Each step is one statement if PostgreSQL can do it in one, and one short transaction otherwise.
//! If the databases differ by a few words, a statement has two texts, side by side; if they need
//! different algorithms, each has a file of its own. One conformance suite holds both to the ports'
//! contracts.

mod awaited_receipts;
mod backlog;
mod coalesce;
mod database;
mod dead_letters;
mod events;
mod examination;
mod forgetting;
mod gateways;
mod go_table;
mod guard;
mod health;
mod housekeeping;
mod idempotency;
mod keys;
mod leases;
mod ledger;
mod limits;
mod notes;
mod outbox;
mod overview;
mod phones;
mod queue;
mod receipts;
mod refusal;
mod schema;
mod secrets;
mod storage;
mod stories;
mod takedown;
mod verification_row;
mod verifications;

pub use awaited_receipts::SqlAwaitedReceipts;
pub use backlog::SqlBacklog;
pub use database::{
    AdmitError, CertificateFile, Database, DatabaseError, DatabaseSettings, Events, Evidence,
    MigrationLockError, PostgresHost, PostgresSettings, SslClientCert, SslMode, SslRootCert,
};
pub use dead_letters::SqlDeadLetters;
pub use events::SqlEventOutbox;
pub use examination::{COUNTED, Examination, Pipeline, Server, examine};
pub use forgetting::{Erased, SqlForgetting, Traces};
pub use gateways::{GatewayReport, ReportedGateway, SqlGateways};
pub use go_table::{NoGoTable, SqlGoTable};
pub use guard::SqlGuard;
pub use health::SqlGatewayHealth;
pub use housekeeping::{Expired, SqlHousekeeping};
pub use idempotency::SqlAnswers;
pub use keys::SqlApiKeys;
pub use leases::SqlPartitionLeases;
pub use ledger::SqlDeliveryLedger;
pub use limits::{Cleared, clear_limits};
pub use notes::SqlCallNotes;
pub use outbox::{CoalescingOutbox, OutboxSettings};
pub use overview::{BadEnd, Many, Overview, PartitionState, overview};
pub use queue::{EmbeddedQueue, EmbeddedQueueSettings};
pub use receipts::SqlReceipts;
pub use schema::{SchemaError, check_schema};
pub use secrets::{FileSecrets, SqlSecrets};
pub use storage::{Part, StorageError, check_storage};
pub use stories::{
    Awaited, EndedCall, ExtraMessage, LOOKED_AT, LedgerEntry, Looked, MessageStory, PhoneStories,
    SqlStories, Story, UnpostedEvent, WaitingMessage,
};
pub use takedown::{Loss, loss, take_alone};
pub use verifications::SqlVerifications;

#[cfg(test)]
mod tests;
