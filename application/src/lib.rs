//! What the service does, and what it needs from outside.
//!
//! A use case is a struct with one `execute` (or, where work runs on while it waits, `wait` and
//! `act`): one round, which returns what happened. Loops, timers and signals are in `bootstrap`.
//! The ports are what the use cases need, in their own words; adapters implement them.

mod deliver;
mod error;
pub mod ports;
mod relay;
mod retry;
mod share;
mod submit;
mod trace;

pub use deliver::{DeliverMessages, DeliverSettings, Delivered};
pub use error::{BoxError, Chain};
pub use relay::{RelayBatch, RelayError, RelaySettings, Relayed};
pub use retry::{Retried, RetryDeadLetter, RetryError};
pub use share::{SharePartitions, ShareSettings, Shared};
pub use submit::{SubmitMessage, SubmitSettings};
pub use trace::{InvalidTraceParent, TraceParent};
