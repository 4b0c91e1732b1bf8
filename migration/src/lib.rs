//! The database schema, on PostgreSQL and on SQLite.
//!
//! A migration must work with the code before and after it: add, move the data, remove later. Each
//! has a `down`, which the conformance tests of `adapters-persistence` run. Each alters one table:
//! the running service locks several tables in its own orders, and a transaction that waits for two
//! of them can deadlock with it.

pub use sea_orm_migration::{MigratorTrait, migrator::MigrationStatus};
use sea_orm_migration::{
    async_trait,
    prelude::{DbErr, MigrationTrait, SchemaManager},
    sea_orm::{ConnectionTrait, DbBackend},
};

mod m20261122_000001_pipeline;
mod m20261122_000002_attempts;
mod m20261122_000003_published_at;
mod m20261122_000004_seen_until;
mod m20261123_000001_verification;
mod m20261123_000002_admitted_at;
mod m20261123_000003_receipts;
mod m20261123_000004_taken_over;
mod m20261123_000005_decisions;
mod m20261130_000001_write_probe;
mod m20261130_000005_api_newest;
mod m20261130_000006_guard_days;
mod m20261130_000007_gateways;
mod m20261130_000010_gateway_receipt;
mod m20261130_000012_gateway_state;
mod m20261130_000020_gateway_spending;
mod m20261130_000021_reserved;
mod m20261130_000060_awaited_receipt;
mod m20261130_000061_extra_send;
mod m20261130_000062_extra_sends;
mod m20261130_000070_gateway_health;
mod m20261130_000080_gateway_note;
mod m20261130_000081_gateway_channel;
mod m20261130_000090_event_reason;
mod m20261130_000100_receipt_attempt;
mod m20261201_200081_transit_ends;

/// All migrations, oldest first.
#[derive(Debug)]
pub struct Migrator;

#[async_trait::async_trait]
impl MigratorTrait for Migrator {
    fn migrations() -> Vec<Box<dyn MigrationTrait>> {
        vec![
            Box::new(m20261122_000001_pipeline::Migration),
            Box::new(m20261122_000002_attempts::Migration),
            Box::new(m20261122_000003_published_at::Migration),
            Box::new(m20261122_000004_seen_until::Migration),
            Box::new(m20261123_000001_verification::Migration),
            Box::new(m20261123_000002_admitted_at::Migration),
            Box::new(m20261123_000003_receipts::Migration),
            Box::new(m20261123_000004_taken_over::Migration),
            Box::new(m20261123_000005_decisions::Migration),
            Box::new(m20261130_000001_write_probe::Migration),
            Box::new(m20261130_000005_api_newest::Migration),
            Box::new(m20261130_000006_guard_days::Migration),
            Box::new(m20261130_000007_gateways::Migration),
            Box::new(m20261130_000010_gateway_receipt::Migration),
            Box::new(m20261130_000012_gateway_state::Migration),
            Box::new(m20261130_000020_gateway_spending::Migration),
            Box::new(m20261130_000021_reserved::Migration),
            Box::new(m20261130_000060_awaited_receipt::Migration),
            Box::new(m20261130_000061_extra_send::Migration),
            Box::new(m20261130_000062_extra_sends::Migration),
            Box::new(m20261130_000070_gateway_health::Migration),
            Box::new(m20261130_000080_gateway_note::Migration),
            Box::new(m20261130_000081_gateway_channel::Migration),
            Box::new(m20261130_000090_event_reason::Migration),
            Box::new(m20261130_000100_receipt_attempt::Migration),
            Box::new(m20261201_200081_transit_ends::Migration),
        ]
    }
}

/// Runs the statements of the connected database.
async fn run(
    manager: &SchemaManager<'_>,
    postgres: &'static str,
    sqlite: &'static str,
) -> Result<(), DbErr> {
    let sql = match manager.get_database_backend() {
        DbBackend::Sqlite => sqlite,
        _ => postgres,
    };
    manager.get_connection().execute_unprepared(sql).await.map(|_| ())
}
