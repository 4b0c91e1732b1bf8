//! The whole service, as its users have it: the real binaries on real neighbours.

mod dead_letters;
mod embedded;
mod outages;
mod pipeline;
mod requests;
mod settings;
mod shutdown;
mod support;
