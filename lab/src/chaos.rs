//! Faults under load, and a checker that judges the promises of the service afterwards.

pub mod checker;
pub mod embedded;
pub mod faults;
pub mod findings;
pub mod gateways;
pub mod history;
pub mod invariants;
pub mod logs;
pub mod mutants;
pub mod nemesis;
pub mod phases;
pub mod report;
pub mod run;
pub mod traffic;
