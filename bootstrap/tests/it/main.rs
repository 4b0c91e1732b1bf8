//! Tests of the whole service: the real binaries with a real database, broker and gateway.

mod clients;
mod codes;
mod database;
mod dead_letters;
mod doctor;
mod embedded;
mod events;
mod failover;
mod gateway_health;
mod gateway_receipts;
mod gateways;
mod kannel;
mod keys;
mod limits;
mod outages;
mod page;
mod pipeline;
mod repeats;
mod requests;
mod settings;
mod shutdown;
mod smpp;
mod storage;
mod support;
mod terminal;
mod verification;
