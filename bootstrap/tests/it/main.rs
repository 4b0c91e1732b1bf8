//! The whole service, as its users have it: the real binaries on real neighbours.

mod clients;
mod codes;
mod database;
mod dead_letters;
mod embedded;
mod events;
mod keys;
mod limits;
mod outages;
mod page;
mod pipeline;
mod repeats;
mod requests;
mod settings;
mod shutdown;
mod storage;
mod support;
mod verification;
