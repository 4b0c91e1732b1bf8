//! Assembles the service: settings, telemetry, the loops around the use cases, and the shutdown.
//!
//! Each binary only lists its roles, in `binaries` or in `bin/messager.rs`. The rest is code that they
//! share.

mod banner;
pub mod binaries;
pub mod broker;
pub mod cli;
pub mod config;
mod consumer;
pub mod descriptors;
mod environment;
pub mod metrics;
mod operator;
mod periodic;
mod pools;
mod process;
mod random;
pub mod receipts;
mod relay;
mod report;
pub mod roles;
mod spans;
pub mod status;
mod telemetry;
mod watched_files;

pub use pools::Pool;
pub use process::Process;
pub use report::Audience;

/// Returns the memory of closed connections to the system. The C library's allocator keeps it,
/// because what lives longer fragments its arenas.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;
