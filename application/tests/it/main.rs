//! The protocol as a model, and the use cases on ports in memory.

mod memory;
mod pipeline;
mod protocol;
