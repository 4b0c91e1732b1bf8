//! Assembles the service: configuration, telemetry, the loops around the use cases, and the end.
//!
//! The binaries are inventories; what they share is here.

pub mod broker;
pub mod cli;
pub mod config;
mod consumer;
pub mod dead_letters;
pub mod descriptors;
mod environment;
pub mod metrics;
mod process;
mod relay;
mod report;
pub mod roles;
mod telemetry;

pub use process::Process;
pub use report::Audience;

/// Gives back to the system what a crowd of connections took. The C library's allocator keeps it:
/// its arenas are cut up by what outlives the crowd.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;
