//! Runs the built service from outside, among faults and under load, and judges what it did.
//!
//! Nothing here links a crate of the service: what is tried is what is shipped.

pub mod bench;
pub mod checker;
pub mod clock;
pub mod embedded;
pub mod environment;
pub mod gateway;
pub mod history;
pub mod kafka;
pub mod ledger;
pub mod load;
pub mod logs;
pub mod mutants;
pub mod nemesis;
pub mod phones;
pub mod postgres;
pub mod process;
pub mod proxy;
pub mod report;
pub mod run;
pub mod stage;
pub mod trial;
