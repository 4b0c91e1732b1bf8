//! The fixtures of the tests: a new database and topic, the binaries, and a gateway.

mod binary;
mod browser;
mod collector;
mod disk;
mod gateway;
mod kafka;
mod kannel;
mod load;
mod pgbouncer;
mod proxy;
mod services;
mod verification;

use std::time::{Duration, Instant};

pub(crate) use binary::{Binary, Running};
pub(crate) use browser::Page;
pub(crate) use collector::{Collector, Span};
pub(crate) use disk::SmallDisk;
pub(crate) use gateway::{Gateway, Sms};
pub(crate) use kafka::{Kafka, Topic};
pub(crate) use kannel::Kannel;
pub(crate) use load::{ACCEPTED, Answers, get, post, post_all, raw};
pub(crate) use pgbouncer::PgBouncer;
pub(crate) use ports::free_port;
pub(crate) use proxy::Proxy;
pub(crate) use services::{Folder, Postgres, Stack, environment};
pub(crate) use verification::{Answer, Client};

/// Waits until `probe` returns a value, and fails after `patience`.
pub(crate) async fn eventually<T>(
    what: &str,
    patience: Duration,
    mut probe: impl AsyncFnMut() -> Option<T>,
) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = probe().await {
            return found;
        }
        assert!(begun.elapsed() < patience, "{what}: not within {patience:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Returns the latest code that the gateway was told to send to a phone.
pub(crate) async fn code_for(gateway: &Gateway, phone: &str) -> String {
    codes_for(gateway, phone, 1).await.pop().unwrap()
}

/// Waits until the gateway was told to send `count` codes to a phone, and returns them.
pub(crate) async fn codes_for(gateway: &Gateway, phone: &str, count: usize) -> Vec<String> {
    let phone = phone.trim_start_matches('+');
    eventually("an SMS", Duration::from_secs(60), async || {
        let received = gateway.received().into_iter();
        let codes: Vec<_> = received.filter(|sms| sms.phone == phone).map(|sms| sms.code).collect();
        (codes.len() >= count).then_some(codes)
    })
    .await
}

pub(crate) fn phone(number: usize) -> String {
    format!("7{number:010}")
}
