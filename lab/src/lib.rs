//! Runs the built service from outside, under load and with injected faults, and checks its
//! promises.
//!
//! Nothing here links a crate of the service, because the tests use the binaries of the release.

pub mod bench;
pub mod chaos;
pub mod kit;
pub mod trial;
