//! The conformance suite of the ports, for both databases.

mod admission;
mod awaited_receipts;
mod channels;
mod checks;
mod deliveries;
mod events;
mod examinations;
mod forgetting;
mod gateway_receipts;
mod gateway_states;
mod gateways;
mod go_table;
mod guards;
mod health;
mod hosts;
mod housekeeping;
mod idempotency;
mod keys;
mod limits;
mod messages;
mod notes;
mod overviews;
mod partitions;
mod pgbouncer;
mod plans;
mod privileges;
mod queue;
mod receipts;
mod refusals;
mod resends;
mod schemas;
mod shared_commits;
mod silence;
mod spending;
mod starts;
mod stories;
mod support;
mod tls;
mod transactions;

/// Runs each test of a module on PostgreSQL and on SQLite, each on a database of its own.
macro_rules! on_both_databases {
    ($($test:ident),* $(,)?) => {
        mod postgres {
            $(#[tokio::test]
            async fn $test() {
                if let Some(database) = crate::tests::support::postgres().await {
                    super::$test(database).await;
                }
            })*
        }

        mod sqlite {
            $(#[tokio::test]
            async fn $test() {
                let (database, _folder) = crate::tests::support::sqlite().await;
                super::$test(database).await;
            })*
        }
    };
}
use on_both_databases;
