//! What the use cases need from outside.
//!
//! The doc comment of a port is the contract that every adapter is tested against: what is
//! durable, what is atomic, what may repeat, what order holds. One method is one atomic step; a
//! database transaction begins and ends inside it, and none is open while we talk to a network.

mod backlog;
mod broker;
mod dead_letters;
mod events;
mod gateway;
mod guard;
mod idempotency;
mod keys;
mod leases;
mod ledger;
mod outbox;
mod secrets;
mod stream;
mod verifications;

pub use backlog::*;
pub use broker::*;
pub use dead_letters::*;
pub use events::*;
pub use gateway::*;
pub use guard::*;
pub use idempotency::*;
pub use keys::*;
pub use leases::*;
pub use ledger::*;
pub use outbox::*;
pub use secrets::*;
pub use stream::*;
pub use verifications::*;
