//! The ports that keep things, on PostgreSQL and on SQLite.
//!
//! Each step is one statement where PostgreSQL can say it in one, and one short transaction
//! otherwise. Statements are written twice, side by side, where the two databases differ; one
//! conformance suite holds both to the ports' contracts.

mod backlog;
mod database;
mod dead_letters;
mod events;
mod guard;
mod housekeeping;
mod idempotency;
mod keys;
mod leases;
mod ledger;
mod limits;
mod outbox;
mod queue;
mod refusal;
mod schema;
mod secrets;
mod storage;
mod takedown;
mod verifications;

pub use backlog::SqlBacklog;
pub use database::{
    AdmitError, Database, DatabaseSettings, MigrationLockError, PostgresSettings, SslMode,
    SslRootCert,
};
pub use dead_letters::SqlDeadLetters;
pub use events::SqlEventOutbox;
pub use guard::SqlGuard;
pub use housekeeping::{Expired, SqlHousekeeping};
pub use idempotency::SqlAnswers;
pub use keys::SqlApiKeys;
pub use leases::SqlPartitionLeases;
pub use ledger::SqlDeliveryLedger;
pub use limits::{Cleared, clear_limits};
pub use outbox::{CoalescingOutbox, OutboxSettings};
pub use queue::{EmbeddedQueue, EmbeddedQueueSettings};
pub use schema::{SchemaError, check_schema};
pub use secrets::{FileSecrets, SqlSecrets};
pub use storage::{Evidence, Part, StorageError, check_storage};
pub use takedown::{Loss, loss, take_alone};
pub use verifications::SqlVerifications;

#[cfg(test)]
mod tests;
