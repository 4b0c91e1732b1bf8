//! What the use cases need from outside.
//!
//! The doc comment of a port is the contract that every adapter is tested against: what is
//! durable, what is atomic, what may repeat, what order holds. One method is one atomic step; a
//! database transaction begins and ends inside it, and none is open while we talk to a network.

mod backlog;
mod broker;
mod dead_letters;
mod gateway;
mod leases;
mod ledger;
mod outbox;
mod stream;

pub use backlog::*;
pub use broker::*;
pub use dead_letters::*;
pub use gateway::*;
pub use leases::*;
pub use ledger::*;
pub use outbox::*;
pub use stream::*;
