//! What the tests stand on: a database and a topic of their own, the binaries, a gateway.

mod binary;
mod gateway;
mod kafka;
mod load;
mod proxy;
mod services;

use std::time::{Duration, Instant};

pub(crate) use binary::{Binary, Running};
pub(crate) use gateway::{Gateway, Sms};
pub(crate) use kafka::{Kafka, Topic};
pub(crate) use load::{ACCEPTED, Answers, get, post, post_all, raw};
pub(crate) use proxy::Proxy;
pub(crate) use services::{Folder, Postgres, Stack};

/// Waits until `probe` gives something, and fails after `patience`.
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

pub(crate) fn phone(number: usize) -> String {
    format!("7{number:010}")
}
