//! Tests of the protocol as a model, and of the use cases on ports in memory.

mod memory;
mod pipeline;
mod protocol;
